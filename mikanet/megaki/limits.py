"""What keeps strangers from using up the server: a rate of SYNs for each network, and threads for their RSA (K2)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from twisted.python.threadpool import ThreadPool

from mikanet.address import parse_ip
from mikanet.megaki.wire import in_turn

#: SYNs of one network: at once, and most networks remembered (our choice; the one silent for longest is forgotten).
SYN_BURST, MAX_NETWORKS = 50, 50_000

#: SYNs that may wait for a thread; further ones are refused.
MAX_QUEUED = 64


def network_of(host: str) -> str:
    """What counts as one network: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    ip = parse_ip(host.partition("%")[0])
    if ip is None:
        return host
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.packed[: 3 if ip.version == 4 else 6].hex()


class SynRates:
    """A bucket of SYNs for each network.

    :param rate: SYNs a second of one network; 0 for no limit.
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


class RsaThreads:
    """Threads for RSA, so that handshakes hold up nobody else: the operations run without the interpreter's lock.

    :param reactor: where results are delivered.
    """

    def __init__(self, reactor: Any, threads: int | None = None, max_queued: int = MAX_QUEUED) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, threads or os.cpu_count() or 1, "megaki rsa")
        self._max_queued = max_queued
        self._waiting = 0
        self._helper = ThreadPoolExecutor(1, "megaki rsa helper")

    def start(self) -> None:
        """Start."""
        self._pool.start()

    def stop(self) -> None:
        """Finish what is there, then end."""
        self._pool.stop()
        self._helper.shutdown()

    def pair(self, first: Callable[[], bytes], second: Callable[[], bytes]) -> tuple[bytes, bytes]:
        """Both results, at the same time if nobody else wants the processors; called in a thread of ours."""
        if self._waiting > 1:
            return in_turn(first, second)
        other = self._helper.submit(second)
        return first(), other.result()

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None]) -> bool:
        """Do ``work`` in a thread and call ``done`` with its result, or a Failure; False if too much is waiting."""
        if self._waiting >= self._max_queued:
            return False
        self._waiting += 1

        def finish(result: Any) -> None:
            self._waiting -= 1
            done(result)

        def deliver(success: bool, result: Any) -> None:
            self._reactor.callFromThread(finish, result)

        self._pool.callInThreadWithCallback(deliver, work)
        return True
