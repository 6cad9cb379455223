"""The client's end of the polling carriers, BOSH and plain HTTP: requests with request ids, answers put in order.

BOSH keeps as many requests open at the server as that holds, and sends with one more. Plain HTTP asks again at once
while something comes, and less and less often while nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mikanet.carriers.base import BaseCarrier
from mikanet.carriers.http_batches import OVERHEAD, PacketQueue, split
from mikanet.carriers.http_exchange import (
    ANSWER_HEAD,
    END,
    EXCHANGE_HEAD,
    MAX_BODY,
    MAX_STRANGER_BODY,
    MORE,
    Answer,
    Exchange,
    Opened,
)
from mikanet.carriers.http_pacing import HIGH_WATER, LOW_WATER, BodyLimit, Pacer, Sizer
from mikanet.errors import MikanetError, RemoteProtocolError

#: Seconds beyond the server's wait after which a request counts as lost if nothing came meanwhile, and bytes of its own for
#: which it has one second more.
GRACE = 8.0
SLOWEST = 16_384

#: Seconds for which requests may fail, one after the other, until the carrier is lost, and between tries.
PATIENCE = 12.0
RETRY = (0.05, 2.0)

#: Least and most seconds between requests of plain HTTP that bring nothing, and what the first is multiplied by.
POLL = (0.02, 3.0)
POLL_GROWTH = 1.5

#: How long, in seconds, a close waits for the server.
CLOSE_TIME = 3.0


class HttpStatusError(MikanetError):
    """The web server answered, but not as a tunnel does. :ivar status: its status code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the web server answered {status}")
        self.status = status


class TlsAnswerError(RemoteProtocolError):
    """What was asked without TLS was answered with it."""


#: Sends a body and gives the body of the answer; fails with HttpStatusError unless the status is 200. Calls its second
#: argument for each piece of the answer that comes.
Post = Callable[[bytes, Callable[[], None]], Deferred[bytes]]


@dataclass(slots=True, eq=False)
class _Attempt:
    rid: int
    body: bytes
    since: float
    tries: int = 0
    late: IDelayedCall | None = None
    asking: Deferred[None] | None = None
    retry: IDelayedCall | None = None

    def stop(self) -> None:
        """Stop its timers."""
        for timer in (self.late, self.retry):
            if timer is not None and timer.active():
                timer.cancel()
        self.late = self.retry = None


