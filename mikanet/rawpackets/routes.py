"""What a set-up leaves out and the kernel's tables know: interface, source address, router. Linux, through netlink."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a destination.

    :ivar router_mac: of the next hop; None if there is none (a server without a default route) or it does not answer.
    """

    interface: str
    mac: bytes
    mtu: int
    source: IPv4Address | IPv6Address
    gateway: IPv4Address | IPv6Address | None
    router_mac: bytes | None


def find_route(destination: IPv4Address | IPv6Address | None, interface: str = "", family: int = 4) -> Route:
    """The way to ``destination``; with None, that of the default route of a family (4 or 6).

    Blocks for up to two seconds when the next hop's station is not known yet and must be asked for.

    :param interface: look on this one only.
    :raises ConfigError: in one line, if there is no such way or no such interface.
    """
    raise NotImplementedError
