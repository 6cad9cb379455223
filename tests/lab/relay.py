"""The wire between processes: a UDP relay and a TCP relay on real sockets, without root.

Put one in front of a server and point the client at it. Both take the reactor as an argument and can run inside a
trial test or, by ``python -m tests.lab wire``, as a process of their own.
"""

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
from twisted.internet.protocol import ClientFactory, DatagramProtocol, Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.lab.link import Delivery, Link, Record
from tests.lab.recording import Piece, Recorder, pieces, streams
from tests.lab.scenario import Carrier, Direction, Scenario
from tests.lab.stream import Rate, StreamLink
from tests.lab.timer import Timer

#: Bytes under way in one direction of a connection at which its sender is no longer read from.
HIGH_WATER = 262144
#: In whose name recorded datagrams are sent: from a socket of its own, the answers to which go nowhere.
_NOBODY = ("", 0)
#: Client addresses that a UDP relay remembers; the oldest one goes (our choice).
MAX_CLIENTS = 1000


class _Recorders:
    """The open recording files of a scenario, one per name."""

    def __init__(self, scenario: Scenario) -> None:
        self._files: dict[str, Recorder] = {}
        self._by_direction: dict[Direction, Recorder] = {}
        for way in Direction:
            name = scenario.towards(way).record
            if name:
                self._by_direction[way] = self._files.setdefault(name, Recorder(name))

    def add(self, piece: Piece) -> None:
        recorder = self._by_direction.get(piece.direction)
        if recorder is not None:
            recorder.add(piece)

    def close(self) -> None:
        for recorder in self._files.values():
            recorder.close()


class _Outgoing(DatagramProtocol):
    """The socket from which the server sees one client, under one binding."""

    def __init__(self, relay: UDPRelay, client: tuple[str, int]) -> None:
        self._relay = relay
        self._client = client

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self._relay.from_server(datagram, self._client)

    def connectionRefused(self) -> None:
        """The server does not listen (now); datagrams get lost."""


class UDPRelay(DatagramProtocol):
    """Carries datagrams between clients and one server as a scenario says.

    Each client has a socket of its own towards the server. A rebind opens a new one (on another loopback address when
    the word is ``rebind=address``) and closes the old, so that what the server still sends there is lost.

    :param reactor: with UDP and time.
    :param target: address of the server, an IP address and a port.
    :ivar link: with the counts of what was done.
    """

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
        self.scenario.require(Carrier.PACKETS)
        self.link = Link(self.scenario, seed, log)
        self._reactor = reactor
        self._target = target
        self._timer = Timer(reactor, self._fire)
        self._outgoing: dict[tuple[str, int], tuple[int, Any]] = {}
        self._recorders = _Recorders(self.scenario)
        self._started: float | None = None
        self._port: Any = None
        for way in Direction:
            name = self.scenario.towards(way).replay
            if name:
                self.link.replay(way, [(p.time, p.data) for p in pieces(name) if p.direction is way])

    def listen(self, port: int = 0, interface: str = "127.0.0.1") -> int:
        """Start; the port on which clients are awaited."""
        self._port = self._reactor.listenUDP(port, self, interface=interface, maxPacketSize=65536)
        return int(self._port.getHost().port)

    def stop(self) -> Deferred[Any]:
        """Close every socket and file."""
        self._timer.arm(None)
        self.link.stop()
        ports = [port for _, port in self._outgoing.values()]
        self._outgoing.clear()
        if self._port is not None:
            ports.append(self._port)
            self._port = None
        self._recorders.close()
        return gatherResults([port.stopListening() for port in ports if port.stopListening is not None])

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """From a client."""
        self._enter(Direction.UP, datagram, addr)

    def from_server(self, datagram: bytes, client: tuple[str, int]) -> None:
        """From the server, to the socket of one client."""
        if client != _NOBODY:
            self._enter(Direction.DOWN, datagram, client)

    def _enter(self, direction: Direction, datagram: bytes, client: tuple[str, int]) -> None:
        now = self._reactor.seconds()
        if self._started is None:
            self._started = now
        self._recorders.add(Piece(now - self._started, direction, datagram))
        self.link.send(direction, datagram, now, client)
        self._fire()

    def _fire(self) -> None:
        for delivery in self.link.due(self._reactor.seconds()):
            self._deliver(delivery)
        self._timer.arm(self.link.next_deadline())

    def _deliver(self, delivery: Delivery) -> None:
        if self._port is None:
            return
        client = delivery.envelope or _NOBODY
        if delivery.direction is Direction.UP:
            port = self._outgoing_port(client, delivery.binding)
            port.write(delivery.packet, self._target)
            return
        if delivery.origin == "replay":
            client = next((known for known in self._outgoing if known != _NOBODY), _NOBODY)
        if client != _NOBODY:
            cast(Any, self.transport).write(delivery.packet, client)

    def _outgoing_port(self, client: tuple[str, int], binding: int) -> Any:
        bound, port = self._outgoing.get(client, (-1, None))
        if bound < binding:
            if port is not None:
                port.stopListening()
            elif len(self._outgoing) >= MAX_CLIENTS:
                oldest = next(iter(self._outgoing))
                self._outgoing.pop(oldest)[1].stopListening()
            interface = "127.0.0.1" if self._target[0].startswith("127.") else ""
            if binding and self.scenario.up.rebind == "address":
                interface = f"127.0.1.{1 + binding % 250}"
            port = self._reactor.listenUDP(0, _Outgoing(self, client), interface=interface, maxPacketSize=65536)
            self._outgoing[client] = binding, port
        return port


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
        self._recorders = _Recorders(self.scenario)
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
