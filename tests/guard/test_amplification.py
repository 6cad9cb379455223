"""Tests of mikanet.guard.amplification."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.guard.amplification import FACTOR, MAX_SHOWN, SHOWN_TIME, Allowance, Reached, allowance


class AllowanceTests(SynchronousTestCase):
    """What may go to who has shown nothing."""

    def test_three_for_one(self) -> None:
        """An answer may have three times the bytes of its question."""
        self.assertEqual((FACTOR, allowance(54)), (3, 162))

    def test_a_peer_s_account(self) -> None:
        """What goes is counted against what came; what is too much does not count, and smaller things still go."""
        peer = Allowance()
        self.assertFalse(peer.take(1))
        peer.received(100)
        self.assertEqual([peer.take(size) for size in (200, 101, 100, 1)], [True, False, True, False])
        peer.received(1)
        self.assertEqual([peer.take(size) for size in (4, 3, 1)], [False, True, False])

    def test_after_the_proof(self) -> None:
        """Who has shown that answers reach it gets all of them."""
        peer = Allowance()
        peer.shown = True
        self.assertTrue(peer.take(1_000_000))


class ReachedTests(SynchronousTestCase):
    """Addresses that have shown themselves."""

    def test_for_a_time(self) -> None:
        """What was shown holds for ten minutes from the last time."""
        reached = Reached()
        self.assertFalse(reached.has("192.0.2.1", 0.0))
        reached.show("192.0.2.1", 0.0)
        reached.show("192.0.2.1", 5.0)
        self.assertTrue(reached.has("192.0.2.1", SHOWN_TIME + 5))
        self.assertFalse(reached.has("192.0.2.1", SHOWN_TIME + 6))
        self.assertFalse(reached.has("192.0.2.2", 5.0))

    def test_not_too_many(self) -> None:
        """The oldest is forgotten."""
        reached = Reached()
        for index in range(MAX_SHOWN + 10):
            reached.show(str(index), 0.0)
        self.assertEqual(len(reached), MAX_SHOWN)
        self.assertFalse(reached.has("9", 0.0))
        self.assertTrue(reached.has("10", 0.0))
