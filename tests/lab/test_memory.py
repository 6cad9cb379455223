"""Tests of :mod:`tests.lab.memory`: the wire on a test clock."""

from __future__ import annotations

from twisted.internet import error
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
    IReactorTime,
    IReactorUDP,
    ITCPTransport,
    IUDPTransport,
)
from twisted.internet.protocol import DatagramProtocol, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mikanet.interfaces import IPacketTransport
from mikanet.relay import RelayEnd, join
from tests.lab.memory import DatagramNet, StreamWire, Wire, advance


class Keeper(Protocol):
    """Keeps what it gets, in order."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason.type


@implementer(IHalfCloseableProtocol)
class HalfKeeper(Keeper):
    """Keeps, and knows half-close."""

    ended = written = 0

    def readConnectionLost(self) -> None:
        self.ended += 1

    def writeConnectionLost(self) -> None:
        self.written += 1


class DatagramKeeper(DatagramProtocol):
    """Keeps datagrams with their sources."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, tuple[str, int]]] = []

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.got.append((datagram, addr))


@implementer(IPushProducer)
class Tap:
    """A producer that remembers whether it may produce."""

    paused = stopped = False

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.stopped = True


class PacketTests(SynchronousTestCase):
    """Two packet transports."""

    def wire(self, scenario: str, seed: int = 1) -> tuple[Clock, Wire, Keeper, Keeper]:
        clock = Clock()
        wire = Wire(scenario, seed, clock)
        client, server = Keeper(), Keeper()
        wire.second.attach(server)
        wire.first.attach(client)
        return clock, wire, client, server

    def test_it_is_a_packet_transport(self) -> None:
        """An end says what it is to the filters that ask."""
        _, wire, _, _ = self.wire("")
        for interface in (IPacketTransport, ITCPTransport, IConsumer, IPushProducer):
            verifyObject(interface, wire.first)

    def test_packets_keep_their_edges(self) -> None:
        """Each write is one packet, delivered after the delay and never from inside the write."""
        clock, wire, client, server = self.wire("delay=10ms")
        wire.first.write(b"a")
        wire.first.writeSequence([b"b", b"c"])
        wire.second.write(b"d")
        self.assertEqual(server.got, [])
        advance(clock, 0.009)
        self.assertEqual(server.got, [])
        advance(clock, 0.002)
        self.assertEqual((server.got, client.got), ([b"a", b"b", b"c"], [b"d"]))

    def test_too_large_is_dropped(self) -> None:
        """A packet above the maximum is counted and never cut."""
        clock, wire, _, server = self.wire("")
        wire.first.write(bytes(65508))
        advance(clock, 0.01)
        self.assertEqual((server.got, wire.first.oversized), ([], 1))

    def test_rebinding_shows_in_the_peers_address(self) -> None:
        """After a rebind the server sees its client under another address, once a packet has come from there."""
        clock, wire, _, _ = self.wire("rebind-first=1s rebind=address")
        before = wire.second.getPeer()
        wire.first.write(b"a")
        advance(clock, 1.5, 0.1)
        self.assertEqual(wire.second.getPeer(), before)
        wire.first.write(b"b")
        advance(clock, 0.1)
        self.assertNotEqual(wire.second.getPeer(), before)

    def test_closing_is_local(self) -> None:
        """An end that lets go gets its connectionLost and no more packets; the other end notices nothing."""
        clock, wire, client, server = self.wire("")
        wire.second.write(b"late")
        wire.first.loseConnection()
        wire.second.abortConnection()
        advance(clock, 0.01)
        self.assertEqual((client.got, client.lost, server.lost), ([], error.ConnectionDone, error.ConnectionAborted))
        wire.first.write(b"into the void")
        self.assertEqual(clock.getDelayedCalls(), [])


