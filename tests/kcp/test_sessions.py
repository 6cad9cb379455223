"""A KCP server's sessions: who may open one, who may end one, and how many there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.endpoints.kcp import MIKA_SERVER
from mikanet.fec.encoder import FecEncoder
from mikanet.fec.reedsolomon import ReedSolomon, parity_rows
from mikanet.interfaces import IAuthenticatingFactory, tell_authenticated
from mikanet.kcp.failures import COSTLY_FAILURES_IN_ALL, FAILURES_IN_ALL
from mikanet.kcp.filter import Patience
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.segment import PUSH, Segment, encode
from mikanet.kcp.settings import MODES
from mikanet.relay import MemoryBudget
from mikanet.smux.connection import SmuxConnection
from mikanet.smux.session import SmuxSettings
from tests.filters.contract import Upper
from tests.kcp.net import Net
from tests.kcp.test_reach import Echo

LINK = LinkSettings("aes", bytes(32), MODES["fast2"], snd_wnd=64, rcv_wnd=64)
ALICE = ("10.0.0.1", 5001)


class Greeting(Upper):
    """Writes a word when connected."""

    def connectionMade(self) -> None:
        """Speak first."""
        super().connectionMade()
        assert self.transport is not None
        self.transport.write(b"hello")


class SessionsTests(SynchronousTestCase):
    """Over the link in memory."""

    def net(self, protocol: Any = Echo, scenario: str = "delay=5ms", **changes: Any) -> Net:
        """A server."""
        self.served: list[Protocol] = []

        def build() -> Protocol:
            self.served.append(protocol())
            return self.served[-1]

        return Net(replace(LINK, **changes), Factory.forProtocol(build), scenario)

    def greet(self, net: Net, name: Any = ALICE, settings: LinkSettings = LINK) -> Any:
        """A client that has said hello and heard it back."""
        upper = Greeting()
        session = net.client(upper, settings, name)
        net.clock.run(lambda: b"".join(upper.received) == b"hello", 10)
        session.upper = upper  # type: ignore[attr-defined]
        return session

    def test_replay_opens_nothing(self) -> None:
        """A recorded session, sent again from anywhere while the packets are remembered, opens nothing (Q3, F3)."""
        net = self.net()
        net.client_port.keep = True
        self.greet(net)
        for peer in (ALICE, ("10.0.0.66", 1)):
            net.sessions.packets_received(peer, net.client_port.sent)
        self.assertFalse(net.sessions.packets_received(ALICE, net.client_port.sent))
        self.assertEqual((len(net.sessions), net.counters["kcp.server.opened"]), (1, 1))
        self.assertGreater(net.counters["kcp.server.dropped.repeated"], 0)

    def test_reflection_reaches_nobody(self) -> None:
        """A client's own packets, returned to it, are dropped (Q3, F2)."""
        net = self.net()
        net.client_port.keep = True
        session = self.greet(net)
        before = list(session.upper.received)
        session.packets_received(net.client_port.sent)
        self.assertEqual(session.upper.received, before)
        self.assertGreater(session._sealer.repeated, 0)

    def test_replay_after_restart_has_no_effect(self) -> None:
        """A server that remembers nothing is shown a recorded session: with proof required, no byte of it is delivered,
        no more is sent than thrice what came, and the session is forgotten soon (Q4)."""
        net = self.net()
        net.client_port.keep = True
        self.greet(net)
        fresh = self.net(protocol=Greeting, require_proof=True)
        fresh.server_port.keep = True
        fresh.sessions.packets_received(ALICE, net.client_port.sent)
        self.assertEqual(fresh.counters["kcp.server.opened"], 1)
        fresh.clock.sleep(6)
        self.assertEqual(self.served[-1].received, [])  # type: ignore[attr-defined]
        self.assertEqual(len(fresh.sessions), 0)
        self.assertLessEqual(sum(map(len, fresh.server_port.sent)), 3 * sum(map(len, net.client_port.sent)))

    def test_new_session_replaces_old_when_proven(self) -> None:
        """A client that comes back from the same address gets a new session; the old one dies when that is proven (Q5)."""
        net = self.net()
        self.greet(net)
        net.clock.sleep(0.1)
        first = self.served[0]
        del net.clients[ALICE]
        self.greet(net)
        net.clock.sleep(0.1)
        self.assertEqual((len(net.sessions), len(self.served)), (1, 2))
        self.assertIsNone(first.transport.transport)  # type: ignore[union-attr, attr-defined]

    def test_unproven_session_ends_nobody(self) -> None:
        """A first packet with another conv from a live address leaves the live session alone (Q5)."""
        net = self.net()
        session = self.greet(net)
        net.clock.sleep(0.1)
        other = Net(LINK, Factory.forProtocol(Echo), seed=50)
        other.client_port.keep = True
        forger = other.client(Greeting(), LINK, ALICE)
        self.assertNotEqual(forger._conv, session._conv)
        net.sessions.packets_received(ALICE, other.client_port.sent[:1])
        net.clock.sleep(0.1)
        self.assertEqual(len(net.sessions), 2, net.counters.snapshot())
        session.upper.transport.write(b" again")
        net.clock.run(lambda: b"".join(session.upper.received) == b"hello again", 10)

    def test_only_first_packets_open(self) -> None:
        """Packets beyond the first window, and those of an ended session, open nothing."""
        net = self.net()
        net.client_port.keep = True
        session = self.greet(net)
        self.served[0].transport.abortConnection()  # type: ignore[union-attr]
        self.assertEqual(len(net.sessions), 0)
        session.upper.transport.write(b"are you there?")
        net.clock.sleep(1)
        self.assertEqual(len(net.sessions), 0)
        self.assertGreater(net.counters["kcp.server.refused.ended"], 0)

    def test_limits(self) -> None:
        """Sessions per host and in all are limited (Q6)."""
        net = self.net(max_sessions=5, max_sessions_per_host=3)
        for host in ("10.0.0.1", "10.0.0.2"):
            for number in range(4):
                net.client(Greeting(), LINK, (host, number))
                net.clock.sleep(0.2)
        self.assertEqual(len(net.sessions), 5)
        self.assertGreater(net.counters["kcp.server.refused.host"], 0)
        self.assertGreater(net.counters["kcp.server.refused.sessions"], 0)

    def test_failing_packets_are_not_opened(self) -> None:
        """A source that sends rubbish is not listened to for a while, unless it has a proven session (Q6)."""
        net = self.net()
        self.greet(net)
        net.clock.sleep(0.1)
        for peer in (("10.6.6.6", 1), ALICE):
            for _ in range(10):
                net.sessions.packets_received(peer, [net.random.randbytes(60) for _ in range(100)])
        self.assertEqual(net.counters["kcp.server.dropped.unopened"], 800)
        self.greet(net, ("10.0.0.7", 1))

    def test_source_of_a_live_session_is_heard(self) -> None:
        """Rubbish from one port of a source with a live session keeps no other port of that source out (Q6)."""
        net = self.net()
        self.greet(net)
        net.clock.sleep(0.1)
        for _ in range(10):
            net.sessions.packets_received((ALICE[0], 6666), [net.random.randbytes(60) for _ in range(100)])
        self.greet(net, (ALICE[0], 5002))
        self.assertEqual(net.counters["kcp.server.dropped.unopened"], 0)

    def test_ended_session_exempts_nobody(self) -> None:
        """When the last session of a source has ended, its rubbish is not opened again (Q6)."""
        net = self.net()
        self.greet(net)
        net.clock.sleep(0.1)
        net.sessions.abort_all()
        for _ in range(10):
            net.sessions.packets_received(ALICE, [net.random.randbytes(60) for _ in range(100)])
        self.assertEqual(net.counters["kcp.server.dropped.unopened"], 800)

    def test_forged_sources_share_a_budget(self) -> None:
        """Rubbish of ever new sources is opened up to a number in all; who has a session, or had one lately, is heard."""
        for block, budget in (("aes", FAILURES_IN_ALL), ("tea", COSTLY_FAILURES_IN_ALL)):
            net = self.net(block=block)
            settings = replace(LINK, block=block)
            self.greet(net, settings=settings)
            net.clock.sleep(0.1)
            opened = net.counters["kcp.server.dropped.check"]
            for number in range(2 * budget // 10):
                net.sessions.packets_received((f"10.6.{number >> 8}.{number & 255}", 1), [bytes(60)] * 10)
            self.assertEqual(net.counters["kcp.server.dropped.check"] - opened, budget)
            self.assertEqual(net.counters["kcp.server.dropped.unopened"], budget)
            net.sessions.abort_all()
            self.greet(net, (ALICE[0], 5002), settings)

    def test_fec_peers(self) -> None:
        """Server and client may each use FEC or not."""
        shards = {"data_shards": 3, "parity_shards": 2}
        for ours in ({}, shards):
            for theirs in ({}, shards):
                net = self.net(**ours)
                self.greet(net, settings=replace(LINK, **theirs))

    def test_factory_may_refuse(self) -> None:
        """A factory that gives no protocol opens no session."""
        net = Net(LINK, type("Refusing", (Factory,), {"buildProtocol": lambda *_: None})())
        net.client(Greeting(), LINK, ALICE)
        net.clock.sleep(0.1)
        self.assertEqual(len(net.sessions), 0)

    def test_idle_sessions_end(self) -> None:
        """A session whose peer is silent is forgotten after the idle time."""
        net = self.net(patience=Patience(idle=5.0))
        self.greet(net)
        net.clock.sleep(6)
        self.assertEqual(len(net.sessions), 0)

    def test_smux_over_proof(self) -> None:
        """smux on a server that asks for proof: the NOP that it sends first is what the client acknowledges (Q4)."""
        echoes = Factory.forProtocol(Echo)
        settings = SmuxSettings(2)
        net: Net

        def serve() -> SmuxConnection:
            return SmuxConnection(settings, False, net.clock, echoes, nop_first=True)  # type: ignore[arg-type]

        net = Net(replace(LINK, require_proof=True), Factory.forProtocol(serve), "delay=5ms")
        mux = SmuxConnection(settings, True, net.clock)  # type: ignore[arg-type]
        net.client(mux, LINK, ALICE)
        uppers = [Greeting() for _ in range(3)]
        for upper in uppers:
            mux.open(upper)
        net.clock.run(lambda: all(upper.received == [b"hello"] for upper in uppers), 10)


@implementer(IAuthenticatingFactory)
class Asking(Factory):
    """Makes protocols that would tell when they know their peer."""

    noisy = False

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.made: list[Upper] = []

    def buildProtocol(self, addr: Any) -> Upper:
        """One more."""
        self.made.append(Upper())
        return self.made[-1]


class UnauthenticatedTests(SynchronousTestCase):
    """What peers cost that the protocol above has not authenticated."""

    def flood(self, net: Net, peers: int, segments: int = 999, size: int = 1300) -> None:
        """Each peer opens a session of its own and sends segments 1 to 999, never 0."""
        for number in range(peers):
            packets = [encode(Segment(7, PUSH, 0, 32, 0, sn, 0, bytes(size))) for sn in range(1, 1 + segments)]
            net.sessions.packets_received((f"10.1.{number >> 4}.{number & 15}", number), packets)

    def net(self, budget: MemoryBudget, **changes: Any) -> Net:
        """Mika's link: no cipher, FEC, a window of 1,024."""
        self.factory = Asking(budget)
        return Net(replace(MIKA_SERVER, **changes), self.factory)

    def test_memory_of_unauthenticated_sessions(self) -> None:
        """A session that sends segments 1 to 999 and never 0 keeps 31 of them, and they count in the budget."""
        budget = MemoryBudget(1 << 30)
        net = self.net(budget)
        self.flood(net, 20)
        self.assertEqual(len(net.sessions), 20)
        self.assertLessEqual(budget.used, 20 * 32 * 1400)
        self.assertGreaterEqual(budget.used, 20 * 31 * 1300)
        for upper in self.factory.made:
            upper.transport.abortConnection()  # type: ignore[union-attr]
        self.assertEqual(budget.used, 0)

    def test_no_session_beyond_the_budget(self) -> None:
        """When memory is used up no more sessions are opened."""
        net = self.net(MemoryBudget(10 * 31 * 1300))
        self.flood(net, 20)
        self.assertLessEqual(len(net.sessions), 11)
        self.assertGreater(net.counters["kcp.server.refused.memory"], 0)

    def test_authenticated_sessions_have_the_whole_window(self) -> None:
        """Once the protocol above knows its peer, everything is as it was."""
        net = self.net(MemoryBudget(1 << 30))
        self.flood(net, 1, segments=1)
        (upper,) = self.factory.made
        tell_authenticated(upper.transport)
        self.flood(net, 1)
        net.sessions.packets_received(("10.1.0.0", 0), [encode(Segment(7, PUSH, 0, 32, 0, 0, 0, b"first"))])
        self.assertEqual(sum(map(len, upper.received)), 5 + 999 * 1300)

    def test_authenticated_sessions_are_not_displaced(self) -> None:
        """At the limit a newcomer takes the place of the oldest unauthenticated session, never of another."""
        net = self.net(MemoryBudget(1 << 30), max_sessions=5)
        self.flood(net, 2, segments=1)
        for upper in self.factory.made:
            tell_authenticated(upper.transport)
        self.flood(net, 100, segments=1)
        self.assertEqual((len(net.sessions), [len(upper.lost) for upper in self.factory.made[:2]]), (5, [0, 0]))
        self.assertGreater(net.counters["kcp.server.displaced"], 90)

    def test_codes_of_unauthenticated_peers(self) -> None:
        """Datagrams that look like those of other shard counts make no code, however many there are."""
        net = self.net(MemoryBudget(1 << 30))
        self.flood(net, 1, segments=1)
        parity_rows.cache_clear()
        for counts in ((3, 2), (7, 5), (20, 9), (100, 50)):
            encoder = FecEncoder(ReedSolomon(*counts))
            body = encode(Segment(7, PUSH, 0, 32, 0, 5, 0, b"x"))
            net.sessions.packets_received(
                ("10.1.0.0", 0),
                [shard for n in range(300) for shard in encoder.encode([body], n)],
            )
        # Those that the four encoders here have made, our own for what we send, and no other.
        self.assertEqual(parity_rows.cache_info().misses, 5)
        (session,) = net.sessions._by_peer["10.1.0.0", 0]
        decoder = session.bottom.decoder  # type: ignore[attr-defined]
        self.assertEqual((decoder.data_shards, decoder.parity_shards, len(decoder._groups)), (10, 3, 0))

    def test_packets_longer_than_packets_are(self) -> None:
        """Datagrams above 1,500 bytes, which kcp-go's buffers do not hold either, are not taken."""
        net = self.net(MemoryBudget(1 << 30))
        self.flood(net, 3, segments=40, size=60_000)
        self.assertEqual(len(net.sessions), 0)
        self.assertEqual(net.counters["kcp.server.dropped.check"], 120)
