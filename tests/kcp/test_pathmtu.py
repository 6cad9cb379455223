"""Sizes that a path carries, found by trying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.internet import error
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.endpoints.kcp import MIKA_CLIENT, MIKA_SERVER
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.pathmtu import BASE_PACKET, MAX_PROBES, NEAR, RAISE_MS, PathMtu
from tests.kcp.net import Net
from tests.lab.scenario import Direction
from tests.paqet.world import CLIENT_LINK, SERVER_LINK


class PathMtuTests(SynchronousTestCase):
    """The search."""

    def search(self, path: PathMtu, carried: int, now: int = 0) -> int:
        """Search to the end on a path; how many probes that took."""
        count = 0
        while size := path.wanted(now):
            count += 1
            if size <= carried:
                path.passed(size)
            else:
                path.failed(size, now)
        return count

    def test_full_size(self) -> None:
        """Where the largest size passes, one probe is enough."""
        path = PathMtu(1200, 1350)
        self.assertEqual((path.size, path.wanted(0), self.search(path, 1400), path.size), (1200, 1350, 1, 1350))

    def test_every_path(self) -> None:
        """On a path of any size the search ends near it, never above it, after a few probes."""
        for carried in range(1200, 1350):
            path = PathMtu(1200, 1350)
            self.assertLessEqual(self.search(path, carried), 6 * MAX_PROBES)
            self.assertTrue(path.settled)
            self.assertLessEqual(path.size, carried)
            self.assertGreaterEqual(path.size, carried - NEAR)

    def test_chance(self) -> None:
        """Two losses in a row refuse nothing."""
        path = PathMtu(1200, 1350)
        for _ in range(MAX_PROBES - 1):
            path.failed(1350, 0)
        self.assertEqual(path.wanted(0), 1350)
        path.passed(1350)
        self.assertEqual((path.size, path.refused), (1350, 0))

    def test_again(self) -> None:
        """After ten minutes it is tried anew."""
        path = PathMtu(1200, 1350)
        self.search(path, 1250)
        self.assertEqual(path.wanted(RAISE_MS - 1), 0)
        self.assertEqual(path.wanted(RAISE_MS), 1350)

    def test_nothing_to_find(self) -> None:
        """A size that every path carries is not searched for."""
        self.assertEqual(PathMtu(1200, 1200).wanted(0), 0)


class Narrow(Net):
    """A link that drops what is longer than ``carries``, without a word."""

    carries = 1500
    longest = 0

    def send(self, direction: Direction, peer: Any, packets: Sequence[bytes]) -> None:
        """Only what fits."""
        fit = [packet for packet in packets if len(packet) <= self.carries]
        self.longest = max(self.longest, *map(len, fit), 0) if fit else self.longest
        super().send(direction, peer, fit)


class End(Protocol):
    """Takes bytes, and gives back as many as it got."""

    def __init__(self, answers: bool) -> None:
        self.got = 0
        self.lost: Failure | None = None
        self._answers = answers

    def connectionMade(self) -> None:
        """The first word, which proves to a server that its client is live."""
        if self._answers:
            assert self.transport is not None
            self.transport.write(b"!")

    def dataReceived(self, data: bytes) -> None:
        """Count."""
        self.got += len(data)
        if self._answers:
            assert self.transport is not None
            self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note it."""
        self.lost = reason


class LinkTests(SynchronousTestCase):
    """Sessions over paths that do not carry what they were set to."""

    links = (
        (CLIENT_LINK, SERVER_LINK),
        (replace(CLIENT_LINK, block="aes", data_shards=10, parity_shards=3), replace(SERVER_LINK, block="aes", data_shards=10, parity_shards=3)),
        (MIKA_CLIENT, MIKA_SERVER),
    )  # fmt: skip

    def begin(self, client: LinkSettings, server: LinkSettings, carries: int, scenario: str) -> tuple[Narrow, End, Any]:
        """A link with one session that has carried a few bytes."""
        net = Narrow(server, Factory.forProtocol(lambda: End(True)), scenario)
        net.carries = carries
        end = End(False)
        session = net.client(end, client)
        session.kcp.write(b"hello")
        net.clock.run(lambda: end.got == 6, 10)
        return net, end, session

    def test_narrow_paths(self) -> None:
        """Bytes pass both ways on paths of all sizes from the least on, in time, and the log says which size; before, a
        session stalled for ever."""
        for client, server in self.links:
            for carries in (BASE_PACKET, 1250, 1290, 1345):
                with capturedLogs() as events:
                    net, end, session = self.begin(client, server, carries, "delay=20ms")
                    for _ in range(40):
                        session.kcp.write(bytes(5000))
                        net.clock.sleep(0.3)
                    net.clock.run(lambda end=end: end.got == 200_006, 30)
                found = session.kcp.path_size
                self.assertTrue(carries - NEAR <= found.size <= carries, (carries, found))
                self.assertEqual((found.wanted, found.settled), (client.mtu, True))
                said = [event for event in events if "pass up to" in event["log_format"]]
                self.assertEqual(len(said), 2)  # either end

    def test_wide_paths(self) -> None:
        """Where all passes, packets have the full size after some round trips, and nothing is said."""
        for client, server in self.links:
            with capturedLogs() as events:
                net, end, session = self.begin(client, server, 1500, "delay=20ms")
                session.kcp.write(bytes(2000))
                net.clock.sleep(0.5)
                self.assertEqual(session.kcp.path_size, (client.mtu, client.mtu, True))
                session.kcp.write(bytes(100_000))
                net.clock.run(lambda end=end: end.got == 102_006, 30)
            self.assertEqual(net.longest, client.mtu)
            self.assertEqual([event for event in events if "pass" in event["log_format"]], [])

    def test_chance(self) -> None:
        """Loss of a tenth of all packets makes packets no smaller for good, and ends nothing."""
        client, server = self.links[0]
        for seed in range(5):
            net, end, session = self.begin(client, server, 1500, f"delay=20ms loss={10 + seed}%")
            for _ in range(30):
                session.kcp.write(bytes(20_000))
                net.clock.sleep(0.3)
            net.clock.run(lambda end=end: end.got == 600_006, 60)
            self.assertGreater(session.kcp.path_size.size, client.mtu - 100)

    def test_a_path_that_becomes_narrow(self) -> None:
        """A session in the middle of a transfer is given up, with a reason, instead of stalling; the next one goes on."""
        client, server = self.links[0]
        net, end, session = self.begin(client, server, 1500, "delay=20ms")
        session.kcp.write(bytes(2000))
        net.clock.sleep(0.5)
        net.carries = 1250
        with capturedLogs() as events:
            for _ in range(60):
                session.kcp.write(b"x" * 3000)
                net.clock.sleep(0.25)
        self.assertIsNotNone(end.lost)
        assert end.lost is not None
        self.assertIs(end.lost.type, error.ConnectionLost)
        self.assertTrue(any("do not pass any more" in event["log_format"] for event in events))
        again = End(False)
        session = net.client(again, client, ("client", 77))
        session.kcp.write(bytes(50_000))
        net.clock.run(lambda: again.got == 50_001, 30)
