"""Tests of mikanet.guard.targets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.guard.targets import MAX_PER_USER, Place, TargetLimits, Targets, limits_below


class TargetsTests(SynchronousTestCase):
    """Who may open how many."""

    def test_one_user_leaves_room(self) -> None:
        """A user has so many and no more; others have theirs, until all are taken."""
        targets = Targets(TargetLimits(10, 4))
        mine = [targets.take("alice") for _ in range(6)]
        self.assertEqual([place is not None for place in mine], [True] * 4 + [False] * 2)
        self.assertIsNotNone(targets.take("bob", 4))
        self.assertIsNone(targets.take("carol", 3))
        self.assertIsNotNone(targets.take("carol", 2))
        self.assertIsNone(targets.take("dave"))
        assert mine[0] is not None
        mine[0].release()
        mine[0].release()
        self.assertEqual((targets.total, targets.of("alice")), (9, 3))
        self.assertIsNotNone(targets.take("dave"))

    def test_where_users_are_not_told_apart(self) -> None:
        """Only the bound for all counts."""
        targets = Targets(TargetLimits(10, 4))
        self.assertIsNotNone(targets.take(None, 10))
        self.assertIsNone(targets.take(None))

    def test_below_the_limit_of_files(self) -> None:
        """A quarter of the files stays for those who ask, and one user gets a quarter of the rest."""
        for files in (64, 1024, 65_536, 1 << 20):
            limits = limits_below(files)
            self.assertLessEqual(limits.total, files * 3 // 4)
            self.assertLessEqual(limits.per_user, max(limits.total // 4, 16))
            self.assertLessEqual(limits.per_user, MAX_PER_USER)
        self.assertEqual(limits_below(1 << 20).per_user, MAX_PER_USER)

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans()), max_size=60))
    def test_books_balance(self, steps: list[tuple[str, int, bool]]) -> None:
        """Whatever is taken, shrunk and given back: the sums are right, and in the end nothing is left."""
        targets = Targets(TargetLimits(12, 6))
        held: list[tuple[str, Place, int]] = []
        for user, files, back in steps:
            if back and held:
                held.pop(0)[1].release()
            elif (place := targets.take(user, files)) is not None:
                place.shrink()
                held.append((user, place, 1))
            self.assertEqual(targets.total, len(held))
            for each in "abc":
                self.assertEqual(targets.of(each), sum(1 for name, _, _ in held if name == each))
        for _, place, _ in held:
            place.release()
        self.assertEqual((targets.total, targets.of("a")), (0, 0))
