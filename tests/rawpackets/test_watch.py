"""Being told that the network has changed, with a socket pair in netlink's place."""

from __future__ import annotations

import socket

from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mikanet.rawpackets.watch import LONGEST_WAIT, SETTLE_TIME, NetworkWatch


class NetworkWatchTests(SynchronousTestCase):
    """What is told, and when."""

    def setUp(self) -> None:
        """A watch that has begun."""
        self.reactor = MemoryReactorClock()
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.kernel.close)
        ours.setblocking(False)
        self.told = 0
        self.watch = NetworkWatch(self.reactor, self.tell, lambda: ours)
        self.watch.start()

    def tell(self) -> None:
        """Count."""
        self.told += 1

    def change(self) -> None:
        """The kernel says something."""
        self.kernel.send(b"message")
        self.watch.doRead()

    def test_once_for_many(self) -> None:
        """Changes of a moment are told once, when it has been quiet for a while."""
        for _ in range(5):
            self.change()
            self.reactor.advance(SETTLE_TIME / 5)
        self.assertEqual(self.told, 0)
        self.reactor.advance(SETTLE_TIME)
        self.assertEqual(self.told, 1)

    def test_changes_without_end(self) -> None:
        """Where changes never cease, it is told all the same."""
        for _ in range(20):
            self.change()
            self.reactor.advance(LONGEST_WAIT / 5)
        self.assertGreaterEqual(self.told, 3)

    def test_stop(self) -> None:
        """Nothing is told after the end, and nothing is left."""
        self.change()
        self.watch.stop()
        self.reactor.advance(10)
        self.assertEqual((self.told, self.reactor.getReaders(), self.reactor.getDelayedCalls()), (0, [], []))

    def test_without_netlink(self) -> None:
        """A sandbox without netlink is said once; the program goes on."""

        def refuse() -> socket.socket:
            raise OSError(97, "Address family not supported by protocol")

        watch = NetworkWatch(self.reactor, self.tell, refuse)
        with capturedLogs() as events:
            watch.start()
            watch.stop()
        self.assertEqual(len(events), 1)
        self.assertIn("AF_NETLINK", events[0]["log_format"])
