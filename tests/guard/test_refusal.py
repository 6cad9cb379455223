"""Refusal: the one way of turning a peer away (X2)."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from mikanet.guard.refusal import LINGER, PACE, Refusal, Refusals


class HalfClosingTransport(StringTransport):
    """A transport that notes its FIN."""

    fin = False

    def loseWriteConnection(self) -> None:
        """Note the FIN."""
        self.fin = True


class RefusalTests(SynchronousTestCase):
    """One connection being turned away."""

    def setUp(self) -> None:
        """A refusal on a clock that the test moves."""
        self.clock = Clock()
        self.refusals = Refusals(self.clock, 60.0)
        self.transport = HalfClosingTransport()
        self.refusal = Refusal(self.refusals, self.transport)

    def test_input_is_read_at_a_steady_pace_without_limit(self) -> None:
        """However much comes, reading goes on at 64 KiB/s; nothing is answered."""
        for _ in range(50):
            self.refusal.data_received(65536)
            self.assertEqual(self.transport.producerState, "paused")
            self.clock.advance(65536 / PACE)
            self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(self.transport.value(), b"")
        self.assertFalse(self.transport.fin)

    def test_ends_with_a_fin_then_reads_what_is_left(self) -> None:
        """At its time comes the FIN, alone; the close follows a while later, so that no unread byte turns it into a reset."""
        self.refusal.data_received(65536)
        self.refusal.end()
        self.assertTrue(self.transport.fin)
        self.assertFalse(self.transport.disconnecting)
        self.assertEqual(self.transport.producerState, "producing")
        self.refusal.data_received(1_000_000)
        self.assertEqual(self.transport.producerState, "producing")
        self.clock.advance(LINGER)
        self.assertTrue(self.transport.disconnecting)

    def test_peers_end_after_ours_closes(self) -> None:
        """When the peer ends after our FIN there is nothing to wait for."""
        self.refusal.end()
        self.refusal.read_ended()
        self.assertTrue(self.transport.disconnecting)

    def test_peers_early_end_changes_nothing(self) -> None:
        """A peer's end before ours brings no close."""
        self.refusal.read_ended()
        self.assertFalse(self.transport.disconnecting)
        self.assertFalse(self.transport.fin)

    def test_an_early_end_is_not_read_again(self) -> None:
        """When the peer has ended before, reading does not begin again: it would delay our FIN by a turn of the reactor."""
        self.refusal.data_received(65536)
        self.refusal.read_ended()
        self.refusal.end()
        self.assertTrue(self.transport.fin)
        self.assertEqual(self.transport.producerState, "paused")
        self.clock.advance(LINGER)
        self.assertTrue(self.transport.disconnecting)

    def test_nothing_happens_after_the_connection_is_lost(self) -> None:
        """Timers that were running do no harm."""
        self.refusal.data_received(65536)
        self.refusal.end()
        self.refusal.lost()
        self.refusal.end()
        self.clock.advance(100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_half_close(self) -> None:
        """A transport that cannot end one direction is closed."""
        transport = StringTransport()
        Refusal(self.refusals, transport).end()
        self.assertTrue(transport.disconnecting)
