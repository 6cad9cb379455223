"""Runs one suite of tests under trial, and checks that it was all there: ``python -m tests.support.run_trial SUITE``.

Trial says PASSED of an empty suite too. So the number of tests is compared with ``tests/expected-count``, and the last
line says what happened in the form ``N passed, M failed, K skipped``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

#: Suites that need more than this machine's memory and processor. Whatever is in none of them is a unit test.
SPECIAL = {
    "interop": ("tests.interop", "tests.lab"),
    "packaging": ("tests.test_packaging",),
}
SUITES = ("unit", *SPECIAL)

_CLOSING = re.compile(r"^(?:PASSED|FAILED)(?: \((?P<numbers>[^)]*)\))?$")


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def ran(self) -> int:
        """All the tests that were found."""
        return self.passed + self.failed + self.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def modules_of(suite: str, tests: Path = TESTS) -> list[str]:
    """The names of what trial is to run."""
    if suite in SPECIAL:
        return list(SPECIAL[suite])
    special = {name for names in SPECIAL.values() for name in names}
    found = [path for path in tests.iterdir() if path.match("test_*.py") or any(path.rglob("test_*.py"))]
    return sorted({f"tests.{path.stem}" for path in found} - special)


def expected_count(suite: str, file: Path = TESTS / "expected-count") -> int:
    """The least number of tests that the suite has.

    :raises KeyError: if the file does not name it.
    """
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {words[0]: int(words[1]) for words in lines if words}[suite]


def read_closing(line: str) -> Outcome | None:
    """What trial's closing line says; None if this is another line."""
    match = _CLOSING.match(line.strip())
    if match is None:
        return None
    numbers = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", match["numbers"] or "")}
    return Outcome(
        passed=numbers.get("successes", 0) + numbers.get("expectedFailures", 0),
        failed=sum(numbers.get(name, 0) for name in ("failures", "errors", "unexpectedSuccesses")),
        skipped=numbers.get("skips", 0),
    )


def run(names: list[str], temp_directory: str) -> tuple[int, Outcome]:
    """Run trial and pass its output on; its exit status and what it said at the end."""
    command = [sys.executable, "-u", "-m", "twisted.trial", "--temp-directory", temp_directory, *names]
    outcome = Outcome(failed=1)  # for a run that ends without a word
    with subprocess.Popen(
        command,
        cwd=TESTS.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            outcome = read_closing(line) or outcome
        status = child.wait()
    return status, outcome


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; the exit status."""
    parser = argparse.ArgumentParser(description="Run one suite of tests under trial and check its size.")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("tests", nargs="*", help="only these, without a check of their number")
    parser.add_argument("--temp-directory", default="_trial_temp", help="trial's working folder")
    known = parser.parse_args(arguments)
    status, outcome = run(known.tests or modules_of(known.suite), known.temp_directory)
    if not known.tests and outcome.ran < expected_count(known.suite):
        print(f"only {outcome.ran} tests of at least {expected_count(known.suite)} were found in suite {known.suite}")
        status = status or 1
    print(outcome)
    return status


if __name__ == "__main__":
    sys.exit(main())
