"""Groups that wait in turn, and which of them makes room."""

from __future__ import annotations

import random
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki.fairness import FairQueue, Weights


class WeightTests(SynchronousTestCase):
    """Who has most."""

    def test_against_counting(self) -> None:
        """After any changes the heaviest group is one that has most, and all numbers are right."""
        rng = random.Random(3)
        weights, counted = Weights(), Counter[str]()
        for _ in range(20_000):
            group = str(int(rng.expovariate(0.3)))
            if counted[group] and rng.random() < 0.5:
                weights.remove(group)
                counted[group] -= 1
            else:
                weights.add(group)
                counted[group] += 1
            self.assertEqual(weights[group], counted[group])
            most = max(counted.values())
            heaviest = weights.heaviest
            if most:
                assert heaviest is not None
                self.assertEqual(counted[heaviest], most)
            else:
                self.assertIsNone(heaviest)
        self.assertEqual(sum(map(len, weights._with.values())), sum(map(bool, counted.values())))


class QueueTests(SynchronousTestCase):
    """Waiting in turn."""

    def test_in_turn(self) -> None:
        """One of each group at a time, in order within each."""
        queue: FairQueue[str] = FairQueue()
        for number, item in enumerate(("a1", "a2", "a3", "b1", "c1", "b2")):
            queue.push(number, item[0], item)
        self.assertEqual([queue.pop() for _ in range(6)], ["a1", "b1", "c1", "a2", "b2", "a3"])
        self.assertEqual(len(queue), 0)

    def test_room(self) -> None:
        """With no room a group with less may push, and the heaviest group's newest goes; with as much it may not."""
        queue: FairQueue[str] = FairQueue()
        for number in range(3):
            queue.push(number, "a", f"a{number}")
        self.assertTrue(queue.may_push("a", 4))
        self.assertFalse(queue.may_push("a", 3))
        self.assertTrue(queue.may_push("b", 3))
        self.assertFalse(queue.may_push("b", 0))
        queue.push(3, "b", "b0")
        self.assertEqual(queue.newest_of_heaviest(), 2)
        self.assertEqual(queue.remove(2), "a2")
        self.assertIsNone(queue.remove(2))
        self.assertFalse(queue.may_push("b", 3))
        self.assertEqual(sorted(queue), [0, 1, 3])
