"""A TCP relay with a wire inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.lab.link import Record
from tests.lab.recording import Piece, Recorders, streams
from tests.lab.scenario import Carrier, Direction, Scenario
from tests.lab.stream import Rate, StreamLink
from tests.lab.timer import Timer

#: Bytes under way in one direction of a connection at which its sender is no longer read from.
HIGH_WATER = 262144


@implementer(IHalfCloseableProtocol)
class _Side(Protocol):
    """One side of a relayed TCP connection."""

    transport: ITCPTransport

    def __init__(self, connection: _Connection, direction: Direction) -> None:
        self._connection = connection
        self._direction = direction
        self.lost = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self._connection.side_made(self._direction)

    def dataReceived(self, data: bytes) -> None:
        self._connection.entered(self._direction, data)

    def readConnectionLost(self) -> None:
        self._connection.ended(self._direction)

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self._connection.side_lost(self._direction, bool(reason.check(error.ConnectionDone)))

    # As a producer of the other side's transport; see _Connection.flow.
    def pauseProducing(self) -> None:
        self._connection.sink_full(self._direction, True)

    def resumeProducing(self) -> None:
        self._connection.sink_full(self._direction, False)

    def stopProducing(self) -> None:
        pass


class _ToServer(ClientFactory):
    """Connects the server side of a connection."""

    noisy = False

    def __init__(self, side: _Side, failed: Callable[[], None]) -> None:
        self._side = side
        self._failed = failed

    def buildProtocol(self, addr: IAddress | None) -> _Side:
        return self._side

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._failed()


class _Connection:
    """One client's connection through a TCP relay."""

    def __init__(self, relay: TCPRelay, number: int) -> None:
        self._relay = relay
        self._number = number
        self._reactor = relay.reactor
        self.link = relay.new_link(number)
        self.client = _Side(self, Direction.UP)
        self.server = _Side(self, Direction.DOWN)
        self._timer = Timer(relay.reactor, self._fire)
        self._joined = False
        self._finished = {Direction.UP: False, Direction.DOWN: False}
        self._timer.arm(self.link.next_deadline())

    def side_made(self, direction: Direction) -> None:
        if direction is Direction.UP:
            host, port = self._relay.target
            self._reactor.connectTCP(host, port, _ToServer(self.server, self._refused), timeout=10)
        elif self.client.lost or self.link.closed:
            self.server.transport.abortConnection()
        else:
            self._joined = True
            for source, sink in ((self.client, self.server), (self.server, self.client)):
                cast(Any, sink.transport).registerProducer(source, True)
            self._fire()

    def _refused(self) -> None:
        self.cut("reset")

    def entered(self, direction: Direction, data: bytes) -> None:
        now = self._reactor.seconds()
        self._relay.record(self._number, direction, data)
        self.link.send(direction, data, now)
        self._fire()
        self._flow(direction)

    def ended(self, direction: Direction) -> None:
        self.link.end(direction, self._reactor.seconds())
        self._fire()

    def side_lost(self, direction: Direction, clean: bool) -> None:
        if not self.link.closed:
            if clean:
                self.link.end(direction, self._reactor.seconds())
            else:
                self.link.reset(direction, self._reactor.seconds())
            self._fire()
        other = self._side(direction.opposite)
        if other.lost or not self._joined:
            self._timer.arm(None)
            self._relay.forget(self._number)

    def sink_full(self, direction: Direction, full: bool) -> None:
        """The receiver of a direction takes nothing now, or takes again."""
        self.link.pause(direction, full)
        if not full:
            self._fire()

    def cut(self, kind: str) -> None:
        """End both sides now."""
        self.link.closed = True
        self._timer.arm(None)
        for side in (self.client, self.server):
            if side.transport is not None and not side.lost:
                cast(Any, side.transport).unregisterProducer()
                if kind == "fin":
                    side.transport.loseConnection()
                else:
                    side.transport.abortConnection()

    def _side(self, direction: Direction) -> _Side:
        return self.client if direction is Direction.UP else self.server

    def _flow(self, direction: Direction) -> None:
        """Read from a sender only while not too much of it is under way."""
        side = self._side(direction)
        if side.transport is None or side.lost:
            return
        if self.link.waiting(direction) > HIGH_WATER:
            cast(Any, side.transport).pauseProducing()
        else:
            cast(Any, side.transport).resumeProducing()

    def _fire(self) -> None:
        if not self._joined and not self.link.closed:
            # A cut before the server side stands is the only thing that may happen now.
            return
        for arrival in self.link.due(self._reactor.seconds()):
            sink = self._side(arrival.direction.opposite)
            if arrival.event == "data":
                if not sink.lost:
                    sink.transport.write(arrival.data)
                self._flow(arrival.direction)
            elif arrival.event == "end":
                self._finish(arrival.direction, sink)
            else:
                self.cut(arrival.event)
        self._timer.arm(self.link.next_deadline())

    def _finish(self, direction: Direction, sink: _Side) -> None:
        self._finished[direction] = True
        if sink.lost:
            return
        cast(Any, sink.transport).unregisterProducer()
        if all(self._finished.values()):
            for side in (self.client, self.server):
                if not side.lost:
                    cast(Any, side.transport).unregisterProducer()
                    side.transport.loseConnection()
        else:
            sink.transport.loseWriteConnection()


