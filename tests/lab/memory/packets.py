"""A packet link in memory: two packet transports joined by a wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IConsumer,
    IProducer,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.interfaces import IPacketTransport
from tests.lab.link import Delivery, Record
from tests.lab.memory.carrier import PacketCarrier, client_address
from tests.lab.scenario import Direction, Scenario


@implementer(IPacketTransport, ITCPTransport, IConsumer, IPushProducer)
class PacketEnd:
    """One end of a packet wire. It loses, repeats and reorders packets as the scenario says, and never pushes back.

    Closing is local, as with UDP: the other end is told nothing.

    :ivar protocol: who gets the packets.
    :ivar sent: how many packets were written here, ``received`` how many were handed over.
    """

    def __init__(self, wire: Wire, direction: Direction, host: IPv4Address, max_packet_size: int) -> None:
        self.max_packet_size = max_packet_size
        self.protocol: IProtocol | None = None
        self.sent = self.received = self.oversized = 0
        self._wire = wire
        self._direction = direction
        self._host = host

    def attach(self, protocol: IProtocol) -> None:
        """Connect a protocol to this end."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        """Send one packet."""
        if self.protocol is None:
            return
        if len(data) > self.max_packet_size:
            self.oversized += 1
            return
        self.sent += 1
        self._wire.send(self._direction, bytes(data))

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send each piece as a packet."""
        for packet in iovec:
            self.write(packet)

    def deliver(self, packet: bytes) -> None:
        """Hand a packet to the protocol, if there still is one."""
        if self.protocol is not None:
            self.received += 1
            self.protocol.dataReceived(packet)

    def loseConnection(self) -> None:
        """Let go of this end."""
        self._lose(error.ConnectionDone())

    stopProducing = loseConnection

    def abortConnection(self) -> None:
        """Let go of this end at once."""
        self._lose(error.ConnectionAborted())

    def loseWriteConnection(self) -> None:
        """Packets have no half-close."""

    def _lose(self, reason: Exception) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            self._wire.clock.callLater(0, protocol.connectionLost, Failure(reason))

    def getPeer(self) -> IPv4Address:
        """The other end; a client's address changes when the wire rebinds it."""
        return self._wire.address(self._direction.opposite)

    def getHost(self) -> IPv4Address:
        """This end."""
        return self._host

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """A packet link is never full: the producer is never paused."""

    def unregisterProducer(self) -> None:
        """As above."""

    def pauseProducing(self) -> None:
        """Packets that nobody takes would be lost; this link hands them over all the same."""

    def resumeProducing(self) -> None:
        """As above."""

    def getTcpNoDelay(self) -> bool:
        """There is nothing to delay."""
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is nothing to set."""

    def getTcpKeepAlive(self) -> bool:
        """There is nothing to keep alive."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """There is nothing to set."""


class Wire(PacketCarrier):
    """A packet wire between two ends, ``first`` (the client) and ``second``.

    :ivar link: the :class:`~tests.lab.link.Link`, with its counts of what was done.
    """

    def __init__(
        self,
        scenario: Scenario | str,
        seed: int | str,
        clock: IReactorTime,
        *,
        log: Callable[[Record], object] | None = None,
        max_packet_size: int = 65507,
    ) -> None:
        super().__init__(scenario, seed, clock, log)
        self._binding = 0
        self.first = PacketEnd(self, Direction.UP, self.address(Direction.UP), max_packet_size)
        self.second = PacketEnd(self, Direction.DOWN, self.address(Direction.DOWN), max_packet_size)

    def address(self, direction: Direction) -> IPv4Address:
        """The address of the sender of a direction, as the other end last saw it."""
        if direction is Direction.UP:
            return IPv4Address("UDP", *client_address(self.scenario, "10.0.0.1", 40000, self._binding))
        return IPv4Address("UDP", "10.0.0.2", 4000)

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.direction is Direction.UP:
            self._binding = delivery.binding
            self.second.deliver(delivery.packet)
        else:
            self.first.deliver(delivery.packet)