class DatagramTests(SynchronousTestCase):
    """UDP between two hosts."""

    def net(self, scenario: str) -> tuple[Clock, DatagramNet, DatagramKeeper, DatagramKeeper]:
        clock = Clock()
        net = DatagramNet(scenario, 1, clock)
        client, server = DatagramKeeper(), DatagramKeeper()
        net.server.listenUDP(4000, server)
        net.client.listenUDP(0, client)
        return clock, net, client, server

    def test_a_host_is_a_reactor(self) -> None:
        """Hosts and ports have the interfaces of a reactor's."""
        _, net, client, _ = self.net("")
        verifyObject(IReactorUDP, net.client)
        verifyObject(IReactorTime, net.client)
        verifyObject(IUDPTransport, client.transport)
        verifyObject(IListeningPort, client.transport)

    def test_there_and_back(self) -> None:
        """The server answers to the address that it sees."""
        clock, _, client, server = self.net("delay=5ms")
        client.transport.write(b"ping", ("10.0.0.2", 4000))
        advance(clock, 0.01)
        server.transport.write(b"pong", server.got[0][1])
        advance(clock, 0.01)
        self.assertEqual(client.got, [(b"pong", ("10.0.0.2", 4000))])

    def test_the_old_address_is_dead_after_a_rebind(self) -> None:
        """What is sent to a client's old address is lost; what is sent to its new one arrives."""
        for word in ("port", "address"):
            clock, net, client, server = self.net(f"rebind={word}")
            client.transport.connect("10.0.0.2", 4000)
            client.transport.write(b"1")
            advance(clock, 0.01)
            net.rebind()
            server.transport.write(b"old", server.got[0][1])
            advance(clock, 0.01)
            self.assertEqual(client.got, [])
            client.transport.write(b"2")
            advance(clock, 0.01)
            self.assertNotEqual(server.got[0][1], server.got[1][1])
            server.transport.write(b"new", server.got[1][1])
            advance(clock, 0.01)
            self.assertEqual(client.got, [(b"new", ("10.0.0.2", 4000))])

    def test_a_mirror_looks_like_the_peer(self) -> None:
        """A mirrored datagram comes back to its sender from the address that it was sent to."""
        clock, _, client, _ = self.net("mirror@up=100%")
        client.transport.write(b"me", ("10.0.0.2", 4000))
        advance(clock, 0.01)
        self.assertEqual(client.got, [(b"me", ("10.0.0.2", 4000))])

    def test_a_stopped_port_gets_nothing(self) -> None:
        """A port that stopped listening is free again."""
        clock, net, client, server = self.net("")
        self.assertRaises(error.CannotListenError, net.server.listenUDP, 4000, DatagramKeeper())
        server.transport.stopListening()
        client.transport.write(b"x", ("10.0.0.2", 4000))
        advance(clock, 0.01)
        self.assertEqual(server.got, [])
        net.server.listenUDP(4000, DatagramKeeper())


