"""Time for timers: the monotonic clock, also for those of Twisted and other libraries on the same reactor.

Twisted's reactors measure time with ``time.time()``. When that clock steps (NTP, a laptop that wakes up, an operator's
``date``), an hour back lets every timer sleep an hour too long, and an hour forward lets all of them fire at once: tunnels
freeze or are reset. Wall time belongs in protocol fields only.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.posixbase import PosixReactorBase


def use_monotonic_clock(reactor: Any) -> None:
    """Let a reactor count time by ``time.monotonic()`` from now on; what is scheduled already keeps its distance.

    For programs, which own their reactor; calling it again changes nothing. ``reactor.seconds()`` is then the time since
    some moment in the past, as :class:`~twisted.internet.interfaces.IReactorTime` permits. A reactor that has no sockets,
    like those of tests, keeps its own clock.
    """
    if not isinstance(reactor, PosixReactorBase) or reactor.seconds is time.monotonic:
        return
    before = reactor.seconds()
    calls = [(call, call.getTime() - before) for call in reactor.getDelayedCalls()]
    # callLater() and the turn of the reactor read this attribute anew each time.
    reactor.seconds = time.monotonic
    for call, remaining in calls:
        call.seconds = time.monotonic  # type: ignore[attr-defined]  # an attribute of every DelayedCall
        call.reset(max(0.0, remaining))