class TCPRelay(Factory):
    """Carries TCP connections to one server as a scenario says.

    ``replay=FILE`` makes the relay itself connect, at the first traffic or at :meth:`replay`, once for each recorded
    connection and send what that client had sent, whole.

    :ivar connections: the connections that are open now, by number.
    :ivar accepted: how many there have been.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        scenario: Scenario | str,
        seed: int | str,
        target: tuple[str, int],
        *,
        log: Callable[[Record], object] | None = None,
    ) -> None:
        self.scenario = Scenario.parse(scenario) if isinstance(scenario, str) else scenario
        self.scenario.require(Carrier.STREAMS)
        self.reactor = reactor
        self.target = target
        self.connections: dict[int, _Connection] = {}
        self.accepted = 0
        self._seed = seed
        self._log = log
        self._started: float | None = None
        self._rates = {way: Rate() for way in Direction}
        self._recorders = Recorders(self.scenario)
        self._port: Any = None
        if log is not None:
            log({"scenario": str(self.scenario), "seed": seed})

    def listen(self, port: int = 0, interface: str = "127.0.0.1") -> int:
        """Start; the port on which clients are awaited."""
        self._port = self.reactor.listenTCP(port, self, backlog=1000, interface=interface)
        return int(self._port.getHost().port)

    def stop(self) -> Deferred[Any]:
        """Cut what is open, close every socket and file."""
        for connection in list(self.connections.values()):
            connection.cut("reset")
        self._recorders.close()
        port, self._port = self._port, None
        return gatherResults([port.stopListening()] if port is not None else [])

    def cut(self, kind: str = "reset") -> None:
        """End every open connection now: ``reset`` or ``fin``."""
        for connection in list(self.connections.values()):
            connection.cut(kind)

    def replay(self, path: str = "") -> int:
        """Send each recorded client stream on a new connection to the server; how many there are."""
        found = streams(path or self.scenario.up.replay)
        for data in found:
            self.reactor.connectTCP(*self.target, _Replay(data))
        return len(found)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """A new client."""
        number = self.accepted
        self.accepted += 1
        connection = self.connections[number] = _Connection(self, number)
        if number == 0 and self.scenario.up.replay:
            self.replay()
        return connection.client

    # -- for the connections

    def new_link(self, number: int) -> StreamLink:
        """The link of a new connection."""
        now = self.reactor.seconds()
        if self._started is None:
            self._started = now
        return StreamLink(
            self.scenario, self._seed, now, number=number, start=self._started, rates=self._rates, log=self._log
        )

    def record(self, number: int, direction: Direction, data: bytes) -> None:
        """Note bytes as they came in."""
        assert self._started is not None
        self._recorders.add(Piece(self.reactor.seconds() - self._started, direction, data, number))

    def forget(self, number: int) -> None:
        """A connection is over."""
        self.connections.pop(number, None)


class _Replay(ClientFactory):
    """Sends a recorded stream and throws away what comes back."""

    noisy = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        data = self._data

        class Sender(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(data)

        return Sender()
