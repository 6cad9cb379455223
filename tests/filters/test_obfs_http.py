"""HTTP obfuscation: one head each way."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.filters.obfs_http import MAX_HEAD, ObfsHttpClient, ObfsHttpServer, make_request_head
from tests.filters.contract import FilterContractTests, HalfClosingUpper
from tests.support.feeding import fragmentations, mutations
from tests.support.transports import MemoryTransport

#: The head that the original program sends for the URI http://www.example.com/path, written down from its captures.
REQUEST_HEAD = (
    b"POST /path HTTP/1.1\r\n"
    b"Host: www.example.com\r\n"
    b"User-Agent: curl/7.54.0\r\n"
    b"Accept: */*\r\n"
    b"Content-Type: text/plain\r\n"
    b"Connection: keep-alive\r\n"
    b"\r\n"
)

#: The original's response head, but for its Date, which is local time there.
RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\nServer: bfe/1.0.8.18\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nAccept: */*\r\n\r\n"


class ObfsHttpClientTests(FilterContractTests, SynchronousTestCase):
    """The side that sends a request head."""

    peer_head = RESPONSE_HEAD
    own_head = REQUEST_HEAD

    def make_filter(self, upper: Any) -> Any:
        """A client for the URL of the recorded head."""
        return ObfsHttpClient(upper, make_request_head("http://www.example.com/path"))

    def open_filter(self, filter_: Any, transport: MemoryTransport) -> None:
        """Both heads are exchanged; then it is a plain stream."""
        filter_.write(b"first")
        transport.receive(self.peer_head)

    def fresh(self) -> tuple[HalfClosingUpper, Any, MemoryTransport]:
        """A filter before any head."""
        upper = HalfClosingUpper()
        transport = MemoryTransport()
        return upper, transport.connect(self.make_filter(upper)), transport

    def test_head_rides_with_the_first_bytes(self) -> None:
        """The head and the first data are one write; later writes are bare."""
        _, filter_, transport = self.fresh()
        self.assertEqual(transport.written, [])
        filter_.write(b"")
        self.assertEqual(transport.written, [])
        filter_.write(b"first")
        filter_.writeSequence([b"sec", b"ond"])
        self.assertEqual(transport.written, [self.own_head + b"first", b"second"])

    def test_takes_the_peers_head_off_in_any_fragmentation(self) -> None:
        """What follows the first empty line is passed on whole, also when the line came in many small pieces."""
        for pieces in fragmentations(self.peer_head + b"data\r\n\r\nmore", most_cuts=500):
            upper, _, transport = self.fresh()
            for piece in pieces:
                transport.receive(piece)
            self.assertEqual(b"".join(upper.received), b"data\r\n\r\nmore")

    def test_any_head_is_taken(self) -> None:
        """The head is not looked at, down to an empty one."""
        for head in (b"\r\n\r\n", b"x" * (MAX_HEAD - 4) + b"\r\n\r\n"):
            upper, _, transport = self.fresh()
            transport.receive(head + b"data")
            self.assertEqual(b"".join(upper.received), b"data")

    def test_an_endless_head_is_bounded(self) -> None:
        """After 2 KiB without an empty line the rest goes up, where it is refused at the common pace (X2, X3)."""
        for chunk in (b"x" * 5000, b"x" * 100, b"\r\n\r\r\n\r"):
            upper, filter_, transport = self.fresh()
            sent = chunk * (2 * MAX_HEAD // len(chunk) + 2)
            for start in range(0, len(sent), len(chunk)):
                transport.receive(sent[start : start + len(chunk)])
            self.assertEqual(b"".join(upper.received), sent[MAX_HEAD:])
            self.assertIsNone(filter_._head)
            self.assertEqual(transport.written, [])

    def test_ends_send_no_head(self) -> None:
        """A FIN without data is a FIN without a head: a refused peer gets no byte (X2)."""
        _, filter_, transport = self.fresh()
        filter_.loseWriteConnection()
        self.assertTrue(transport.fin)
        self.assertEqual(transport.written, [])

    def test_mutations(self) -> None:
        """10,000 mutated heads raise nothing and deliver only what follows an empty line."""
        for data in mutations([self.peer_head + b"data" * 9], 10_000, seed=6):
            upper, _, transport = self.fresh()
            transport.receive(data)
            self.assertEqual(b"".join(upper.received), data.partition(b"\r\n\r\n")[2])

    @settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5))
    def test_the_stream_behind_is_untouched(self, pieces: list[bytes]) -> None:
        """After the heads every byte passes both ways."""
        upper, filter_, transport = self.fresh()
        transport.receive(self.peer_head)
        for piece in pieces:
            filter_.write(piece)
            transport.receive(piece)
        self.assertEqual(transport.bytes_written, self.own_head + b"".join(pieces))
        self.assertEqual(b"".join(upper.received), b"".join(pieces))


class ObfsHttpServerTests(ObfsHttpClientTests):
    """The side that sends a response head."""

    peer_head = REQUEST_HEAD
    own_head = RESPONSE_HEAD

    def make_filter(self, upper: Any) -> Any:
        """A server at a fixed time."""
        return ObfsHttpServer(upper, lambda: 1_700_000_000.0)


class UrlTests(SynchronousTestCase):
    """The client's URL."""

    def test_forms(self) -> None:
        """Path, query and port appear; a missing path is the root."""
        for url, start in (
            ("http://a.example", b"POST / HTTP/1.1\r\nHost: a.example\r\n"),
            ("http://a.example:81/x?y=z", b"POST /x?y=z HTTP/1.1\r\nHost: a.example:81\r\n"),
        ):
            self.assertTrue(make_request_head(url).startswith(start), url)

    def test_mistakes(self) -> None:
        """What cannot stand in a head is refused."""
        for url in (
            "",
            "x",
            "https://a/",
            "http://",
            "http://a/b c",
            "http://a/\r\nX: y",
            "http://ä/",
            "http://a/" + "x" * 2048,
        ):
            with self.assertRaises(ConfigError, msg=url[:30]):
                make_request_head(url)
