"""Carriers in processes of their own, for tests on real sockets: see :mod:`tests.carriers.bulk`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.processes import Process

#: Starts a command: Process itself, or a namespace's ``start``.
Start = Callable[[Sequence[str]], Process]


def start_server(url: str, start: Start = Process) -> Process:
    """A server that takes orders."""
    return start([sys.executable, "-m", "tests.carriers.bulk", "server", url])


def run_client(
    url: str, up: int = 0, down: int = 0, *, pings: int = 3, timeout: float = 60, start: Start = Process
) -> Any:
    """One order; what the client measured.

    :raises AssertionError: with its output, if it gave no result.
    """
    words = ["client", url, "--up", str(up), "--down", str(down), "--pings", str(pings)]
    return _result(start([sys.executable, "-m", "tests.carriers.bulk", *words]), timeout)


def run_handshakes(url: str, count: int, *, timeout: float = 120, start: Start = Process) -> Any:
    """So many carriers at once."""
    return _result(
        start([sys.executable, "-m", "tests.carriers.bulk", "handshakes", url, "--count", str(count)]), timeout
    )


def _result(process: Process, timeout: float) -> Any:
    try:
        process.wait(timeout)
        output = process.output
    finally:
        process.kill()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise AssertionError(f"no result\n{output}")
    return json.loads(lines[-1])
