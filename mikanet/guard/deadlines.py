"""Many timers of the same length on one reactor timer.

A server with thousands of connections has thousands of timers that all run equally long and are almost always
cancelled. As they end in the order in which they began, an ordered dict and one reactor timer are enough.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Deadlines:
    """Calls back after a fixed delay, unless cancelled.

    :param clock: the reactor's time.
    :param delay: seconds from :meth:`start` to the call.
    """

    __slots__ = ("_calls", "_clock", "_firing", "_next_key", "_timer", "delay")

    def __init__(self, clock: IReactorTime, delay: float) -> None:
        self.delay = delay
        self._clock = clock
        # A plain dict finds its first entry by walking over all that went before: square time when many end at once.
        self._calls: OrderedDict[int, tuple[float, Callable[[], None]]] = OrderedDict()
        self._next_key = 0
        self._firing = False
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def start(self, call: Callable[[], None]) -> int:
        """Call ``call`` after the delay; returns the key that :meth:`cancel` takes."""
        key = self._next_key
        self._next_key = key + 1
        self._calls[key] = (self._clock.seconds() + self.delay, call)
        if self._timer is None:
            self._arm()
        return key

    def cancel(self, key: int) -> None:
        """Forget the call; an unknown or used key is no error."""
        self._calls.pop(key, None)
        if not self._calls and self._timer is not None:
            # An idle server keeps no timer, so that its reactor can come to rest.
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._calls and not self._firing:
            due, _ = next(iter(self._calls.values()))
            self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._firing = True
        try:
            now = self._clock.seconds()
            while self._calls:
                key, (due, call) = next(iter(self._calls.items()))
                if due > now:
                    break
                del self._calls[key]
                call()
        finally:
            self._firing = False
            self._arm()
