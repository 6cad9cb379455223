"""Answers that are given once."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mikanet.answers import Answer


class AnswerTests(SynchronousTestCase):
    """Every order of giving, failing and cancelling."""

    def setUp(self) -> None:
        """An answer that notes when it is withdrawn."""
        self.withdrawn = 0
        self.answer: Answer[int] = Answer(self.withdraw)

    def withdraw(self) -> None:
        """Nobody waits any more; whoever would answer at this very moment is too late."""
        self.withdrawn += 1
        self.assertFalse(self.answer.waited_for)
        self.assertFalse(self.answer.give(5))

    def test_first_result_counts(self) -> None:
        """The first result is the answer; later ones are dropped, and their giver is told."""
        self.assertTrue(self.answer.waited_for)
        self.assertTrue(self.answer.give(1))
        self.assertFalse(self.answer.waited_for)
        self.assertFalse(self.answer.give(2))
        self.assertFalse(self.answer.fail(ValueError()))
        self.assertEqual(self.successResultOf(self.answer.deferred), 1)

    def test_failure_counts_as_well(self) -> None:
        """So is a failure."""
        self.assertTrue(self.answer.fail(ValueError()))
        self.assertFalse(self.answer.give(1))
        self.failureResultOf(self.answer.deferred, ValueError)

    def test_cancelled(self) -> None:
        """Who cancels gets CancelledError at once; results that come later, however many, are dropped."""
        self.answer.deferred.cancel()
        self.failureResultOf(self.answer.deferred, CancelledError)
        self.assertEqual(self.withdrawn, 1)
        for _ in range(3):
            self.assertFalse(self.answer.give(1))
            self.assertFalse(self.answer.fail(ValueError()))

    def test_cancelled_too_late(self) -> None:
        """Cancelling after the answer changes nothing."""
        self.answer.give(1)
        self.answer.deferred.cancel()
        self.assertEqual(self.withdrawn, 0)
        self.assertEqual(self.successResultOf(self.answer.deferred), 1)
