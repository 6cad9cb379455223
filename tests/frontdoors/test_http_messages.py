"""Tests of mikanet.frontdoors.http_messages."""

from __future__ import annotations

from http import HTTPStatus

import h11
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import Reason, RemoteProtocolError
from mikanet.frontdoors import http_messages as messages

Headers = list[tuple[str, str]]


def request(target: str, headers: Headers | None = None, method: str = "GET") -> h11.Request:
    """A request as h11 gives it."""
    return h11.Request(method=method, target=target, headers=[("Host", "ignored.example"), *(headers or [])])


def raw(message: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    """Its headers, spelled as they are."""
    return list(message.headers.raw_items())


class AuthorityTests(SynchronousTestCase):
    """HOST:PORT in requests."""

    def test_good(self) -> None:
        """Names, IPv4 and bracketed IPv6 addresses, with and without a port where there is a default."""
        for text, address in (
            (b"example.com:443", Address("example.com", 443)),
            (b"example.com", Address("example.com", 80)),
            (b"example.com:", Address("example.com", 80)),
            (b"192.0.2.1:8080", Address("192.0.2.1", 8080)),
            (b"[2001:db8::1]:443", Address("2001:db8::1", 443)),
            (b"[::1]", Address("::1", 80)),
            (b"under_score.example:65535", Address("under_score.example", 65535)),
        ):
            self.assertEqual(messages.parse_authority(text, 80), address)

    def test_bad(self) -> None:
        """User information, bad ports, bad brackets and foreign characters are refused."""
        for text in (
            b"",
            b":80",
            b"user@example.com:80",
            b"user:pass@example.com",
            b"example.com:0",
            b"example.com:65536",
            b"example.com:999999999",
            b"example.com:80:80",
            b"example.com:http",
            b"2001:db8::1",
            b"[2001:db8::1",
            b"[example.com]:80",
            b"[::1%lo]:80",
            b"exa%20mple.com",
            b"exam\xc3\xa4ple.com",
            b"x" * 256,
        ):
            with self.assertRaises(RemoteProtocolError, msg=text):
                messages.parse_authority(text, 80)

    def test_no_default(self) -> None:
        """Without a default, the port must be there."""
        for text in (b"example.com", b"example.com:"):
            self.assertRaises(RemoteProtocolError, messages.parse_authority, text)

    def test_connect(self) -> None:
        """CONNECT needs HOST:PORT and no body."""
        good = request("example.com:443", method="CONNECT")
        self.assertEqual(messages.connect_destination(good), Address("example.com", 443))
        for target, headers in (
            ("example.com", []),
            ("http://example.com:443/", []),
            ("example.com:443", [("Content-Length", "5")]),
            ("example.com:443", [("Transfer-Encoding", "chunked")]),
        ):
            bad = request(target, headers, method="CONNECT")
            self.assertRaises(RemoteProtocolError, messages.connect_destination, bad)


class OutgoingTests(SynchronousTestCase):
    """What goes to the destination."""

    def test_target(self) -> None:
        """The target becomes origin-form and Host what the URL says."""
        for url, destination, target, host in (
            ("http://example.com/a/b?c=d", Address("example.com", 80), b"/a/b?c=d", b"example.com"),
            ("http://example.com", Address("example.com", 80), b"/", b"example.com"),
            ("http://example.com?q", Address("example.com", 80), b"/?q", b"example.com"),
            ("HTTP://example.com:8080/", Address("example.com", 8080), b"/", b"example.com:8080"),
            ("http://[::1]:8080//x", Address("::1", 8080), b"//x", b"[::1]:8080"),
        ):
            out = messages.outgoing(request(url))
            self.assertEqual(
                (out.destination, out.head.target, raw(out.head)), (destination, target, [(b"Host", host)])
            )

    def test_options(self) -> None:
        """OPTIONS for a URL without a path asks the server as a whole."""
        self.assertEqual(messages.outgoing(request("http://example.com", method="OPTIONS")).head.target, b"*")
        self.assertEqual(messages.outgoing(request("http://example.com/", method="OPTIONS")).head.target, b"/")

    def test_bad_targets(self) -> None:
        """Origin-form, other schemes, user information and fragments are refused."""
        for target in (
            "/",
            "*",
            "example.com:80",
            "https://example.com/",
            "ftp://example.com/",
            "http://",
            "http:///x",
        ):
            self.assertRaises(RemoteProtocolError, messages.outgoing, request(target))
        for target in ("http://u:p@example.com/", "http://example.com/#part", "http://example.com:x/"):
            self.assertRaises(RemoteProtocolError, messages.outgoing, request(target))

    def test_hop_by_hop(self) -> None:
        """Headers of this connection, those that Connection names, and the proxy's own stay behind."""
        out = messages.outgoing(
            request(
                "http://example.com/",
                [
                    ("Accept", "*/*"),
                    ("Connection", "keep-alive, X-Private,  x-other"),
                    ("Keep-Alive", "timeout=5"),
                    ("Proxy-Connection", "keep-alive"),
                    ("Proxy-Authorization", "Basic eDp5"),
                    ("TE", "trailers"),
                    ("Trailer", "Expires"),
                    ("Upgrade", "h2c"),
                    ("X-Private", "1"),
                    ("X-OTHER", "2"),
                    ("X-Kept", "3"),
                    ("Authorization", "Basic eDp5"),
                ],
            )
        )
        kept = [(b"Accept", b"*/*"), (b"X-Kept", b"3"), (b"Authorization", b"Basic eDp5")]
        self.assertEqual(raw(out.head), [(b"Host", b"example.com"), *kept])

    def test_framing(self) -> None:
        """A body keeps its length or its chunks, even if Connection names them."""
        named = ("Connection", "content-length, transfer-encoding, host")
        out = messages.outgoing(request("http://example.com/", [("Content-Length", "5"), named], "POST"))
        self.assertEqual(raw(out.head), [(b"Host", b"example.com"), (b"Content-Length", b"5")])
        out = messages.outgoing(request("http://example.com/", [("Transfer-Encoding", "Chunked"), named], "POST"))
        self.assertEqual(raw(out.head), [(b"Host", b"example.com"), (b"Transfer-Encoding", b"chunked")])

    def test_two_lengths(self) -> None:
        """A request with both is refused: two readers could disagree on where it ends."""
        both = [("Transfer-Encoding", "chunked"), ("Content-Length", "5")]
        self.assertRaises(RemoteProtocolError, messages.outgoing, request("http://example.com/", both, "POST"))

    def test_websocket(self) -> None:
        """Upgrades are passed on, with what belongs to them; half-hearted ones are not."""
        for url in ("http://example.com/", "ws://example.com/"):
            out = messages.outgoing(request(url, [("Connection", "Upgrade"), ("Upgrade", "WebSocket")]))
            expected = [(b"Host", b"example.com"), (b"Connection", b"Upgrade"), (b"Upgrade", b"WebSocket")]
            self.assertEqual((raw(out.head), out.destination.port), (expected, 80))
        headers = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")]
        self.assertEqual(
            raw(messages.outgoing(request("http://example.com/", headers)).head)[1:],
            [(b"HTTP2-Settings", b"AAMAAABk"), (b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")],
        )
        for headers in (
            [("Upgrade", "websocket")],
            [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Content-Length", "5")],
        ):
            self.assertIsNone(messages.wanted_upgrade(request("http://example.com/", headers)))

    def test_repeatable(self) -> None:
        """Only safe requests without a body may be sent twice."""
        for method, headers, expected in (
            ("GET", [], True),
            ("HEAD", [("Content-Length", "0")], True),
            ("POST", [], False),
            ("PUT", [], False),
            ("GET", [("Content-Length", "5")], False),
        ):
            self.assertEqual(messages.outgoing(request("http://x/", headers, method)).repeatable, expected)


class ResponseTests(SynchronousTestCase):
    """What goes to the client."""

    def test_hop_by_hop(self) -> None:
        """Headers of the other connection stay behind; chunks beat a length."""
        response = h11.Response(
            status_code=200,
            headers=[
                ("Server", "x"),
                ("Connection", "close, X-Y"),
                ("X-Y", "1"),
                ("Proxy-Authenticate", "Basic"),
                ("Content-Length", "5"),
                ("Set-Cookie", "a"),
                ("Set-Cookie", "b"),
            ],
        )
        cookies = [(b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]
        expected = [(b"Server", b"x"), (b"Content-Length", b"5"), *cookies]
        self.assertEqual(messages.response_headers(response), expected)
        both = h11.Response(status_code=200, headers=[("Content-Length", "5"), ("Transfer-Encoding", "chunked")])
        self.assertEqual(messages.response_headers(both), [])

    def test_switching(self) -> None:
        """101 keeps what it says about the upgrade."""
        headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", "x")]
        response = h11.InformationalResponse(status_code=101, headers=headers)
        self.assertEqual(
            messages.response_headers(response),
            [(b"Sec-WebSocket-Accept", b"x"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")],
        )

    def test_statuses(self) -> None:
        """Each reason has its status."""
        expected = dict.fromkeys(Reason, 502) | {Reason.POLICY: 403, Reason.TIMEOUT: 504, Reason.LIMIT: 503}
        self.assertEqual({reason: messages.status_of_reason(reason).value for reason in Reason}, expected)

    def test_refusal(self) -> None:
        """Our own responses are short texts; 407 says how to log in; HEAD gets no body."""
        response, body = messages.refusal(HTTPStatus.BAD_GATEWAY, "why", close=True)
        self.assertEqual(
            (response.status_code, response.reason, body), (502, b"Bad Gateway", b"502 Bad Gateway: why\n")
        )
        self.assertIn((b"Connection", b"close"), raw(response))
        response, body = messages.refusal(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, "why", close=False, to_head=True)
        self.assertEqual(body, b"")
        self.assertIn((b"Proxy-Authenticate", b'Basic realm="proxy"'), raw(response))
        self.assertNotIn(b"connection", dict(response.headers))


class AuthorizedTests(SynchronousTestCase):
    """Proxy-Authorization. The Base64 texts are those of alice:secret, alice, :, a:b:c."""

    def check(self, user: bytes, password: bytes) -> bool:
        """Keep what is asked."""
        self.asked = (user, password)
        return True

    def test_good(self) -> None:
        """The scheme is Basic in any case; the first colon divides."""
        for value, expected in (
            ("Basic YWxpY2U6c2VjcmV0", (b"alice", b"secret")),
            ("bAsIc  YWxpY2U6c2VjcmV0", (b"alice", b"secret")),
            ("Basic Og==", (b"", b"")),
            ("Basic YTpiOmM=", (b"a", b"b:c")),
        ):
            self.assertTrue(messages.authorized(request("/", [("Proxy-Authorization", value)]), self.check))
            self.assertEqual(self.asked, expected)

    def test_bad(self) -> None:
        """No, broken, foreign or several credentials are never right."""
        for values in (
            [],
            ["Basic"],
            ["Basic YWxpY2U="],
            ["Basic YWxpY2U6c2VjcmV"],
            ["Basic YWxpY2U6!c2VjcmV0"],
            ["Bearer YWxpY2U6c2VjcmV0"],
            ["Basic YWxpY2U6c2VjcmV0", "Basic YWxpY2U6c2VjcmV0"],
        ):
            headers = [("Proxy-Authorization", value) for value in values]
            self.assertFalse(messages.authorized(request("/", headers), self.check), values)
        self.assertFalse(messages.authorized(request("/", [("Authorization", "Basic Og==")]), self.check))