class AskingCarrier(BaseCarrier):
    """A polling carrier at the client.

    :param clock: the reactor's time.
    :param opened: what the server agreed to.
    :param rid: of the first exchange.
    :param on_lost: called once, when the carrier is gone.
    :param limit: what bodies a proxy on the way takes; it outlives the carrier, which ends when it becomes less.
    """

    def __init__(
        self,
        clock: IReactorTime,
        name: str,
        post: Post,
        opened: Opened,
        rid: int,
        on_lost: Callable[[], None],
        limit: BodyLimit | None = None,
    ) -> None:
        super().__init__(name)
        self._limit = limit or BodyLimit(MAX_BODY)
        self.max_packet_size = min(BaseCarrier.max_packet_size, self._limit.most - EXCHANGE_HEAD - OVERHEAD)
        self._clock = clock
        self._post = post
        self._sid = opened.sid
        self._hold = opened.hold
        self._window = max(1, opened.hold) + 1
        self._time_out = opened.wait + GRACE
        self._next_rid = self._next_answer = rid
        self._in_flight: dict[int, _Attempt] = {}
        self._early: dict[int, tuple[int, list[bytes]]] = {}
        self._queue = PacketQueue()
        self._pacer = Pacer()
        self._sizer = Sizer(min(self._limit.most, MAX_STRANGER_BODY) - EXCHANGE_HEAD)
        self._heard = 0.0
        self._interval = POLL[0]
        self._poll_at = 0.0
        self._more = False
        self._failing_since: float | None = None
        self._timer: IDelayedCall | None = None
        self._closing = self._end_sent = self._is_proven = False
        self._on_lost = on_lost
        self._arm(0.0)

    # -- ICarrier

    @property
    def waiting(self) -> int:
        """Bytes that wait for a request to carry them."""
        return self._queue.waiting

    def send(self, packets: Sequence[bytes]) -> None:
        """Send packets with the next requests."""
        if self.lost or self._closing:
            return
        self._queue.push(packets)
        if self._queue.waiting >= HIGH_WATER:
            self.room(False)
        self._arm()

    def proven(self) -> None:
        """The server knows us, so it takes bodies of full size."""
        if not self._is_proven:
            self._is_proven = True
            self._sizer = Sizer(min(self._limit.most, MAX_BODY) - EXCHANGE_HEAD)

    def refuse(self) -> None:
        """The server is none: away from it."""
        self.abort()

    def close(self) -> None:
        """End when what waits was sent."""
        if not self._closing and not self.lost:
            self._closing = True
            self.room(False)
            self._clock.callLater(CLOSE_TIME, self.abort)
            self._arm(0.0)

    def abort(self) -> None:
        """End now."""
        self._finish(Failure(ConnectionAborted()))

    # -- what goes out

    def _pump(self) -> None:
        """Send every request that may go now."""
        now = self._clock.seconds()
        while not self.lost and self._may_ask():
            if self._queue:
                if self._pacer.due(self._queue.waiting, now) > now:
                    break
                self._pacer.sent()
                self._ask(self._queue.take(self._sizer.most))
                self._interval = POLL[0]
            elif self._closing:
                if self._end_sent:
                    break
                self._end_sent = True
                self._ask(b"", END)
            elif self._in_flight and len(self._in_flight) >= self._wanted():
                break
            elif self._hold or self._more or now >= self._poll_at:
                self._ask(b"")
            else:
                break
        if not self.writable and not self._closing and self._queue.waiting <= LOW_WATER and not self.lost:
            self.room(True)
        self._arm()

    def _may_ask(self) -> bool:
        return self._next_rid < self._next_answer + self._window and len(self._in_flight) < self._window

    def _wanted(self) -> int:
        """Requests that should be under way when there is nothing to send."""
        return self._hold or (self._window if self._more else 1)

    def _ask(self, batch: bytes, flags: int = 0) -> None:
        rid = self._next_rid
        self._next_rid += 1
        body = Exchange(self._sid, rid, self._next_answer - 1, flags).encode(batch)
        attempt = _Attempt(rid, body, self._clock.seconds())
        self._in_flight[rid] = attempt
        self._try(attempt)

    def _try(self, attempt: _Attempt) -> None:
        attempt.retry = None
        patience = self._time_out + len(attempt.body) / SLOWEST
        attempt.late = self._clock.callLater(patience, self._late, attempt)
        asking = self._post(attempt.body, self._progress)
        attempt.asking = asking.addCallbacks(
            self._answered, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,)
        )

    def _progress(self) -> None:
        self._heard = self._clock.seconds()

    def _late(self, attempt: _Attempt) -> None:
        """A request has had no answer for long; as long as anything comes it may be on its way."""
        attempt.late = None
        silence = self._clock.seconds() - self._heard
        if silence < GRACE:
            attempt.late = self._clock.callLater(GRACE - silence, self._late, attempt)
        elif attempt.asking is not None:
            attempt.asking.cancel()

    def _arm(self, delay: float | None = None) -> None:
        """Set the timer for the next thing to do, but never do it here: who sends may be sending more."""
        if self.lost:
            return
        now = self._clock.seconds()
        if delay is None:
            if not self._may_ask():
                return
            if self._queue:
                at = self._pacer.due(self._queue.waiting, now)
            elif self._hold or self._in_flight:
                return
            else:
                at = self._poll_at
            delay = max(0.0, at - now)
        timer = self._timer
        if timer is not None:
            if abs(timer.getTime() - now - delay) < 1e-4:
                return
            timer.cancel()
        self._timer = self._clock.callLater(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._pump()

    # -- what comes in

    def _answered(self, body: bytes, attempt: _Attempt) -> None:
        if attempt.rid not in self._in_flight:
            return
        try:
            answer = Answer.decode(body)
            if answer.rid != attempt.rid:
                raise RemoteProtocolError("an answer to another request")
            packets = split(body[ANSWER_HEAD:])
        except RemoteProtocolError as problem:
            self._finish(Failure(problem))
            return
        self._failing_since = None
        self._heard = now = self._clock.seconds()
        attempt.stop()
        if packets or len(self._in_flight) == self._window:  # or it was held, and says nothing about the path
            self._sizer.arrived(len(attempt.body), now - attempt.since)
        del self._in_flight[attempt.rid]
        self._early[answer.rid] = answer.flags, packets
        while not self.lost and self._next_answer in self._early:
            flags, packets = self._early.pop(self._next_answer)
            self._next_answer += 1
            self._note(flags, bool(packets))
            self.deliver(packets)
            if flags & END:
                self._finish(Failure(ConnectionDone()))
        if not self.lost:
            self._pump()

    def _note(self, flags: int, brought: bool) -> None:
        """Plain HTTP: when to ask next."""
        now = self._clock.seconds()
        self._more = bool(flags & MORE)
        if brought:
            self._interval = POLL[0]
            self._poll_at = now
        else:
            self._poll_at = now + self._interval
            self._interval = min(POLL[1], self._interval * POLL_GROWTH)

    def _failed(self, failure: Failure, attempt: _Attempt) -> None:
        """No answer: ask again, with the same request id and the same bytes."""
        if attempt.rid not in self._in_flight:
            return
        attempt.stop()
        now = self._clock.seconds()
        if self._failing_since is None:
            self._failing_since = now
        status = failure.value.status if isinstance(failure.value, HttpStatusError) else 0
        if status == 413:
            self._limit.refused(
                len(attempt.body)
            )  # the next carrier goes by it, and the session sends again what was here
        refused = 0 < status < 500
        if refused or isinstance(failure.value, RemoteProtocolError) or now - self._failing_since >= PATIENCE:
            self._finish(failure)
            return
        attempt.tries += 1
        delay = 0.0 if attempt.tries == 1 and not status else min(RETRY[1], RETRY[0] * 2**attempt.tries)
        attempt.retry = self._clock.callLater(delay, self._try, attempt)

    def _finish(self, reason: Failure) -> None:
        if self.lost:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        attempts, self._in_flight = self._in_flight, {}
        for attempt in attempts.values():
            retrying = attempt.retry is not None
            attempt.stop()
            if attempt.asking is not None and not retrying:
                attempt.asking.cancel()
        self._queue.clear()
        self._early.clear()
        self._on_lost()
        self.lose(reason)
