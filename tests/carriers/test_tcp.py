"""Tests of mikanet.carriers.tcp and base: packets on a byte stream, from both ends."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.carriers.base import BaseCarrier
from mikanet.carriers.tcp import STRANGERS_BYTES, StreamCarrier, StreamServerFactory
from mikanet.carriers.urls import client_carrier, server_carrier
from mikanet.errors import ConfigError
from mikanet.interfaces import ICarrier, IClientCarrier, IServerCarrier
from tests.carriers.webs import Remembering, context
from tests.support.feeding import fragmentations, mutations
from tests.support.transports import MemoryTransport

#: Two packets on a stream, by hand: L, then the packet.
STREAM = bytes.fromhex("03000000") + b"one" + bytes.fromhex("05000000") + b"three"


class ClientTests(SynchronousTestCase):
    """The client's end."""

    def setUp(self) -> None:
        """A connected carrier."""
        self.carrier = StreamCarrier("tcp://192.0.2.1:8865")
        self.transport = MemoryTransport()
        self.user = Remembering(self.carrier)
        self.transport.connect(self.carrier)

    def test_contract(self) -> None:
        """It is a carrier: reliable, of packets up to 65,535 bytes."""
        verifyObject(ICarrier, self.carrier)
        self.assertEqual((self.carrier.reliable, self.carrier.max_packet_size), (True, 65_535))
        self.assertTrue(self.transport.no_delay)
        self.assertTrue(self.transport.keep_alive)

    def test_bytes(self) -> None:
        """Each packet stands behind its length; several leave in one write."""
        self.carrier.send([b"one", b"three"])
        self.assertEqual(self.transport.written, [STREAM])
        self.carrier.send([bytes(5000)])
        self.assertEqual(self.transport.written[1], bytes.fromhex("88130000") + bytes(5000))

    def test_any_fragmentation(self) -> None:
        """However the bytes come, the packets are the same."""
        for pieces in fragmentations(STREAM * 3):
            carrier = StreamCarrier("")
            user = Remembering(carrier)
            transport = MemoryTransport()
            transport.connect(carrier)
            for piece in pieces:
                transport.receive(piece)
            self.assertEqual(user.got, [b"one", b"three"] * 3)

    def test_nonsense(self) -> None:
        """A length out of bounds ends it, after the packets before it; mutated streams do no worse."""
        self.transport.receive(STREAM + bytes(4))
        self.assertEqual(self.user.got, [b"one", b"three"])
        self.assertTrue(self.transport.aborted)
        for data in mutations([STREAM * 3], 3000, seed=1):
            carrier = StreamCarrier("")
            Remembering(carrier)
            transport = MemoryTransport()
            transport.connect(carrier)
            transport.receive(data)

    def test_back_pressure(self) -> None:
        """A full buffer says so, and so does room."""
        self.assertTrue(self.carrier.writable)
        self.transport.producer.pauseProducing()
        self.assertFalse(self.carrier.writable)
        self.transport.producer.resumeProducing()
        self.assertEqual((self.carrier.writable, self.user.writable), (True, 1))

    def test_ends(self) -> None:
        """A FIN, a loss and our own close are told once; nothing is sent after."""
        self.transport.receive_fin()
        self.assertTrue(self.transport.closed)
        self.transport.settle()
        self.assertEqual([failure.type for failure in self.user.lost], [ConnectionDone])
        self.carrier.send([b"late"])
        self.carrier.close()
        self.carrier.abort()
        self.assertEqual(self.transport.written, [])

    def test_abort(self) -> None:
        """An abort is a reset."""
        self.carrier.abort()
        self.assertTrue(self.transport.aborted)


