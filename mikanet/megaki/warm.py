"""Sessions of a Megaki client that are kept ready, so that a request costs neither RSA nor a new connection."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.errors import MikanetError
from mikanet.megaki.sazukari import REQUEST_TIME, SavedSession, Sazukari, Session, TimedOutError

#: Sessions ready for use, and most sessions at once; more requests wait for one of those.
WARM_SESSIONS, MAX_SESSIONS = 2, 16

#: Seconds that a session may rest before it is resumed anew; servers close after 60.
REST_TIME = 45.0

#: Least and most seconds until the next try when no session can be made.
BACKOFF = (1.0, 30.0)

_log = Logger()


def _no_turn(result: Any, seconds: float) -> Any:
    raise TimedOutError("no session was free in time")


class NoSessionError(MikanetError):
    """There is no way to the server."""


class WarmSessions:
    """Sessions of one client, kept ready.

    :param clock: the reactor's time. :param wait_time: seconds that a request may wait for a session while all are in use.
    """

    def __init__(
        self,
        clock: Any,
        client: Sazukari,
        warm: int = WARM_SESSIONS,
        most: int = MAX_SESSIONS,
        name: str = "",
        wait_time: float = REQUEST_TIME,
    ) -> None:
        self._clock = clock
        self._client = client
        self._warm = warm
        self._most = most
        self._name = name
        self._wait_time = wait_time
        self._idle: list[Session] = []
        self._all: set[Session] = set()
        self._rested: dict[Session, float] = {}
        self._saved: deque[SavedSession] = deque(maxlen=most)
        self._opening = 0
        self._waiting: deque[Deferred[None]] = deque()
        self._backoff = BACKOFF[0]
        self._timer: IDelayedCall | None = None
        self._running = False
        self._down = False

    def start(self) -> None:
        """Make the first sessions."""
        self._running = True
        self._client.keys.fill()
        self._keep_warm()

    async def stop(self) -> None:
        """End all sessions."""
        self._running = False
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for session in list(self._all):
            await session.close()

    async def ask(self, request: bytes) -> bytes:
        """The answer to a request.

        :raises NoSessionError: if no session could be made.
        :raises TimedOutError: if none was free in time. Otherwise as :meth:`Session.send_message`.
        """
        session = await self._take()
        try:
            return await session.send_message(request)
        finally:
            self._give_back(session)

    # -- which session

    async def _take(self) -> Session:
        until = self._clock.seconds() + self._wait_time
        while True:
            while self._idle:
                session = self._idle.pop()
                if session.idle:
                    return session
            if len(self._all) + self._opening < self._most:
                return await self._open()
            turn: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(turn)
            await turn.addTimeout(max(0.0, until - self._clock.seconds()), self._clock, _no_turn)

    def _wake(self) -> None:
        """There may be a session for the request that has waited for longest."""
        if self._waiting:
            self._waiting.popleft().callback(None)

    def _give_back(self, session: Session) -> None:
        if session.idle:
            self._rested[session] = self._clock.seconds()
            self._idle.append(session)
        self._wake()

    async def _open(self) -> Session:
        saved = self._saved.pop() if self._saved else None
        self._opening += 1
        try:
            session = await (self._client.connect() if saved is None else self._client.resume(saved))
        except CancelledError:
            # Whoever asked has left, which says nothing about the server.
            if saved is not None:
                self._saved.append(saved)
            self._opening -= 1
            self._wake()
            raise
        except Exception as problem:
            if not self._down:
                self._down = True
                _log.warn("no session with {name}: {problem}", name=self._name, problem=str(problem))
            self._opening -= 1
            self._wake()  # that one may try, too, rather than wait for what does not come
            raise NoSessionError(" ".join(str(problem).split()) or type(problem).__name__) from problem
        self._opening -= 1
        if self._down:
            self._down = False
            _log.info("sessions with {name} again", name=self._name)
        self._all.add(session)
        session.on_lost = self._lost
        return session

    def _lost(self, session: Session) -> None:
        self._all.discard(session)
        self._rested.pop(session, None)
        if session in self._idle:
            self._idle.remove(session)
        if session.proven:
            self._saved.append(session.saved)
        self._wake()
        if self._running:
            self._wait(0.0)

    # -- keeping them warm

    def _wait(self, seconds: float) -> None:
        """Look after the sessions in so many seconds, or before that if a look was due earlier."""
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= self._clock.seconds() + seconds:
                return
            self._timer.cancel()
        self._timer = self._clock.callLater(seconds, self._keep_warm)

    def _keep_warm(self) -> None:
        """Make what is missing, end what has rested for long: that one is resumed, with a new key, at once."""
        now = self._clock.seconds()
        for session in [each for each in self._idle if now - self._rested[each] >= REST_TIME]:
            self._idle.remove(session)
            session.close()
        if len(self._all) + self._opening < self._warm:
            Deferred.fromCoroutine(self._open()).addCallbacks(self._opened, self._not_opened)
        else:
            self._wait(REST_TIME / 8)

    def _opened(self, session: Session) -> None:
        self._backoff = BACKOFF[0]
        self._give_back(session)
        self._wait(0.0)

    def _not_opened(self, failure: Failure) -> None:
        failure.trap(NoSessionError)
        self._wait(self._backoff)
        self._backoff = min(BACKOFF[1], self._backoff * 2)
