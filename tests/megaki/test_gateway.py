"""The HTTP gateway."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.counters import Counters
from mikanet.errors import RemoteProtocolError
from mikanet.megaki import gateway_site, sealing, warm
from mikanet.megaki.gateway import Gateway
from mikanet.megaki.gateway_site import GatewaySite
from mikanet.megaki.sazukari import RESUME_TIME, SessionLostError, TimedOutError
from mikanet.megaki.warm import NoSessionError, WarmSessions
from mikanet.megaki.wire import MAX_MESSAGE
from tests.megaki.memory import MemoryServer


class Connection(StringTransport):
    """An HTTP client's connection."""

    aborted = fin = False
    protocol: Any

    def loseWriteConnection(self) -> None:
        """Note it."""
        self.fin = True

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
        self.clock = Clock()
        self.site = GatewaySite(self.clock, self.gateway)

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
        head = f"POST /any/path HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
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
        self.assertEqual(self.status(self.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")), 405)
        self.assertEqual(self.status(self.send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")), 405)
        self.assertEqual(self.status(self.post(b"")), 400)
        self.assertEqual(self.status(self.post(bytes(MAX_MESSAGE + 1))), 413)
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(self.status(self.send(head, *[chunk] * 17, b"0\r\n\r\n")), 413)
        self.assertEqual(self.asked, [])

    def test_refused_at_the_head(self) -> None:
        """What will be refused is refused before its body: at the head, or where it becomes too long, and arrives."""
        heads = {
            413: b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n",
            405: b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n",
            403: b"POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 10\r\n",
        }
        for status, head in heads.items():
            transport = self.send(head + b"Expect: 100-continue\r\n\r\n")
            self.assertEqual(self.status(transport), status)
            self.assertIn(b"Connection: close", transport.value())
            said = transport.value()
            for _ in range(100):
                transport.protocol.dataReceived(bytes(65536))
            self.assertEqual(transport.value(), said)
            # Our end is out; what comes is read for a while, so that no reset overtakes the response.
            self.assertTrue(transport.fin)
            self.assertFalse(transport.disconnecting)
            self.clock.advance(gateway_site.LINGER)
            self.assertTrue(transport.disconnecting)
        endless = self.send(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            *[b"10000\r\n" + bytes(65536) + b"\r\n"] * 17,
        )
        self.assertEqual(self.status(endless), 413)
        self.patch(gateway_site, "LINGER_BYTES", 100_000)
        endless.protocol.dataReceived(bytes(65536))
        endless.protocol.dataReceived(bytes(65536))
        self.assertTrue(endless.disconnecting)
        good = self.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        self.assertEqual(self.status(good), 100)

    def test_half_close(self) -> None:
        """A client that ends its half after its request gets the answer, then our end; one in mid-request does not wait."""
        transport = self.post(b"q")
        transport.protocol.readConnectionLost()
        self.assertFalse(transport.disconnecting or transport.fin)
        self.asked.pop()[1].callback(b"answer")
        self.assertIn(b"answer", transport.value())
        self.assertTrue(transport.disconnecting)
        transport = self.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhal")
        transport.protocol.readConnectionLost()
        self.assertTrue(transport.disconnecting)

    def test_pages_of_other_sites(self) -> None:
        """A page of another site gets 403: by its origin, or by a name of its own that leads here; ours are served."""
        gateway = Gateway(self.ask, self.counters, hosts=["Gateway.lan"])
        self.site = GatewaySite(self.clock, gateway)
        for host, origin, served in (
            ("localhost:8080", None, True),
            ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
            ("[::1]:8080", None, True),
            ("gateway.lan", "http://gateway.lan", True),
            ("app.localhost", None, True),
            ("evil.example", None, False),
            ("evil.example:8080", "http://evil.example:8080", False),
            ("127.0.0.1:8080", "http://evil.example", False),
            ("127.0.0.1:8080", "null", False),
            ("127.0.0.1:8080", "http://127.0.0.1:9090", False),
            ("[::1", None, False),
            ("", None, False),
        ):
            head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\n"
            head += f"Origin: {origin}\r\n" if origin else ""
            transport = self.send(head.encode() + b"\r\nq")
            self.assertEqual(len(self.asked), served, (host, origin))
            if served:
                self.asked.pop()[1].callback(b"a")
            self.assertEqual(self.status(transport), 200 if served else 403, (host, origin))

    def test_mistakes_of_ours(self) -> None:
        """A request whose answering fails in a way that nobody thought of is answered with 500, and logged."""
        transport = self.post(b"q")
        self.asked.pop()[1].errback(ZeroDivisionError())
        self.assertEqual(self.status(transport), 500)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.gateway.running, set())

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

    def test_failed_resumption(self) -> None:
        """After a resumption that the server will not have, by silence or by its end, there is a handshake."""
        self.start()
        done = ensureDeferred(self.sessions.ask(b"q"))
        self.pump()
        self.answer_all()
        self.successResultOf(done)
        for session in self.server.config.bank._sessions.values():  # other keys than the client has
            session.current = session.previous = sealing.SessionKey(bytes(32))
        for wire in list(self.server.wires):
            wire.far.protocol._close()
        self.pump()
        self.clock.advance(RESUME_TIME)
        self.pump()
        done = ensureDeferred(self.sessions.ask(b"again"))
        self.pump()
        self.answer_all()
        self.assertEqual(self.successResultOf(done), b"again")
        self.assertGreaterEqual(self.server.config.counters["megaki.server.handshakes"], 3)

    def test_client_leaves_while_a_session_is_opened(self) -> None:
        """A request that is given up while its session is being opened says nothing about the server."""
        self.server.reachable = False
        self.sessions = WarmSessions(self.clock, self.server.client(), warm=0, most=3)
        self.sessions.start()
        with capturedLogs() as logs:
            done = ensureDeferred(self.sessions.ask(b"q"))
            done.cancel()
            self.failureResultOf(done, CancelledError)
        self.assertEqual([event for event in logs if "no session" in formatEvent(event)], [])
        self.assertEqual(self.sessions._opening, 0)

    def test_rest(self) -> None:
        """A session that rested for long is renewed before the server would close it."""
        self.start()
        for _ in range(20):
            self.clock.advance(warm.REST_TIME / 8)
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
