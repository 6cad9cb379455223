"""Filters with packets on both sides, in batches. No protocol of its own.

One read of a socket brings many packets and one flush sends many; passing them through a stack one by one would cost
more than what the layers do with them. Downwards ``writeSequence`` is the batch; upwards it is
:class:`IPacketReceiver`. Whoever knows neither still gets each packet by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from twisted.internet.interfaces import IProtocol
from zope.interface import Interface, implementer

from mikanet.filters.base import Filter, Kind
from mikanet.interfaces import IPacketTransport


class IPacketReceiver(Interface):
    """An upper side that takes packets in batches."""

    def packets_received(packets: Sequence[bytes]) -> None:  # noqa: N805  # interfaces have no self
        """Packets from below, in the order in which they came."""

    def recovered_received(packets: Sequence[bytes]) -> None:  # noqa: N805
        """Packets that were lost and have been rebuilt: late, and no witness of the time that a packet takes."""


def deliver(upper: IProtocol, packets: Sequence[bytes]) -> None:
    """Give packets to whatever is above: at once if it takes batches, else one by one."""
    if IPacketReceiver.providedBy(upper):
        cast(IPacketReceiver, upper).packets_received(packets)
    else:
        for packet in packets:
            upper.dataReceived(packet)


def deliver_recovered(upper: IProtocol, packets: Sequence[bytes]) -> None:
    """The same for rebuilt packets."""
    if IPacketReceiver.providedBy(upper):
        cast(IPacketReceiver, upper).recovered_received(packets)
    else:
        for packet in packets:
            upper.dataReceived(packet)


@implementer(IPacketTransport, IPacketReceiver)
class PacketFilter(Filter):
    """Passes packets on unchanged; subclasses change :meth:`packets_received` and :meth:`writeSequence`.

    :cvar overhead: bytes that a packet grows by on its way down.
    """

    lower_kind = Kind.PACKETS
    upper_kind = Kind.PACKETS
    overhead = 0

    __slots__ = ()

    @property
    def max_packet_size(self) -> int:
        """Largest packet that ``write`` takes."""
        return cast(int, cast(IPacketTransport, self._lower()).max_packet_size) - self.overhead

    def dataReceived(self, data: bytes) -> None:
        """One packet from below."""
        self.packets_received((data,))

    def packets_received(self, packets: Sequence[bytes]) -> None:
        """As :class:`IPacketReceiver`."""
        deliver(self.upper, packets)

    def recovered_received(self, packets: Sequence[bytes]) -> None:
        """As :class:`IPacketReceiver`."""
        deliver_recovered(self.upper, packets)

    def write(self, data: bytes) -> None:
        """Send one packet."""
        self.writeSequence((data,))

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send packets."""
        if self.transport is not None:
            self.transport.writeSequence(iovec)
