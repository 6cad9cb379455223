"""The segment codec."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.kcp.segment import (
    PUSH,
    WASK,
    Segment,
    SegmentError,
    decode,
    encode,
    opens_session,
    serial_difference,
)
from tests.support.feeding import mutations
from tests.support.vectors import load

VECTORS = load("paqet/kcp.json")["kcp_segments"]


def segment_of(vector: dict[str, object]) -> Segment:
    """A vector as a segment."""
    fields = {name: vector[name] for name in Segment._fields if name != "data"}
    return Segment(**fields, data=bytes.fromhex(str(vector["data"])))  # type: ignore[arg-type]


class SegmentTests(SynchronousTestCase):
    """Bytes of segments."""

    def test_vectors(self) -> None:
        """kcp-go's segments, both ways."""
        for vector in VECTORS:
            wire = bytes.fromhex(vector["wire"])
            self.assertEqual(encode(segment_of(vector)), wire)
            self.assertEqual(list(decode(wire)), [segment_of(vector)])

    def test_several_in_one_datagram(self) -> None:
        """Segments follow each other; trailing bytes shorter than a header are ignored."""
        segments = [segment_of(vector) for vector in VECTORS]
        self.assertEqual(list(decode(b"".join(map(encode, segments)) + bytes(23))), segments)

    def test_mutations(self) -> None:
        """10,000 mutated datagrams are segments or a SegmentError."""
        refused = 0
        for datagram in mutations([bytes.fromhex(v["wire"]) for v in VECTORS], 10_000, seed=2):
            try:
                list(decode(datagram))
            except SegmentError:
                refused += 1
        self.assertGreater(refused, 1000)

    @given(st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1))
    def test_serial_difference(self, base: int, distance: int) -> None:
        """The difference is right wherever on the circle it lies."""
        self.assertEqual(serial_difference((base + distance) & 0xFFFFFFFF, base), distance)

    def test_opens_session(self) -> None:
        """A first packet has an sn in the first window and is well formed (Q5)."""
        self.assertEqual(opens_session(encode(Segment(9, PUSH, 0, 1, 0, 31, 0, b"x")), 32), 9)
        self.assertEqual(opens_session(encode(Segment(9, WASK, 0, 1, 0, 0, 0, b"")), 32), 9)
        self.assertIsNone(opens_session(encode(Segment(9, PUSH, 0, 1, 0, 32, 0, b"x")), 32))
        self.assertIsNone(opens_session(encode(Segment(9, 80, 0, 1, 0, 0, 0, b"x")), 32))
        self.assertIsNone(opens_session(encode(Segment(9, PUSH, 0, 1, 0, 0, 0, b"x"))[:-1], 32))
        self.assertIsNone(opens_session(b"short", 32))
