"""What a raw TCP port is set to. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from mikanet.errors import ConfigError
from mikanet.wire.tcp import DEFAULT_FLAGS

#: How a raw port names a peer: its address as text (the way :mod:`ipaddress` writes it) and its TCP port.
RawPeer = tuple[str, int]

#: Receive buffers of the kernel, in bytes, as paqet's: whole windows of many sessions must fit.
CLIENT_BUFFER, SERVER_BUFFER = 4 << 20, 8 << 20

#: Backends: AF_PACKET, or libpcap through pcap-ct (the extra ``mikanet[pcap]``).
BACKENDS = ("packet", "pcap")


@dataclass(frozen=True, slots=True)
class FamilyPath:
    """How packets of one address family leave.

    :ivar source: our address.
    :ivar router_mac: the station that all packets are sent to; None sends each peer's packets to the station that the
        latest packet of this peer came from (for servers that have no router).
    """

    source: IPv4Address | IPv6Address
    router_mac: bytes | None = None


@dataclass(frozen=True, slots=True)
class RawSettings:
    """One raw TCP port.

    :ivar interface: name of the interface.
    :ivar port: our TCP port; 0 takes a free one of 32768..65535.
    :ivar ipv4: and :ivar ipv6: at least one.
    :ivar flags: our own flag list, as numbers (:func:`mikanet.wire.tcp.parse_flags`), used in turn.
    :ivar sockbuf: receive buffer of the kernel.
    :ivar only: take packets of this peer only (clients: the server).
    :ivar firewall: install rules against the kernel's own answers, and remove them at the end.
    :ivar backend: one of :data:`BACKENDS`.
    :ivar mac: our own station, when it is not the interface's.
    :raises ConfigError: if something does not fit.
    """

    interface: str
    port: int
    ipv4: FamilyPath | None = None
    ipv6: FamilyPath | None = None
    flags: tuple[int, ...] = (DEFAULT_FLAGS,)
    sockbuf: int = CLIENT_BUFFER
    only: RawPeer | None = None
    firewall: bool = False
    backend: str = "packet"
    mac: bytes | None = None

    def __post_init__(self) -> None:
        if self.ipv4 is None and self.ipv6 is None:
            raise ConfigError("a raw port needs an IPv4 or an IPv6 address")
        if not self.flags:
            raise ConfigError("a flag list has at least one entry")
        if self.backend not in BACKENDS:
            raise ConfigError(f"{self.backend!r} is not a backend: give one of {', '.join(BACKENDS)}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"{self.port} is not a port")
