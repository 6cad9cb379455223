"""Mika on its KCP link: what its server keeps before and after it knows the password, and how both ends let go."""

from __future__ import annotations

import random
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.crypto.replay import ReplaySet
from mikanet.endpoints.kcp import MIKA_CLIENT, MIKA_SERVER
from mikanet.kcp.filter import KcpFilter
from mikanet.mika.client import MikaClientFilter, ServerHealth
from mikanet.mika.protocol import MikaServerConfig, MikaServerFactory
from mikanet.mika.session import ClientSession, Profile, derive_keys
from mikanet.mika.wire import Header, Kind
from tests.filters.contract import HalfClosingUpper
from tests.kcp.net import Net
from tests.support.egress import FakeEgress

NOW = 1_700_000_000


class KcpLinkTests(SynchronousTestCase):
    """Over the link in memory."""

    def setUp(self) -> None:
        """A server, and a client that has said where to."""
        self.egress = FakeEgress()

    def net(self, profile: Profile) -> tuple[Net, MikaServerFactory, HalfClosingUpper, KcpFilter]:
        """A server and one client."""
        keys = derive_keys(b"a password for tests", profile)
        config = MikaServerConfig(keys, cast(Any, self.egress), ReplaySet(), 75.0, wall_clock=lambda: NOW)
        factory = MikaServerFactory(Clock(), config)  # nothing here waits for its time
        net = Net(MIKA_SERVER, factory, "delay=5ms")
        rng = random.Random(5)
        session = ClientSession(
            keys, Header(Kind.TCP, Address("example.com", 443), NOW), rng.randbytes(16), rng.randrange
        )
        upper = HalfClosingUpper()
        health = ServerHealth(cast(Any, net.clock), "the server", profile, lambda _: None)
        client = net.client(MikaClientFilter(upper, session, health), MIKA_CLIENT)
        return net, factory, upper, client.kcp

    def test_authenticated_by_the_password(self) -> None:
        """A session whose peer says nothing has the small window; the header of one who knows the password lifts it."""
        net, factory, _, _ = self.net(Profile.SPEC)
        net.client(HalfClosingUpper(), MIKA_CLIENT).kcp.write(b"x" * 200)
        net.clock.run(lambda: bool(self.egress.waiting), 10)
        known = [session.kcp.authenticated for sessions in net.sessions._by_peer.values() for session in sessions]
        self.assertEqual(sorted(known), [False, True])
        (first, *_) = (session.kcp for sessions in net.sessions._by_peer.values() for session in sessions)
        self.assertIs(first._budget, factory.config.budget)

    def test_application_that_closes_first(self) -> None:
        """When the application ends its direction and the target ends too, the client lets go of everything in seconds, in
        either profile."""
        for profile in Profile:
            net, factory, upper, kcp = self.net(profile)
            net.clock.run(lambda: bool(self.egress.waiting), 10)
            target = self.egress.let_through()
            cast(Any, upper.transport).write(b"request")
            net.clock.run(lambda target=target: target.bytes_written == b"request", 10)  # type: ignore[misc]
            cast(Any, upper.transport).loseWriteConnection()
            net.clock.run(lambda target=target: target.fin, 10)  # type: ignore[misc]
            target.receive(b"response")
            target.receive_fin()
            net.clock.sleep(4)
            self.assertEqual((b"".join(upper.received), len(upper.lost)), (b"response", 1), profile)
            self.assertIsNone(kcp.arq)
            self.assertEqual((len(net.sessions), factory.config.budget.used), (0, 0))
