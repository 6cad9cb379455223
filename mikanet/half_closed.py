"""Relays of which one direction has ended, and the other says nothing: they do not stay for ever."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How long such a relay may be silent, in seconds (our choice; HAProxy's and nginx' advice is 30 s to an hour).
HALF_CLOSED_TIME = 900.0


class Watched(Protocol):
    """An end of a relay that can still receive.

    :ivar heard: set to True with all that it receives.
    """

    heard: bool

    def abort(self) -> None:
        """End at once with a reset."""


class HalfClosed:
    """Ends what has been half-closed and silent for some time.

    An application that closes its socket and one that only has no more to send look alike, so an end is not told by the
    other's FIN; and a target that never closes would keep two sockets at both ends of the tunnel for ever. Where the
    time is looked at only every half of it, an end comes after ``seconds`` to one and a half times that.

    :param clock: the reactor's time.
    :param seconds: of silence; 0 lets them be.
    """

    def __init__(self, clock: IReactorTime, seconds: float = HALF_CLOSED_TIME) -> None:
        self._clock = clock
        self._seconds = seconds
        self._silent: dict[Watched, int] = {}
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._silent)

    def watch(self, end: Watched) -> None:
        """The other direction has ended."""
        if self._seconds:
            self._silent[end] = 0
            end.heard = False
            if self._timer is None:
                self._timer = self._clock.callLater(self._seconds / 2, self._look)

    def forget(self, end: Watched) -> None:
        """It is over; one that is not watched is no error."""
        self._silent.pop(end, None)
        if not self._silent and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        silent = [end for end, looks in self._silent.items() if not end.heard and looks >= 2]
        for end in self._silent:
            self._silent[end] = 0 if end.heard else self._silent[end] + 1
            end.heard = False
        for end in silent:
            self._silent.pop(end, None)
            end.abort()
        if self._silent:
            self._timer = self._clock.callLater(self._seconds / 2, self._look)
