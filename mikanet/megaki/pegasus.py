"""Pegasus (the winged horse that carries the requests): a pool of workers that survives its workers.

The pool knows workers by a small interface and never touches a process itself: :mod:`mikanet.megaki.stable` has those.
A worker does one exchange at a time. Whatever goes wrong with one, it is killed and another takes its place; none that
fell out of step is used again (K8).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mikanet.answers import Answer
from mikanet.counters import Counters
from mikanet.errors import RemoteProtocolError
from mikanet.guard.deadlines import Deadlines
from mikanet.megaki.exchange import PROBE_BYTES, Exchange
from mikanet.megaki.fairness import FairQueue
from mikanet.megaki.harness import Failure, PoolSettings, PoolStatus, Spawn, WorkerError
from mikanet.megaki.member import SERVING, Member, State, Waiting
from mikanet.megaki.starts import SICK_STARTS, SICK_TIME, STAY_TIME, Starts

#: How long, in seconds, a retired worker may take to end before it is killed.
RETIRE_TIME = 5.0

#: Idle shells are asked for a sign of life so often, and have so long to give it, in seconds.
PROBE_INTERVAL, PROBE_TIME = 5.0, 2.0

#: By how much of itself ``max_requests`` differs from worker to worker, so that they do not end together.
JITTER = 0.1

#: So many bytes of what a worker said unasked are shown.
SHOWN = 80

_log = Logger()


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
        self._members: set[Member] = set()
        self._idle: list[Member] = []
        self._queue: FairQueue[Waiting] = FairQueue()
        self._guids = itertools.count()
        self._generation = self._wanted = 0
        self._renewal: Member | None = None
        self._starts = Starts()
        self._refill: IDelayedCall | None = None
        self._prober: IDelayedCall | None = None
        self._running = False
        self._stopped: Deferred[None] | None = None
        self._exchange_deadlines = Deadlines(clock, settings.deadline)
        self._queue_deadlines = Deadlines(clock, settings.queue_time)
        self._start_deadlines = Deadlines(clock, settings.start_time)
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
        for key in self._queue:
            self._give_up(key, Failure.STOPPED)
        for member in list(self._members):
            if member.state is not State.BUSY:
                self._retire(member)
        if not self._members:
            return succeed(None)
        self._stopped = Deferred()
        return self._stopped

    def reload(self) -> None:
        """Replace every worker by one that loads its script anew; each goes when the new one is ready.

        If that does not come up, the others stay.
        """
        self._generation += 1
        self._wanted = self._generation
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
        return self._starts.sick(self._clock.seconds())

    def handle(self, context: bytes, request: bytes, group: str = "") -> Deferred[bytes]:
        """The worker's answer to a request; fails with :class:`WorkerError`. May be cancelled.

        :param context: who asks, as :meth:`mikanet.megaki.exchange.Context.encode` has it.
        :param group: whose turn it takes; where no request can wait any more, the group with most has one less.
        """
        if self._idle:
            return self._begin(self._idle.pop(), Waiting(context, request, Answer()))
        failure = self._refusal(group)
        if failure is not None:
            self._counters.add(f"megaki.pool.limit.{failure.name.lower()}")
            return fail(WorkerError(failure))
        number = next(self._guids)
        waiting = Waiting(context, request, Answer(partial(self._withdraw, number)))
        waiting.key = self._queue_deadlines.start(partial(self._give_up, number, Failure.QUEUE_TIME))
        self._queue.push(number, group, waiting)
        if len(self._queue) > self._room:
            self._give_up(self._queue.newest_of_heaviest(), Failure.QUEUE_FULL)
        return waiting.answer.deferred

    @property
    def _room(self) -> int:
        """How many requests may wait; a worker that is asked for a sign of life is as good as free."""
        return self._settings.queue_length + sum(member.state is State.PROBED for member in self._members)

    def _refusal(self, group: str) -> Failure | None:
        if not self._running:
            return Failure.STOPPED
        if not self._queue.may_push(group, self._room):
            return Failure.QUEUE_FULL
        if self.sick and not self._serving:
            return Failure.SICK
        return None

    def _withdraw(self, number: int) -> None:
        """Nobody waits for the answer any more: if no worker has the request yet, none is to get it."""
        waiting = self._queue.remove(number)
        if waiting is not None:
            self._queue_deadlines.cancel(waiting.key)
            self._counters.add("megaki.pool.withdrawn")

    def _give_up(self, number: int, failure: Failure) -> None:
        waiting = self._queue.remove(number)
        assert waiting is not None
        self._queue_deadlines.cancel(waiting.key)
        self._counters.add(f"megaki.pool.limit.{failure.name.lower()}")
        waiting.answer.fail(WorkerError(failure))

    # -- one exchange

    def _begin(self, member: Member, waiting: Waiting) -> Deferred[bytes]:
        exchange = Exchange(next(self._guids), waiting.context, waiting.request, member.worker.is_shell)
        member.state, member.exchange, member.answer = State.BUSY, exchange, waiting.answer
        member.began = self._clock.seconds()
        member.key = self._exchange_deadlines.start(partial(self._condemn, member, Failure.STALLED))
        member.worker.write(exchange.begin())
        return waiting.answer.deferred

    def member_said(self, member: Member, data: bytes) -> None:
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
        member.proved = True
        if following:
            member.worker.write(following)
        if exchange.done:
            self._finish(member, exchange)

    def _said_unasked(self, member: Member, data: bytes) -> None:
        if member.state in (State.STARTING, State.PROBED) and data == PROBE_BYTES:
            deadlines = self._start_deadlines if member.state is State.STARTING else self._probe_deadlines
            deadlines.cancel(member.key)
            self._ready(member)
        elif member.state not in (State.RETIRING, State.CONDEMNED):
            _log.warn(
                "worker {pid} said {said!r} without being asked{hint}",
                pid=member.worker.pid,
                said=data[:SHOWN],
                hint=""
                if member.worker.is_shell
                else ": its standard output is for answers alone, print to standard error",
            )
            self._condemn(member, Failure.BROKEN)

    def _finish(self, member: Member, exchange: Exchange) -> None:
        self._exchange_deadlines.cancel(member.key)
        answer = self._note_answer(member)
        self._free(member)
        self._give_answer(answer, exchange)

    def _note_answer(self, member: Member) -> Answer[bytes]:
        answer, member.answer, member.exchange = member.answer, None, None
        assert answer is not None
        member.served += 1
        if member.generation == self._generation:
            self._starts.good()
        elapsed = self._clock.seconds() - member.began
        if elapsed >= self._settings.slow_time:
            self._counters.add("megaki.pool.slow")
            _log.warn("slow: {seconds:.2f} s in worker {pid}", seconds=elapsed, pid=member.worker.pid)
        return answer

    def _give_answer(self, answer: Answer[bytes], exchange: Exchange) -> None:
        content = exchange.answer
        self._counters.add("megaki.pool.served" if content is not None else "megaki.pool.failed")
        if content is None:
            answer.fail(WorkerError(Failure.FAILED))
        else:
            answer.give(content)

    def _free(self, member: Member) -> None:
        """The worker has nothing to do: give it the oldest waiting request, or let it rest or go."""
        if member.leaving or not self._running:
            self._retire(member)
            return
        if self._queue:
            waiting = self._queue.pop()
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
        return sum(member.state in SERVING and not member.leaving for member in self._members)

    def _start_member(self) -> Member | None:
        limit = max(1, round(self._settings.max_requests * (1 + JITTER * (2 * self._uniform() - 1))))
        member = Member(self, self._generation, limit)
        try:
            member.worker = self._spawn(member)
        except OSError as problem:
            _log.critical("cannot start a worker: {problem}", problem=problem)
            self._starts.failed(self._clock.seconds())
            self._later(self._starts.delay)
            self._starts.wait_longer()
            return None
        member.began = self._clock.seconds()
        self._members.add(member)
        if member.worker.is_shell:
            member.key = self._start_deadlines.start(partial(self._condemn, member, Failure.NOT_UP))
            member.worker.write(PROBE_BYTES)
        else:
            self._clock.callLater(0, self._ready, member)  # nobody can ask it whether it is
        return member

    def _ready(self, member: Member) -> None:
        if member.state not in (State.STARTING, State.PROBED):
            return
        if member.state is State.PROBED and member.generation == self._generation:
            self._starts.good()
        member.proved = member.proved or member.worker.is_shell
        if member is self._renewal:
            self._renewal = None
            if self._serving > self._settings.size:
                self._let_one_go(member)
        self._free(member)
        self._renew()

    def _stale(self, member: Member) -> bool:
        old = member.generation < self._wanted or member.served >= member.limit
        return old and not member.leaving and member.state in (State.IDLE, State.BUSY, State.PROBED)

    def _renew(self) -> None:
        """Start the replacement of a worker that has to go, one at a time; that one works on until it is ready."""
        if self._running and self._renewal is None and any(map(self._stale, self._members)):
            self._renewal = self._start_member()

    def _let_one_go(self, new: Member) -> None:
        """``new`` takes the place of one that has to go: an idle one at once, a busy one when it has answered."""
        stale = [member for member in self._members if member is not new and self._stale(member)]
        if stale:
            member = min(stale, key=lambda each: (each.state is not State.IDLE, each.generation))
            member.leaving = True
            if member.state is State.IDLE:
                self._retire(member)

    def _retire(self, member: Member) -> None:
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

    def _cancel_key(self, member: Member) -> None:
        for state, deadlines in (
            (State.STARTING, self._start_deadlines),
            (State.BUSY, self._exchange_deadlines),
            (State.PROBED, self._probe_deadlines),
            (State.RETIRING, self._retire_deadlines),
        ):
            if member.state is state:
                deadlines.cancel(member.key)

    def _condemn(self, member: Member, failure: Failure) -> None:
        """Kill a worker; its request fails now."""
        _log.warn("killing worker {pid}: {why}", pid=member.worker.pid, why=failure.value)
        self._cancel_key(member)
        if member in self._idle:
            self._idle.remove(member)
        member.state = State.CONDEMNED
        self._counters.add("megaki.pool.killed")
        member.worker.kill()
        self._fail_request(member, failure)

    def _fail_request(self, member: Member, failure: Failure) -> None:
        answer, member.answer, member.exchange = member.answer, None, None
        if answer is not None:
            self._counters.add("megaki.pool.failed")
            answer.fail(WorkerError(failure))

    def member_gone(self, member: Member, how: str, last_words: bytes = b"") -> None:
        """A worker process has ended and was reaped; an answer that it gave before that counts."""
        self._cancel_key(member)
        busy = member.state in (State.BUSY, State.CONDEMNED)
        exchange = member.exchange
        if exchange is not None and self._hear(exchange, last_words):
            self._give_answer(self._note_answer(member), exchange)
        self._members.discard(member)
        if member in self._idle:
            self._idle.remove(member)
        renewal = member is self._renewal
        if renewal:
            self._renewal = None
        if member.state is not State.RETIRING:
            self._count_death(member, how, busy, renewal)
        self._fail_request(member, Failure.DIED)
        if self._stopped is not None and not self._members:
            self._stopped.callback(None)
            self._stopped = None

    @staticmethod
    def _hear(exchange: Exchange, last_words: bytes) -> bool:
        """Whether there was an answer among them; with a byte that is none of it, there was not."""
        try:
            exchange.feed(last_words)
        except RemoteProtocolError:
            return False
        return exchange.answer is not None

    def _count_death(self, member: Member, how: str, busy: bool, renewal: bool) -> None:
        now = self._clock.seconds()
        self._counters.add("megaki.pool.deaths")
        _log.warn("worker {pid} is gone: {how}", pid=member.worker.pid, how=how)
        if member.proved and (busy or member.served or now - member.began >= STAY_TIME):
            self._later(0.0)
            return
        self._counters.add("megaki.pool.failed_starts")
        if self._starts.failed(now):
            self._counters.add("megaki.pool.sick")
            _log.critical(
                "the pool is sick: {count} workers did not come up within {seconds:g} s; look at their lines above",
                count=SICK_STARTS,
                seconds=SICK_TIME,
            )
        self._keep_old(member)
        if self.sick and not self._serving:
            for number in self._queue:
                self._give_up(number, Failure.SICK)  # as one that comes now would be
        if renewal or self._serving < self._settings.size:
            self._later(self._starts.delay)
        self._starts.wait_longer()

    def _keep_old(self, failed: Member) -> None:
        """A worker did not come up. If that was a reload's, whoever loaded the script before it works on."""
        old = [each.generation for each in self._members if each.state in SERVING and each.generation < self._wanted]
        if failed.generation == self._wanted and old:
            self._wanted = min(old)
            self._counters.add("megaki.pool.reloads_failed")
            _log.error("the reloaded script does not come up: the old workers stay; correct it and reload again")

    def _later(self, delay: float) -> None:
        """Fill the pool, and go on replacing, after so many seconds."""
        if not self._running:
            return
        if self._refill is not None and self._refill.active():
            if self._refill.getTime() <= self._clock.seconds() + delay:
                return
            self._refill.cancel()
        self._refill = self._clock.callLater(delay, self._refill_now)

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
