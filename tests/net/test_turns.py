"""Turns that are fair between users."""

from __future__ import annotations

import random
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from mikanet.net.turns import FairTurns, TurnLimits

LIMITS = TurnLimits(running=6, running_per_user=3, waiting=20, waiting_per_user=10, safe_time=1.0)


class TurnTests(SynchronousTestCase):
    """:class:`FairTurns`."""

    def setUp(self) -> None:
        self.turns: FairTurns[str] = FairTurns(LIMITS)

    def ask(self, user: str | None, count: int, now: float = 0.0) -> list[str]:
        """Queue jobs called user-0, user-1 ... and give the turns; which begin."""
        for number in range(count):
            self.assertTrue(self.turns.ask(f"{user}-{number}", user))
        begin, ended = self.turns.next_jobs(now)
        self.assertEqual(ended, [])
        return begin

    def test_at_once(self) -> None:
        """While there is room a job begins at once, in the order of asking; a user of None is one like others."""
        self.assertEqual(self.ask("a", 2), ["a-0", "a-1"])
        self.assertEqual(self.ask(None, 2), ["None-0", "None-1"])
        self.assertEqual((self.turns.running, self.turns.waiting), (4, 0))
        self.turns.leave("None-0")
        self.assertEqual(self.turns.running, 3)

    def test_one_user(self) -> None:
        """One user never has more than his share running; the rest begins as others end."""
        self.assertEqual(self.ask("a", 5), ["a-0", "a-1", "a-2"])
        self.assertEqual((self.turns.running, self.turns.waiting), (3, 2))
        self.turns.leave("a-1")
        self.assertEqual(self.turns.next_jobs(0), (["a-3"], []))

    def test_users_take_turns(self) -> None:
        """Of several who wait each gets one before anybody gets a second."""
        self.ask("a", 10)
        self.ask("b", 10)
        self.assertEqual(self.turns.running, 6)
        for job in ("c-0", "c-1", "d-0", "d-1"):
            self.turns.ask(job, job[0])
        began = []
        for number in range(3):
            for user in "ab":
                self.turns.leave(f"{user}-{number}")
        for _ in range(2):
            began += self.turns.next_jobs(0)[0]
        self.assertEqual(Counter(job[0] for job in began[:4]), Counter("abcd"))

    def test_full_of_endless_jobs(self) -> None:
        """Somebody with nothing running gets a place: the oldest job of who has most goes, once it is old enough."""
        self.ask("a", 3, now=0.0)
        self.ask("b", 3, now=0.5)
        self.turns.ask("c-0", "c")
        self.assertEqual(self.turns.next_jobs(0.9), ([], []))
        self.assertEqual(self.turns.next_jobs(1.0), (["c-0"], ["a-0"]))
        self.turns.ask("c-1", "c")
        self.assertEqual(self.turns.next_jobs(9.0), ([], []))  # who has one waits as everybody does
        self.assertEqual(self.turns.running, 6)

    def test_too_many_wait(self) -> None:
        """Beyond a bound, of one user and of all, nothing more is queued."""
        self.ask("a", 3)
        for number in range(10):
            self.assertTrue(self.turns.ask(f"w{number}", "a"))
        self.assertFalse(self.turns.ask("more", "a"))
        for number in range(10):
            self.assertTrue(self.turns.ask(f"v{number}", number))
        self.assertFalse(self.turns.ask("last", "z"))

    def test_leaving(self) -> None:
        """Whoever leaves while waiting is gone; leaving twice, or without having come, is no error."""
        self.ask("a", 5)
        for _ in range(2):
            self.turns.leave("a-3")
        self.turns.leave("nobody")
        self.turns.leave("a-0")
        self.assertEqual(self.turns.next_jobs(0), (["a-4"], []))

    def test_random_use(self) -> None:
        """Whatever is asked and ended, bounds hold, nothing is lost, and what can run runs."""
        rng = random.Random(3)
        running: dict[str, str] = {}
        waiting: dict[str, str] = {}
        for step in range(3000):
            if rng.random() < 0.55:
                user = rng.choice("abcdef")
                if self.turns.ask(f"{user}{step}", user):
                    waiting[f"{user}{step}"] = user
            elif running or waiting:
                job = rng.choice([*running, *waiting])
                self.turns.leave(job)
                running.pop(job, None)
                waiting.pop(job, None)
            begin, ended = self.turns.next_jobs(step * 0.1)
            for job in ended:
                del running[job]
            for job in begin:
                running[job] = waiting.pop(job)
            count = Counter(running.values())
            self.assertLessEqual(len(running), LIMITS.running)
            self.assertTrue(all(number <= LIMITS.running_per_user for number in count.values()))
            self.assertEqual((self.turns.running, self.turns.waiting), (len(running), len(waiting)))
            if len(running) < LIMITS.running:
                self.assertTrue(all(count[user] >= LIMITS.running_per_user for user in waiting.values()), step)
