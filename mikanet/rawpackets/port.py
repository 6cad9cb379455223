"""The raw TCP port: sealed packets of many peers in TCP-shaped packets, sent and read below the kernel's TCP.

Beside :class:`mikanet.kcp.udp.UdpPackets` it is the second implementation of
:class:`~mikanet.kcp.ports.IPacketPort`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.kcp.ports import IPacketPort
from mikanet.rawpackets.settings import RawPeer, RawSettings

#: Called with a peer and the payloads of packets that came from it, in order; both checksums of each were right.
PacketsReceived = Callable[[RawPeer, list[bytes]], None]


@implementer(IPacketPort)
class RawTcpPort:
    """A raw TCP port. Make it, then :meth:`startListening`, once, before privileges are dropped.

    A client makes one for each of its connections and keeps it when it reconnects: only conv changes. A server has one.

    :param on_packets: as :data:`PacketsReceived`.
    :param counters: what happened is counted under ``rawpackets.*``.
    :ivar port: our TCP port, also when the settings said 0.
    :ivar max_packet_size: largest payload that fits the interface; larger ones are dropped, counted, and said once.
    """

    def __init__(
        self, reactor: Any, settings: RawSettings, on_packets: PacketsReceived, counters: Counters | None = None
    ) -> None:
        raise NotImplementedError

    def startListening(self) -> None:
        """Take the port, install the firewall rules if they are wanted, open the raw socket, look for kernel RSTs.

        :raises ConfigError: in one line what is wrong and which command mends it: no right to open raw sockets, no such
            interface, the port in use, or a kernel that answers the peer's packets with RST.
        """

    def stopListening(self) -> Deferred[None] | None:
        """Close everything and remove the rules."""

    def send_packets(self, peer: RawPeer, packets: Sequence[bytes]) -> None:
        """As :class:`IPacketPort`: each packet becomes one TCP segment. Never raises; what cannot be sent is lost."""

    def set_flags(self, peer: RawPeer, flags: Sequence[int]) -> None:
        """Use a peer's own flag list (its PTCPF message) from its first entry on; an empty one restores ours.

        Entries with RST, or without any of S, A, P, F, U, are skipped (Q7). Call with an empty list when the peer's
        session ends: lists are kept for at most 4,096 peers.
        """

    def address_of(self, peer: RawPeer) -> IAddress:
        """As :class:`IPacketPort`."""
        raise NotImplementedError

    def host_address(self) -> IAddress:
        """As :class:`IPacketPort`."""
        raise NotImplementedError

    @staticmethod
    def source_of(peer: RawPeer) -> int:
        """The IPv4 address, or the /64 of an IPv6 one (X3)."""
        raise NotImplementedError
