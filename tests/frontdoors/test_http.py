"""Tests of mikanet.frontdoors.http: the proxy's two sides in memory, with the test as client and as destination."""

from __future__ import annotations

from twisted.internet import error

from mikanet.address import Address
from mikanet.frontdoors.credentials import Credentials
from mikanet.frontdoors.door import DoorFactory, DoorSettings
from mikanet.frontdoors.doors import http_factory
from tests.frontdoors.support import DoorTestCase
from tests.support.feeding import fragmentations, mutations
from tests.support.memory import MemoryTransport

GET = b"GET http://example.com/path HTTP/1.1\r\nHost: example.com\r\n\r\n"
GET_OUT = b"GET /path HTTP/1.1\r\nHost: example.com\r\n\r\n"
POST = b"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n"
POST_OUT = b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 10\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
UPGRADE = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
EXAMPLE = Address("example.com", 80)


class HttpTestCase(DoorTestCase):
    """The HTTP door."""

    def make_factory(self, settings: DoorSettings) -> DoorFactory:
        """Of HTTP doors."""
        return http_factory(self.tunnel, settings)

    def begin(self, request: bytes = GET, **settings: object) -> tuple[MemoryTransport, MemoryTransport]:
        """A client that sent a request, and the destination that it reached."""
        client = self.open(**settings)
        client.deliver(request)
        return client, self.tunnel.dialled[-1].accept()

    def assert_status(self, client: MemoryTransport, status: int) -> bytes:
        """The client has got this status, and nothing before it; answers all of the response."""
        response = client.read()
        self.assertEqual(response[:13], b"HTTP/1.1 %d " % status, response)
        return response


