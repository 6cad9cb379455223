"""NitroSocks: which of several servers a new session goes to: the first that answers, the next tried beside it after a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mikanet.answers import Answer

S = TypeVar("S")
R = TypeVar("R")

#: Seconds until the next server is tried beside those that have not answered. Our choice: longer than most handshakes take.
BESIDE_TIME = 1.0


class Race(Generic[S, R]):
    """One attempt over several servers, in order.

    :param dial: connects to one. :param failed: told of each that cannot be had.
    :param let_go: ends a connection that came too late.
    """

    def __init__(
        self,
        clock: Any,
        servers: Sequence[S],
        dial: Callable[[S], Deferred[R]],
        failed: Callable[[S, Failure], None],
        let_go: Callable[[R], None],
    ) -> None:
        self._clock = clock
        self._waiting = list(servers)
        self._dial = dial
        self._failed = failed
        self._let_go = let_go
        self._running: set[Deferred[R]] = set()
        self._last: Failure | None = None
        self._timer: IDelayedCall | None = None
        self._answer: Answer[tuple[S, R]] = Answer(self._stop)

    def start(self) -> Deferred[tuple[S, R]]:
        """Begin. Fires with the server that answered first and its connection, or fails as the last one did."""
        self._next()
        return self._answer.deferred

    def _next(self) -> None:
        """Try one more; when there is none, and none runs, that was it."""
        self._stop_timer()
        if not self._answer.waited_for:
            return
        if not self._waiting:
            if not self._running and self._last is not None:
                self._answer.fail(self._last)
            return
        server = self._waiting.pop(0)
        if self._waiting:
            self._timer = self._clock.callLater(BESIDE_TIME, self._time_over)
        attempt = self._dial(server)
        self._running.add(attempt)
        attempt.addCallbacks(self._won, self._lost, (server, attempt), {}, (server, attempt))

    def _time_over(self) -> None:
        self._timer = None
        self._next()

    def _won(self, made: R, server: S, attempt: Deferred[R]) -> None:
        self._running.discard(attempt)
        if self._answer.give((server, made)):
            self._stop()
        else:
            self._let_go(made)

    def _lost(self, failure: Failure, server: S, attempt: Deferred[R]) -> None:
        self._running.discard(attempt)
        if failure.check(CancelledError, error.ConnectingCancelledError) and not self._answer.waited_for:
            return
        self._last = failure
        self._failed(server, failure)
        self._next()

    def _stop(self) -> None:
        """No further attempts, and those that run are given up."""
        self._stop_timer()
        self._waiting.clear()
        running, self._running = self._running, set()
        for attempt in running:
            attempt.cancel()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
