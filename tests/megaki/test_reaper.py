"""Foreign children."""

from __future__ import annotations

import os
import time

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki.reaper import INTERVAL, Reaper, reap_foreign


def ended_child() -> int:
    """A child that has ended and was not waited for."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] == b"Z":
                return pid
        time.sleep(0.001)
    raise AssertionError("it did not end")


class ReaperTests(SynchronousTestCase):
    """Who is reaped."""

    def test_only_foreign_ones(self) -> None:
        """A child that somebody else knows is left to him; others are reaped."""
        known, foreign = ended_child(), ended_child()
        self.assertEqual(reap_foreign({known}), 1)
        self.assertRaises(ChildProcessError, os.waitpid, foreign, os.WNOHANG)
        self.assertEqual(os.waitpid(known, os.WNOHANG)[0], known)

    def test_where_it_is_needed(self) -> None:
        """It looks from time to time where it is needed, until it is stopped, and never elsewhere."""
        clock = Clock()
        reaper = Reaper(clock)
        reaper.start()
        self.assertEqual(clock.getDelayedCalls(), [])
        reaper = Reaper(clock, needed=True)
        reaper.start()
        child = ended_child()
        clock.advance(INTERVAL)
        self.assertRaises(ChildProcessError, os.waitpid, child, os.WNOHANG)
        reaper.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
