"""What a service says of itself while it runs: a line of counters when something was refused, and jumps of the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.internet import TimerService
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mikanet.counters import Counters

#: Seconds between two looks.
INTERVAL = 60.0

#: A difference between wall clock and monotonic clock, in seconds, that is worth a line (X8).
CLOCK_JUMP = 5.0

_WORTH_A_LINE = ("refused", "limit", "truncated", "policy")

_log = Logger()


class ReportingService(TimerService):
    """Logs, once a minute at most, what was refused, and tells of clock jumps."""

    def __init__(
        self,
        clock: IReactorTime,
        counters: Counters,
        wall_clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(INTERVAL, self._look)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.clock: Any = clock
        self._counters = counters
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._offset = wall_clock() - monotonic()
        self._last: Mapping[str, int] = {}

    def _look(self) -> None:
        offset = self._wall_clock() - self._monotonic()
        if abs(offset - self._offset) > CLOCK_JUMP:
            _log.warn("the wall clock jumped by {seconds:+.1f} s", seconds=offset - self._offset)
        self._offset = offset
        now = self._counters.snapshot()
        changes = [
            f"{name} {total - self._last.get(name, 0)}"
            for name, total in sorted(now.items())
            if total != self._last.get(name, 0) and any(word in name for word in _WORTH_A_LINE)
        ]
        if changes:
            _log.info("in the last minute: {changes}", changes=", ".join(changes))
        self._last = now
