"""Tests of mikanet.relay: every rule of ends in its docstring, early bytes, and back-pressure."""

from __future__ import annotations

from twisted.internet import error
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from mikanet.errors import LocalProtocolError
from mikanet.relay import MAX_EARLY, PAUSED_COST, MemoryBudget, RelayEnd, join
from tests.support.memory import MemoryTransport


class RelayTestCase(SynchronousTestCase):
    """Two ends, each on a transport in memory."""

    def setUp(self) -> None:
        self.left, self.right = RelayEnd(), RelayEnd()
        self.budget = self.left.budget = self.right.budget = MemoryBudget(PAUSED_COST)
        self.a, self.b = MemoryTransport(self.left), MemoryTransport(self.right)

    def join(self) -> None:
        """Join the two."""
        join(self.left, self.right)


class FlowTests(RelayTestCase):
    """Bytes go to the other side, unchanged and in order."""

    def test_transport_in_memory(self) -> None:
        """The transport of these tests is what the ends are written for."""
        verifyObject(ITCPTransport, self.a)

    def test_both_ways(self) -> None:
        """What arrives at one end leaves at the other."""
        self.join()
        self.a.deliver(b"to the right")
        self.b.deliver(b"to the left")
        self.assertEqual((self.a.written, self.b.written), (b"to the left", b"to the right"))

    def test_early_bytes(self) -> None:
        """Bytes from before the join, of either end, go first."""
        self.a.deliver(b"early ")
        self.b.deliver(b"banner ")
        self.join()
        self.a.deliver(b"late")
        self.b.deliver(b"rest")
        self.assertEqual((self.a.written, self.b.written), (b"banner rest", b"early late"))

    def test_early_bytes_are_bounded(self) -> None:
        """With 64 KiB held, an end stops reading; the join lets it read again."""
        self.a.deliver(b"x" * (MAX_EARLY - 1))
        self.assertTrue(self.a.reading)
        self.a.deliver(b"x")
        self.assertFalse(self.a.reading)
        self.assertEqual(self.budget.used, PAUSED_COST)
        self.b.high_water = 2 * MAX_EARLY
        self.join()
        self.assertTrue(self.a.reading)
        self.assertEqual(self.budget.used, 0)
        self.assertEqual(len(self.b.written), MAX_EARLY)

    def test_only_two_connected_ends_join_once(self) -> None:
        """Joining an end again, or one that is not connected or lost, is our own error."""
        self.assertRaises(LocalProtocolError, join, self.left, RelayEnd())
        self.join()
        third = RelayEnd()
        MemoryTransport(third)
        self.assertRaises(LocalProtocolError, join, self.left, third)
        lost = RelayEnd()
        MemoryTransport(lost).lose(error.ConnectionDone())
        self.assertRaises(LocalProtocolError, join, third, lost)


