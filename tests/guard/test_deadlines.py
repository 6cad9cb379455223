"""Many timers of the same length."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.guard.deadlines import Deadlines


class DeadlinesTests(SynchronousTestCase):
    """Deadlines on one reactor timer."""

    def setUp(self) -> None:
        """Ten seconds on a clock that the test moves."""
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock, 10.0)
        self.called: list[object] = []

    def start(self, name: object) -> int:
        """Start one that notes its name."""
        return self.deadlines.start(lambda: self.called.append(name))

    def test_calls_in_order_at_their_times(self) -> None:
        """Each is called after the delay, not before."""
        self.start("a")
        self.clock.advance(4)
        self.start("b")
        self.clock.advance(5.9)
        self.assertEqual(self.called, [])
        self.clock.advance(0.1)
        self.assertEqual(self.called, ["a"])
        self.clock.advance(4)
        self.assertEqual(self.called, ["a", "b"])

    def test_cancelled_ones_are_not_called(self) -> None:
        """A cancelled one is forgotten, and the others keep their times."""
        first = self.start("a")
        self.clock.advance(3)
        self.start("b")
        self.deadlines.cancel(first)
        self.clock.advance(7)
        self.assertEqual(self.called, [])
        self.clock.advance(3)
        self.assertEqual(self.called, ["b"])

    def test_cancelling_twice_or_late_is_harmless(self) -> None:
        """An unknown key is no error."""
        key = self.start("a")
        self.clock.advance(10)
        self.deadlines.cancel(key)
        self.deadlines.cancel(key)
        self.assertEqual(self.called, ["a"])

    def test_one_timer_and_none_when_idle(self) -> None:
        """However many run, the reactor has one timer; when none runs it has none."""
        keys = [self.start(number) for number in range(100)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for key in keys:
            self.deadlines.cancel(key)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_starting_inside_a_call(self) -> None:
        """A call may start the next; earlier ones still come first."""
        self.deadlines.start(lambda: self.start("later"))
        self.clock.advance(1)
        self.start("between")
        self.clock.advance(9)
        self.assertEqual(self.called, [])
        self.clock.advance(1)
        self.assertEqual(self.called, ["between"])
        self.clock.advance(9)
        self.assertEqual(self.called, ["between", "later"])

    def test_a_failing_call_does_not_stop_the_rest(self) -> None:
        """What one call raises is the reactor's affair; the others still run."""
        self.deadlines.start(lambda: 1 // 0)
        self.start("next")
        with self.assertRaises(ZeroDivisionError):
            self.clock.advance(10)
        self.clock.advance(0)
        self.assertEqual(self.called, ["next"])
