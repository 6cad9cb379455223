"""Tests of :mod:`tests.lab.stream`."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.lab.scenario import Direction, Scenario
from tests.lab.stream import Arrival, StreamLink
from tests.support.feeding import random_pieces

UP, DOWN = Direction
_DATA = random.Random(5).randbytes(5000)


def link(scenario: str, seed: int = 1) -> StreamLink:
    """A link that was opened at 100 s."""
    return StreamLink(Scenario.parse(scenario), seed, 100.0)


def data(arrivals: list[Arrival]) -> bytes:
    """The bytes that arrived."""
    return b"".join(arrival.data for arrival in arrivals)


class StreamLinkTests(SynchronousTestCase):
    """What a scenario does to the bytes of one connection."""

    def test_bytes_and_ends_pass(self) -> None:
        """Without words bytes and both ends arrive at once, in order."""
        wire = link("")
        wire.send(UP, b"ab", 100.0)
        wire.send(UP, b"c", 100.1)
        wire.end(UP, 100.1)
        wire.send(DOWN, b"d", 100.1)
        arrived = wire.due(100.2)
        self.assertEqual(data([a for a in arrived if a.direction is UP]), b"abc")
        self.assertEqual([a.event for a in arrived if a.direction is UP][-1], "end")
        self.assertIn(Arrival(DOWN, "data", b"d"), arrived)
        self.assertFalse(wire.closed)

    def test_delay_and_bandwidth(self) -> None:
        """5000 bytes at 400 kb/s take 100 ms, and the delay on top."""
        wire = link("delay=50ms bandwidth=400kbps")
        wire.send(UP, _DATA, 100.0)
        self.assertEqual(wire.due(100.149), [])
        self.assertAlmostEqual(wire.next_deadline() or 0, 100.15)
        self.assertEqual(wire.waiting(UP), 5000)
        self.assertEqual(data(wire.due(100.1501)), _DATA)
        self.assertEqual(wire.waiting(UP), 0)

    @settings(deadline=None, max_examples=30)
    @given(st.integers())
    def test_fragments_depend_on_the_seed_alone(self, seed: int) -> None:
        """Every edge of the fragments is where the seed puts it, however the bytes came in."""
        whole, parts = link("fragment=1-64"), link("fragment=1-64")
        whole.send(UP, _DATA, 100.0)
        for piece in random_pieces(_DATA, random.Random(seed), 300):
            parts.send(UP, piece, 100.0)
        sizes = [[len(a.data) for a in wire.due(101.0)] for wire in (whole, parts)]
        edges = [{sum(run[:n]) for n in range(len(run))} for run in sizes]
        self.assertLessEqual(edges[0], edges[1])
        self.assertTrue(all(size <= 64 for size in sizes[0]))

    def test_fragments_can_have_gaps(self) -> None:
        """fragment-gap keeps fragments apart, so that a receiver reads them one by one."""
        wire = link("fragment=1 fragment-gap=1ms")
        wire.send(UP, b"abc", 100.0)
        self.assertEqual([data(wire.due(100.0005 + n / 1000)) for n in range(3)], [b"a", b"b", b"c"])

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 5000 * 8 - 1), st.integers())
    def test_flip_changes_one_bit(self, bit: int, seed: int) -> None:
        """flip=N changes bit N of the stream and nothing else, however the bytes came in."""
        wire = link(f"flip@up={bit}")
        for piece in random_pieces(_DATA, random.Random(seed), 700):
            wire.send(UP, piece, 100.0)
        got = data(wire.due(100.1))
        different = int.from_bytes(got, "big") ^ int.from_bytes(_DATA, "big")
        self.assertEqual(different, 1 << (5000 * 8 - 1 - bit))

    def test_a_cut_comes_after_its_byte(self) -> None:
        """cut-after=1000 delivers 1000 bytes, then the cut, then nothing."""
        wire = link("cut-after@up=1KB cut=fin")
        wire.send(UP, _DATA, 100.0)
        wire.send(DOWN, b"x", 100.0)
        arrived = wire.due(100.0)
        self.assertEqual(data(arrived), _DATA[:1000])
        self.assertEqual(arrived[-1].event, "fin")
        self.assertTrue(wire.closed)
        self.assertEqual(wire.due(200.0), [])

    def test_a_cut_comes_at_its_time(self) -> None:
        """cut-at=5s resets the connection five seconds after it was opened."""
        wire = link("cut-at=5s")
        self.assertAlmostEqual(wire.next_deadline() or 0, 105.0)
        self.assertEqual(wire.due(104.9), [])
        self.assertEqual([a.event for a in wire.due(105.0)], ["reset"])

    def test_bytes_wait_in_an_outage(self) -> None:
        """In an outage a stream stands still; afterwards every byte arrives."""
        wire = link("blackhole-on=5s blackhole-off=2s")
        wire.send(UP, b"before", 104.0)
        self.assertEqual(data(wire.due(104.0)), b"before")
        wire.send(UP, b"within", 105.5)
        self.assertEqual(wire.due(106.9), [])
        deadline = wire.next_deadline()
        assert deadline is not None
        self.assertAlmostEqual(deadline, 107.0, 3)
        self.assertEqual(data(wire.due(deadline)), b"within")

    def test_a_paused_receiver_gets_nothing(self) -> None:
        """What a receiver does not take waits, and counts as waiting for the sender."""
        wire = link("")
        wire.pause(UP, True)
        wire.send(UP, b"abc", 100.0)
        self.assertEqual((wire.due(101.0), wire.waiting(UP), wire.next_deadline()), ([], 3, None))
        wire.pause(UP, False)
        self.assertEqual(data(wire.due(101.0)), b"abc")

    def test_a_reset_overtakes_what_was_sent(self) -> None:
        """A reset throws away what is under way in its direction, as in a kernel, and closes the link."""
        wire = link("delay=1s")
        wire.send(UP, b"abc", 100.0)
        wire.reset(UP, 100.5)
        self.assertEqual([a.event for a in wire.due(102.0)], ["reset"])
        self.assertTrue(wire.closed)
