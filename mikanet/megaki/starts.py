"""When workers are started again: at once after a crash in a request, ever more slowly while they do not come up. No I/O."""

from __future__ import annotations

from collections import deque

#: Least and most seconds before a worker that did not come up is replaced; doubled each time.
BACKOFF = (0.1, 5.0)

#: So many failed starts within so many seconds make a pool sick.
SICK_STARTS, SICK_TIME = 10, 60.0

#: A worker that dies without a request within so many seconds of its start has failed to start (our choice).
STAY_TIME = 1.0


class Starts:
    """How starting goes.

    A worker that crashes in a request costs that request and nothing else: whoever sends such requests must not make
    others wait.
    """

    def __init__(self) -> None:
        self._backoff = BACKOFF[0]
        self._failed: deque[float] = deque(maxlen=SICK_STARTS)

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start."""
        return self._backoff

    def failed(self, now: float) -> bool:
        """A worker did not come up. Whether the pool has become sick by this."""
        was_sick = self.sick(now)
        self._failed.append(now)
        return self.sick(now) and not was_sick

    def wait_longer(self) -> None:
        """The next start waits twice as long."""
        self._backoff = min(BACKOFF[1], self._backoff * 2)

    def good(self) -> None:
        """A worker of the newest kind is at work."""
        self._backoff = BACKOFF[0]

    def sick(self, now: float) -> bool:
        """Whether workers fail to start too often."""
        return len(self._failed) == SICK_STARTS and now - self._failed[0] <= SICK_TIME
