"""Rates of SYNs, and threads for RSA."""

from __future__ import annotations

import threading
import time
from typing import Any

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import network_of
from mikanet.megaki import limits
from mikanet.megaki.limits import KnownNetworks, NetworkRates, RsaThreads


class RateTests(SynchronousTestCase):
    """SYNs of a network (K2)."""

    def test_burst_and_rate(self) -> None:
        """50 at once, then 5 a second; another network is not concerned."""
        rates = NetworkRates(5)
        allowed = [rates.allow("a", 0.0) for _ in range(60)]
        self.assertEqual(allowed.count(True), 50)
        self.assertTrue(rates.allow("b", 0.0))
        self.assertEqual(sum(rates.allow("a", 2.0) for _ in range(60)), 10)
        self.assertTrue(all(NetworkRates(0).allow("a", 0.0) for _ in range(1000)))

    def test_bounded(self) -> None:
        """No more networks are remembered than the cap says."""
        self.patch(limits, "MAX_NETWORKS", 10)
        rates = NetworkRates(5)
        for number in range(100):
            rates.allow(str(number), 0.0)
        self.assertEqual(len(rates._buckets), 10)

    def test_networks(self) -> None:
        """An IPv4 /24 and an IPv6 /48 are one network."""
        self.assertEqual(network_of("192.0.2.1"), network_of("192.0.2.254"))
        self.assertEqual(network_of("192.0.2.1"), network_of("::ffff:192.0.2.9"))
        self.assertNotEqual(network_of("192.0.2.1"), network_of("192.0.3.1"))
        self.assertEqual(network_of("2001:db8:1::1"), network_of("2001:db8:1:ffff::2%eth0"))
        self.assertNotEqual(network_of("2001:db8:1::1"), network_of("2001:db8:2::1"))


class FakeReactor:
    """Collects what is called from threads."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.now = 0.0
        self.came = threading.Semaphore(0)

    def seconds(self) -> float:
        """The time."""
        return self.now

    def callFromThread(self, call: Any, *arguments: Any) -> None:
        """Note it."""
        self.calls.append((call, arguments))
        self.came.release()

    def turn(self) -> None:
        """Wait for a call and do it."""
        self.came.acquire(timeout=30)
        call, arguments = self.calls.pop(0)
        call(*arguments)


class ThreadTests(SynchronousTestCase):
    """Threads."""

    def setUp(self) -> None:
        """One thread, and room for two to wait."""
        self.reactor = FakeReactor()
        self.threads = RsaThreads(self.reactor, threads=1, max_queued=2)
        self.results: list[Any] = []
        self.threads.start()
        self.addCleanup(self.threads.stop)

    def submit(self, work: Any, known: bool = False) -> bool:
        """Whether it was taken."""
        return self.threads.submit(work, self.results.append, known)

    def test_results_and_failures(self) -> None:
        """Work is done in another thread; its result or failure comes by the reactor; too much waiting is refused."""
        go = threading.Event()
        self.reactor.now = 1.0
        self.submit(int)
        self.assertEqual(self.results.pop(), 0)  # alone: it was done here
        self.assertTrue(self.submit(lambda: go.wait() and threading.get_ident()))
        while self.threads._others:
            time.sleep(0.001)
        self.assertTrue(self.submit(lambda: 1 // 0))
        self.assertTrue(self.submit(int))
        self.assertFalse(self.submit(int))
        self.assertTrue(self.submit(int, known=True))
        go.set()
        for _ in range(4):
            self.reactor.turn()
        self.assertNotEqual(self.results[0], threading.get_ident())
        self.assertEqual([type(each) for each in self.results[1:]], [int, Failure, int])
        self.assertTrue(self.submit(int))
        self.reactor.turn()

    def test_known_first(self) -> None:
        """Whoever is known does not wait for strangers."""
        go = threading.Event()
        self.submit(go.wait)
        while self.threads._others:
            time.sleep(0.001)
        self.submit(lambda: "stranger")
        self.submit(lambda: "known", known=True)
        go.set()
        for _ in range(3):
            self.reactor.turn()
        self.assertEqual(self.results, [True, "known", "stranger"])

    def test_alone(self) -> None:
        """A job that comes alone is done at once; the next only if it did not wait for that one."""
        for now, in_thread in ((1.0, False), (1.0001, True), (2.0, False)):
            self.reactor.now = now
            self.submit(threading.get_ident)
            if in_thread:
                self.reactor.turn()
            self.assertEqual(self.results.pop() != threading.get_ident(), in_thread)
        self.reactor.now = 3.0
        self.submit(lambda: 1 // 0)
        self.assertIsInstance(self.results.pop(), Failure)


class KnownTests(SynchronousTestCase):
    """Networks that are known."""

    def test_time_and_bound(self) -> None:
        """For ten minutes, and no more of them than the cap says: the one heard of longest ago is forgotten."""
        self.patch(limits, "MAX_NETWORKS", 3)
        known = KnownNetworks()
        known.add("a", 0.0)
        self.assertTrue(known.has("a", 600.0))
        self.assertFalse(known.has("a", 600.1))
        self.assertFalse(known.has("b", 0.0))
        for name in "bcad":
            known.add(name, 700.0)
        self.assertEqual([known.has(name, 700.0) for name in "abcd"], [True, False, True, True])
