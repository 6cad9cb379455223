"""A UDP relay with a wire inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import DatagramProtocol

from tests.lab.link import Delivery, Link, Record
from tests.lab.recording import Piece, Recorders, pieces
from tests.lab.scenario import Carrier, Direction, Scenario
from tests.lab.timer import Timer

#: In whose name recorded datagrams are sent: from a socket of its own, the answers to which go nowhere.
_NOBODY = ("", 0)
#: Client addresses that a UDP relay remembers; the oldest one goes (our choice).
MAX_CLIENTS = 1000


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
        self._recorders = Recorders(self.scenario)
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