class PlainTests(HttpTestCase):
    """Requests with absolute URLs."""

    def test_exchange(self) -> None:
        """The request goes out in origin-form over a stream marked as HTTP; the response comes back as it is."""
        client, far = self.begin()
        (dialled,) = self.tunnel.dialled
        self.assertEqual((dialled.destination, dialled.http), (EXAMPLE, True))
        self.assertEqual(far.read(), GET_OUT)
        far.deliver(OK)
        self.assertEqual(client.read(), OK)
        self.assertEqual((client.outcome, far.outcome), ("open", "open"))

    def test_every_fragmentation(self) -> None:
        """However both sides' bytes are cut, the same comes out."""
        for pieces in fragmentations(POST + b"0123456789", most_cuts=60):
            self.setUp()
            client = self.open()
            client.deliver(pieces[0])
            for piece in pieces[1:]:
                client.deliver(piece)
            far = self.tunnel.dialled[0].accept()
            self.assertEqual(far.read(), POST_OUT + b"0123456789")
        for pieces in fragmentations(OK, most_cuts=60):
            self.setUp()
            client, far = self.begin()
            for piece in pieces:
                far.deliver(piece)
            self.assertEqual(client.read(), OK)

    def test_keep_alive(self) -> None:
        """The next request for the same destination uses the same connection, one for another a new one."""
        client, far = self.begin()
        for _ in range(3):
            self.assertEqual(far.read(), GET_OUT)
            far.deliver(OK)
            self.assertEqual(client.read(), OK)
            client.deliver(GET)
        self.assertEqual(len(self.tunnel.dialled), 1)
        far.deliver(OK)
        client.deliver(GET.replace(b"example.com", b"other.example"))
        self.assertEqual(far.outcome, "closed")
        self.assertEqual(self.tunnel.dialled[1].destination, Address("other.example", 80))

    def test_pipeline(self) -> None:
        """Requests sent at once are answered in order, and the next is sent when the last is answered."""
        client, far = self.begin(GET + GET.replace(b"/path", b"/two") + POST + b"0123456789" + GET)
        expected = [GET_OUT, GET_OUT.replace(b"/path", b"/two"), POST_OUT + b"0123456789", GET_OUT]
        for number, request in enumerate(expected):
            self.assertEqual(far.read(), request)
            response = OK.replace(b"hello", b"hell%d" % number)
            far.deliver(response)
            self.assertEqual(client.read(), response)

    def test_pipeline_is_bounded(self) -> None:
        """A client that sends ahead is not read beyond one buffer, and read again later."""
        client, far = self.begin(GET)
        client.deliver(GET * 1200)
        self.assertFalse(client.reading)
        for _ in range(1201):
            self.assertEqual(far.read(), GET_OUT)
            far.deliver(OK)
        self.assertTrue(client.reading)

    def test_early_body(self) -> None:
        """What came of a body while the tunnel dialled is written inside its connectionMade; too much is not read."""
        client = self.open()
        client.deliver(b"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 200000\r\n\r\n")
        client.deliver(b"x" * 60000)
        self.assertTrue(client.reading)
        client.deliver(b"x" * 10000)
        self.assertFalse(client.reading)
        far = self.tunnel.dialled[0].accept()
        self.assertEqual(len(far.read().partition(b"\r\n\r\n")[2]), 70000)
        self.assertTrue(client.reading)

    def test_chunked(self) -> None:
        """Chunks stay chunks in both directions; trailers stay behind."""
        head = b"POST http://example.com/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client, far = self.begin(head + b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n")
        head = b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.assertEqual(far.read(), head + b"5\r\nhello\r\n0\r\n\r\n")
        response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
        far.deliver(response + b"X-Trailer: 1\r\n\r\n")
        self.assertEqual(client.read(), response + b"\r\n")

    def test_body_until_the_end(self) -> None:
        """A body that ends with its connection reaches a 1.1 client in chunks, a 1.0 client up to its own end."""
        client, far = self.begin()
        far.deliver(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        far.deliver_end()
        expected = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nall of it\r\n0\r\n\r\n"
        self.assertEqual(client.read(), expected)
        self.assertEqual((client.outcome, far.outcome), ("open", "closed"))
        client, far = self.begin(GET.replace(b"1.1", b"1.0"))
        far.deliver(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        far.lose(error.ConnectionDone())
        self.assertEqual(client.read(), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        self.assertTrue(client.half_closed)

    def test_cut_bodies(self) -> None:
        """A response that is cut, by an early end or a reset, is a reset for the client."""
        for response in (OK[:-1], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", OK[:-5]):
            client, far = self.begin()
            far.deliver(response)
            far.deliver_end()
            self.assertEqual((client.outcome, far.outcome), ("aborted", "aborted"))
        client, far = self.begin()
        far.deliver(b"HTTP/1.1 200 OK\r\n\r\nas long as it la")
        far.lose(error.ConnectionLost())
        self.assertEqual(client.outcome, "aborted")
        self.assert_nothing_left()

    def test_bodyless_responses(self) -> None:
        """Responses to HEAD, 204 and 304 have no body, whatever their headers say."""
        client, far = self.begin(GET.replace(b"GET", b"HEAD"))
        far.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        self.assertEqual(client.read(), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for response in (
            b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        ):
            client.deliver(GET)
            far.read()
            far.deliver(response)
            self.assertEqual(client.read(), response)
        self.assertEqual(len(self.tunnel.dialled), 1)

    def test_continue(self) -> None:
        """The wish for 100 Continue goes to the destination, and its answers to the client."""
        head = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        client, far = self.begin(head)
        self.assertIn(b"Expect: 100-continue\r\n", far.read())
        far.deliver(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        self.assertEqual(client.read(), b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        client.deliver(b"0123456789")
        self.assertEqual(far.read(), b"0123456789")
        far.deliver(OK)
        self.assertEqual(client.read(), OK)

    def test_response_before_the_body(self) -> None:
        """A response to an unfinished request is passed on whole; then both connections end, the client's gently."""
        client, far = self.begin(POST + b"01234")
        far.deliver(OK.replace(b"200 OK", b"413 Content Too Large"))
        self.assert_status(client, 413)
        self.assertEqual(far.outcome, "closed")
        self.assertTrue(client.half_closed)
        client.deliver(b"56789")
        client.deliver_end()
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()

    def test_close(self) -> None:
        """A client that wants to close is closed after its response; so is a destination's connection."""
        client, far = self.begin(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertEqual(far.read(), GET_OUT)
        far.deliver(OK)
        self.assertEqual(client.read(), OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertTrue(client.half_closed)
        client, far = self.begin()
        far.deliver(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertEqual(client.read(), OK)
        self.assertEqual((client.outcome, far.outcome), ("open", "closed"))
        client.deliver(GET)
        self.assertEqual(self.tunnel.dialled[-1].accept().read(), GET_OUT)

    def test_half_closed_client(self) -> None:
        """A client that ends its input behind its requests gets all the responses, then the end."""
        client, far = self.begin(GET + GET)
        client.deliver_end()
        far.deliver(OK)
        self.assertEqual((client.read(), client.outcome), (OK, "open"))
        far.deliver(OK)
        self.assertEqual((client.read(), client.outcome, far.outcome), (OK, "closed", "closed"))
        self.assert_nothing_left()

    def test_half_closed_while_dialling(self) -> None:
        """So does one that did so while the tunnel dialled."""
        client = self.open()
        client.deliver(GET)
        client.deliver_end()
        far = self.tunnel.dialled[0].accept()
        self.assertEqual(far.read(), GET_OUT)
        far.deliver(OK)
        self.assertEqual((client.read(), client.outcome), (OK, "closed"))
        self.assert_nothing_left()

    def test_cut_request(self) -> None:
        """A request that ends in its middle is cut for the destination, and answered 400."""
        client, far = self.begin(POST + b"01234")
        client.deliver_end()
        self.assertEqual(far.outcome, "aborted")
        self.assert_status(client, 400)
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()

    def test_client_gone(self) -> None:
        """A client that is lost takes its dial, its exchange, or its idle connection with it."""
        client = self.open()
        client.deliver(GET)
        client.lose(error.ConnectionLost())
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        client, far = self.begin()
        client.lose(error.ConnectionLost())
        self.assertEqual(far.outcome, "aborted")
        client, far = self.begin()
        far.deliver(OK)
        client.lose(error.ConnectionDone())
        self.assertEqual(far.outcome, "closed")
        self.assert_nothing_left()

    def test_synchronous_tunnel(self) -> None:
        """A tunnel that connects inside connect() is as good."""
        self.tunnel.accept_at_once = True
        client = self.open()
        client.deliver(POST + b"0123456789" + GET)
        far = self.tunnel.dialled[0].transport
        self.assertEqual(far.read(), POST_OUT + b"0123456789")
        far.deliver(OK)
        self.assertEqual((client.read(), far.read()), (OK, GET_OUT))


class BackPressureTests(HttpTestCase):
    """Bodies of any size, never whole in memory."""

    def test_upload(self) -> None:
        """A full destination stops the reading of the client; it goes on when there is room."""
        client, far = self.begin(POST.replace(b"10", b"1000000"))
        total = len(far.read())
        for _ in range(10):
            client.deliver(b"x" * 100000)
            self.assertFalse(client.reading)
            total += len(far.read())
            self.assertTrue(client.reading)
        self.assertEqual(total, len(POST_OUT) + len("00000") + 1000000)
        far.deliver(OK)
        self.assertEqual(client.read(), OK)

    def test_download(self) -> None:
        """A full client stops the reading of the destination."""
        client, far = self.begin()
        far.deliver(OK.replace(b"5\r\n\r\nhello", b"1000000\r\n\r\n"))
        for _ in range(10):
            far.deliver(b"x" * 100000)
            self.assertFalse(far.reading)
            client.read()
            self.assertTrue(far.reading)
        client.deliver(GET)
        self.assertEqual(far.read(), GET_OUT + GET_OUT)

    def test_answer_to_a_full_destination(self) -> None:
        """A destination that answers early while it is full leaves the client's reading going."""
        client, far = self.begin(POST.replace(b"10", b"1000000"))
        client.deliver(b"x" * 100000)
        self.assertFalse(client.reading)
        far.deliver(OK)
        self.assertTrue(client.reading)
        self.assertEqual(client.read(), OK)


class ConnectTests(HttpTestCase):
    """CONNECT."""

    def test_relay(self) -> None:
        """200 is sent when the tunnel is connected; early bytes go with the tunnel's first; then bytes flow."""
        for pieces in fragmentations(CONNECT + b"\x16\x03\x01early", most_cuts=40):
            self.setUp()
            client = self.open()
            for piece in pieces:
                client.deliver(piece)
            self.assertEqual(client.read(), b"")
            (dialled,) = self.tunnel.dialled
            self.assertEqual((dialled.destination, dialled.http), (Address("example.com", 443), False))
            far = dialled.accept()
            self.assertEqual((client.read(), far.read()), (ESTABLISHED, b"\x16\x03\x01early"))
        client.deliver(b"up")
        far.deliver(b"down")
        self.assertEqual((client.read(), far.read()), (b"down", b"up"))
        client.deliver_end()
        far.deliver_end()
        self.assertEqual((client.outcome, far.outcome), ("closed", "closed"))
        self.assert_nothing_left()

    def test_flow_control(self) -> None:
        """Back-pressure and resets are the relay's."""
        client, far = self.begin(CONNECT)
        client.deliver(b"x" * 70000)
        self.assertFalse(client.reading)
        far.read()
        self.assertTrue(client.reading)
        far.lose(error.ConnectionLost())
        self.assertEqual(client.outcome, "aborted")
        self.assert_nothing_left()

    def test_early_bytes_are_bounded(self) -> None:
        """While the tunnel dials, no more than a buffer is read."""
        client = self.open()
        client.deliver(CONNECT)
        client.deliver(b"x" * 70000)
        self.assertFalse(client.reading)
        far = self.tunnel.dialled[0].accept()
        self.assertTrue(client.reading)
        self.assertEqual(len(far.read()), 70000)

    def test_failure(self) -> None:
        """A failure is answered, and the client may ask again on the same connection."""
        client = self.open()
        client.deliver(CONNECT)
        self.tunnel.dialled[0].reject(error.ConnectionRefusedError())
        self.assert_status(client, 502)
        client.deliver(CONNECT)
        self.tunnel.dialled[1].accept()
        self.assertEqual(client.read(), ESTABLISHED)

    def test_client_gives_up(self) -> None:
        """A client that ends before the answer, having sent nothing behind, has its dial cancelled."""
        client = self.open()
        client.deliver(CONNECT)
        client.deliver_end()
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()

    def test_early_bytes_and_end(self) -> None:
        """One that sent bytes before its end has them carried."""
        client = self.open()
        client.deliver(CONNECT + b"all")
        client.deliver_end()
        far = self.tunnel.dialled[0].accept()
        self.assertEqual((far.read(), far.half_closed), (b"all", True))

    def test_after_a_plain_request(self) -> None:
        """CONNECT on a connection used before lets go of the other destination."""
        client, far = self.begin()
        far.deliver(OK)
        client.read()
        client.deliver(CONNECT)
        self.assertEqual(far.outcome, "closed")
        self.assertFalse(self.tunnel.dialled[1].http)
        self.tunnel.dialled[1].accept()
        self.assertEqual(client.read(), ESTABLISHED)


class RefusalTests(HttpTestCase):
    """What clients do wrong."""

    def test_empty_lines(self) -> None:
        """Empty lines before and between requests mean nothing, wherever they are cut."""
        for pieces in fragmentations(b"\r\n\n\r\n" + GET + b"\r\n" + GET + b"\r\n\r\n", most_cuts=60):
            client = self.open()
            for piece in pieces:
                client.deliver(piece)
            far = self.tunnel.dialled[-1].accept()
            for _ in range(2):
                self.assertEqual(far.read(), GET_OUT)
                far.deliver(OK)
                self.assertEqual(client.read(), OK)
            self.assertEqual(client.outcome, "open")
            client.deliver_end()

    def test_bytes_behind_the_last_request(self) -> None:
        """After a good answer, what is no request gets no answer of its own: the connection closes in order."""
        for extra in (b"garbage\r\n\r\n", b"\x00\xff\r\n\r\n"):
            client, far = self.begin(POST + b"0123456789" + extra)
            far.deliver(OK)
            self.assertEqual(client.read(), OK)
            self.assertTrue(client.half_closed)
            self.assertEqual(client.outcome, "open")
            self.reactor.advance(4)
            self.assertEqual(client.outcome, "closed")

    def test_bad_requests(self) -> None:
        """What is not a proxy request, or may be read in two ways, is answered 400 and goes nowhere."""
        host = b" HTTP/1.1\r\nHost: x\r\n"
        for request in (
            b"GET /" + host + b"\r\n",
            b"OPTIONS *" + host + b"\r\n",
            b"GET https://x/" + host + b"\r\n",
            b"CONNECT x" + host + b"\r\n",
            b"CONNECT x:443" + host + b"Content-Length: 5\r\n\r\n",
            b"GET http://x/ HTTP/1.1\r\n\r\n",
            b"GET http://x/" + host + b"Host: y\r\n\r\n",
            b"POST http://x/" + host + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"POST http://x/" + host + b"Content-Length: +5\r\n\r\n",
            b"POST http://x/" + host + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST http://x/" + host + b"Transfer-Encoding : chunked\r\n\r\n",
            b"GET http://x/" + host + b"X: a\x00b\r\n\r\n",
            b"GET http://x/ HTTP/9\r\n\r\n",
            b"\x05\x01\x00\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        ):
            client = self.open()
            client.deliver(request)
            self.assert_status(client, 400)
            client.deliver_end()
            self.assertEqual(client.outcome, "closed", request)
            self.assert_nothing_left()
        self.assertEqual(self.tunnel.dialled, [])

    def test_other_refusals(self) -> None:
        """Unknown transfer codings are answered 501, endless heads 431."""
        client = self.open()
        client.deliver(b"POST http://x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
        self.assert_status(client, 501)
        client = self.open()
        for _ in range(5):
            client.deliver(b"X" * 20000)
        self.assert_status(client, 431)

    def test_usable_after_400(self) -> None:
        """A refused request without a body leaves the connection usable."""
        client = self.open()
        client.deliver(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        self.assert_status(client, 400)
        self.tunnel.dialled[0].accept().deliver(OK)
        self.assertEqual(client.read(), OK)

    def test_refused_while_a_destination_is_idle(self) -> None:
        """Nothing of a refused request reaches the destination of the one before."""
        client, far = self.begin()
        far.deliver(OK)
        far.read()
        client.read()
        client.deliver(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        self.assert_status(client, 400)
        self.assertEqual(far.read(), b"")

    def test_password(self) -> None:
        """Without the right credentials every request is answered 407; they are never passed on."""
        credentials = Credentials({"alice": "secret"})
        login = b"\r\nProxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n"
        for request in (GET, CONNECT):
            client = self.open(credentials=credentials)
            client.deliver(request)
            self.assertIn(b'\r\nProxy-Authenticate: Basic realm="proxy"\r\n', self.assert_status(client, 407))
            client.deliver(request.replace(b"\r\n\r\n", login.replace(b"Yn", b"Zn").replace(b"YW", b"ZW")))
            self.assert_status(client, 407)
            self.assertEqual(self.tunnel.dialled, [])
            client.deliver(request.replace(b"\r\n\r\n", login))
            far = self.tunnel.dialled.pop().accept()
            self.assertEqual(far.read(), GET_OUT if request is GET else b"")
        self.assertEqual(self.counted("frontdoor.http.refused.password"), 2)

    def test_password_for_each_request(self) -> None:
        """A request is not let through for what an earlier one on the connection has shown."""
        login = b"\r\nProxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n"
        client, far = self.begin(GET.replace(b"\r\n\r\n", login), credentials=Credentials({"alice": "secret"}))
        far.deliver(OK)
        client.read()
        client.deliver(GET)
        self.assert_status(client, 407)

    def test_deadlines(self) -> None:
        """The first request has the handshake's time, each further one the keep-alive time; a trickle does not help."""
        client = self.open(handshake_timeout=30, keep_alive_timeout=120)
        client.deliver(GET[:10])
        self.reactor.advance(29)
        client.deliver(GET[10:20])
        self.reactor.pump([1, 2])
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()
        client, far = self.begin(handshake_timeout=30, keep_alive_timeout=120)
        self.reactor.advance(1000)
        far.deliver(OK)
        client.read()
        self.reactor.advance(119)
        self.assertFalse(client.half_closed)
        client.deliver(GET[:10])
        self.reactor.pump([1, 2])
        self.assertEqual((client.outcome, far.outcome), ("closed", "closed"))
        self.assert_nothing_left()

    def test_mutations(self) -> None:
        """10,000 mutated conversations end in responses, a wait, or a dial; never in another exception."""
        chunked = (
            b"POST http://example.com/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )
        self.open().lose(error.ConnectionDone())
        self.tunnel.accept_at_once = True
        for data in mutations([GET + GET, POST + b"0123456789", CONNECT + b"data", chunked, UPGRADE], 10_000, 8):
            client = self.connect()
            client.deliver(data)
            for dialled in self.tunnel.dialled:
                if dialled.transport.outcome == "open":
                    dialled.transport.deliver(OK)
            client.lose(error.ConnectionLost())
            for dialled in self.tunnel.dialled:
                self.assertNotEqual(dialled.transport.outcome, "open")
            self.tunnel.dialled.clear()
        self.assert_nothing_left()
