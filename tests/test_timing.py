"""Timers that a step of the wall clock does not touch."""

from __future__ import annotations

import time
from unittest import mock

from twisted.internet import task
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from mikanet.timing import use_monotonic_clock


class Clocks:
    """A wall clock and a monotonic one, as :mod:`time` gives them."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.monotonic = 5_000.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.monotonic += seconds


class MonotonicTests(SynchronousTestCase):
    """:func:`use_monotonic_clock` on a reactor with sockets."""

    def setUp(self) -> None:
        self.clocks = Clocks()
        self.patch(time, "monotonic", lambda: self.clocks.monotonic)
        # What time.time() was when Twisted was imported.
        self.patch(SelectReactor, "seconds", staticmethod(lambda: self.clocks.wall))
        self.reactor = SelectReactor()
        self.addCleanup(self._close)
        self.fired: list[str] = []

    def _close(self) -> None:
        for reader in self.reactor.removeAll():
            reader.connectionLost(mock.Mock())

    def turn(self) -> list[str]:
        """What fires now."""
        self.reactor.runUntilCurrent()
        fired = list(self.fired)
        self.fired.clear()
        return fired

    def test_steps(self) -> None:
        """A timer fires when its time has passed, wherever the wall clock is by then."""
        use_monotonic_clock(self.reactor)
        for step in (0.0, 3600.0, -7200.0, 1e9):
            self.reactor.callLater(10, self.fired.append, "ten")
            self.clocks.wall += step
            self.clocks.advance(9.9)
            self.assertEqual(self.turn(), [], step)
            self.clocks.advance(0.2)
            self.assertEqual(self.turn(), ["ten"], step)

    def test_scheduled_before(self) -> None:
        """Timers of before keep their distance, whether they were put off or not, and can be cancelled."""
        self.reactor.callLater(5, self.fired.append, "five")
        late = self.reactor.callLater(1, self.fired.append, "late")
        late.delay(6)
        gone = self.reactor.callLater(2, self.fired.append, "gone")
        self.turn()
        self.reactor.callLater(6, self.fired.append, "six")  # still unsorted
        use_monotonic_clock(self.reactor)
        gone.cancel()
        self.clocks.wall -= 3600
        for seconds, expected in ((4.9, []), (0.2, ["five"]), (1.0, ["six"]), (1.0, ["late"])):
            self.clocks.advance(seconds)
            self.assertEqual(self.turn(), expected)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_put_off_after(self) -> None:
        """A timer of before that is reset afterwards counts from then."""
        call = self.reactor.callLater(5, self.fired.append, "reset")
        use_monotonic_clock(self.reactor)
        self.clocks.advance(4)
        call.reset(5)
        self.clocks.advance(4)
        self.assertEqual(self.turn(), [])
        self.clocks.advance(1.1)
        self.assertEqual(self.turn(), ["reset"])

    def test_twice(self) -> None:
        """A second call moves nothing."""
        use_monotonic_clock(self.reactor)
        call = self.reactor.callLater(5, self.fired.append, "five")
        before = call.getTime()
        use_monotonic_clock(self.reactor)
        self.assertEqual(call.getTime(), before)

    def test_clocks_of_tests(self) -> None:
        """A clock without sockets stays as it is."""
        clock = task.Clock()
        use_monotonic_clock(clock)
        self.assertEqual(clock.seconds(), 0)
