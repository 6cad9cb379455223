"""The budgets of packets that fail."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.kcp.failures import FAILURES_PER_SECOND, KNOWN_TIME, FailureLimit


class FailureLimitTests(SynchronousTestCase):
    """On a clock that the test moves."""

    def setUp(self) -> None:
        """A limit of 1,000 in all."""
        self.clock = Clock()
        self.limit = FailureLimit(self.clock, 1000)

    def test_of_one_source(self) -> None:
        """A source's budget is one second's worth, fills again, and is nobody else's."""
        self.limit.failed("x", FAILURES_PER_SECOND - 10)
        self.assertEqual((self.limit.allowance("x"), self.limit.allowance("y")), (10, FAILURES_PER_SECOND))
        self.limit.failed("x", 500)
        self.assertEqual(self.limit.allowance("x"), 0)
        self.clock.advance(0.01)
        self.assertEqual(self.limit.allowance("x"), 2)
        self.clock.advance(100)
        self.assertEqual(self.limit.allowance("x"), FAILURES_PER_SECOND)

    def test_of_all(self) -> None:
        """Ever new sources use up what there is for all; it fills again in a second."""
        for number in range(10):
            self.limit.failed(number, 99)
        self.assertEqual(self.limit.allowance("new"), 10)
        self.limit.failed("new", 10)
        self.assertEqual(self.limit.allowance("newer"), 0)
        self.clock.advance(0.1)
        self.assertEqual(self.limit.allowance("newer"), 100)

    def test_known_sources(self) -> None:
        """A source that was proven lately does not depend on the others, nor they on it."""
        self.limit.proven("known")
        for number in range(100):
            self.limit.failed(number, 99)
        self.assertEqual((self.limit.allowance("known"), self.limit.allowance("new")), (FAILURES_PER_SECOND, 0))
        self.clock.advance(1)
        self.limit.failed("known", 150)
        self.assertEqual((self.limit.allowance("known"), self.limit.allowance("new")), (50, FAILURES_PER_SECOND))
        self.clock.advance(KNOWN_TIME)
        for number in range(100):
            self.limit.failed(number, 99)
        self.assertEqual(self.limit.allowance("known"), 0)

    def test_memory(self) -> None:
        """However many sources there are, so many are remembered."""
        for number in range(10_000):
            self.limit.failed(number, 1)
            self.limit.proven(number)
        self.assertEqual((len(self.limit._sources), len(self.limit._known)), (4096, 4096))
