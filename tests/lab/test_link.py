"""Tests of :mod:`tests.lab.link`: what a scenario promises is what the packets see, and it can be had again."""

from __future__ import annotations

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.lab.link import Delivery, Link, Record, check_log
from tests.lab.scenario import Direction, Scenario

UP, DOWN = Direction


def run(
    scenario: str, packets: int = 1000, *, seed: int = 1, size: int = 100, every: float = 0.001, until: float = 60.0
) -> tuple[Link, list[Delivery], list[Record]]:
    """Send numbered packets up at an even pace; the link, what arrived and the log."""
    log: list[Record] = []
    link = Link(Scenario.parse(scenario), seed, log.append)
    arrived = []
    for number in range(packets):
        now = 100 + number * every
        arrived += link.due(now)
        link.send(UP, number.to_bytes(4, "big") + bytes(size - 4), now)
    arrived += link.due(100 + until)
    return link, arrived, log


def numbers(deliveries: list[Delivery]) -> list[int]:
    """Which packets arrived, counted from 0."""
    return [int.from_bytes(delivery.packet[:4], "big") for delivery in deliveries]


class LinkTests(SynchronousTestCase):
    """Each word of a scenario, alone."""

    def test_an_empty_scenario_passes_everything_on(self) -> None:
        """Without words every packet arrives at once, once and in order."""
        _, arrived, _ = run("")
        self.assertEqual(numbers(arrived), list(range(1000)))
        self.assertEqual({delivery.origin for delivery in arrived}, {"sent"})

    def test_delay_and_jitter(self) -> None:
        """A packet arrives after delay plus or minus jitter; jitter keeps the order."""
        _, arrived, _ = run("delay=50ms jitter=10ms")
        self.assertEqual(numbers(arrived), list(range(1000)))
        late = [delivery.at - 100 - n * 0.001 for n, delivery in enumerate(arrived)]
        self.assertTrue(all(0.0399 <= seconds <= 0.0601 for seconds in late))
        self.assertGreater(max(late) - min(late), 0.01)

    def test_loss_has_its_rate(self) -> None:
        """30 % loss loses 30 % of the packets."""
        _, arrived, _ = run("loss=30%", 10000)
        self.assertTrue(6850 <= len(arrived) <= 7150, len(arrived))

    def test_loss_burst_bounds_the_run(self) -> None:
        """loss-burst=3 loses at most three packets in a row."""
        _, arrived, _ = run("loss=60% loss-burst=3", 5000)
        gaps = {b - a - 1 for a, b in zip(numbers(arrived), numbers(arrived)[1:], strict=False)}
        self.assertEqual(gaps, {0, 1, 2, 3})

    def test_loss_run_has_rate_and_length(self) -> None:
        """loss=10% loss-run=4 loses 10 % of the packets in runs of 4 on average."""
        _, arrived, _ = run("loss=10% loss-run=4", 50000, every=0.00001)
        got = numbers(arrived)
        runs = [b - a - 1 for a, b in itertools.pairwise(got) if b - a > 1]
        self.assertTrue(0.09 < 1 - len(got) / 50000 < 0.11)
        self.assertTrue(3.6 < sum(runs) / len(runs) < 4.4)

    def test_a_droplist_counts_from_one(self) -> None:
        """droplist=2,3,4 drops the second, third and fourth packet."""
        _, arrived, _ = run("droplist=2-4", 8)
        self.assertEqual(numbers(arrived), [0, 4, 5, 6, 7])

    def test_bandwidth_and_queue(self) -> None:
        """At 800 kb/s a packet of 100 bytes takes 1 ms; behind the one being sent, 25 wait and the next is dropped."""
        link, arrived, _ = run("bandwidth=800kbps queue=25", 100, every=0.0)
        self.assertEqual(numbers(arrived), list(range(26)))
        self.assertAlmostEqual(arrived[-1].at, 100.026)
        self.assertEqual(link.counts["up", "queue"], 74)

    def test_corruption_changes_one_byte(self) -> None:
        """A corrupt packet differs from its original in exactly one byte."""
        _, arrived, _ = run("corrupt=10%")
        damaged = 0
        for number, delivery in enumerate(arrived):
            original = number.to_bytes(4, "big") + bytes(96)
            damaged += (wrong := sum(a != b for a, b in zip(original, delivery.packet, strict=True)))
            self.assertIn(wrong, (0, 1))
        self.assertTrue(70 <= damaged <= 130, damaged)

    def test_duplicates_come_later(self) -> None:
        """A duplicate is a second copy, duplicate-after later."""
        _, arrived, _ = run("duplicate=100% duplicate-after=5s", 10)
        self.assertEqual(numbers(arrived), [*range(10), *range(10)])
        self.assertAlmostEqual(arrived[10].at - arrived[0].at, 5.0)

    def test_reordered_packets_are_overtaken(self) -> None:
        """With reorder some packets arrive after ones sent later, and none is lost."""
        _, arrived, _ = run("reorder=10% reorder-by=5ms")
        self.assertNotEqual(numbers(arrived), list(range(1000)))
        self.assertEqual(sorted(numbers(arrived)), list(range(1000)))

    def test_mirrored_packets_come_back(self) -> None:
        """A mirrored packet arrives, and arrives at its own sender too."""
        _, arrived, _ = run("mirror=100% delay=1ms", 10)
        self.assertEqual([d.direction for d in arrived[:2]], [UP, DOWN])
        self.assertEqual(len(arrived), 20)

    def test_injected_packets_have_their_rate(self) -> None:
        """inject=100/s forges a hundred packets a second, each unlike the one that it is made after."""
        link, arrived, _ = run("inject@up=100/s", 1000)
        forged = [d for d in arrived if d.origin == "inject" and d.at < 101]
        self.assertTrue(98 <= len(forged) <= 100)
        self.assertTrue(all(len(d.packet) == 100 for d in forged))
        self.assertGreater(link.next_deadline() or 0, 160)
        link.stop()
        self.assertIsNone(link.next_deadline())

    def test_an_outage_comes_and_goes(self) -> None:
        """blackhole-on=5s blackhole-off=2s works for five seconds and is dead for two, from the first packet on."""
        _, arrived, _ = run("blackhole-on=5s blackhole-off=2s", 1400, every=0.01)
        seconds = {number // 100 for number in numbers(arrived)}
        self.assertEqual(seconds, {0, 1, 2, 3, 4, 7, 8, 9, 10, 11})

    def test_rebinds_count_up(self) -> None:
        """rebind-first=1s rebind-freq=5s gives the client a new address at 1, 6, 11 ... seconds."""
        _, arrived, _ = run("rebind-first=1s rebind-freq=5s", 1200, every=0.01)
        self.assertEqual([arrived[n].binding for n in (0, 99, 100, 599, 600, 1100)], [0, 0, 1, 1, 2, 3])

    def test_a_test_can_block_and_rebind_by_hand(self) -> None:
        """Outages and new addresses can be had at a chosen moment, and are in the log."""
        log: list[Record] = []
        link = Link(Scenario(), 1, log.append)
        link.send(UP, b"a", 0.0)
        link.block(UP, True, 0.1)
        link.send(UP, b"b", 0.2)
        link.block(UP, False, 0.3)
        link.rebind(0.3)
        link.send(UP, b"c", 0.4)
        self.assertEqual([(d.packet, d.binding) for d in link.due(1.0)], [(b"a", 0), (b"c", 1)])
        self.assertEqual(check_log(log), 6)

    def test_a_recording_is_delivered_too(self) -> None:
        """Recorded packets arrive at their times beside the live ones."""
        link = Link(Scenario.parse("delay=10ms"), 1)
        link.replay(UP, [(0.5, b"old")])
        link.send(UP, b"new", 100.0)
        self.assertEqual([(d.packet, d.origin) for d in link.due(102.0)], [(b"new", "sent"), (b"old", "replay")])


class ReplayTests(SynchronousTestCase):
    """The same seed gives the same decisions."""

    def test_chance_depends_on_seed_and_number_alone(self) -> None:
        """The same packets are lost whatever the timing and the other words; another seed loses others."""
        _, first, _ = run("loss=30%")
        _, second, _ = run("loss=30% delay=1s jitter=5ms reorder=10%", every=0.01, until=200)
        _, third, _ = run("loss=30%", seed=2)
        self.assertEqual(set(numbers(first)), set(numbers(second)))
        self.assertNotEqual(numbers(first), numbers(third))

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(st.tuples(st.sampled_from(Direction), st.integers(1, 1500), st.floats(0, 0.1)), max_size=60),
        st.integers(),
    )
    def test_a_log_runs_again(self, traffic: list[tuple[Direction, int, float]], seed: int) -> None:
        """Every decision of a logged run comes out the same from the log's own scenario and seed, through JSON."""
        log: list[Record] = []
        words = "delay=5ms jitter=3ms bandwidth=1Mbps queue=3 loss=20% loss-burst=2 corrupt=10% duplicate=10% "
        words += "reorder=20% mirror=5% inject=30/s blackhole-on=1s blackhole-off=0.3s"
        link = Link(Scenario.parse(words), seed, log.append)
        now = 1000.123
        for direction, size, wait in traffic:
            now += wait
            link.due(now)
            link.send(direction, bytes(size), now)
        check_log(json.loads(json.dumps(log)))

    def test_a_changed_log_is_noticed(self) -> None:
        """A log that does not follow from its seed is refused at the record that differs."""
        _, _, log = run("loss=50%", 100)
        first_loss = next(record for record in log[1:] if record["do"] == "loss")
        first_loss["do"] = "deliver"
        self.assertIn("differs", str(self.assertRaises(ValueError, check_log, log)))
