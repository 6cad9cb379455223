"""A byte stream in memory: two TCP-like transports joined by a wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProducer,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.lab.link import Record
from tests.lab.memory.carrier import read_scenario
from tests.lab.scenario import Carrier, Direction, Scenario
from tests.lab.stream import StreamLink
from tests.lab.timer import Timer

#: Bytes under way at which a stream end asks its producer to pause, as Twisted's transports do.
HIGH_WATER = 65536


@implementer(ITCPTransport, IConsumer, IPushProducer)
class StreamEnd:
    """One end of a stream wire: behaves as Twisted's TCP transport does, half-close and producers included.

    :ivar written: bytes written here, ``received`` bytes handed over.
    """

    def __init__(self, wire: StreamWire, direction: Direction, host: IPv4Address, peer: IPv4Address) -> None:
        self.protocol: IProtocol | None = None
        self.written = self.received = 0
        self.disconnecting = False
        self._wire = wire
        self._direction = direction
        self._host, self._peer = host, peer
        self._producer: IProducer | None = None
        self._streaming = False
        self._producer_paused = False
        self._write_ended = False
        self._write_end_told = False
        self._lost = False

    @property
    def connected(self) -> bool:
        """Whether the protocol still has this transport."""
        return self.protocol is not None and not self._lost

    def attach(self, protocol: IProtocol) -> None:
        """Connect a protocol to this end."""
        self.protocol = protocol
        protocol.makeConnection(self)

    # -- what the protocol calls

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._lost or self._write_ended or self.disconnecting or not data:
            return
        self.written += len(data)
        self._wire.link.send(self._direction, bytes(data), self._wire.clock.seconds())
        self._flow()
        self._wire.arm()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send the pieces as one run of bytes."""
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        """End after everything written has left (and the producer, if there is one, has been unregistered)."""
        if not self._lost:
            self.disconnecting = True
            self._try_close()

    stopProducing = loseConnection

    def loseWriteConnection(self) -> None:
        """End our direction after everything written."""
        if not self._lost and not self._write_ended:
            self._write_ended = True
            self._wire.link.end(self._direction, self._wire.clock.seconds())
            self._wire.arm()
            if not self.disconnecting:
                self._tell_write_end()

    def abortConnection(self) -> None:
        """Reset the connection: the other end sees no clean end."""
        if not self._lost:
            self._wire.link.reset(self._direction, self._wire.clock.seconds())
            self.lose(error.ConnectionAborted())
            self._wire.arm()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Let a producer be paused while too much is under way."""
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if self._lost:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._producer_paused = producer, streaming, False
        if not streaming:
            cast(Any, producer).resumeProducing()
        else:
            self._flow()

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        self._producer = None
        if self.disconnecting:
            self._try_close()

    def pauseProducing(self) -> None:
        """Take nothing from the other end for now."""
        self._wire.link.pause(self._direction.opposite, True)

    def resumeProducing(self) -> None:
        """Take bytes again."""
        self._wire.link.pause(self._direction.opposite, False)
        self._wire.arm()

    def getPeer(self) -> IPv4Address:
        """The other end."""
        return self._peer

    def getHost(self) -> IPv4Address:
        """This end."""
        return self._host

    def getTcpNoDelay(self) -> bool:
        """Nothing is delayed but by the scenario."""
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There is nothing to set."""

    def getTcpKeepAlive(self) -> bool:
        """There is nothing to keep alive."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """There is nothing to set."""

    # -- what the wire calls

    def arrived(self, data: bytes) -> None:
        """Bytes for the protocol. If it has closed, the sender gets a reset, as from a kernel."""
        if self._lost:
            self._wire.link.reset(self._direction, self._wire.clock.seconds())
        elif self.protocol is not None:
            self.received += len(data)
            self.protocol.dataReceived(data)

    def ended(self) -> None:
        """The other end sends no more."""
        if self._lost or self.protocol is None:
            return
        if IHalfCloseableProtocol.providedBy(self.protocol):
            # As in Twisted, two closed halves are still a connection, until someone says loseConnection.
            cast(IHalfCloseableProtocol, self.protocol).readConnectionLost()
        else:
            self.loseWriteConnection()
            self.lose(error.ConnectionDone())

    def lose(self, reason: Exception) -> None:
        """The connection is gone; the protocol is told on the next turn of the clock."""
        if self._lost:
            return
        self._lost = True
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        if self.protocol is not None:
            self._wire.clock.callLater(0, self.protocol.connectionLost, Failure(reason))

    def moved(self) -> None:
        """Bytes of ours have arrived: a paused producer may go on, a waiting close may be done."""
        empty = not self._wire.link.waiting(self._direction)
        if self._producer is not None and empty and (self._producer_paused or not self._streaming):
            self._producer_paused = False
            cast(Any, self._producer).resumeProducing()
        if self.disconnecting:
            self._try_close()
        elif self._write_ended:
            self._tell_write_end()

    def _flow(self) -> None:
        if self._producer is None or not self._streaming or self._producer_paused:
            return
        if self._wire.link.waiting(self._direction) > HIGH_WATER:
            self._producer_paused = True
            cast(IPushProducer, self._producer).pauseProducing()

    def _tell_write_end(self) -> None:
        if self._write_end_told or self._wire.link.waiting(self._direction):
            return
        self._write_end_told = True
        protocol: Any = self.protocol
        if IHalfCloseableProtocol.providedBy(protocol):
            self._wire.clock.callLater(0, protocol.writeConnectionLost)

    def _try_close(self) -> None:
        if self._producer is not None or self._lost:
            return
        self.loseWriteConnection()
        if not self._wire.link.waiting(self._direction):
            self.lose(error.ConnectionDone())


class StreamWire:
    """A byte stream between two ends, ``first`` (the client) and ``second``, across one wire.

    ``cut()`` ends the connection from outside, as a middlebox does.
    """

    def __init__(
        self,
        scenario: Scenario | str,
        seed: int | str,
        clock: IReactorTime,
        *,
        log: Callable[[Record], object] | None = None,
        number: int = 0,
    ) -> None:
        self.clock = clock
        self.link = StreamLink(read_scenario(scenario, Carrier.STREAMS), seed, clock.seconds(), log=log, number=number)
        client, server = IPv4Address("TCP", "10.0.0.1", 40000), IPv4Address("TCP", "10.0.0.2", 4000)
        self.first = StreamEnd(self, Direction.UP, client, server)
        self.second = StreamEnd(self, Direction.DOWN, server, client)
        self._timer = Timer(clock, self._fire)
        self.arm()

    def attach(self, client: IProtocol, server: IProtocol) -> None:
        """Connect both protocols, the server's first."""
        self.second.attach(server)
        self.first.attach(client)

    def cut(self, kind: str = "reset") -> None:
        """End the connection for both ends now: ``reset`` or ``fin``."""
        self.link.closed = True
        self._cut(kind)

    def arm(self) -> None:
        """Set the timer to what comes next."""
        self._timer.arm(self.link.next_deadline())

    def _fire(self) -> None:
        for arrival in self.link.due(self.clock.seconds()):
            up = arrival.direction is Direction.UP
            sender, receiver = (self.first, self.second) if up else (self.second, self.first)
            if arrival.event == "data":
                receiver.arrived(arrival.data)
                sender.moved()
            elif arrival.event == "end":
                receiver.ended()
            else:
                self._cut(arrival.event)
        self.arm()

    def _cut(self, kind: str) -> None:
        for end in (self.second, self.first):
            end.lose(error.ConnectionDone() if kind == "fin" else error.ConnectionLost())
