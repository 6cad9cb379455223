"""Tests of mikanet.pickaxe.policy: which carrier carries the data."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.pickaxe.policy import FIRST_PENALTY, MAX_WAIT, STEADY_TIME, Policy, Standing, choose


class ChoiceTests(SynchronousTestCase):
    """The rules."""

    def setUp(self) -> None:
        """Three carriers, all closed."""
        self.standings = [Standing(index) for index in range(3)]

    def working(self, index: int, now: float = 0.0, round_trip: float | None = None) -> Standing:
        """One of them opens and answers."""
        standing = self.standings[index]
        standing.opened(now)
        standing.answered(now)
        standing.round_trip = round_trip
        return standing

    def choose(self, policy: Policy, current: Standing | None, now: float = 100.0) -> Standing | None:
        """What the policy says."""
        return choose(policy, self.standings, current, now)

    def test_none(self) -> None:
        """With nothing open there is nothing to choose."""
        self.assertIsNone(self.choose(Policy.ORDERED, None))

    def test_open_is_better_than_nothing(self) -> None:
        """One that is open is tried when none works yet."""
        self.standings[2].opened(0.0)
        self.assertIs(self.choose(Policy.ORDERED, None), self.standings[2])

    def test_working_beats_order(self) -> None:
        """The first of the list has to answer before it carries anything."""
        self.standings[0].opened(0.0)
        third = self.working(2)
        self.assertIs(self.choose(Policy.ORDERED, None), third)
        self.assertIs(self.choose(Policy.ORDERED, third), third)
        first = self.working(0)
        self.assertIs(self.choose(Policy.ORDERED, third), first)

    def test_back_to_the_better_one_after_a_while(self) -> None:
        """One that failed is preferred again only after its penalty, which doubles."""
        first, second = self.working(0), self.working(1)
        first.failed(100.0)
        self.assertIs(self.choose(Policy.ORDERED, None, 100.0), second)
        self.working(0, 100.1)
        self.assertIs(self.choose(Policy.ORDERED, second, 100.2), second)
        self.assertIs(self.choose(Policy.ORDERED, second, 100.0 + FIRST_PENALTY), first)
        first.failed(102.0)
        self.working(0, 102.1)
        self.assertIs(self.choose(Policy.ORDERED, second, 102.0 + FIRST_PENALTY), second)
        self.assertIs(self.choose(Policy.ORDERED, second, 102.0 + 2 * FIRST_PENALTY), first)

    def test_race(self) -> None:
        """The quickest carries the data; another takes over only if it is twice as quick."""
        slow, quick = self.working(0, round_trip=0.2), self.working(1, round_trip=0.05)
        near = self.working(2, round_trip=0.12)
        self.assertIs(self.choose(Policy.RACE, None), quick)
        self.assertIs(self.choose(Policy.RACE, slow), quick)
        self.assertIs(self.choose(Policy.RACE, near), quick)
        quick.round_trip = 0.11
        self.assertIs(self.choose(Policy.RACE, near), near)

    def test_one_that_does_not_answer_is_left(self) -> None:
        """The current one has opened anew and said nothing: one that works is better."""
        current, other = self.standings[0], self.working(1)
        current.opened(99.0)
        self.assertIs(self.choose(Policy.ORDERED, current), other)

    def test_waits(self) -> None:
        """What has worked is opened again at once; what opens in vain waits longer and longer."""
        standing = self.working(0, 0.0)
        standing.failed(STEADY_TIME)
        self.assertEqual(standing.wait, 0.0)
        waits = []
        for _ in range(10):
            standing.failed(1.0)
            waits.append(standing.wait)
        self.assertEqual(waits[:3], [0.1, 0.2, 0.4])
        self.assertEqual(waits[-1], MAX_WAIT)
