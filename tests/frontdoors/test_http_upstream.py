"""Tests of mikanet.frontdoors.http_upstream: what destinations answer, and connections that go on as something else."""

from __future__ import annotations

from twisted.internet import error

from mikanet.errors import DestinationError, Reason, ServerError
from tests.frontdoors.test_http import CONNECT, GET, GET_OUT, OK, POST, UPGRADE, HttpTestCase
from tests.support.feeding import fragmentations, mutations


class UpstreamTests(HttpTestCase):
    """What destinations do wrong."""

    def test_dial_failures(self) -> None:
        """Each reason has its status and a short text, and the client's connection stays usable."""
        for problem, status in (
            (DestinationError(Reason.POLICY), 403),
            (error.ConnectionRefusedError(), 502),
            (error.DNSLookupError(), 502),
            (error.TimeoutError(), 504),
            (DestinationError(Reason.LIMIT), 503),
        ):
            client = self.open()
            client.deliver(GET + GET)
            self.tunnel.dialled[-1].reject(problem)
            response = self.assert_status(client, status)
            self.assertIn(b"\r\nContent-Type: text/plain", response)
            self.tunnel.dialled[-1].accept().deliver(OK)
            self.assertEqual(client.read(), OK)

    def test_dial_deadline(self) -> None:
        """A tunnel that takes too long is answered 504."""
        client = self.open(dial_timeout=7)
        client.deliver(GET)
        self.reactor.advance(7)
        self.assert_status(client, 504)

    def test_the_server_is_named(self) -> None:
        """When the tunnel's own server is the obstacle the answer says so, for URLs and for CONNECT."""
        for request in (GET, CONNECT):
            client = self.open()
            client.deliver(request)
            problem = ServerError(Reason.REFUSED, "the tunnel's server refuses connections")
            self.tunnel.dialled[-1].reject(problem)
            response = self.assert_status(client, 502)
            self.assertIn(b"the tunnel's server refuses connections", response)
            self.assertNotIn(b"destination", response)

    def test_refused_body(self) -> None:
        """With a body still to come, a refusal closes, and the body is dropped."""
        client = self.open()
        client.deliver(POST + b"01234")
        self.tunnel.dialled[0].reject(DestinationError(Reason.POLICY))
        self.assertIn(b"Connection: close\r\n", self.assert_status(client, 403))
        self.assertTrue(client.half_closed)
        client.deliver(b"56789" + b"x" * 100000)
        self.assertTrue(client.reading)
        for _ in range(14):
            self.reactor.advance(2)
            self.assertEqual(client.outcome, "open")
            client.deliver(b"x" * 100000)
        self.reactor.advance(2)
        self.reactor.advance(2)
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()

    def test_refused_body_that_ends(self) -> None:
        """A refused client that sends nothing more for two seconds is closed."""
        client = self.open()
        client.deliver(POST + b"01234")
        self.tunnel.dialled[0].reject(DestinationError(Reason.POLICY))
        client.deliver(b"56789")
        self.reactor.advance(2)
        self.assertEqual(client.outcome, "open")
        self.reactor.advance(2)
        self.assertEqual(client.outcome, "closed")

    def test_odd_heads(self) -> None:
        """Spaces before colons go; a head that h11 cannot read, and that of a radio station, are the client's to read."""
        for head, expected in (
            (
                b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\nX\t:y\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n",
            ),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + OK[:-5], b"HTTP/1.1 100 Continue\r\n\r\n" + OK[:-5]),
            (
                b"HTTP/1.0 200 OK\r\nb\xc3\xa4d name: 1\r\n\r\n",
                b"HTTP/1.0 200 OK\r\nConnection: close\r\nb\xc3\xa4d name: 1\r\n\r\n",
            ),
            (b"ICY 200 OK\r\nicy-metaint:0\r\n\r\n", b"ICY 200 OK\r\nConnection: close\r\nicy-metaint:0\r\n\r\n"),
        ):
            for pieces in fragmentations(head + b"hello", most_cuts=60):
                client, far = self.begin()
                for piece in pieces:
                    far.deliver(piece)
                self.assertEqual(client.read(), expected + b"hello", pieces)
                if b"close" in expected:
                    client.deliver(GET)  # which is for nobody: the connection ends with the response
                    far.deliver(b" and more")
                    far.deliver_end()
                    self.assertEqual(client.read(), b" and more")
                    self.assertTrue(client.half_closed)
                client.deliver_end()

    def test_odd_heads_for_clients_that_close(self) -> None:
        """A radio player that asks with Connection: close, by HTTP/1.0, or has said all it has to, hears it too."""
        close = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        for request, ends in ((close, False), (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), False), (GET, True)):
            client, far = self.begin(request)
            if ends:
                client.deliver_end()
            far.deliver(b"ICY 200 OK\r\n\r\nmusic")
            self.assertTrue(client.read().endswith(b"\r\n\r\nmusic"), request)

    def test_bytes_behind_a_response(self) -> None:
        """What nobody has asked for is never the answer to a request that follows in the pipeline."""
        client, far = self.begin(GET.replace(b"GET", b"HEAD") + GET)
        far.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
        second = self.tunnel.dialled[-1].accept()
        second.deliver(OK)
        got = client.read()
        self.assertNotIn(b"EVIL", got)
        self.assertTrue(got.endswith(b"hello"), got)

    def test_long_head(self) -> None:
        """A head without an end is answered 502."""
        client, far = self.begin()
        far.deliver(b"HTTP/1.1 200 OK\r\n")
        count = 0
        while far.outcome == "open" and count < 70:
            far.deliver(b"X-Filler: " + b"x" * 1000 + b"\r\n")
            count += 1
        self.assertLess(count, 70)
        self.assert_status(client, 502)

    def test_an_odd_response_to_a_body_under_way(self) -> None:
        """While the client still sends, what it sends must not reach the destination unread: 502."""
        client, far = self.begin(POST + b"01234")
        far.deliver(b"ICY 200 OK\r\n\r\n")
        self.assert_status(client, 502)

    def test_a_cut_odd_response(self) -> None:
        """A reset half-way is a reset for the client."""
        client, far = self.begin()
        far.deliver(b"ICY 200 OK\r\n\r\nhalf")
        far.lose(error.ConnectionLost())
        self.assertEqual(client.outcome, "aborted")

    def test_no_response(self) -> None:
        """A destination that ends, is lost, or is no HTTP server before any response is answered 502."""
        for what in ("end", "lose", "garbage"):
            client, far = self.begin()
            if what == "end":
                far.deliver_end()
            elif what == "lose":
                far.lose(error.ConnectionLost())
            else:
                far.deliver(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            self.assert_status(client, 502)
            self.assertEqual((client.outcome, far.outcome == "open"), ("open", False))

    def test_idle_connection_ends(self) -> None:
        """A destination's connection that ends or speaks while idle is let go; the next request dials anew."""
        for what in ("end", "lose", "garbage"):
            client, far = self.begin()
            far.deliver(OK)
            client.read()
            if what == "end":
                far.deliver_end()
            elif what == "lose":
                far.lose(error.ConnectionLost())
            else:
                far.deliver(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            self.assertNotEqual(far.outcome, "open")
            client.deliver(GET)
            far = self.tunnel.dialled[-1].accept()
            self.assertEqual(far.read(), GET_OUT)
            far.deliver(OK)
            self.assertEqual(client.read(), OK)

    def test_stale_connection(self) -> None:
        """A safe request that meets a connection just being closed is tried again, once; others are answered 502."""
        client, far = self.begin()
        far.deliver(OK)
        client.read()
        client.deliver(GET)
        far.deliver_end()
        again = self.tunnel.dialled[-1].accept()
        self.assertEqual(again.read(), GET_OUT)
        self.assertEqual(self.counted("frontdoor.http.retried"), 1)
        again.deliver_end()
        self.assert_status(client, 502)
        client, far = self.begin()
        far.deliver(OK)
        client.read()
        client.deliver(POST + b"0123456789")
        far.deliver_end()
        self.assert_status(client, 502)

    def test_mutated_responses(self) -> None:
        """10,000 mutated responses end in a response, an end, or wait; never in another exception."""
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        self.open().lose(error.ConnectionDone())
        for data in mutations([OK, chunked, hints + OK, b"HTTP/1.0 200 OK\r\n\r\nbody"], 10_000, seed=80):
            client = self.connect()
            client.deliver(GET)
            far = self.tunnel.dialled.pop().accept()
            far.deliver(data)
            if far.outcome == "open":
                far.deliver_end()
            client.lose(error.ConnectionLost())
        self.assert_nothing_left()


class UpgradeTests(HttpTestCase):
    """WebSocket over a plain request."""

    REQUEST = UPGRADE
    SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    def test_switch(self) -> None:
        """Behind 101 both sides are one relay, with the bytes that came along, and the relay's ends."""
        client, far = self.begin(self.REQUEST)
        self.assertEqual(
            far.read(), GET_OUT.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        )
        client.deliver(b"early frames")
        far.deliver(self.SWITCH + b"first frame")
        self.assertEqual((client.read(), far.read()), (self.SWITCH + b"first frame", b"early frames"))
        client.deliver(b"x" * 70000)
        self.assertFalse(client.reading)
        self.assertEqual(len(far.read()), 70000)
        far.deliver(b"more")
        self.assertEqual(client.read(), b"more")
        far.lose(error.ConnectionLost())
        self.assertEqual(client.outcome, "aborted")
        self.assert_nothing_left()

    def test_no_switch(self) -> None:
        """A destination that does not upgrade answers as ever, and the connections stay usable."""
        client, far = self.begin(self.REQUEST)
        far.deliver(OK)
        self.assertEqual(client.read(), OK)
        client.deliver(GET)
        far.read()
        far.deliver(OK)
        self.assertEqual(client.read(), OK)

    def test_unasked_switch(self) -> None:
        """101 to a request without an upgrade is answered 502."""
        client, far = self.begin(GET)
        far.deliver(self.SWITCH)
        self.assert_status(client, 502)

    def test_another_protocol(self) -> None:
        """Both sides go on with whatever they agreed on, with the bytes that came right behind the switch."""
        client, far = self.begin(self.REQUEST.replace(b"websocket", b"h2c"))
        far.deliver(self.SWITCH.replace(b"websocket", b"h2c") + b"first")
        self.assertTrue(client.read().endswith(b"\r\n\r\nfirst"))
        client.deliver(b"PRI * HTTP/2.0")
        self.assertTrue(far.read().endswith(b"PRI * HTTP/2.0"))
