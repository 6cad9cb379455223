"""What a set-up leaves out and the kernel's tables know: interface, source address, router. Linux, through netlink."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from mikanet.errors import ConfigError
from mikanet.rawpackets.device import interface_mtu
from mikanet.wire.ethernet import parse_mac

#: Addresses of documentation (RFC 5737, 3849, 9637): no packet is sent there; only the default route leads to them. Two
#: of each, should a link use one's network all the same.
_ANYWHERE: dict[int, tuple[IPv4Address | IPv6Address, ...]] = {
    4: (IPv4Address("192.0.2.1"), IPv4Address("203.0.113.1")),
    6: (IPv6Address("2001:db8::1"), IPv6Address("3fff::1")),
}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
#: Seconds for a neighbour to answer.
NEIGHBOUR_TIME = 2.0
#: States of a neighbour whose station is known (<linux/neighbour.h>): reachable, stale, delay, probe, noarp, permanent.
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
#: Those of them that the kernel learned and may have to learn anew: reachable, stale, delay, probe.
_DYNAMIC = 0x02 | 0x04 | 0x08 | 0x10
_DISCARD_PORT = 9
#: So long a neighbour is not forgotten again, in seconds; and when each was.
_FORGET_AGAIN = 30.0
_forgotten: dict[tuple[IPv4Address | IPv6Address, int], float] = {}
#: Interface, source and gateway.
_Way = tuple[int, IPv4Address | IPv6Address, IPv4Address | IPv6Address | None]


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a destination.

    :ivar gateway: None if the destination is on the link itself.
    :ivar router_mac: of the next hop; None if there is none (a server without a default route) or it does not answer.
    """

    interface: str
    mac: bytes
    mtu: int
    source: IPv4Address | IPv6Address
    gateway: IPv4Address | IPv6Address | None
    router_mac: bytes | None


def find_route(
    destination: IPv4Address | IPv6Address | None,
    interface: str = "",
    family: int = 4,
    patience: float = NEIGHBOUR_TIME,
    fresh: bool = False,
) -> Route:
    """The way to ``destination``; with None, that of the default route of a family (4 or 6).

    Blocks for up to ``patience`` when the next hop's station is not known yet and must be asked for.

    :param fresh: have the next hop asked for its station again where the kernel has not heard of it lately, as another
        machine may have its address now.
    :param interface: look on this one only. Without a default route it is then enough that it has an address.
    :raises ConfigError: in one line, if there is no such way or no such interface.
    """
    # Imported here: it takes a while, and only set-ups that leave something out need it.
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        only = _interface_index(interface) if interface else 0
        found = _default_way(netlink, family, only) if destination is None else _ask(netlink, destination, only)
        if found is None and destination is None and only:
            source = _first_address(netlink, only, family)
            if source is not None:
                return Route(interface, _mac(netlink, only), interface_mtu(interface), source, None, None)
        if found is None:
            raise ConfigError(_no_way(destination, interface, family))
        index, source, gateway = found
        name = socket.if_indextoname(index)
        next_hop = gateway or destination
        router_mac = None if next_hop is None else find_neighbour(netlink, next_hop, index, patience, fresh)
        return Route(name, _mac(netlink, index), interface_mtu(name), source, gateway, router_mac)


def _no_way(destination: IPv4Address | IPv6Address | None, interface: str, family: int) -> str:
    on = f" on {interface}" if interface else ""
    if destination is None:
        return (
            f"there is no IPv{family} default route{on}: give network.interface, which is enough for a server on a link "
            f"without a router, or ipv{family}.addr and ipv{family}.router_mac too (ip -{family} route shows the routes)"
        )
    return f"there is no way to {destination}{on} (ip route get {destination} says what the kernel thinks)"


def _interface_index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise ConfigError(f"there is no interface {interface}; ip link lists the interfaces") from None


def _default_way(netlink: Any, family: int, only: int) -> _Way | None:
    """That of a default route with a router; a link without one has nothing that could be a default route."""
    for towards in _ANYWHERE[family]:
        found = _ask(netlink, towards, only)
        if found is not None and found[2] is not None:
            return found
    return None