class ServerTests(SynchronousTestCase):
    """The server's end."""

    def setUp(self) -> None:
        """A factory whose carriers are remembered."""
        self.reactor: Any = MemoryReactorClock()
        self.users: list[Remembering] = []
        self.factory = StreamServerFactory("tcp://0.0.0.0:8865", context(self.reactor), self.accept)

    def accept(self, carrier: ICarrier) -> None:
        """A new carrier."""
        self.users.append(Remembering(carrier, prove=False))

    def connect(self, host: str = "192.0.2.1") -> tuple[Any, MemoryTransport]:
        """A connection; its carrier and its transport."""
        transport = MemoryTransport(host)
        protocol = self.factory.buildProtocol(transport.getPeer())
        transport.connect(protocol)
        return protocol, transport

    def test_accept(self) -> None:
        """A carrier is shown as soon as it stands, with the address that it comes from."""
        carrier, transport = self.connect("192.0.2.5")
        verifyObject(ICarrier, carrier)
        self.assertEqual(carrier.host, "192.0.2.5")
        transport.receive(STREAM)
        self.assertEqual(self.users[0].got, [b"one", b"three"])
        carrier.send([b"one"])
        self.assertEqual(transport.bytes_written, STREAM[:7])

    def test_strangers_are_turned_away_in_one_way(self) -> None:
        """Silence, nonsense, an early end: read, unanswered, a FIN at the refusal time and not before (X2)."""
        for data in (b"", bytes(4), b"\xff" * 100, STREAM, STREAM + bytes(8)):
            carrier, transport = self.connect()
            if data:
                transport.receive(data)
            if len(data) == 4:
                transport.receive_fin()
            self.reactor.advance(74.9)
            self.assertEqual((transport.fin, transport.closed, transport.aborted), (False, False, False), data)
            carrier.refuse()
            self.reactor.advance(0.2)
            self.assertTrue(transport.fin, data)
            self.assertEqual(transport.bytes_written, b"")
            transport.lose()

    def test_a_refused_one_is_not_heard_or_answered(self) -> None:
        """After the nonsense nothing is taken for a packet any more."""
        carrier, transport = self.connect()
        transport.receive(bytes(4))
        transport.receive(STREAM)
        carrier.send([b"answer"])
        carrier.proven()
        self.assertEqual((self.users[0].got, transport.written), ([], []))
        self.assertEqual(len(self.factory.verified), 0)

    def test_proven(self) -> None:
        """The proof ends the clock of strangers; nonsense afterwards is a reset, a FIN an ordinary end."""
        carrier, transport = self.connect()
        carrier.proven()
        carrier.proven()
        self.reactor.advance(1000)
        self.assertFalse(transport.fin)
        self.assertEqual(len(self.factory.verified), 1)
        transport.receive(bytes(4))
        self.assertTrue(transport.aborted)
        transport.settle()
        self.assertEqual(len(self.factory.verified), 0)
        carrier, transport = self.connect()
        carrier.proven()
        transport.receive_fin()
        self.assertTrue(transport.closed)

    def test_unfinished_packets_are_bounded(self) -> None:
        """Strangers that begin large packets hold a mebibyte together, not each 64 KiB: the first that began is turned
        away. One that is proven is not counted (X3)."""
        begun = (65_000).to_bytes(4, "little") + bytes(60_000)
        carriers = []
        for index in range(60):
            carrier, transport = self.connect(f"192.0.{index}.1")
            transport.receive(begun)
            carriers.append(carrier)
            self.assertLessEqual(self.factory.unfinished.size, STRANGERS_BYTES)
            self.assertLessEqual(sum(each._reader.held for each in carriers), STRANGERS_BYTES)
        turned_away = [each._guard.refusal is not None for each in carriers]
        self.assertEqual(turned_away, sorted(turned_away, reverse=True))
        self.assertEqual(turned_away.count(False), STRANGERS_BYTES // 60_004)
        before = self.factory.unfinished.size
        carriers[-1].proven()
        self.assertLess(self.factory.unfinished.size, before)
        for carrier in carriers:
            carrier.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.factory.unfinished.size, 0)

    def test_caps(self) -> None:
        """More proven connections than permitted are reset."""
        self.factory = StreamServerFactory("", context(self.reactor, connections=1), self.accept)
        first, _ = self.connect()
        first.proven()
        second, transport = self.connect()
        second.proven()
        self.assertTrue(transport.aborted)


class UrlTests(SynchronousTestCase):
    """``tcp://`` URLs."""

    def test_client(self) -> None:
        """Host and port; 8865 if there is none."""
        reactor: Any = MemoryReactorClock()
        carrier = client_carrier("tcp://192.0.2.1", context(reactor))
        verifyObject(IClientCarrier, carrier)
        opened = carrier.open()
        host, port, factory = reactor.tcpClients[0][:3]
        self.assertEqual((host, port, carrier.name), ("192.0.2.1", 8865, "tcp://192.0.2.1"))
        MemoryTransport().connect(factory.buildProtocol(None))
        self.assertIsInstance(self.successResultOf(opened), StreamCarrier)

    def test_server(self) -> None:
        """An address to listen on; stopped, it listens no more."""
        reactor: Any = MemoryReactorClock()
        carrier = server_carrier("tcp://[::1]:9000", context(reactor))
        verifyObject(IServerCarrier, carrier)
        accepted: list[ICarrier] = []
        self.successResultOf(carrier.listen(accepted.append))
        port, factory, _, interface = reactor.tcpServers[0]
        self.assertEqual((port, interface), (9000, "::1"))
        MemoryTransport().connect(factory.buildProtocol(None))
        self.assertEqual(len(accepted), 1)
        self.successResultOf(carrier.stop())
        self.successResultOf(carrier.stop())

    def test_mistakes(self) -> None:
        """A path, an option, a user, no host, a server's name that is no address."""
        reactor: Any = MemoryReactorClock()
        for url in ("tcp://host/path", "tcp://host?x=1", "tcp://me@host", "tcp://:80"):
            with self.assertRaises(ConfigError):
                client_carrier(url, context(reactor))
        with self.assertRaises(ConfigError):
            server_carrier("tcp://example.com:80", context(reactor))


class BaseTests(SynchronousTestCase):
    """What all carriers share."""

    def test_told_once(self) -> None:
        """A loss is told once, and nothing after it."""
        carrier = BaseCarrier("name")
        user = Remembering(carrier)
        carrier.deliver([b"one"])
        carrier.deliver([])
        carrier.room(False)
        carrier.room(True)
        carrier.room(True)
        carrier.lose(Failure(ConnectionLost()))
        carrier.lose()
        carrier.deliver([b"two"])
        carrier.room(True)
        self.assertEqual((user.got, user.writable, len(user.lost), carrier.waiting), ([b"one"], 1, 1, 0))
