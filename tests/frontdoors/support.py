"""A tunnel, a reactor and UDP ports in memory, for the tests of front doors."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason
from mikanet.frontdoors.door import DoorFactory, DoorSettings
from mikanet.frontdoors.doors import socks_factory
from mikanet.interfaces import IPacketTransport, ITunnel
from tests.support.memory import MemoryTransport


class Dialled:
    """One attempt that a door made through :class:`FakeTunnel`; the test decides what becomes of it.

    :ivar transport: the connection, once :meth:`accept` made it.
    """

    def __init__(self, destination: Address, http: bool, factory: IProtocolFactory, packets: bool) -> None:
        self.destination = destination
        self.http = http
        self.cancelled = False
        self.done: Deferred[IProtocol] = Deferred(self._cancel)
        self._factory = factory
        self._packets = packets
        self.transport: MemoryTransport

    def _cancel(self, done: Deferred[IProtocol]) -> None:
        self.cancelled = True

    def accept(self) -> MemoryTransport:
        """The tunnel is connected."""
        protocol = self._factory.buildProtocol(IPv4Address("TCP", "192.0.2.200", 8388))
        assert protocol is not None
        self.transport = PacketTransport() if self._packets else MemoryTransport()
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        if not self.done.called:
            self.done.callback(protocol)
        return self.transport

    def reject(self, exception: Exception) -> None:
        """The tunnel could not connect."""
        self.done.errback(exception)


@implementer(IPacketTransport)
class PacketTransport(MemoryTransport):
    """As its base, but every write is one packet."""

    max_packet_size = 65507

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Keep one packet."""
        self.packets.append(data)
        super().write(data)


@implementer(ITunnel)
class FakeTunnel:
    """Keeps what doors ask for in :attr:`dialled`, and leaves the rest to the test.

    :ivar fail_at_once: raised by the next calls, instead of answering an endpoint.
    :ivar accept_at_once: whether attempts are accepted inside ``connect``.
    """

    def __init__(self, datagrams: bool = True) -> None:
        self.dialled: list[Dialled] = []
        self.datagrams = datagrams
        self.fail_at_once: Exception | None = None
        self.accept_at_once = False

    def stream_endpoint(self, destination: Address, http: bool = False) -> IStreamClientEndpoint:
        if self.fail_at_once is not None:
            raise self.fail_at_once
        return _Endpoint(self, destination, http, False)

    def datagram_endpoint(self, destination: Address) -> IStreamClientEndpoint:
        if not self.datagrams:
            raise DestinationError(Reason.UNSUPPORTED)
        return _Endpoint(self, destination, False, True)


@implementer(IStreamClientEndpoint)
class _Endpoint:
    def __init__(self, tunnel: FakeTunnel, destination: Address, http: bool, packets: bool) -> None:
        self._tunnel = tunnel
        self._rest = (destination, http)
        self._packets = packets

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        attempt = Dialled(*self._rest, protocolFactory, self._packets)
        self._tunnel.dialled.append(attempt)
        if self._tunnel.accept_at_once:
            attempt.accept()
        return attempt.done


class UdpPort:
    """A UDP port in memory: a listening port and its transport.

    :ivar sent: (datagram, address) in order.
    """

    def __init__(self, port: int, protocol: Any, interface: str, size: int) -> None:
        self.address = IPv4Address("UDP", interface, port or 50000)
        self.protocol = protocol
        self.size = size
        self.sent: list[tuple[bytes, Any]] = []
        self.listening = True
        self.fail: Exception | None = None
        protocol.makeConnection(self)

    def getHost(self) -> IPv4Address:
        """Where it listens."""
        return self.address

    def write(self, datagram: bytes, addr: Any) -> None:
        """Send."""
        if self.fail is not None:
            raise self.fail
        self.sent.append((datagram, addr))

    def stopListening(self) -> None:
        """Close."""
        self.listening = False
        self.protocol.doStop()


class MemoryReactor(Clock):
    """A clock that also opens UDP ports.

    :ivar ports: all that were opened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[UdpPort] = []
        self.refuse_udp = False

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> UdpPort:
        """As IReactorUDP."""
        if self.refuse_udp:
            raise error.CannotListenError(interface, port, OSError("in use"))
        self.ports.append(UdpPort(port, protocol, interface, maxPacketSize))
        return self.ports[-1]


class DoorTestCase(SynchronousTestCase):
    """A door before a tunnel in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactor()
        self.tunnel = FakeTunnel()

    def make_factory(self, settings: DoorSettings) -> DoorFactory:
        """The factory under test."""
        raise NotImplementedError

    def open(self, **settings: Any) -> MemoryTransport:
        """A client's connection to the door."""
        self.settings = DoorSettings(reactor=self.reactor, **settings)
        self.factory = self.make_factory(self.settings)
        return self.connect()

    def connect(self) -> MemoryTransport:
        """One more connection to the same door."""
        return MemoryTransport(self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000)))

    def counted(self, name: str) -> int:
        """A counter of the door."""
        return self.settings.counters[name]

    def assert_nothing_left(self) -> None:
        """No timer and no connection is left behind."""
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.factory.connections, set())


# -- for the doors that are tested by way of SOCKS; bytes from RFC 1928 and the SOCKS4A description

GREETING = bytes.fromhex("05 01 00")
CONNECT = bytes.fromhex("05 01 00 03 0b") + b"example.com" + bytes.fromhex("01bb")
SUCCESS = bytes.fromhex("05 00 00 01 00000000 0000")
SOCKS4A = bytes.fromhex("04 01 01bb 00000001") + b"me\0example.com\0"


def failure(rep: int) -> bytes:
    """The reply with this code."""
    return bytes((5, rep, 0, 1, 0, 0, 0, 0, 0, 0))


class SocksTestCase(DoorTestCase):
    """The SOCKS door."""

    def make_factory(self, settings: DoorSettings) -> DoorFactory:
        """Of SOCKS doors."""
        return socks_factory(self.tunnel, settings)
