"""Pegasus (the winged horse that carries the requests): a pool of workers that survives its workers.

The pool knows workers by a small interface and never touches a process itself: :mod:`mikanet.megaki.stable` has those.
A worker does one exchange at a time. Whatever goes wrong with one, it is killed and another takes its place; none that
fell out of step is used again (K8).
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mikanet.counters import Counters
from mikanet.errors import RemoteProtocolError
from mikanet.guard.deadlines import Deadlines
from mikanet.megaki.exchange import PROBE_BYTES, Exchange
from mikanet.megaki.harness import Failure, PoolSettings, PoolStatus, Spawn, WorkerError

#: How long, in seconds, a worker may take to load its script, and a retired one to end, before it is killed.
START_TIME, RETIRE_TIME = 10.0, 5.0

#: Idle shells are asked for a sign of life so often, and have so long to give it, in seconds.
PROBE_INTERVAL, PROBE_TIME = 5.0, 2.0

#: Least and most seconds before a dead worker is replaced; doubled while workers die without an answer between.
BACKOFF = (0.1, 5.0)

#: So many deaths within so many seconds make a pool sick.
SICK_DEATHS, SICK_TIME = 10, 60.0

#: By how much of itself ``max_requests`` differs from worker to worker, so that they do not end together.
JITTER = 0.1

_log = Logger()


class State(enum.Enum):
    """What a member of the pool does."""

    STARTING = enum.auto()
    IDLE = enum.auto()
    BUSY = enum.auto()
    PROBED = enum.auto()
    RETIRING = enum.auto()
    CONDEMNED = enum.auto()


class _Member:
    """One worker in the pool, as :class:`mikanet.megaki.harness.Listener`."""

    __slots__ = (
        "_pool",
        "began",
        "done",
        "exchange",
        "generation",
        "key",
        "leaving",
        "limit",
        "served",
        "state",
        "worker",
    )

    def __init__(self, pool: Pool, generation: int, limit: int) -> None:
        self._pool = pool
        self.worker: Any = None
        self.state = State.STARTING
        self.generation = generation
        self.limit = limit
        self.leaving = False
        self.served = 0
        self.exchange: Exchange | None = None
        self.done: Deferred[bytes] | None = None
        self.began = 0.0
        self.key = -1

    def data_received(self, data: bytes) -> None:
        """Bytes from the worker."""
        self._pool.member_said(self, data)

    def exited(self, how: str, last_words: bytes = b"") -> None:
        """It is gone and reaped."""
        self._pool.member_gone(self, how, last_words)


@dataclass(slots=True)
class _Waiting:
    """A request in the queue."""

    context: bytes
    request: bytes
    done: Deferred[bytes]
    key: int = -1


class Pool:
    """Workers, and requests for them.

    :param clock: the reactor's time. :param uniform: random floats in [0, 1), for the jitter.
    """

    def __init__(
        self,
        clock: Any,
        spawn: Spawn,
        settings: PoolSettings,
        counters: Counters | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._spawn = spawn
        self._settings = settings
        self._counters = counters or Counters()
        self._uniform = uniform
        self._members: set[_Member] = set()
        self._idle: list[_Member] = []
        self._queue: OrderedDict[int, _Waiting] = OrderedDict()
        self._guids = itertools.count()
        self._generation = 0
        self._renewal: _Member | None = None
        self._backoff = BACKOFF[0]
        self._refill: IDelayedCall | None = None
        self._prober: IDelayedCall | None = None
        self._deaths: deque[float] = deque(maxlen=SICK_DEATHS)
        self._running = False
        self._stopped: Deferred[None] | None = None
        self._exchange_deadlines = Deadlines(clock, settings.deadline)
        self._queue_deadlines = Deadlines(clock, settings.queue_time)
        self._start_deadlines = Deadlines(clock, START_TIME)
        self._retire_deadlines = Deadlines(clock, RETIRE_TIME)
        self._probe_deadlines = Deadlines(clock, PROBE_TIME)

    # -- what the owner does

    def start(self) -> None:
        """Start all workers."""
        self._running = True
        self._fill()
        self._prober = self._clock.callLater(PROBE_INTERVAL, self._probe)

    def stop(self) -> Deferred[None]:
        """End all workers, after their present request; fires when they are gone."""
        self._running = False
        for timer in (self._prober, self._refill):
            if timer is not None and timer.active():
                timer.cancel()
        for key in list(self._queue):
            self._give_up(key, Failure.STOPPED)
        for member in list(self._members):
            if member.state is not State.BUSY:
                self._retire(member)
        if not self._members:
            return succeed(None)
        self._stopped = Deferred()
        return self._stopped

    def reload(self) -> None:
        """Replace every worker by one that loads its script anew; each goes when the new one is ready."""
        self._generation += 1
        _log.info("reloading {count} workers", count=len(self._members))
        self._renew()

    @property
    def status(self) -> PoolStatus:
        """Figures."""
        states = [member.state for member in self._members]
        count = self._counters
        return PoolStatus(
            size=self._settings.size,
            starting=states.count(State.STARTING),
            idle=states.count(State.IDLE) + states.count(State.PROBED),
            busy=states.count(State.BUSY),
            retiring=states.count(State.RETIRING) + states.count(State.CONDEMNED),
            queued=len(self._queue),
            sick=self.sick,
            served=count["megaki.pool.served"],
            failed=count["megaki.pool.failed"],
            deaths=count["megaki.pool.deaths"],
            killed=count["megaki.pool.killed"],
            retired=count["megaki.pool.retired"],
            slow=count["megaki.pool.slow"],
        )

    @property
    def sick(self) -> bool:
        """Whether workers die too often."""
        deaths = self._deaths
        return len(deaths) == SICK_DEATHS and self._clock.seconds() - deaths[0] <= SICK_TIME

    def handle(self, context: bytes, request: bytes) -> Deferred[bytes]:
        """The worker's answer to a request; fails with :class:`WorkerError`. May be cancelled.

        :param context: who asks, as :meth:`mikanet.megaki.exchange.Context.encode` has it.
        """
        if self._idle:
            return self._begin(self._idle.pop(), _Waiting(context, request, Deferred()))
        failure = self._refusal()
        if failure is not None:
            self._counters.add(f"megaki.pool.limit.{failure.name.lower()}")
            return fail(WorkerError(failure))
        number = next(self._guids)
        waiting = _Waiting(context, request, Deferred(lambda _: self._withdraw(number)))
        waiting.key = self._queue_deadlines.start(partial(self._give_up, number, Failure.QUEUE_TIME))
        self._queue[number] = waiting
        return waiting.done

    def _refusal(self) -> Failure | None:
        if not self._running:
            return Failure.STOPPED
        # A worker that is asked for a sign of life is as good as free.
        probed = sum(member.state is State.PROBED for member in self._members)
        if len(self._queue) >= self._settings.queue_length + probed:
            return Failure.QUEUE_FULL
        if self.sick and not self._serving:
            return Failure.SICK
        return None

    def _withdraw(self, number: int) -> None:
        """Nobody waits for the answer any more: if no worker has the request yet, none is to get it."""
        waiting = self._queue.pop(number, None)
        if waiting is not None:
            self._queue_deadlines.cancel(waiting.key)
            self._counters.add("megaki.pool.withdrawn")

    def _give_up(self, number: int, failure: Failure) -> None:
        waiting = self._queue.pop(number)
        self._queue_deadlines.cancel(waiting.key)
        self._counters.add(f"megaki.pool.limit.{failure.name.lower()}")
        waiting.done.errback(WorkerError(failure))

    # -- one exchange

    def _begin(self, member: _Member, waiting: _Waiting) -> Deferred[bytes]:
        exchange = Exchange(next(self._guids), waiting.context, waiting.request, member.worker.is_shell)
        member.state, member.exchange, member.done = State.BUSY, exchange, waiting.done
        member.began = self._clock.seconds()
        member.key = self._exchange_deadlines.start(partial(self._condemn, member, Failure.STALLED))
        member.worker.write(exchange.begin())
        return waiting.done

    def member_said(self, member: _Member, data: bytes) -> None:
        """Bytes from a worker."""
        exchange = member.exchange
        if exchange is None:
            self._said_unasked(member, data)
            return
        try:
            following = exchange.feed(data)
        except RemoteProtocolError as problem:
            _log.warn("worker {pid}: {problem}", pid=member.worker.pid, problem=str(problem))
            self._condemn(member, Failure.BROKEN)
            return
        if following:
            member.worker.write(following)
        if exchange.done:
            self._finish(member, exchange)

    def _said_unasked(self, member: _Member, data: bytes) -> None:
        if member.state in (State.STARTING, State.PROBED) and data == PROBE_BYTES:
            deadlines = self._start_deadlines if member.state is State.STARTING else self._probe_deadlines
            deadlines.cancel(member.key)
            self._ready(member)
        elif member.state not in (State.RETIRING, State.CONDEMNED):
            _log.warn("worker {pid} spoke without being asked", pid=member.worker.pid)
            self._condemn(member, Failure.BROKEN)

    def _finish(self, member: _Member, exchange: Exchange) -> None:
        self._exchange_deadlines.cancel(member.key)
        done = self._note_answer(member)
        self._free(member)
        self._give_answer(done, exchange)

    def _note_answer(self, member: _Member) -> Deferred[bytes]:
        done, member.done, member.exchange = member.done, None, None
        assert done is not None
        member.served += 1
        self._backoff = BACKOFF[0]
        elapsed = self._clock.seconds() - member.began
        if elapsed >= self._settings.slow_time:
            self._counters.add("megaki.pool.slow")
            _log.warn("slow: {seconds:.2f} s in worker {pid}", seconds=elapsed, pid=member.worker.pid)
        return done

    def _give_answer(self, done: Deferred[bytes], exchange: Exchange) -> None:
        answer = exchange.answer
        self._counters.add("megaki.pool.served" if answer is not None else "megaki.pool.failed")
        if answer is None:
            done.errback(WorkerError(Failure.FAILED))
        else:
            done.callback(answer)

    def _free(self, member: _Member) -> None:
        """The worker has nothing to do: give it the oldest waiting request, or let it rest or go."""
        if member.leaving or not self._running:
            self._retire(member)
            return
        if self._queue:
            _, waiting = self._queue.popitem(last=False)
            self._queue_deadlines.cancel(waiting.key)
            self._begin(member, waiting)
        else:
            member.state = State.IDLE
            self._idle.append(member)
        if member.served == member.limit:
            self._renew()

    # -- starting and replacing

    def _fill(self) -> None:
        """Start as many workers as are missing."""
        self._refill = None
        while self._running and self._serving < self._settings.size:
            if self._start_member() is None:
                return

    @property
    def _serving(self) -> int:
        """Workers that serve, or will when they have started."""
        return sum(member.state in _SERVING and not member.leaving for member in self._members)

    def _start_member(self) -> _Member | None:
        limit = max(1, round(self._settings.max_requests * (1 + JITTER * (2 * self._uniform() - 1))))
        member = _Member(self, self._generation, limit)
        try:
            member.worker = self._spawn(member)
        except OSError as problem:
            _log.critical("cannot start a worker: {problem}", problem=problem)
            self._later()
            return None
        self._members.add(member)
        if member.worker.is_shell:
            member.key = self._start_deadlines.start(partial(self._condemn, member, Failure.STALLED))
            member.worker.write(PROBE_BYTES)
        else:
            self._clock.callLater(0, self._ready, member)  # nobody can ask it whether it is
        return member

    def _ready(self, member: _Member) -> None:
        if member.state not in (State.STARTING, State.PROBED):
            return
        if member is self._renewal:
            self._renewal = None
            if self._serving > self._settings.size:
                self._let_one_go(member)
        self._free(member)
        self._renew()

    def _stale(self, member: _Member) -> bool:
        old = member.generation < self._generation or member.served >= member.limit
        return old and not member.leaving and member.state in (State.IDLE, State.BUSY, State.PROBED)

    def _renew(self) -> None:
        """Start the replacement of a worker that has to go, one at a time; that one works on until it is ready."""
        if self._running and self._renewal is None and any(map(self._stale, self._members)):
            self._renewal = self._start_member()

    def _let_one_go(self, new: _Member) -> None:
        """``new`` takes the place of one that has to go: an idle one at once, a busy one when it has answered."""
        stale = [member for member in self._members if member is not new and self._stale(member)]
        if stale:
            member = min(stale, key=lambda each: (each.state is not State.IDLE, each.generation))
            member.leaving = True
            if member.state is State.IDLE:
                self._retire(member)

    def _retire(self, member: _Member) -> None:
        """Let a worker without a request end by itself, for a while."""
        if member.state in (State.RETIRING, State.CONDEMNED):
            return
        self._cancel_key(member)
        if member in self._idle:
            self._idle.remove(member)
        member.state = State.RETIRING
        self._counters.add("megaki.pool.retired")
        member.key = self._retire_deadlines.start(member.worker.kill)
        member.worker.retire()

    # -- ends

    def _cancel_key(self, member: _Member) -> None:
        for state, deadlines in (
            (State.STARTING, self._start_deadlines),
            (State.BUSY, self._exchange_deadlines),
            (State.PROBED, self._probe_deadlines),
            (State.RETIRING, self._retire_deadlines),
        ):
            if member.state is state:
                deadlines.cancel(member.key)

    def _condemn(self, member: _Member, failure: Failure) -> None:
        """Kill a worker; its request fails now."""
        _log.warn("killing worker {pid}: {why}", pid=member.worker.pid, why=failure.value)
        self._cancel_key(member)
        if member in self._idle:
            self._idle.remove(member)
        member.state = State.CONDEMNED
        self._counters.add("megaki.pool.killed")
        member.worker.kill()
        self._fail_request(member, failure)

    def _fail_request(self, member: _Member, failure: Failure) -> None:
        done, member.done, member.exchange = member.done, None, None
        if done is not None:
            self._counters.add("megaki.pool.failed")
            done.errback(WorkerError(failure))

    def member_gone(self, member: _Member, how: str, last_words: bytes = b"") -> None:
        """A worker process has ended and was reaped; an answer that it gave before that counts."""
        self._cancel_key(member)
        exchange = member.exchange
        if exchange is not None:
            with contextlib.suppress(RemoteProtocolError):
                exchange.feed(last_words)
            if exchange.answer is not None:
                self._give_answer(self._note_answer(member), exchange)
        self._members.discard(member)
        if member in self._idle:
            self._idle.remove(member)
        if member is self._renewal:
            self._renewal = None
        if member.state is not State.RETIRING:
            self._count_death(member, how)
        self._fail_request(member, Failure.DIED)
        if self._stopped is not None and not self._members:
            self._stopped.callback(None)
            self._stopped = None

    def _count_death(self, member: _Member, how: str) -> None:
        was_sick = self.sick
        self._deaths.append(self._clock.seconds())
        self._counters.add("megaki.pool.deaths")
        _log.warn("worker {pid} is gone: {how}", pid=member.worker.pid, how=how)
        if self.sick and not was_sick:
            self._counters.add("megaki.pool.sick")
            _log.critical(
                "the pool is sick: {count} workers died within {seconds:g} s; look at the lines of the workers above",
                count=SICK_DEATHS,
                seconds=SICK_TIME,
            )
        if self.sick and not self._serving:
            for number in list(self._queue):
                self._give_up(number, Failure.SICK)  # as one that comes now would be
        self._later()
        if not member.served:
            self._backoff = min(BACKOFF[1], self._backoff * 2)

    def _later(self) -> None:
        """Fill the pool, and go on replacing, after the back-off."""
        if self._running and self._refill is None:
            self._refill = self._clock.callLater(self._backoff, self._refill_now)

    def _refill_now(self) -> None:
        self._fill()
        self._renew()

    # -- probes

    def _probe(self) -> None:
        self._prober = self._clock.callLater(PROBE_INTERVAL, self._probe)
        for member in [each for each in self._idle if each.worker.is_shell]:
            self._idle.remove(member)
            member.state = State.PROBED
            member.key = self._probe_deadlines.start(partial(self._condemn, member, Failure.STALLED))
            member.worker.write(PROBE_BYTES)


#: States of workers that serve or will.
_SERVING = frozenset({State.STARTING, State.IDLE, State.BUSY, State.PROBED})
