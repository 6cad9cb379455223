"""Progress of long runs, one line a second at most, on stderr. No other I/O."""

from __future__ import annotations

import sys
import time
from typing import IO

#: Whether anything is shown: a test that runs an instrument inside itself switches it off.
enabled = True


def note(text: str) -> None:
    """Show a piece of text on the way."""
    if enabled:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Says how far a run has come.

    :param total: of what :meth:`at` counts; 0 if the end is not known.
    """

    def __init__(self, what: str, total: float = 0, every: float = 1.0, out: IO[str] | None = None) -> None:
        self._what, self._total, self._every = what, total, every
        self._out = out or sys.stderr
        self._started = self._shown = time.monotonic()

    def at(self, done: float, text: str = "") -> None:
        """Show a line, if the last one is old enough."""
        now = time.monotonic()
        if now - self._shown < self._every or not enabled:
            return
        self._shown = now
        elapsed = now - self._started
        share = f" of {self._total:g} ({done / self._total:.0%})" if self._total else ""
        left = ""
        if self._total and done:
            left = f", {elapsed * (self._total - done) / done:.0f} s left"
        print(f"[{elapsed:6.0f} s] {self._what}: {done:g}{share}{left} {text}".rstrip(), file=self._out, flush=True)
