"""Tests of mikanet.pickaxe.fragments."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.pickaxe import wire
from mikanet.pickaxe.fragments import (
    MAX_BYTES,
    MAX_RANGES,
    MAX_UNPROVED_FRAGMENTS,
    MAX_UNPROVED_PACKET,
    OVERHEAD,
    Reassembler,
    UnprovedFragments,
)


def pieces(packet: bytes, size: int) -> list[wire.Fragment]:
    """A packet's fragments."""
    return [wire.decode_fragment(each) for each in wire.fragment(packet, size)]


class ReassemblerTests(SynchronousTestCase):
    """Fragments become packets."""

    @given(st.binary(min_size=20, max_size=2000), st.integers(44, 400), st.randoms(use_true_random=False))
    @settings(deadline=None, max_examples=100)
    def test_any_order_with_repeats(self, packet: bytes, size: int, rng: random.Random) -> None:
        """However they come, once or twice, the packet comes out once all are there."""
        fragments = pieces(packet, size)
        shuffled = fragments + rng.sample(fragments, len(fragments) // 2)
        rng.shuffle(shuffled)
        reassembler = Reassembler()
        whole = [found for each in shuffled if (found := reassembler.add(each)) is not None]
        self.assertGreaterEqual(len(whole), 1)
        self.assertEqual(set(whole), {packet})

    def test_resends_in_other_sizes_fill_holes(self) -> None:
        """A resend over another path is cut elsewhere, and its pieces are good for the same packet."""
        packet = random.Random(1).randbytes(1000)
        reassembler = Reassembler()
        for fragment in pieces(packet, 112)[::2]:
            self.assertIsNone(reassembler.add(fragment))
        found = [whole for each in pieces(packet, 250) if (whole := reassembler.add(each)) is not None]
        self.assertEqual(found[0], packet)

    def test_what_came_first_stays(self) -> None:
        """A later fragment changes nothing that is there; it fills the holes before, between and behind."""
        packet = bytes([10, 1, 2, 3, 4, 9, 0, 0]) + random.Random(2).randbytes(92)
        sid, forged = packet[1:5], bytes(100)
        reassembler = Reassembler()
        for start, stop in ((70, 80), (20, 30), (30, 40), (55, 60)):
            self.assertIsNone(reassembler.add(wire.Fragment(sid, 9, 100, start, packet[start:stop])))
        whole = reassembler.add(wire.Fragment(sid, 9, 100, 0, forged))
        assert whole is not None
        for index in range(100):
            there = any(start <= index < stop for start, stop in ((70, 80), (20, 40), (55, 60)))
            self.assertEqual(whole[index], packet[index] if there else 0, index)

    def test_sessions_do_not_mix(self) -> None:
        """Fragments of two sessions with the same number and length make two packets."""
        reassembler = Reassembler()
        one, two = (bytes([10, sid, 2, 3, 4, 1, 0, 0]) + bytes([sid]) * 300 for sid in (1, 2))
        found = [
            whole
            for both in zip(pieces(one, 112), pieces(two, 112), strict=True)
            for each in both
            if (whole := reassembler.add(each)) is not None
        ]
        self.assertEqual(found, [one, two])

    def test_ranges_are_few(self) -> None:
        """However fragments leave gaps, a packet keeps no more than so many ranges; what fills gaps is taken all the same."""
        reassembler = Reassembler()
        packet = bytes([10, 1, 2, 3, 4, 9, 0, 0]) + random.Random(3).randbytes(60_000)
        fragments = pieces(packet, 12 + 64)
        for fragment in fragments[::2]:
            reassembler.add(fragment)
            (unfinished,) = reassembler._unfinished.values()
            self.assertLessEqual(len(unfinished.starts), MAX_RANGES)
        self.assertEqual(len(unfinished.starts), MAX_RANGES)
        found = [whole for each in fragments if (whole := reassembler.add(each)) is not None]
        self.assertEqual(found, [packet])

    @given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 256)), max_size=40))
    @settings(deadline=None, max_examples=200)
    def test_what_is_missing(self, spans: list[tuple[int, int]]) -> None:
        """Ranges are in order, do not touch, and say what is there, byte for byte."""
        reassembler = Reassembler()
        sid, there = bytes(4), set[int]()
        packet = bytes(range(256))
        for start, size in spans:
            stop = min(256, start + size)
            if reassembler.add(wire.Fragment(sid, 1, 256, start, packet[start:stop])) is not None:
                there = set(range(start, stop))
                self.assertEqual(reassembler.size, 0)
                return
            there |= set(range(start, stop))
            (unfinished,) = reassembler._unfinished.values()
            ranges = list(zip(unfinished.starts, unfinished.stops, strict=True))
            self.assertEqual({index for first, last in ranges for index in range(first, last)}, there)
            self.assertEqual(unfinished.missing, 256 - len(there))
            self.assertTrue(all(one[1] < two[0] for one, two in itertools.pairwise(ranges)))
            self.assertTrue(all(unfinished.data[index] == packet[index] for index in there))

    def test_memory_is_bounded(self) -> None:
        """Beyond the limit the oldest unfinished packet is given up; one that is too large is never begun.

        Each counts about what its objects take, so that no heap of short ones is cheap.
        """
        reassembler = Reassembler()
        for counter in range(5000):
            reassembler.add(wire.Fragment(bytes(4), counter, 16, 0, b"x"))
        self.assertEqual(len(reassembler._unfinished), MAX_BYTES // (16 + OVERHEAD))
        reassembler = Reassembler(10_000)
        for counter in range(50):
            packet = bytes([10, 1, 2, 3, 4, counter, 0, 0]) + bytes(3000)
            reassembler.add(pieces(packet, 200)[0])
            self.assertLessEqual(reassembler.size, 10_000)
        self.assertIsNone(reassembler.add(pieces(bytes(20_000), 200)[0]))
        packet = bytes([10, 1, 2, 3, 4, 49, 0, 0]) + bytes(3000)
        self.assertEqual([each for each in map(reassembler.add, pieces(packet, 200)) if each], [packet])
        self.assertLess(reassembler.size, 10_000)


class UnprovedFragmentsTests(SynchronousTestCase):
    """Before a login is proved."""

    def test_a_short_packet(self) -> None:
        """The packet that proves a login may come in fragments; a second one takes the place of an unfinished one."""
        packet = bytes([10, 1, 2, 3, 4, 1, 0, 0]) + bytes(300)
        fragments = UnprovedFragments()
        self.assertIsNone(fragments.add(pieces(bytes(2048), 112)[0]))
        self.assertEqual([whole for each in pieces(packet, 112) if (whole := fragments.add(each))], [packet])

    def test_few_of_short_packets(self) -> None:
        """A longer packet is not begun, and after so many fragments nothing is put together any more."""
        packet = bytes([10, 1, 2, 3, 4, 1, 0, 0]) + bytes(300)
        fragments = UnprovedFragments()
        for each in pieces(bytes(MAX_UNPROVED_PACKET + 1), 1400):
            self.assertIsNone(fragments.add(each))
        for _ in range(MAX_UNPROVED_FRAGMENTS):
            fragments.add(pieces(packet, 112)[0])
        self.assertEqual([whole for each in pieces(packet, 112) if (whole := fragments.add(each))], [])
