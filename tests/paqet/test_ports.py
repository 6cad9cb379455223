"""The raw port of a client, as it looks for its network."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.paqet.ports import RawClientPort
from mikanet.rawpackets.settings import FamilyPath, RawSettings


class LookTests(SynchronousTestCase):
    """Looks that go wrong."""

    def test_a_fault_ends_no_looking(self) -> None:
        """Links come and go between two questions to the kernel: whatever a look meets, it ends, and the next one begins."""
        settings = RawSettings("eth0", 0, FamilyPath(ip_address("10.0.0.2"), bytes(6)))
        reactor = MemoryReactorClock()
        answers: list[Deferred[RawSettings]] = [
            fail(OSError(19, "No such device")),
            succeed(settings),
            succeed(settings),
        ]
        server = Address("10.0.0.1", 9)
        port = RawClientPort(reactor, settings, server, server, Counters(), None, lambda *_: answers.pop(0))
        reactor.advance(10)
        self.assertFalse(self.successResultOf(port.look_again(True)))
        reactor.advance(60)
        self.assertFalse(self.successResultOf(port.look_again(True)))
        self.assertEqual(len(answers), 1)
