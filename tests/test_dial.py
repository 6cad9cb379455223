"""Outgoing connections."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionRefusedError,
    NoProtocol,
    NoRouteError,
    TimeoutError,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mikanet.dial import Dialer, Racing, interleave
from mikanet.prompt import is_plain

FACTORY = Factory.forProtocol(Protocol)


class Echoed(Protocol):
    """Says hello and notes the answer."""

    def connectionMade(self) -> None:
        """Say it."""
        self.answer: Deferred[bytes] = Deferred()
        self.lost: Deferred[type] = Deferred()
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        """Note it."""
        self.answer.callback(data)

    def connectionLost(self, reason: Any = None) -> None:
        """Note it."""
        self.lost.callback(reason.type)


class DirectTests(TestCase):
    """Real sockets on loopback."""

    timeout = 30

    def listen(self, family: int = socket.AF_INET, backlog: int = 10) -> socket.socket:
        """A listening socket."""
        listener = socket.socket(family)
        self.addCleanup(listener.close)
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen(backlog)
        return listener

    @inlineCallbacks
    def test_connects(self) -> Any:
        """Over IPv4 and IPv6; the transport is a plain one, with nothing around the protocol."""
        for family in (socket.AF_INET, socket.AF_INET6):
            listener = self.listen(family)
            host, port = listener.getsockname()[:2]
            protocol = yield Dialer(global_reactor).connect(host, port, Factory.forProtocol(Echoed))
            self.assertTrue(is_plain(protocol.transport))
            self.assertIs(protocol.transport.protocol, protocol)
            self.assertEqual((protocol.transport.getPeer().host, protocol.transport.getPeer().port), (host, port))
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                yield deferLater(global_reactor, 0.05)  # the reactor writes in a later turn
                self.assertEqual(peer.recv(10), b"hello")
                peer.sendall(b"hi")
                answer = yield protocol.answer
                self.assertEqual(answer, b"hi")
                protocol.transport.loseConnection()
                yield protocol.lost
                self.assertEqual(peer.recv(10), b"")

    @inlineCallbacks
    def test_refused(self) -> Any:
        """A closed port is refused at once, and no descriptor or timer is left."""
        listener = self.listen()
        port = listener.getsockname()[1]
        listener.close()
        dialer = Dialer(global_reactor)
        for _ in range(3):
            yield self.assertFailure(dialer.connect("127.0.0.1", port, FACTORY), ConnectionRefusedError)
        self.assertEqual(len(dialer.deadlines), 0)
        self.assertEqual([each for each in global_reactor.getWriters() if "Attempt" in repr(each)], [])

    def stuck(self) -> int:
        """A port whose connections never come about: its backlog is full."""
        listener = self.listen(backlog=0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            filler = socket.socket()
            self.addCleanup(filler.close)
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        return port

    @inlineCallbacks
    def test_times_out(self) -> Any:
        """An attempt that leads nowhere ends with the time it may take."""
        dialer = Dialer(global_reactor, timeout=0.2)
        yield self.assertFailure(dialer.connect("127.0.0.1", self.stuck(), FACTORY), TimeoutError)

    @inlineCallbacks
    def test_cancel(self) -> Any:
        """Cancelling ends the attempt and leaves nothing behind."""
        dialer = Dialer(global_reactor)
        attempt = dialer.connect("127.0.0.1", self.stuck(), FACTORY)
        yield deferLater(global_reactor, 0.05)
        attempt.cancel()
        yield self.assertFailure(attempt, ConnectingCancelledError)
        self.assertEqual(len(dialer.deadlines), 0)

    @inlineCallbacks
    def test_refusing_factory(self) -> Any:
        """A factory that wants no connection fails the attempt, and the connection is closed."""

        class Refusing:
            def buildProtocol(self, addr: object) -> None:
                return None

        listener = self.listen()
        attempt = Dialer(global_reactor).connect("127.0.0.1", listener.getsockname()[1], Refusing())
        yield self.assertFailure(attempt, NoProtocol)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(5)
            self.assertEqual(peer.recv(10), b"")

    @inlineCallbacks
    def test_impossible_targets(self) -> Any:
        """What the kernel refuses at once is a connection error, no exception."""
        for host, port in (("127.0.0.1", 70000), ("255.255.255.255", 1), ("::ffff:999.1", 1)):
            yield self.assertFailure(Dialer(global_reactor).connect(host, port, FACTORY), ConnectError)

    @inlineCallbacks
    def test_cancel_while_being_connected(self) -> Any:
        """A protocol whose connectionMade brings a cancellation keeps its connection, and nothing is raised."""
        attempts: list[Any] = []
        made: list[Any] = []

        class Hasty(Echoed):
            def connectionMade(self) -> None:
                super().connectionMade()
                made.append(self)
                attempts[0].cancel()

        listener = self.listen()
        dialer = Dialer(global_reactor)
        attempts.append(dialer.connect("127.0.0.1", listener.getsockname()[1], Factory.forProtocol(Hasty)))
        failed: list[Any] = []
        attempts[0].addErrback(failed.append)
        while not made:
            yield deferLater(global_reactor, 0.01)
        self.assertEqual(len(failed), 1)
        made[0].transport.loseConnection()
        yield made[0].lost


class RaceTests(SynchronousTestCase):
    """Several addresses, on a reactor without sockets (RFC 8305)."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.racing = Racing(Dialer(self.reactor, 15))

    def connect(self, *texts: str) -> Deferred[Any]:
        """Begin."""
        return self.racing.connect([ip_address(text) for text in texts], 80, FACTORY)

    def hosts(self) -> list[str]:
        """What was tried."""
        return [client[0] for client in self.reactor.tcpClients]

    def attempt_fails(self, number: int, problem: Exception) -> None:
        """An attempt fails."""
        self.reactor.tcpClients[number][2].clientConnectionFailed(self.reactor.connectors[number], Failure(problem))

    def succeed(self, number: int) -> Any:
        """An attempt succeeds."""
        protocol = self.reactor.tcpClients[number][2].buildProtocol(None)
        protocol.makeConnection(StringTransport())
        return protocol

    def test_families_take_turns(self) -> None:
        """One attempt a quarter of a second, the families in turns, eight at the most."""
        four = [f"192.0.2.{number}" for number in range(1, 10)]
        connecting = self.connect(*four[:3], "2001:db8::1", *four[3:])
        self.assertEqual(self.hosts(), ["192.0.2.1"])
        self.reactor.advance(0.24)
        self.assertEqual(len(self.hosts()), 1)
        for _ in range(20):
            self.reactor.advance(0.25)
        self.assertEqual(self.hosts(), ["192.0.2.1", "2001:db8::1", *four[1:7]])
        self.assertNoResult(connecting)
        for number in range(7):
            self.attempt_fails(number, ConnectionRefusedError())
            self.assertNoResult(connecting)
        self.attempt_fails(7, ConnectionRefusedError())
        self.failureResultOf(connecting, ConnectionRefusedError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_first_wins(self) -> None:
        """The others are given up, and so is the wait for the next."""
        connecting = self.connect("192.0.2.1", "192.0.2.2", "192.0.2.3")
        self.reactor.advance(0.26)
        self.succeed(1)
        self.assertIsNotNone(self.successResultOf(connecting))
        self.assertEqual([each.stoppedConnecting for each in self.reactor.connectors], [True, False])
        self.reactor.advance(10)
        self.assertEqual(len(self.hosts()), 2)

    def test_a_failure_brings_the_next_at_once(self) -> None:
        """Without a wait; what is reported is what the network said, not that one family is missing."""
        connecting = self.connect("2001:db8::1", "192.0.2.2")
        self.attempt_fails(0, NoRouteError())
        self.assertEqual(len(self.hosts()), 2)
        self.attempt_fails(1, ConnectionRefusedError())
        self.failureResultOf(connecting, ConnectionRefusedError)

    def test_cancelled(self) -> None:
        """All attempts end."""
        connecting = self.connect("192.0.2.1", "192.0.2.2")
        self.reactor.advance(0.3)
        connecting.cancel()
        self.failureResultOf(connecting)
        self.assertEqual([each.stoppedConnecting for each in self.reactor.connectors], [True, True])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_interleave(self) -> None:
        """The family of the first address begins."""
        addresses = [ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
        self.assertEqual([ip.version for ip in interleave(addresses)], [4, 6, 4])
        self.assertEqual(interleave(addresses[:1]), addresses[:1])
