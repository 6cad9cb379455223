"""Where an HTTP forward goes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import ProtocolError, RemoteProtocolError
from mikanet.mika.http_target import HttpTarget
from tests.support.feeding import fragmentations, mutations

REQUEST = b"GET /a HTTP/1.1\r\nHost: www.example.com\r\nAccept: */*\r\n\r\n"


def target(request: bytes) -> Address | None:
    """The target of a whole request."""
    return HttpTarget().feed(request)


class HttpTargetTests(SynchronousTestCase):
    """The authority of the first request (RFC 9112 section 3.2)."""

    def test_forms(self) -> None:
        """Host field, with and without port; an absolute target goes before it; IPv6."""
        for request, expected in (
            (REQUEST, Address("www.example.com", 80)),
            (b"GET / HTTP/1.1\r\nHost: a:8080\r\n\r\n", Address("a", 8080)),
            (b"GET http://b:81/x HTTP/1.1\r\nHost: a\r\n\r\n", Address("b", 81)),
            (b"GET http://user@b/ HTTP/1.1\r\nHost: a\r\n\r\n", Address("b", 80)),
            (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n", Address("2001:db8::1", 80)),
            (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n", Address("2001:db8::1", 8080)),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", Address("a", 80)),
        ):
            self.assertEqual(target(request), expected, request)

    def test_any_fragmentation(self) -> None:
        """The answer comes with the byte that ends the head."""
        for pieces in fragmentations(REQUEST):
            http = HttpTarget()
            answers = [http.feed(piece) for piece in pieces]
            self.assertEqual(answers[-1], Address("www.example.com", 80))
            self.assertEqual(set(answers[:-1]) - {None}, set())

    def test_refused(self) -> None:
        """No HTTP, no target, two targets, tunnels: one error."""
        for request in (
            b"\x16\x03\x01\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a:x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a:0\r\n\r\n",
            b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        ):
            with self.assertRaises(RemoteProtocolError, msg=request):
                target(request)

    def test_memory_is_bounded(self) -> None:
        """A head without an end is refused at 16 KiB."""
        http = HttpTarget()
        with self.assertRaises(RemoteProtocolError):
            for _ in range(30):
                http.feed(b"G" * 1000)

    def test_mutations(self) -> None:
        """10,000 mutated requests raise only the declared error."""
        for data in mutations([REQUEST, b"GET http://b:81/x HTTP/1.1\r\nHost: a\r\n\r\n"], 10_000, seed=10):
            try:
                target(data)
            except ProtocolError:
                continue
