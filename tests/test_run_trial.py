"""Tests of :mod:`tests.support.run_trial`: no test is lost without a word."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support import run_trial
from tests.support.run_trial import Outcome, expected_count, modules_of, read_closing


class ClosingTests(SynchronousTestCase):
    """Trial's closing line."""

    def test_passed(self) -> None:
        """Passed, skipped and expected failures are told apart."""
        self.assertEqual(
            read_closing("PASSED (skips=6, expectedFailures=1, successes=594)\n"), Outcome(passed=595, skipped=6)
        )

    def test_failed(self) -> None:
        """Failures, errors and unexpected successes all failed."""
        line = "FAILED (skips=1, failures=2, errors=3, unexpectedSuccesses=4, successes=5)"
        self.assertEqual(read_closing(line), Outcome(passed=5, failed=9, skipped=1))

    def test_nothing(self) -> None:
        """PASSED alone means that nothing ran."""
        self.assertEqual(read_closing("PASSED"), Outcome())

    def test_other_lines(self) -> None:
        """Other lines close nothing."""
        for line in ("Ran 3 tests in 0.1s", "", "  test_x ... [OK]", "FAILED to connect"):
            self.assertIsNone(read_closing(line), line)

    def test_said(self) -> None:
        """The last line of a run has one form."""
        self.assertEqual(str(Outcome(1, 2, 3)), "1 passed, 2 failed, 3 skipped")


class SuiteTests(SynchronousTestCase):
    """Which tests belong to which suite, and how many there must be."""

    def test_every_test_is_in_one_suite(self) -> None:
        """The suites share out all test modules."""
        names = [name for suite in run_trial.SUITES for name in modules_of(suite)]
        self.assertEqual(len(names), len(set(names)))
        for file in run_trial.TESTS.rglob("test_*.py"):
            module = ".".join(file.relative_to(run_trial.TESTS.parent).with_suffix("").parts)
            owners = [name for name in names if f"{module}.".startswith(f"{name}.")]
            self.assertEqual(len(owners), 1, module)

    def test_every_suite_has_a_number(self) -> None:
        """A suite without a number could be empty."""
        for suite in run_trial.SUITES:
            self.assertGreater(expected_count(suite), 0)

    def test_too_few_fail(self) -> None:
        """A run that passes with fewer tests than expected fails, and says so."""
        self.patch(run_trial, "run", lambda names, folder: (0, Outcome(passed=1)))
        printed = io.StringIO()
        self.patch(sys, "stdout", printed)
        self.assertEqual(run_trial.main(["unit"]), 1)
        lines = printed.getvalue().splitlines()
        self.assertIn("only 1 tests of at least", lines[0])
        self.assertEqual(lines[-1], "1 passed, 0 failed, 0 skipped")

    def test_a_run_that_breaks_off_failed(self) -> None:
        """Trial that ends without a closing line has not passed."""
        with tempfile.TemporaryDirectory() as folder:
            printed = io.StringIO()
            self.patch(sys, "stdout", printed)
            status, outcome = run_trial.run(["--no-such-option"], str(Path(folder) / "trial"))
        self.assertNotEqual(status, 0)
        self.assertEqual(outcome, Outcome(failed=1))
