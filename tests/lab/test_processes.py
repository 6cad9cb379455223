"""Tests of :mod:`tests.support.processes`."""

from __future__ import annotations

import os
import signal
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.support.processes import (
    Process,
    TwistdProcess,
    cpu,
    fds,
    free_port,
    listening,
    rss,
    wait_for,
    wait_listening,
)

_SLEEP = "import time; print('up', flush=True); time.sleep(60)"


class ProcessTests(SynchronousTestCase):
    """Children are waited for, measured, stopped and never left behind."""

    def test_a_twistd_plugin_listens_and_stops(self) -> None:
        """A plugin started from the checkout listens on its port when the constructor returns, and stops on request."""
        port = free_port()
        with TwistdProcess(["web", "--listen", f"tcp:{port}:interface=127.0.0.1", "--path", "."], ports=[port]) as web:
            self.assertTrue(listening(port))
            self.assertGreater(rss(web.pid), 1_000_000)
            self.assertGreater(fds(web.pid), 3)
            self.assertGreater(cpu(web.pid), 0.0)
            self.assertIn("Starting factory", web.output)
        self.assertFalse(web.alive)
        self.assertFalse(listening(port))
        self.assertIn("Starting factory", web.output)

    def test_an_early_end_is_reported_with_the_output(self) -> None:
        """Waiting for a port of a child that has ended fails at once and shows what the child said."""
        started = time.monotonic()
        error = self.assertRaises(
            TimeoutError, Process, [sys.executable, "-c", "raise SystemExit('no key')"], ports=[free_port()]
        )
        self.assertIn("no key", str(error))
        self.assertLess(time.monotonic() - started, 15)

    def test_a_deaf_child_is_killed(self) -> None:
        """A child that ignores SIGTERM is killed after the time limit."""
        code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SLEEP}"
        child = Process([sys.executable, "-c", code])
        wait_for(lambda: "up" in child.output)
        self.assertEqual(child.stop(timeout=0.2), -signal.SIGKILL)
        self.assertFalse(os.path.exists(f"/proc/{child.pid}"))

    def test_nobody_listens(self) -> None:
        """A port without a listener ends the wait with an error that names it."""
        port = free_port()
        self.assertIn(str(port), str(self.assertRaises(TimeoutError, wait_listening, port, 0.05)))
