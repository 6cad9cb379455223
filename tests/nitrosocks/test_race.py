"""Several servers, tried one beside the other."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.nitrosocks.race import BESIDE_TIME, Race


class RaceTests(SynchronousTestCase):
    """Who wins, and what becomes of the others."""

    def setUp(self) -> None:
        """Three servers."""
        self.clock = Clock()
        self.dialled: dict[str, Deferred[str]] = {}
        self.failed: list[str] = []
        self.let_go: list[str] = []
        self.race = Race(self.clock, ["a", "b", "c"], self.dial, self.note, self.let_go.append)
        self.result = self.race.start()

    def dial(self, server: str) -> Deferred[str]:
        """Begin."""
        self.dialled[server] = Deferred()
        return self.dialled[server]

    def note(self, server: str, failure: Failure) -> None:
        """Note it."""
        self.failed.append(server)

    def test_first_answers(self) -> None:
        """One that answers in time is the only one that is asked."""
        self.dialled["a"].callback("A")
        self.assertEqual(self.successResultOf(self.result), ("a", "A"))
        self.clock.advance(10)
        self.assertEqual(list(self.dialled), ["a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_beside(self) -> None:
        """After a second without an answer the next one is asked beside it; the first answer counts, the others are let go."""
        self.clock.advance(BESIDE_TIME)
        self.assertEqual(list(self.dialled), ["a", "b"])
        self.dialled["b"].callback("B")
        self.assertEqual(self.successResultOf(self.result), ("b", "B"))
        self.clock.advance(10)
        self.assertEqual(list(self.dialled), ["a", "b"])
        self.assertEqual(self.failed, [])

    def test_slow_one_may_win(self) -> None:
        """The first one may still win after the next was asked."""
        self.clock.advance(BESIDE_TIME)
        self.dialled["a"].callback("A")
        self.assertEqual(self.successResultOf(self.result), ("a", "A"))

    def test_failures(self) -> None:
        """One that fails makes place for the next at once; the last failure is the result."""
        self.dialled["a"].errback(ValueError("a"))
        self.dialled["b"].errback(ValueError("b"))
        self.clock.advance(BESIDE_TIME * 5)
        self.assertNoResult(self.result)
        self.dialled["c"].errback(ValueError("c"))
        self.assertEqual(str(self.failureResultOf(self.result, ValueError).value), "c")
        self.assertEqual(self.failed, ["a", "b", "c"])

    def test_all_silent(self) -> None:
        """While one may still answer, the failures of the others are no result."""
        self.clock.pump([BESIDE_TIME] * 2)
        for server in "bc":
            self.dialled[server].errback(ValueError(server))
        self.assertNoResult(self.result)
        self.dialled["a"].callback("A")
        self.assertEqual(self.successResultOf(self.result), ("a", "A"))

    def test_cancelled(self) -> None:
        """Cancelling gives everything up; a connection that comes all the same is let go."""
        self.clock.advance(BESIDE_TIME)
        late: Deferred[str] = Deferred(lambda each: each.callback("late"))
        race = Race(self.clock, ["x"], lambda _: late, self.note, self.let_go.append)
        result = race.start()
        for each in (self.result, result):
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual((self.failed, self.let_go), ([], ["late"]))
        self.clock.advance(10)
        self.assertEqual(list(self.dialled), ["a", "b"])
