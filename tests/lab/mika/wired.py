"""Mika with a wire in front of its server."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Self

from tests.lab.load import one_request
from tests.lab.recording import streams
from tests.lab.target import Target
from tests.lab.tunnels import MikaTunnel
from tests.support.processes import Process, free_port


class Wired:
    """A tunnel with a wire in front of its server."""

    def __init__(self, scenario: str, refusal_time: float = 2.0) -> None:
        self.wire_port = free_port()
        self.tunnel = MikaTunnel(refusal_time=refusal_time, through=self.wire_port)
        self.file = self.tunnel.folder / "flights"
        command = [sys.executable, "-m", "tests.lab", "wire", scenario.format(file=self.file)]
        command += ["--tcp", f"{self.wire_port}=127.0.0.1:{self.tunnel.server_port}"]
        self.wire = Process(command, ports=[self.wire_port])

    def __enter__(self) -> Self:
        try:
            self.tunnel.__enter__()
        except BaseException:
            self.wire.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.tunnel.close()
        self.wire.stop()


class Recorded(Wired):
    """A wire that records what clients send."""

    def __init__(self, refusal_time: float) -> None:
        super().__init__("record@up={file}", refusal_time)

    async def record(self, target: Target, count: int, per_second: float) -> list[bytes]:
        """``count`` good connections, one after the other at an even pace; what each client sent first."""
        before = len(self._flights())
        started = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number / per_second - time.monotonic()))
            await one_request(self.tunnel, target, 100)
        flights = self._flights()[before:]
        assert len(flights) == count, f"{len(flights)} flights for {count} connections"
        return flights

    def _flights(self) -> list[bytes]:
        return streams(self.file)
