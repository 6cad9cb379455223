"""Relays of which one direction has ended."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.half_closed import HalfClosed
from mikanet.relay import MemoryBudget, RelayEnd, join
from tests.support.transports import MemoryTransport

TIME = 100.0


class HalfClosedTests(SynchronousTestCase):
    """An application and a target, joined in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.half_closed = HalfClosed(self.clock, TIME)
        self.make()

    def make(self) -> None:
        """A joined pair."""
        self.near, self.far = RelayEnd(), RelayEnd()
        self.near.budget = self.far.budget = MemoryBudget(1 << 20, self.half_closed)
        self.application, self.target = MemoryTransport(), MemoryTransport()
        self.application.connect(self.near)
        self.target.connect(self.far)
        join(self.near, self.far)

    def advance(self, seconds: float) -> None:
        """Let time pass, in small steps."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
        for transport in (self.target, self.application):
            transport.settle()

    def test_silent(self) -> None:
        """A target that says nothing after the application's end is reset, and the application with it."""
        self.near.readConnectionLost()
        self.assertTrue(self.target.fin)
        self.advance(TIME - 1)
        self.assertFalse(self.target.aborted)
        self.advance(TIME)
        self.assertTrue(self.target.aborted and self.application.aborted)
        self.assertEqual((len(self.half_closed), self.clock.getDelayedCalls()), (0, []))

    def test_the_other_way(self) -> None:
        """An application that says nothing after the target's end."""
        self.far.readConnectionLost()
        self.advance(2 * TIME)
        self.assertTrue(self.target.aborted and self.application.aborted)

    def test_answering(self) -> None:
        """As long as something comes now and then it goes on."""
        self.near.readConnectionLost()
        for _ in range(10):
            self.advance(TIME - 1)
            self.far.dataReceived(b"x")
        self.assertFalse(self.target.aborted)
        self.assertEqual(b"".join(self.application.written), b"x" * 10)
        self.advance(2 * TIME)
        self.assertTrue(self.target.aborted)

    def test_nothing_is_kept(self) -> None:
        """Ends in order and resets are forgotten at once."""
        self.near.readConnectionLost()
        self.far.readConnectionLost()
        self.assertEqual((len(self.half_closed), self.clock.getDelayedCalls()), (0, []))
        self.make()
        self.near.readConnectionLost()
        self.assertEqual(len(self.half_closed), 1)
        self.near.abort()
        self.application.settle()
        self.target.settle()
        self.assertEqual((len(self.half_closed), self.clock.getDelayedCalls()), (0, []))

    def test_open(self) -> None:
        """A relay that is open both ways may be silent for ever."""
        self.advance(3 * TIME)
        self.assertFalse(self.target.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_for_ever(self) -> None:
        """With a time of 0 nothing is watched."""
        self.half_closed = HalfClosed(self.clock, 0)
        self.make()
        self.near.readConnectionLost()
        self.assertEqual((len(self.half_closed), self.clock.getDelayedCalls()), (0, []))
