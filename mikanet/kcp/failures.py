"""How many packets that fail their check a server opens: of one source, and of all together. No I/O.

Opening a forged packet costs microseconds, or a millisecond with a cipher in plain Python, and its source costs an attacker
nothing. So sources without a proven session have a budget each and one together; those that had one lately have only
their own. Sources with a proven session are not asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

#: Failing packets per second of one source before its packets are dropped unopened (Q6).
FAILURES_PER_SECOND = 200
#: The same of all sources together, and with a cipher in plain Python: a tenth of one processor or two (our choice).
FAILURES_IN_ALL, COSTLY_FAILURES_IN_ALL = 4000, 100
#: How long a source is known after a session of it was proven, in seconds (our choice).
KNOWN_TIME = 3600.0
#: Sources that are remembered, of either kind; the oldest are forgotten.
_MAX_SOURCES = 4096


class _Bucket:
    """Tokens for one second, which come back in one second."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._at = now

    def left(self, now: float) -> int:
        """Whole tokens now."""
        self._tokens = min(float(self._rate), self._tokens + (now - self._at) * self._rate)
        self._at = now
        return int(self._tokens)

    def take(self, count: int, now: float) -> None:
        """Use up so many, or all."""
        self.left(now)
        self._tokens = max(self._tokens - count, 0.0)


class FailureLimit:
    """Token buckets for packets that fail their check.

    :param in_all: failing packets a second of all sources that are not known.
    """

    def __init__(self, clock: Any, in_all: int = FAILURES_IN_ALL, rate: int = FAILURES_PER_SECOND) -> None:
        self._clock = clock
        self._rate = rate
        self._all = _Bucket(in_all, clock.seconds())
        self._sources: OrderedDict[Any, _Bucket] = OrderedDict()
        self._known: OrderedDict[Any, float] = OrderedDict()

    def allowance(self, source: Any) -> int:
        """How many packets of this source are worth opening now."""
        now = self._clock.seconds()
        bucket = self._sources.get(source)
        mine = self._rate if bucket is None else bucket.left(now)
        return mine if self._is_known(source, now) else min(mine, self._all.left(now))

    def failed(self, source: Any, count: int) -> None:
        """So many packets failed."""
        now = self._clock.seconds()
        bucket = self._sources.pop(source, None) or _Bucket(self._rate, now)
        bucket.take(count, now)
        self._sources[source] = bucket
        if len(self._sources) > _MAX_SOURCES:
            self._sources.popitem(last=False)
        if not self._is_known(source, now):
            self._all.take(count, now)

    def proven(self, source: Any) -> None:
        """A session of this source was proven to be live."""
        self._known[source] = self._clock.seconds() + KNOWN_TIME
        self._known.move_to_end(source)
        if len(self._known) > _MAX_SOURCES:
            self._known.popitem(last=False)

    def _is_known(self, source: Any, now: float) -> bool:
        return self._known.get(source, now) > now