def _ask(netlink: Any, towards: IPv4Address | IPv6Address, only: int) -> _Way | None:
    """Interface, source and gateway that the kernel would use."""
    wanted: dict[str, Any] = {"dst": str(towards), "family": _FAMILY[towards.version]}
    if only:
        wanted["oif"] = only
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        (answer, *_) = netlink.route("get", **wanted)
    except NetlinkError:
        return None
    source = answer.get_attr("RTA_PREFSRC")
    gateway = answer.get_attr("RTA_GATEWAY")
    if gateway is None and (via := answer.get_attr("RTA_VIA")):
        gateway = via["addr"]
    index = answer.get_attr("RTA_OIF")
    if source is None or index is None:
        return None
    return int(index), ip_address(source), None if gateway is None else ip_address(gateway)


def _first_address(netlink: Any, index: int, family: int) -> IPv4Address | IPv6Address | None:
    """The first address of an interface, link-local ones last."""
    texts = [message.get_attr("IFA_ADDRESS") for message in netlink.get_addr(index=index, family=_FAMILY[family])]
    found = sorted((ip_address(text) for text in texts if text), key=lambda address: address.is_link_local)
    return found[0] if found else None


def _mac(netlink: Any, index: int) -> bytes:
    (link, *_) = netlink.get_links(index)
    text = link.get_attr("IFLA_ADDRESS")
    try:
        return parse_mac(text or "")
    except ValueError:
        raise ConfigError(f"interface {link.get_attr('IFLA_IFNAME')} is not Ethernet") from None


def find_neighbour(
    netlink: Any, address: IPv4Address | IPv6Address, index: int, patience: float = NEIGHBOUR_TIME, fresh: bool = False
) -> bytes | None:
    """The station of a neighbour, which the kernel is made to ask for if it does not know; None if nobody answers."""
    if fresh:
        _forget_neighbour(netlink, address, index)
    until = time.monotonic() + patience
    asked = False
    while True:
        for message in netlink.get_neighbours(family=_FAMILY[address.version], ifindex=index):
            if message.get_attr("NDA_DST") == str(address) and message["state"] & _KNOWN:
                with contextlib.suppress(ValueError):
                    return parse_mac(message.get_attr("NDA_LLADDR") or "")
        if time.monotonic() > until:
            return None
        if not asked:
            _ask_for(address, index)
            asked = True
        time.sleep(0.05)


def _forget_neighbour(netlink: Any, address: IPv4Address | IPv6Address, index: int) -> None:
    """Have the kernel ask for a station that it only remembers. It would go on to use that for some ten seconds, and our
    packets, which it does not see, never make it doubt. Without the right to, the old answer has to do."""
    from pyroute2.netlink.exceptions import NetlinkError

    now = time.monotonic()
    if now - _forgotten.get((address, index), -_FORGET_AGAIN) < _FORGET_AGAIN:
        return  # others of this machine use the same neighbour
    _forgotten[address, index] = now
    with contextlib.suppress(NetlinkError):
        for message in netlink.get_neighbours(family=_FAMILY[address.version], ifindex=index):
            if message.get_attr("NDA_DST") == str(address) and message["state"] & _DYNAMIC:
                netlink.neigh("del", dst=str(address), ifindex=index, family=_FAMILY[address.version])


def _ask_for(address: IPv4Address | IPv6Address, index: int) -> None:
    """Send one byte to the discard port: for that the kernel must find the station."""
    with socket.socket(_FAMILY[address.version], socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        any_socket.sendto(b"\0", (str(address), _DISCARD_PORT, *((0, index) if address.version == 6 else ())))


def own_addresses(interface: str) -> list[IPv4Address | IPv6Address]:
    """The addresses of an interface.

    :raises ConfigError: if there is no such interface.
    """
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        messages = netlink.get_addr(index=_interface_index(interface))
        return [ip_address(text) for message in messages if (text := message.get_attr("IFA_ADDRESS"))]


def other_interfaces(than: str) -> list[str]:
    """The other interfaces of this machine that packets may come in on; loopback is none."""
    return [name for _, name in socket.if_nameindex() if name not in (than, "lo")]
