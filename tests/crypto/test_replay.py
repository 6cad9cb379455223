"""The replay set (M3)."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.replay import ReplaySet

NOW = 1_700_000_000


def iv(number: int) -> bytes:
    """A 16-byte IV that is not zero."""
    return struct.pack("!QQ", 1, number)


class ReplaySetTests(SynchronousTestCase):
    """What was accepted is never accepted again."""

    def test_window(self) -> None:
        """30 s either way are accepted, 31 s are not."""
        for skew, accepted in ((-31, False), (-30, True), (0, True), (30, True), (31, False)):
            self.assertEqual(ReplaySet().accept(iv(1), NOW + skew, NOW + 0.9), accepted, skew)

    def test_repeats(self) -> None:
        """The same IV with the same id is refused for as long as its time would be accepted."""
        for skew in (-30, 0, 30):
            replays = ReplaySet()
            self.assertTrue(replays.accept(iv(1), NOW + skew, NOW))
            for later in range(100):
                self.assertFalse(replays.accept(iv(1), NOW + skew, NOW + later), (skew, later))

    def test_forgets_what_time_refuses(self) -> None:
        """Entries leave when their time has passed, so memory is bounded by the window."""
        replays = ReplaySet()
        for second in range(200):
            for number in range(10):
                replays.accept(iv(second * 10 + number), NOW + second, NOW + second)
            self.assertLessEqual(len(replays), 10 * 33)

    def test_clock_stepping_back(self) -> None:
        """After a step back, ids that may have been accepted and forgotten are refused; newer ones are not."""
        replays = ReplaySet()
        replays.accept(iv(1), NOW, NOW)
        replays.accept(iv(2), NOW + 3600, NOW + 3600)
        self.assertFalse(replays.accept(iv(1), NOW, NOW))
        self.assertFalse(replays.accept(iv(3), NOW, NOW))
        self.assertTrue(replays.accept(iv(4), NOW + 1, NOW))

    def test_full_set_fails_closed(self) -> None:
        """When it is full everything is refused, until entries leave."""
        replays = ReplaySet(capacity=3)
        verdicts = [replays.accept(iv(number), NOW, NOW) for number in range(5)]
        self.assertEqual(verdicts, [True, True, True, False, False])
        self.assertTrue(replays.accept(iv(9), NOW + 40, NOW + 40))

    def test_record_comes_first(self) -> None:
        """Nothing is accepted that could not be written down."""

        def broken(entry: bytes) -> None:
            raise OSError("disk full")

        replays = ReplaySet(broken)
        self.assertFalse(replays.accept(iv(1), NOW, NOW))
        self.assertEqual(len(replays), 0)

    def test_entries_restore_everything(self) -> None:
        """A set made from another's entries refuses what that one would."""
        written: list[bytes] = []
        old = ReplaySet(written.append)
        old.accept(iv(1), NOW - 100, NOW - 100)
        for number in range(2, 50):
            self.assertTrue(old.accept(iv(number), NOW + number % 7, NOW))
        for journal in (b"".join(written), b"".join(old.entries(NOW)), b"".join(written) + b"torn"):
            new = ReplaySet()
            new.restore(journal)
            for number in range(2, 50):
                self.assertFalse(new.accept(iv(number), NOW + number % 7, NOW))
            self.assertTrue(new.accept(iv(99), NOW, NOW))

    def test_floor_is_restored(self) -> None:
        """What was forgotten stays refused over a restart with a clock that stepped back."""
        old = ReplaySet()
        old.accept(iv(1), NOW, NOW)
        old.accept(iv(2), NOW + 500, NOW + 500)
        new = ReplaySet()
        new.restore(b"".join(old.entries(NOW + 500)))
        self.assertFalse(new.accept(iv(1), NOW, NOW))
