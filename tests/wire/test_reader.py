"""Tests of mikanet.wire.reader."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.wire.reader import Reader


def parse_line(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    """A message for these tests: bytes up to a newline."""
    end = buffer.find(b"\n", at)
    return None if end < 0 else (bytes(buffer[at:end]), end + 1)


class ReaderTests(SynchronousTestCase):
    """Messages come out whole, and no incomplete one grows beyond the limit."""

    def test_messages_in_order(self) -> None:
        """Several messages in one read come out one after the other, then None."""
        reader = Reader(8)
        reader.feed(b"one\ntwo\nth")
        self.assertEqual([reader.next(parse_line) for _ in range(3)], [b"one", b"two", None])
        reader.feed(b"ree\n")
        self.assertEqual(reader.next(parse_line), b"three")

    def test_incomplete_message_is_bounded(self) -> None:
        """An incomplete message of exactly the limit waits; one byte more is refused."""
        reader = Reader(8)
        reader.feed(b"x" * 8)
        self.assertIsNone(reader.next(parse_line))
        reader.feed(b"x")
        self.assertRaises(RemoteProtocolError, reader.next, parse_line)

    def test_limit_counts_incomplete_bytes_only(self) -> None:
        """What lies behind a complete message does not count against it, however much that is."""
        reader = Reader(8)
        reader.feed(b"one\n" + b"y" * 100)
        self.assertEqual(reader.next(parse_line), b"one")
        self.assertEqual(reader.rest(), b"y" * 100)

    def test_rest_empties(self) -> None:
        """The rest is given once."""
        reader = Reader(8)
        reader.feed(b"one\ntail")
        reader.next(parse_line)
        self.assertEqual((reader.rest(), reader.rest()), (b"tail", b""))
