"""What keeps strangers from using up the server: a rate of SYNs for each network, and threads for their RSA (K2)."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

from twisted.python.failure import Failure

#: SYNs of one network: at once, and most networks remembered (our choice; the one silent for longest is forgotten).
SYN_BURST, MAX_NETWORKS = 50, 50_000

#: Resumptions of one network: a second, and at once; each costs a hundredth of a handshake (our choice).
RESUME_RATE, RESUME_BURST = 50.0, 500

#: SYNs that may wait for a thread; further ones are refused. They wait for less than a second.
MAX_QUEUED = 1024

#: A job that comes so soon, in seconds, after one that was done at once had been waiting for it.
ALONE = 0.0002

#: How long, in seconds, a network is known after a session was established from there.
KNOWN_TIME = 600.0


class NetworkRates:
    """A bucket for each network.

    :param rate: so many a second of one network; 0 for no limit. :param burst: so many at once.
    """

    def __init__(self, rate: float, burst: float = SYN_BURST) -> None:
        self._rate = rate
        self._burst = max(burst, rate)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, network: str, now: float) -> bool:
        """Whether one more is all right; if so it counts."""
        if not self._rate:
            return True
        level, since = self._buckets.pop(network, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        allowed = level >= 1
        self._buckets[network] = (level - 1 if allowed else level, now)
        if len(self._buckets) > MAX_NETWORKS:
            self._buckets.popitem(last=False)
        return allowed


class KnownNetworks:
    """Networks from which somebody has shaken hands or resumed lately; their SYNs go before those of strangers."""

    def __init__(self) -> None:
        self._since: OrderedDict[str, float] = OrderedDict()

    def add(self, network: str, now: float) -> None:
        """A session was established from there."""
        self._since[network] = now
        self._since.move_to_end(network)
        if len(self._since) > MAX_NETWORKS:
            self._since.popitem(last=False)

    def has(self, network: str, now: float) -> bool:
        """Whether one was, and not too long ago."""
        return now - self._since.get(network, -KNOWN_TIME - 1) <= KNOWN_TIME


class RsaThreads:
    """Threads for RSA, so that handshakes hold up nobody else: the operations run without the interpreter's lock.

    :param reactor: where results are delivered. :param max_queued: jobs that may wait, of the known and of the others
        each.
    """

    def __init__(self, reactor: Any, threads: int | None = None, max_queued: int = MAX_QUEUED) -> None:
        self._reactor = reactor
        self._count = threads or os.cpu_count() or 1
        self._max_queued = max_queued
        self._known: deque[Callable[[], None]] = deque()
        self._others: deque[Callable[[], None]] = deque()
        # One token for each job in one of the two.
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._unfinished = 0
        self._done_here = 0.0
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Start."""
        self._threads = [
            Thread(target=self._run, name=f"megaki rsa {number}", daemon=True) for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is there, then end."""
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self) -> None:
        while self._tokens.get():
            try:
                job = self._known.popleft()
            except IndexError:
                job = self._others.popleft()
            job()

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None], known: bool = False) -> bool:
        """Do ``work`` in a thread and call ``done`` with its result, or a Failure; False if too much is waiting.

        A job that comes alone is done here and now, which holds up the reactor for half a millisecond and saves two
        changes of threads. One that had to wait for such a job was not alone.

        :param known: go before those that are not.
        """
        if not self._unfinished and self._reactor.seconds() - self._done_here > ALONE:
            self._unfinished += 1
            result = _result(work)
            self._unfinished -= 1
            self._done_here = self._reactor.seconds()
            done(result)
            return True
        jobs = self._known if known else self._others
        if len(jobs) >= self._max_queued:
            return False
        self._unfinished += 1

        def finish(result: Any) -> None:
            self._unfinished -= 1
            done(result)

        jobs.append(lambda: self._reactor.callFromThread(finish, _result(work)))
        self._tokens.put(True)
        return True


def _result(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:  # noqa: BLE001 - it becomes the result
        return Failure()