class StreamTests(SynchronousTestCase):
    """Two stream transports, which behave as Twisted's TCP."""

    def wire(self, scenario: str, client: Keeper, server: Keeper) -> tuple[Clock, StreamWire]:
        clock = Clock()
        wire = StreamWire(scenario, 1, clock)
        wire.attach(client, server)
        return clock, wire

    def test_bytes_arrive_and_a_close_is_clean(self) -> None:
        """What was written before loseConnection arrives; both protocols see a clean end."""
        client, server = Keeper(), Keeper()
        clock, wire = self.wire("delay=10ms fragment=3", client, server)
        wire.first.write(b"hello, world")
        wire.first.loseConnection()
        wire.first.write(b"too late")
        advance(clock, 0.1)
        self.assertEqual(b"".join(server.got), b"hello, world")
        self.assertEqual(len(server.got), 4)
        self.assertEqual((client.lost, server.lost), (error.ConnectionDone, error.ConnectionDone))
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_half_close(self) -> None:
        """A half-closed connection goes on in the other direction until both protocols have let go."""
        client, server = HalfKeeper(), HalfKeeper()
        clock, wire = self.wire("delay=1ms", client, server)
        wire.first.write(b"request")
        wire.first.loseWriteConnection()
        advance(clock, 0.01)
        self.assertEqual((server.got, server.ended, client.written), ([b"request"], 1, 1))
        wire.second.write(b"response")
        wire.second.loseConnection()
        advance(clock, 0.01)
        self.assertEqual((client.got, client.ended, server.lost), ([b"response"], 1, error.ConnectionDone))
        self.assertIsNone(client.lost)
        wire.first.loseConnection()
        advance(clock, 0.01)
        self.assertEqual(client.lost, error.ConnectionDone)

    def test_an_abort_is_a_reset(self) -> None:
        """The peer of an aborted end sees a lost connection, not a clean end."""
        client, server = HalfKeeper(), HalfKeeper()
        clock, wire = self.wire("delay=1ms", client, server)
        wire.second.abortConnection()
        advance(clock, 0.01)
        self.assertEqual((client.lost, server.lost), (error.ConnectionLost, error.ConnectionAborted))

    def test_writing_to_a_closed_end_is_a_reset(self) -> None:
        """Bytes for an end that has closed come back as a reset."""
        client, server = Keeper(), HalfKeeper()
        clock, wire = self.wire("delay=1ms", client, server)
        wire.first.loseConnection()
        advance(clock, 0.01)
        wire.second.write(b"anybody there?")
        advance(clock, 0.01)
        self.assertEqual(server.lost, error.ConnectionLost)

    def test_a_cut_reaches_both(self) -> None:
        """A cut ends the connection for both, as a reset or as a false clean end."""
        for kind, seen in (("reset", error.ConnectionLost), ("fin", error.ConnectionDone)):
            client, server = Keeper(), Keeper()
            clock, wire = self.wire(f"cut-after@down=5 cut={kind}", client, server)
            wire.second.write(b"0123456789")
            advance(clock, 0.01)
            self.assertEqual((client.got, client.lost, server.lost), ([b"01234"], seen, seen))

    def test_a_slow_wire_pauses_the_producer(self) -> None:
        """Above the high-water mark a producer is paused, and goes on when its bytes have arrived."""
        client, server = Keeper(), Keeper()
        clock, wire = self.wire("bandwidth=8Mbps", client, server)
        verifyObject(ITCPTransport, wire.first)
        tap = Tap()
        wire.first.registerProducer(tap, True)
        wire.first.write(bytes(100_000))
        self.assertTrue(tap.paused)
        wire.first.loseConnection()
        advance(clock, 0.2)
        self.assertFalse(tap.paused)
        self.assertIsNone(client.lost)
        wire.first.unregisterProducer()
        advance(clock, 0.01)
        self.assertEqual(client.lost, error.ConnectionDone)

    def test_a_paused_reader_slows_the_writer(self) -> None:
        """What a paused end does not take stays with the writer, whose producer is paused."""
        client, server = Keeper(), Keeper()
        clock, wire = self.wire("", client, server)
        tap = Tap()
        wire.first.registerProducer(tap, True)
        wire.second.pauseProducing()
        wire.first.write(bytes(100_000))
        advance(clock, 1.0)
        self.assertEqual((server.got, tap.paused), ([], True))
        wire.second.resumeProducing()
        advance(clock, 0.01)
        self.assertEqual(sum(map(len, server.got)), 100_000)
        self.assertFalse(tap.paused)

    def test_the_relay_runs_over_it(self) -> None:
        """The project's own relay, with half-close and back-pressure, works between two of these wires."""
        clock = Clock()
        near = StreamWire("delay=1ms", 1, clock)
        far = StreamWire("delay=1ms bandwidth=80Mbps", 2, clock)
        application, target, ends = HalfKeeper(), HalfKeeper(), (RelayEnd(), RelayEnd())
        near.attach(application, ends[0])
        far.attach(ends[1], target)
        join(*ends)
        near.first.write(bytes(300_000))
        near.first.loseWriteConnection()
        advance(clock, 0.1)
        self.assertEqual((sum(map(len, target.got)), target.ended), (300_000, 1))
        far.second.write(b"answer")
        far.second.loseConnection()
        advance(clock, 0.1)
        self.assertEqual((application.got, application.ended), ([b"answer"], 1))
