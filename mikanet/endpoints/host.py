"""``host:HOST:PORT[:timeout=30]``: TCP with happy eyeballs over all addresses of a name."""

from __future__ import annotations

from typing import Any

from mikanet.address import Address, parse_port
from mikanet.errors import ConfigError
from mikanet.net.endpoint import TcpEndpoint


def parse_client(reactor: Any, host: str, port: str, timeout: str = "30") -> TcpEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong.
    """
    try:
        seconds = float(timeout)
    except ValueError:
        raise ConfigError(f"timeout is a number of seconds, not {timeout!r}") from None
    return TcpEndpoint(reactor, Address(host, parse_port(port)), seconds)
