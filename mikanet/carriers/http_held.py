"""The server's end of the polling carriers, BOSH and plain HTTP: requests come, are held, and are answered in order.

Both are one thing: plain HTTP is BOSH whose requests are not held (XEP-0124 section 12), but for the moment that the
answer to what they carried may take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.error import ConnectionAborted, ConnectionDone, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mikanet.carriers.base import BaseCarrier
from mikanet.carriers.http_batches import PacketQueue, split
from mikanet.carriers.http_exchange import ANSWER_HEAD, END, EXCHANGE_HEAD, MAX_BODY, MORE, Answer, Exchange
from mikanet.carriers.http_pacing import EAGER, HIGH_WATER, LOW_WATER, Pacer, Sizer
from mikanet.errors import RemoteProtocolError

#: Seconds without a request, and without one that is held, after which a carrier is lost; the same for a stranger's.
IDLE_TIME, STRANGER_TIME = 30.0, 10.0

#: How long, in seconds, a request of plain HTTP that carried something is kept for what that brings about.
LINGER = 0.02

#: How long, in seconds, an answer that makes room for a request which carried a little waits for what that brings about.
YIELD = 0.003

#: How long, in seconds, an end is told to a client that asks again.
END_TIME = 5.0


class Held(Protocol):
    """A request that waits for its answer, as the site gives it."""

    def answer(self, body: bytes) -> None:
        """Answer it. If it is gone already: nothing."""

    def refuse(self) -> None:
        """Answer it as any request to any path where nothing is."""

    def drop(self) -> None:
        """Nobody waits for the answer any more: cut the connection."""


class _Waiting:
    __slots__ = ("deadline", "request", "rid")

    def __init__(self, rid: int, request: Held, deadline: float) -> None:
        self.rid = rid
        self.request: Held | None = request
        self.deadline = deadline


class HeldCarrier(BaseCarrier):
    """One client's carrier at the server.

    :param clock: the reactor's time.
    :param rid: of the first exchange.
    :param forget: called once, when the carrier is gone or takes no more requests.
    :param on_proven: called once, when the client has proved itself.
    """

    def __init__(
        self,
        clock: IReactorTime,
        name: str,
        host: str,
        hold: int,
        wait: int,
        rid: int,
        forget: Callable[[HeldCarrier], None],
        on_proven: Callable[[HeldCarrier], None] = lambda carrier: None,
    ) -> None:
        super().__init__(name, host)
        self.is_proven = False
        self._clock = clock
        self._capacity = max(1, hold)
        self._window = self._capacity + 1
        self._wait = float(wait)
        self._polled = hold == 0
        self._next_rid = rid
        self._early: dict[int, tuple[Held, Exchange, list[bytes]]] = {}
        self._held: list[_Waiting] = []
        self._answered: dict[int, bytes] = {}
        self._yield_at = 0.0
        self._queue = PacketQueue()
        self._pacer = Pacer()
        self._sizer = Sizer(MAX_BODY - ANSWER_HEAD)
        self._sent_at: dict[int, float] = {}
        self._forget = forget
        self._on_proven = on_proven
        self._timer: IDelayedCall | None = None
        self._heard = clock.seconds()
        self._closing = False
        self._idle = clock.callLater(STRANGER_TIME, self._look)

    # -- ICarrier

    @property
    def waiting(self) -> int:
        """Bytes that wait for a request."""
        return self._queue.waiting

    def send(self, packets: Sequence[bytes]) -> None:
        """Send packets with the next answers."""
        if self.lost or self._closing:
            return
        self._queue.push(packets)
        if self._queue.waiting >= HIGH_WATER:
            self.room(False)
        if self._held:
            self._arm()

    def proven(self) -> None:
        """The client is no stranger."""
        if not self.is_proven:
            self.is_proven = True
            self._on_proven(self)

    def refuse(self) -> None:
        """Be as if this carrier had never been: its requests are answered as on any other path."""
        if not self.lost:
            for waiting in self._held:
                if waiting.request is not None:
                    waiting.request.refuse()
            self._held.clear()
            self._finish(ConnectionAborted())

    def close(self) -> None:
        """End when what waits was sent."""
        if not self._closing and not self.lost:
            self._closing = True
            self.room(False)
            self._clock.callLater(END_TIME, self.abort)
            self._arm(0.0)

    def abort(self) -> None:
        """End now; requests that are held learn it."""
        if not self.lost:
            self._end(ConnectionAborted())

    # -- requests

    def request(self, held: Held, exchange: Exchange, body: bytes) -> None:
        """A request came."""
        now = self._heard = self._clock.seconds()
        rid = exchange.rid
        if self.lost or rid >= self._next_rid + self._window:
            held.refuse()
        elif rid < self._next_rid:
            self._repeat(rid, held)
        else:
            try:
                packets = split(body[EXCHANGE_HEAD:])
            except RemoteProtocolError:
                held.refuse()
                return
            self._replace(self._early[rid][0] if rid in self._early else None)
            self._early[rid] = held, exchange, packets
            self._take_early(now)
            self._serve()

    def touch(self) -> None:
        """Part of a request came."""
        self._heard = self._clock.seconds()

    def gone(self, held: Held) -> None:
        """The connection of a request that is held is lost; its answer waits for the client to ask again."""
        for waiting in self._held:
            if waiting.request is held:
                waiting.request = None

    def _repeat(self, rid: int, held: Held) -> None:
        """A request that was here before: its answer got lost, or its connection did."""
        body = self._answered.get(rid)
        if body is not None:
            held.answer(body)
            return
        for waiting in self._held:
            if waiting.rid == rid:
                self._replace(waiting.request)
                waiting.request = held
                return
        held.refuse()  # answered, and the client has said that it got it

    def _replace(self, old: Held | None) -> None:
        if old is not None:
            old.drop()

    def _take_early(self, now: float) -> None:
        """Take the requests whose turn it is; what they carry is delivered in order."""
        while not self.lost and self._next_rid in self._early:
            held, exchange, packets = self._early.pop(self._next_rid)
            rid = self._next_rid
            self._next_rid += 1
            # A client has no more than a window of requests under way, so it has the answers to all older ones.
            for old in [each for each in self._answered if each <= exchange.ack or each <= rid - self._window]:
                self._sizer.arrived(len(self._answered.pop(old)), now - self._sent_at.pop(old))
            wait = self._wait if not self._polled else LINGER if packets else 0.0
            little = 0 < sum(map(len, packets)) <= EAGER  # a question, and not a stream
            self._yield_at = now + YIELD if little else now
            self._held.append(_Waiting(rid, held, now + wait))
            self.deliver(packets)
            if exchange.flags & END and not self.lost:
                self._end(ConnectionDone())

    # -- answers

    def _serve(self) -> None:
        """Answer what can be answered now."""
        held, queue = self._held, self._queue
        now = self._clock.seconds()
        while held and not self.lost:
            if queue:
                if len(held) <= self._capacity and self._pacer.due(queue.waiting, now) > now:
                    break
                self._pacer.sent()
                self._answer(queue.take(self._sizer.most))
            elif self._closing:
                self._end(ConnectionDone())
                return
            elif held[0].deadline <= now or (len(held) > self._capacity and self._yield_at <= now):
                self._answer(b"")
            else:
                break
        if not self.writable and not self._closing and self._queue.waiting <= LOW_WATER and not self.lost:
            self.room(True)
        self._arm()

    def _answer(self, batch: bytes, flags: int = 0) -> None:
        """Answer the oldest request."""
        waiting = self._held.pop(0)
        body = Answer(waiting.rid, flags | (MORE if self._queue else 0)).encode(batch)
        self._answered[waiting.rid] = body
        self._sent_at[waiting.rid] = self._clock.seconds()
        if waiting.request is not None:
            self._heard = self._clock.seconds()
            waiting.request.answer(body)

    def _arm(self, delay: float | None = None) -> None:
        """Set the timer for the next thing to do, but never do it here: who sends may be sending more."""
        if self.lost:
            return
        now = self._clock.seconds()
        if delay is None:
            if not self._held:
                return
            at = self._held[0].deadline
            if len(self._held) > self._capacity:
                at = min(at, self._yield_at)
            if self._queue:
                at = min(at, self._pacer.due(self._queue.waiting, now))
            delay = max(0.0, at - now)
        timer = self._timer
        if timer is not None:
            if abs(timer.getTime() - now - delay) < 1e-4:
                return
            timer.cancel()
        self._timer = self._clock.callLater(delay, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._serve()

    # -- ends

    def _look(self) -> None:
        """Whether the client is still there."""
        now = self._clock.seconds()
        if not self.is_proven:
            self._end(TimeoutError())
            return
        if any(waiting.request is not None for waiting in self._held):
            self._heard = now
        if now - self._heard >= IDLE_TIME:
            self._end(TimeoutError())
        else:
            self._idle = self._clock.callLater(self._heard + IDLE_TIME - now, self._look)

    def _end(self, reason: Exception) -> None:
        while self._held:
            self._answer(b"", END)
        self._finish(reason)

    def _finish(self, reason: Exception) -> None:
        for held, _, _ in self._early.values():
            held.refuse()
        self._early.clear()
        self._queue.clear()
        for timer in (self._timer, self._idle):
            if timer is not None and timer.active():
                timer.cancel()
        self._forget(self)
        self.lose(Failure(reason))
