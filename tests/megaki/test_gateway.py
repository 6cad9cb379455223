"""The HTTP gateway."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.counters import Counters
from mikanet.errors import RemoteProtocolError
from mikanet.megaki import gateway, sealing
from mikanet.megaki.gateway import Gateway, GatewaySite, NoSessionError, WarmSessions
from mikanet.megaki.sazukari import SessionLostError, TimedOutError
from mikanet.megaki.wire import MAX_MESSAGE
from tests.megaki.memory import MemoryServer


class Connection(StringTransport):
    """An HTTP client's connection."""

    aborted = False

    def abortConnection(self) -> None:
        """Note it."""
        self.aborted = True

    def loseConnection(self) -> None:
        """Note it."""
        self.disconnecting = True


class GatewayTests(SynchronousTestCase):
    """HTTP in, HTTP out."""

    def setUp(self) -> None:
        """A site in memory whose requests the test answers."""
        self.asked: list[tuple[bytes, Deferred[bytes]]] = []
        self.counters = Counters()
        self.gateway = Gateway(self.ask, self.counters)
        self.site = GatewaySite(Clock(), self.gateway)

    def ask(self, request: bytes) -> Any:
        """Note it."""
        self.asked.append((request, Deferred()))
        return self.asked[-1][1]

    def send(self, *parts: bytes) -> Connection:
        """A connection that sends this."""
        transport = Connection()
        transport.protocol = self.site.buildProtocol(transport.getPeer())
        transport.protocol.makeConnection(transport)
        for part in parts:
            transport.protocol.dataReceived(part)
        return transport

    def post(self, body: bytes) -> Connection:
        """A POST."""
        head = f"POST /any/path HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return self.send(head.encode(), body)

    def status(self, transport: Connection) -> int:
        """The status of what came back."""
        return int(transport.value().split()[1])

    def test_good(self) -> None:
        """The body goes up, the answer comes down; an empty answer is one."""
        for answer in (b"world", b""):
            transport = self.post(b"hello")
            request, done = self.asked.pop()
            self.assertEqual(request, b"hello")
            done.callback(answer)
            head, _, body = transport.value().partition(b"\r\n\r\n")
            self.assertEqual(self.status(transport), 200)
            self.assertIn(b"Content-Length: %d" % len(answer), head)
            self.assertEqual(body, answer)
        self.assertEqual(self.counters["megaki.gateway.200"], 2)
        self.assertEqual(self.gateway.running, set())

    def test_errors(self) -> None:
        """No session is 503, a lost or broken one 502, a late answer 504; each with its reason as text."""
        for error, status, word in (
            (NoSessionError("nobody there"), 503, b"nobody there"),
            (SessionLostError("the server closed the connection"), 502, b"closed"),
            (RemoteProtocolError("wrong MAC"), 502, b"MAC"),
            (TimedOutError("no answer in time"), 504, b"in time"),
        ):
            transport = self.post(b"q")
            self.asked.pop()[1].errback(error)
            self.assertEqual(self.status(transport), status)
            self.assertIn(word, transport.value().partition(b"\r\n\r\n")[2])

    def test_verbose(self) -> None:
        """Each request is logged with its status if that is wished for, but nothing of what it says."""
        self.site = GatewaySite(Clock(), Gateway(self.ask, self.counters, verbose=True))
        with capturedLogs() as logs:
            self.post(b"secret")
            self.asked.pop()[1].callback(b"answer")
        said = [formatEvent(event) for event in logs if event["log_namespace"] == "mikanet.megaki.gateway"]
        self.assertEqual(len(said), 1)
        self.assertIn("6 bytes", said[0])
        self.assertIn("200", said[0])

    def test_bad_requests(self) -> None:
        """Another method is 405, an empty body 400, one over 1 MiB 413, announced or in chunks; none is asked for."""
        self.assertEqual(self.status(self.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")), 405)
        self.assertEqual(self.status(self.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")), 405)
        self.assertEqual(self.status(self.post(b"")), 400)
        self.assertEqual(self.status(self.post(bytes(MAX_MESSAGE + 1))), 413)
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(self.status(self.send(head, *[chunk] * 17, b"0\r\n\r\n")), 413)
        endless = self.send(head, *[chunk] * 65)
        self.assertTrue(endless.disconnecting or endless.aborted)
        self.assertEqual(self.asked, [])

    def test_client_leaves(self) -> None:
        """If the HTTP client goes away, its request is given up."""
        transport = self.post(b"q")
        transport.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(self.asked[0][1].called)  # cancelled
        self.assertEqual(self.gateway.running, set())


class WarmTests(SynchronousTestCase):
    """Sessions kept ready."""

    def setUp(self) -> None:
        """A server in memory and sessions with it."""
        self.clock = Clock()
        self.server = MemoryServer(self.clock)
        self.sessions = WarmSessions(self.clock, self.server.client(), warm=2, most=3)

    def pump(self) -> None:
        """Let everything happen that does not take time."""
        for _ in range(5):
            self.clock.advance(0)
            self.server.pump()

    def start(self) -> None:
        """Start, and let the sessions come up."""
        self.sessions.start()
        self.pump()

    def answer_all(self) -> None:
        """Every request gets itself back."""
        while self.server.pool.asked:
            _, request, done = self.server.pool.asked.pop(0)
            done.callback(request)
            self.pump()

    def test_ready(self) -> None:
        """Sessions stand before the first request, and are used again."""
        self.start()
        self.assertEqual(len(self.server.wires), 2)
        for _ in range(5):
            done = ensureDeferred(self.sessions.ask(b"q"))
            self.pump()
            self.answer_all()
            self.assertEqual(self.successResultOf(done), b"q")
        self.assertEqual(len(self.server.wires), 2)

    def test_more_at_once(self) -> None:
        """More requests than sessions open further ones up to the cap; the rest wait their turn."""
        self.start()
        done = [ensureDeferred(self.sessions.ask(b"%d" % n)) for n in range(6)]
        self.pump()
        self.assertEqual(len(self.server.pool.asked), 3)
        self.answer_all()
        self.assertEqual([self.successResultOf(each) for each in done], [b"%d" % n for n in range(6)])
        self.assertEqual(len(self.server.wires), 3)

    def test_resumed(self) -> None:
        """A session that ended is resumed, not made anew."""
        self.start()
        done = ensureDeferred(self.sessions.ask(b"q"))
        self.pump()
        self.answer_all()
        self.successResultOf(done)
        for wire in list(self.server.wires):
            wire.far.protocol._close()
        self.pump()
        self.assertEqual(len([wire for wire in self.server.wires if not wire.near.gone]), 2)
        self.assertEqual(self.server.config.counters["megaki.server.resumed"], 1)

    def test_rest(self) -> None:
        """A session that rested for long is renewed before the server would close it."""
        self.start()
        for _ in range(20):
            self.clock.advance(gateway.REST_TIME / 8)
            self.server.pump()
        self.pump()
        self.assertEqual(self.server.config.counters["megaki.server.idle"], 0)
        self.assertGreater(len(self.server.wires), 3)

    def test_server_away(self) -> None:
        """Without a server requests fail at once with a reason, and sessions are tried for now and then."""
        client = self.server.client(connect_time=0.5)
        self.server.reachable = False
        self.sessions = WarmSessions(self.clock, client, warm=1, most=3)
        self.sessions.start()
        done = ensureDeferred(self.sessions.ask(b"q"))
        self.clock.advance(0.5)
        self.failureResultOf(done, NoSessionError)
        self.server.reachable = True
        self.clock.advance(1.5)
        self.pump()
        self.assertEqual(len(self.server.wires), 1)

    def test_waiters_without_a_server(self) -> None:
        """When sessions cannot be made, every request that waits for one learns of it: none waits for ever."""
        self.server.reachable = False
        self.sessions = WarmSessions(self.clock, self.server.client(connect_time=0.5), warm=0, most=2)
        self.sessions.start()
        done = [ensureDeferred(self.sessions.ask(b"q")) for _ in range(6)]
        self.clock.pump([0.5] * 4)
        for each in done:
            self.failureResultOf(each, NoSessionError)

    def test_all_in_use(self) -> None:
        """A request that waits for a session does so for as long as one may take, and no longer."""
        self.sessions = WarmSessions(self.clock, self.server.client(request_time=50), warm=1, most=1, wait_time=5)
        self.start()
        first, second = (ensureDeferred(self.sessions.ask(b"q")) for _ in range(2))
        self.pump()
        self.clock.advance(5)
        self.failureResultOf(second, TimedOutError)
        self.answer_all()
        self.assertEqual(self.successResultOf(first), b"q")

    def test_spent_key(self) -> None:
        """Requests one after the other, more than a key may carry: every one gets its answer (K4)."""
        self.patch(sealing, "MAX_MESSAGES", 16)
        self.start()
        for number in range(100):
            done = ensureDeferred(self.sessions.ask(b"%d" % number))
            self.pump()
            self.answer_all()
            self.assertEqual(self.successResultOf(done), b"%d" % number)
        self.assertGreaterEqual(self.server.config.counters["megaki.server.resumed"], 4)

    def test_stop(self) -> None:
        """At the end all sessions are closed."""
        self.start()
        done = ensureDeferred(self.sessions.stop())
        for _ in range(3):
            self.server.pump()
        self.successResultOf(done)
        self.assertEqual(self.clock.getDelayedCalls(), [])
