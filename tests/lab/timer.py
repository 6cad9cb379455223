"""One timer that is always armed for the next thing that a link has to do. No reactor of its own."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timer:
    """Calls ``fire`` at the deadline that it was armed with last."""

    def __init__(self, clock: IReactorTime, fire: Callable[[], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._call: IDelayedCall | None = None

    def arm(self, deadline: float | None) -> None:
        """Fire at ``deadline`` (at once if that has passed) and at no other time; None: not at all."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if deadline is not None:
            self._call = self._clock.callLater(max(0.0, deadline - self._clock.seconds()), self._run)

    def _run(self) -> None:
        self._call = None
        self._fire()
