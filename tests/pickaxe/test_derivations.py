"""The budget of the draft's derivations."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.pickaxe.derivations import KNOWN_TIME, NETWORK_BURST, TOTAL_BURST, DerivationBudget


class DerivationBudgetTests(SynchronousTestCase):
    """At times that the test chooses."""

    def test_budgets(self) -> None:
        """A network has three at once and one a second, all together six and three; known networks count by themselves."""
        budget = DerivationBudget()
        self.assertEqual(sum(budget.take("a", 10.0) for _ in range(20)), NETWORK_BURST)
        self.assertEqual(sum(budget.take(f"net {n}", 10.0) for n in range(20)), TOTAL_BURST - NETWORK_BURST)
        self.assertEqual(sum(budget.take("a", 11.0) for _ in range(20)), 1)
        budget.proved("home", 11.0)
        self.assertTrue(budget.take("home", 11.0))
        self.assertEqual(sum(budget.take(f"net {n}", 11.0) for n in range(20)), 2)
        self.assertTrue(budget.take("home", 11.0))
        self.assertFalse(budget.take("home" * 2, 11.0))

    def test_known_for_an_hour(self) -> None:
        """A network that was known is one of all again."""
        budget = DerivationBudget()
        budget.proved("home", 0.0)
        now = KNOWN_TIME + 1
        for number in range(20):
            budget.take(f"net {number}", now)
        self.assertFalse(budget.take("home", now))

    def test_memory(self) -> None:
        """So many networks are remembered, and no more."""
        budget = DerivationBudget()
        for number in range(10_000):
            budget.take(str(number), 1.0)
            budget.proved(str(number), 1.0)
        self.assertEqual((len(budget._networks), len(budget._known)), (4096, 4096))