class EndTests(RelayTestCase):
    """A clean end of one direction is a FIN at the other side; everything else is a reset."""

    def test_half_close_to_the_right(self) -> None:
        """An end of input at one side ends the output at the other, and the way back stays open."""
        self.join()
        self.a.deliver(b"request")
        self.a.deliver_end()
        self.assertTrue(self.b.half_closed)
        self.assertEqual((self.a.outcome, self.b.outcome), ("open", "open"))
        self.b.deliver(b"response")
        self.assertEqual(self.a.written, b"response")

    def test_half_close_to_the_left(self) -> None:
        """The same holds the other way round."""
        self.join()
        self.b.deliver_end()
        self.assertTrue(self.a.half_closed)
        self.a.deliver(b"still")
        self.assertEqual(self.b.written, b"still")

    def test_both_directions_end(self) -> None:
        """With both directions ended, both transports are closed, cleanly."""
        for begin in ("a", "b"):
            self.setUp()
            self.join()
            first, second = (self.a, self.b) if begin == "a" else (self.b, self.a)
            first.deliver_end()
            second.deliver(b"last words")
            second.deliver_end()
            self.assertEqual((self.a.outcome, self.b.outcome), ("closed", "closed"))
            self.assertEqual(first.written, b"last words")

    def test_end_before_the_join(self) -> None:
        """An end of input from before the join reaches the other side behind the early bytes."""
        self.a.deliver(b"whole request")
        self.a.deliver_end()
        self.join()
        self.assertEqual(self.b.written, b"whole request")
        self.assertTrue(self.b.half_closed)
        self.b.deliver(b"response")
        self.b.deliver_end()
        self.assertEqual((self.a.written, self.a.outcome, self.b.outcome), (b"response", "closed", "closed"))

    def test_both_ended_before_the_join(self) -> None:
        """Two ends of input from before the join pass the early bytes on and close both sides."""
        for transport, early in ((self.a, b"one"), (self.b, b"two")):
            transport.deliver(early)
            transport.deliver_end()
        self.join()
        self.assertEqual((self.a.written, self.b.written), (b"two", b"one"))
        self.assertEqual((self.a.outcome, self.b.outcome), ("closed", "closed"))

    def test_abort(self) -> None:
        """A lost, reset or timed-out connection at one side is a reset at the other, either way round."""
        for reason in (error.ConnectionLost(), error.ConnectionAborted(), error.TimeoutError(), LocalProtocolError()):
            for side in ("a", "b"):
                self.setUp()
                self.join()
                lost, other = (self.a, self.b) if side == "a" else (self.b, self.a)
                lost.lose(reason)
                self.assertEqual(other.outcome, "aborted", (reason, side))

    def test_abort_after_half_close(self) -> None:
        """A reset is still a reset when one direction has ended cleanly before."""
        self.join()
        self.a.deliver_end()
        self.b.lose(error.ConnectionLost())
        self.assertEqual(self.a.outcome, "aborted")

    def test_own_abort(self) -> None:
        """Aborting one end resets both sides."""
        self.join()
        self.left.abort()
        self.assertEqual((self.a.outcome, self.b.outcome), ("aborted", "aborted"))

    def test_clean_loss(self) -> None:
        """A transport without half-close that ends cleanly closes the other side cleanly, even with a producer."""
        self.join()
        self.a.lose(error.ConnectionDone())
        self.assertEqual(self.b.outcome, "closed")

    def test_tls_is_not_half_closed(self) -> None:
        """A TLS transport has no half-close: nothing is ended under its cipher; it closes when both directions end."""
        directlyProvides(self.b, ISSLTransport, ITCPTransport)
        self.join()
        self.a.deliver_end()
        self.assertFalse(self.b.half_closed)
        self.b.deliver(b"response")
        self.b.lose(error.ConnectionDone())
        self.assertEqual((self.a.written, self.a.outcome), (b"response", "closed"))

    def test_bytes_after_the_loss_go_nowhere(self) -> None:
        """What still arrives for a lost peer is dropped, and not kept."""
        self.join()
        self.a.lose(error.ConnectionDone())
        self.right.dataReceived(b"late")
        self.left.dataReceived(b"late")
        self.assertEqual((self.left.take_early(), bytes(self.a.written)), (b"", b""))


class BackPressureTests(RelayTestCase):
    """A full transport stops the reading at the other side."""

    def test_pause_and_resume(self) -> None:
        """Reading stops above the high water and goes on when there is room; the budget knows the cost."""
        self.join()
        self.a.deliver(b"x" * 70000)
        self.assertFalse(self.a.reading)
        self.assertEqual(self.budget.used, PAUSED_COST)
        self.assertTrue(self.budget.exhausted)
        self.assertTrue(self.b.reading)
        self.b.read()
        self.assertTrue(self.a.reading)
        self.assertEqual(self.budget.used, 0)
        self.assertFalse(self.budget.exhausted)

    def test_both_paused(self) -> None:
        """Both directions are counted, and each goes on by itself."""
        self.join()
        self.a.deliver(b"x" * 70000)
        self.b.deliver(b"x" * 70000)
        self.assertEqual(self.budget.used, 2 * PAUSED_COST)
        self.a.read()
        self.assertEqual((self.a.reading, self.b.reading, self.budget.used), (False, True, PAUSED_COST))

    def test_loss_while_paused(self) -> None:
        """A connection that is lost while paused gives its memory back, whichever side goes."""
        for side in ("a", "b"):
            self.setUp()
            self.join()
            self.a.deliver(b"x" * 70000)
            (self.a if side == "a" else self.b).lose(error.ConnectionLost())
            self.assertEqual(self.budget.used, 0)

    def test_pausing_twice_costs_once(self) -> None:
        """A pause while paused, or a resume while not, changes nothing in the budget."""
        self.join()
        for _ in range(2):
            self.left.pauseProducing()
        self.assertEqual(self.budget.used, PAUSED_COST)
        for _ in range(2):
            self.left.resumeProducing()
        self.assertEqual(self.budget.used, 0)

    def test_clean_close_waits_for_the_bytes(self) -> None:
        """An end behind more bytes than fit is sent after them: no producer keeps the transport open."""
        self.join()
        self.a.deliver(b"x" * 70000)
        self.b.read()
        self.a.deliver_end()
        self.assertIsNone(self.b.producer)
        self.assertTrue(self.b.half_closed)
