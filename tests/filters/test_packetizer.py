"""Tests of mikanet.filters.packetizer. Expected bytes are written out from the document: L is 4 bytes, little-endian."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.filters.packetizer import MAX_PACKET, PacketReader, frame, frame_pieces
from tests.support.feeding import fragmentations, mutations, random_pieces

STREAM = bytes.fromhex("01000000 aa 00010000") + bytes(256) + bytes.fromhex("02000000 bbcc")
PACKETS = [b"\xaa", bytes(256), b"\xbb\xcc"]


def read(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """What comes out, and whether it ended with the error."""
    reader, packets = PacketReader(), []
    for piece in pieces:
        try:
            packets += reader.feed(piece)
            if reader.broken:
                return packets, True
        except RemoteProtocolError:
            return packets, True
    return packets, False


class PacketizerTests(SynchronousTestCase):
    """Packets on a stream."""

    def test_exact(self) -> None:
        """Written and read as by hand."""
        self.assertEqual(frame(PACKETS), STREAM)
        self.assertEqual(b"".join(frame_pieces(PACKETS)), STREAM)
        self.assertEqual(PacketReader().feed(STREAM), PACKETS)

    def test_any_fragmentation(self) -> None:
        """Whole, byte by byte, cut anywhere."""
        for pieces in fragmentations(STREAM):
            self.assertEqual(read(pieces), (PACKETS, False))

    @given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.randoms(use_true_random=False))
    @settings(deadline=None, max_examples=100)
    def test_round_trip(self, packets: list[bytes], rng: object) -> None:
        """Whatever packets, in whatever pieces."""
        self.assertEqual(read(random_pieces(frame(packets), rng))[0], packets)  # type: ignore[arg-type]  # a Random

    def test_bounds(self) -> None:
        """1 to 65,535; what was complete before a wrong length comes out in any fragmentation."""
        self.assertEqual(PacketReader().feed(frame([bytes(MAX_PACKET)])), [bytes(MAX_PACKET)])
        for wrong in (bytes(4), bytes.fromhex("00000100"), b"\xff" * 4):
            for pieces in fragmentations(STREAM + wrong + STREAM):
                self.assertEqual(read(pieces), (PACKETS, True))
            with self.assertRaises(RemoteProtocolError):
                PacketReader().feed(wrong)
        reader = PacketReader(10)
        with self.assertRaises(RemoteProtocolError):
            reader.feed(frame([bytes(11)]))
        with self.assertRaises(RemoteProtocolError):
            reader.feed(b"more")

    def test_unfinished(self) -> None:
        """It knows whether something is missing."""
        reader = PacketReader()
        for piece, expected in ((b"\1", True), (b"\0\0\0", True), (b"x", False), (b"\3\0\0\0xx", True), (b"x", False)):
            reader.feed(piece)
            self.assertEqual(reader.unfinished, expected)

    def test_mutations(self) -> None:
        """10,000 mutated streams bring packets in bounds, or the one error."""
        for data in mutations([STREAM, STREAM * 2], 10_000, seed=8):
            self.assertTrue(all(1 <= len(packet) <= MAX_PACKET for packet in read([data])[0]))
