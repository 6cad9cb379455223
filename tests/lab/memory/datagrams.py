"""UDP in memory: two hosts that look like reactors, joined by a wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IListeningPort,
    IReactorTime,
    IReactorUDP,
    IUDPTransport,
)
from twisted.internet.protocol import DatagramProtocol
from zope.interface import implementer

from tests.lab.link import Delivery, Record
from tests.lab.memory.carrier import PacketCarrier, client_address
from tests.lab.scenario import Direction, Scenario


@implementer(IUDPTransport, IListeningPort)
class MemoryPort:
    """One bound UDP port of a :class:`DatagramNet`."""

    def __init__(self, host: MemoryHost, port: int, protocol: DatagramProtocol, max_packet_size: int) -> None:
        self.protocol = protocol
        self.maxPacketSize = max_packet_size
        self.maxThroughput = 256 * 1024
        self.host = host
        self.port = port
        self._connected: tuple[str, int] | None = None

    def write(self, datagram: bytes, addr: tuple[str, int] | None = None) -> None:
        """Send one datagram."""
        target = addr or self._connected
        assert target is not None, "where to? the port is not connected"
        self.host.send(self.port, bytes(datagram), target)

    def writeSequence(self, iovec: Iterable[bytes], addr: tuple[str, int] | None = None) -> None:
        """Send the pieces as one datagram, as Twisted's port does."""
        self.write(b"".join(iovec), addr)

    def connect(self, host: str, port: int) -> None:
        """Set the one peer."""
        self._connected = host, port

    def deliver(self, datagram: bytes, source: tuple[str, int]) -> None:
        """A datagram has arrived; a connected port takes its peer's only."""
        if self._connected is None or source == self._connected:
            self.protocol.datagramReceived(datagram, source)

    def startListening(self) -> None:
        """Done already."""

    def stopListening(self) -> Deferred[None]:
        """Free the port."""
        if self.host.ports.pop(self.port, None) is not None:
            self.protocol.doStop()
        return succeed(None)

    loseConnection = stopListening

    def getHost(self) -> IPv4Address:
        """The address of this port."""
        return IPv4Address("UDP", self.host.address, self.port)

    def setBroadcastAllowed(self, enabled: bool) -> None:
        """There is no broadcast here."""

    def getBroadcastAllowed(self) -> bool:
        """There is no broadcast here."""
        return False


@implementer(IReactorUDP, IReactorTime)
class MemoryHost:
    """One of the two machines of a :class:`DatagramNet`: give it to code that wants a reactor with UDP and time.

    :ivar address: its IP address.
    """

    def __init__(self, net: DatagramNet, direction: Direction, address: str) -> None:
        self.address = address
        self.ports: dict[int, MemoryPort] = {}
        self._net = net
        self._direction = direction
        self._next_port = 40000

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> MemoryPort:
        """As a reactor."""
        if port == 0:
            # Far enough apart that rebound ports, which count up from the first, never meet.
            port, self._next_port = self._next_port, self._next_port + 1000
        if port in self.ports:
            raise error.CannotListenError(interface or self.address, port, "in use")
        made = self.ports[port] = MemoryPort(self, port, protocol, maxPacketSize)
        protocol.makeConnection(made)
        return made

    def send(self, port: int, datagram: bytes, target: tuple[str, int]) -> None:
        """Send from one of our ports."""
        self._net.send(self._direction, datagram, ((self.address, port), target))

    def seconds(self) -> float:
        """As a reactor."""
        return self._net.clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        """As a reactor."""
        return self._net.clock.callLater(delay, callable, *args, **kwargs)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """As a reactor."""
        return list(self._net.clock.getDelayedCalls())


class DatagramNet(PacketCarrier):
    """Two hosts, ``client`` 10.0.0.1 and ``server`` 10.0.0.2, with UDP between them across one wire.

    When the scenario rebinds, the server sees the client's datagrams come from a new port (or address), and what it
    sends to the old one is lost, as behind a real address translator.
    """

    def __init__(
        self,
        scenario: Scenario | str,
        seed: int | str,
        clock: IReactorTime,
        *,
        log: Callable[[Record], object] | None = None,
    ) -> None:
        super().__init__(scenario, seed, clock, log)
        self.client = MemoryHost(self, Direction.UP, "10.0.0.1")
        self.server = MemoryHost(self, Direction.DOWN, "10.0.0.2")

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.envelope is None:  # a replayed recording knows no addresses: it goes to whoever listens
            source, target = self._any_addresses(delivery.direction)
        else:
            source, target = delivery.envelope
        if delivery.origin == "mirror":
            source, target = target, source
        if delivery.direction is Direction.UP:
            source = client_address(self.scenario, *source, delivery.binding)
            host = self.server
        else:
            now = self.link.binding(self.clock.seconds())
            host, public = self.client, target
            for port in self.client.ports:
                if client_address(self.scenario, self.client.address, port, now) == public:
                    target = self.client.address, port
            if now and public == target and delivery.origin != "mirror":
                return  # the client is not there any more
        port_there = host.ports.get(target[1])
        if port_there is not None and target[0] == host.address:
            port_there.deliver(delivery.packet, source)

    def _any_addresses(self, direction: Direction) -> tuple[tuple[str, int], tuple[str, int]]:
        client = self.client.address, next(iter(self.client.ports), 40000)
        server = self.server.address, next(iter(self.server.ports), 4000)
        return (client, server) if direction is Direction.UP else (server, client)
