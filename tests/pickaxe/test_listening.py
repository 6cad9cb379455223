"""Tests of mikanet.pickaxe.listening."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.guard.targets import TargetLimits, Targets
from mikanet.pickaxe.listening import MAX_PORTS, ListenPolicy, PortTable, parse_port_range
from mikanet.pickaxe.wire import Status


class PolicyTests(SynchronousTestCase):
    """Where clients may listen (P11)."""

    def test_nowhere_by_default(self) -> None:
        """Without --allow-listen there is no port at all, on loopback only with it."""
        policy = ListenPolicy()
        self.assertEqual((list(policy.candidates(0)), list(policy.candidates(80))), ([], []))
        self.assertEqual(policy.address, "127.0.0.1")

    def test_ranges(self) -> None:
        """A wish must lie in a range; any port is one of the ranges."""
        policy = ListenPolicy(((100, 102), (200, 200)))
        self.assertEqual(list(policy.candidates(101)), [101])
        self.assertEqual(list(policy.candidates(103)), [])
        self.assertEqual(sorted(policy.candidates(0)), [100, 101, 102, 200])

    def test_parse(self) -> None:
        """PORT or PORT-PORT."""
        self.assertEqual(parse_port_range("80"), (80, 80))
        self.assertEqual(parse_port_range("80-90"), (80, 90))
        for text in ("", "x", "90-80", "0", "1-70000"):
            with self.assertRaises(ConfigError):
                parse_port_range(text)


class PortTableTests(SynchronousTestCase):
    """The ports of a session."""

    def setUp(self) -> None:
        """A table."""
        self.reactor: Any = MemoryReactorClock()
        self.targets = Targets(TargetLimits(1000, 1000))
        self.table = PortTable(
            self.reactor, ListenPolicy(((100, 200),), "192.0.2.1"), lambda: self.targets.take("alice")
        )

    def test_listen_and_stop(self) -> None:
        """A permitted port is opened on the given address, and closed."""
        status, _ = self.table.listen(b"p" * 16, 150, lambda end: None)
        self.assertIs(status, Status.OK)
        self.assertEqual(self.reactor.tcpServers[0][0], 150)
        self.assertEqual(self.reactor.tcpServers[0][3], "192.0.2.1")
        self.assertIs(self.table.listen(b"p" * 16, 151, lambda end: None)[0], Status.FAILURE)
        self.table.stop(b"p" * 16)
        self.table.stop(b"p" * 16)
        self.assertIs(self.table.listen(b"p" * 16, 151, lambda end: None)[0], Status.OK)
        self.table.stop_all()

    def test_ports_are_files(self) -> None:
        """Each open port takes a place among the files of its user, and gives it back; without one none is opened."""
        self.targets = Targets(TargetLimits(2, 2))
        made = [self.table.listen(bytes([index]) * 16, 0, lambda end: None)[0] for index in range(3)]
        self.assertEqual(made, [Status.OK, Status.OK, Status.LIMIT])
        self.table.stop(bytes(16))
        self.assertEqual(self.targets.total, 1)
        self.table.stop_all()
        self.assertEqual(self.targets.total, 0)

    def test_refusals(self) -> None:
        """What is not permitted, and what is too much."""
        self.assertIs(self.table.listen(b"p" * 16, 80, lambda end: None)[0], Status.POLICY)
        for index in range(MAX_PORTS):
            self.assertIs(self.table.listen(bytes([index]) * 16, 100 + index, lambda end: None)[0], Status.OK)
        self.assertIs(self.table.listen(b"x" * 16, 190, lambda end: None)[0], Status.LIMIT)

    def test_give_up(self) -> None:
        """A port can be closed by its number, for another session."""
        self.table.listen(b"p" * 16, 150, lambda end: None)
        self.assertTrue(self.table.give_up(150))
        self.assertFalse(self.table.give_up(150))

    def test_accepted(self) -> None:
        """Who connects is handed over as soon as the connection stands."""
        seen: list[Any] = []
        self.table.listen(b"p" * 16, 150, seen.append)
        from tests.support.transports import MemoryTransport

        end = self.reactor.tcpServers[0][1].buildProtocol(None)
        MemoryTransport().connect(end)
        self.assertEqual(seen, [end])
