"""Rates of SYNs, and threads for RSA."""

from __future__ import annotations

import threading
from typing import Any

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki import limits
from mikanet.megaki.limits import RsaThreads, SynRates, network_of


class RateTests(SynchronousTestCase):
    """SYNs of a network (K2)."""

    def test_burst_and_rate(self) -> None:
        """50 at once, then 5 a second; another network is not concerned."""
        rates = SynRates(5)
        allowed = [rates.allow("a", 0.0) for _ in range(60)]
        self.assertEqual(allowed.count(True), 50)
        self.assertTrue(rates.allow("b", 0.0))
        self.assertEqual(sum(rates.allow("a", 2.0) for _ in range(60)), 10)
        self.assertTrue(all(SynRates(0).allow("a", 0.0) for _ in range(1000)))

    def test_bounded(self) -> None:
        """No more networks are remembered than the cap says."""
        self.patch(limits, "MAX_NETWORKS", 10)
        rates = SynRates(5)
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
        self.came = threading.Semaphore(0)

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

    def test_results_and_failures(self) -> None:
        """Work is done in another thread; its result or failure comes by the reactor; too much waiting is refused."""
        reactor = FakeReactor()
        threads = RsaThreads(reactor, threads=1, max_queued=2)
        threads.start()
        self.addCleanup(threads.stop)
        results: list[Any] = []
        self.assertTrue(threads.submit(threading.get_ident, results.append))
        self.assertTrue(threads.submit(lambda: 1 // 0, results.append))
        self.assertFalse(threads.submit(threading.get_ident, results.append))
        reactor.turn()
        reactor.turn()
        self.assertNotEqual(results[0], threading.get_ident())
        self.assertIsInstance(results[1], Failure)
        self.assertTrue(threads.submit(threading.get_ident, results.append))
        reactor.turn()

    def test_pair(self) -> None:
        """Two operations run at the same time if nobody else waits, else in one thread; a failure comes through."""
        threads = RsaThreads(FakeReactor())
        self.addCleanup(threads.stop)
        threads.start()
        idents = threads.pair(self.ident, self.ident)
        self.assertNotEqual(*idents)
        threads._waiting = 2
        self.assertEqual(*threads.pair(self.ident, self.ident))
        threads._waiting = 0
        with self.assertRaises(ZeroDivisionError):
            threads.pair(self.ident, lambda: bytes(1 // 0))

    def ident(self) -> bytes:
        """Which thread runs this."""
        return threading.get_ident().to_bytes(8)
