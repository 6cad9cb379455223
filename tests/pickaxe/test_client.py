"""A client and a server of mikanet.pickaxe over carriers in memory: client, link, client_link, mux, server, slots."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from twisted.internet.error import CannotListenError, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.egress import Egress, EgressPolicy
from mikanet.errors import DestinationError, Reason, ServerError
from mikanet.guard.failures import FailureLog
from mikanet.guard.targets import TargetLimits, Targets
from mikanet.pickaxe import sending, wire
from mikanet.pickaxe.client_logins import NOT_ANSWERED, NOT_PROVED
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.mux import INITIAL_CREDIT
from mikanet.pickaxe.policy import LOST_AFTER, Policy
from mikanet.pickaxe.server import PickaxeServer
from mikanet.pickaxe.tunnel import PickaxeTunnel
from tests.pickaxe.memory import SECRET, App, MemoryCarrier, MemoryRoad, World
from tests.support.transports import MemoryTransport


class LoginTests(SynchronousTestCase):
    """From carriers to a session."""

    def test_one_session_over_all_carriers(self) -> None:
        """The login goes by every carrier, and one session comes of it, which all of them serve."""
        world = World()
        world.road("first")
        world.road("second", delay=0.05)
        client = world.start()
        self.assertEqual(len(world.server.sessions), 1)
        assert client.link is not None
        self.assertEqual(len(client.link.paths), 2)
        (session,) = world.server.sessions.values()
        self.assertEqual(len(session.paths), 2)
        self.assertEqual(session.user, "alice")
        self.assertTrue(all(carrier.other.is_proven for road in world.roads for carrier in road.made))  # type: ignore[union-attr]

    def test_nothing_but_an_echo_before_the_proof(self) -> None:
        """Until the server has proved itself the client sends a login and echoes, whatever waits (P7)."""
        world = World()
        road = world.road("only", delay=0.6)
        client = world.start(seconds=0.0)
        PickaxeTunnel(client).stream_endpoint(Address("192.0.2.80", 80)).connect(Factory.forProtocol(App))
        world.pass_time(2.2)
        self.assertIsNone(client.link)
        self.assertEqual({packet[0] for packet in road.made[0].sent}, {wire.LOGIN, wire.ECHO})
        world.pass_time(2.0)
        self.assertIn(wire.CONNECT, {packet[0] for packet in road.made[0].sent})

    def test_wrong_secret(self) -> None:
        """A client with another password gets answers, no session, and one line for its user."""
        world = World()
        world.road("only")
        client = world.start(secret=Secret(Kdf.MIKANET, bytes(32)), seconds=20.0)
        self.assertIsNone(client.link)
        self.assertEqual(len(world.server.sessions), 0)
        self.assertEqual(world.said, [f"the server only {NOT_PROVED[1]}"])

    def test_a_failed_login_is_in_the_server_s_log(self) -> None:
        """With the address of a TCP connection, and none where the peer is a resolver or writes what it likes."""
        for shakes_hands, expected in ((True, {"authentication failed from 192.0.2.7 (pickaxe)"}), (False, set())):
            for start in ({"secret": Secret(Kdf.MIKANET, bytes(32))}, {"user": "nobody"}):
                world = World()
                lines: list[str] = []
                world.server.failures = FailureLog(world.clock, "pickaxe", lines.append)
                self.patch(MemoryCarrier, "shakes_hands", shakes_hands)
                world.road("only")
                world.start(seconds=2.0, **start)
                self.assertEqual(set(lines), expected)
                self.assertLessEqual(len(lines), 2)

    def test_an_honest_login_leaves_no_line(self) -> None:
        """Nor does a session that roams, ends, or is not known any more."""
        world = World()
        lines: list[str] = []
        world.server.failures = FailureLog(world.clock, "pickaxe", lines.append)
        world.road("only")
        world.start()
        world.roads[0].kill()
        world.pass_time(3.0)
        world.restart_server()
        world.server.failures = FailureLog(world.clock, "pickaxe", lines.append)
        world.pass_time(5.0)
        self.assertIsNotNone(world.client.link)
        self.assertEqual(lines, [])

    def test_a_wrong_client_beside_the_right_one(self) -> None:
        """Another client of the same name and network with a wrong password, started just before, locks nobody out."""
        for seed in range(8):
            world = World()
            world.rng.seed(seed)
            world.road("only")
            world.start(secret=Secret(Kdf.MIKANET, bytes(32)), seconds=0.5)
            right = world.start(seconds=15.0)
            self.assertIsNotNone(right.link, seed)

    def test_retries_do_not_come_in_step(self) -> None:
        """The time between two logins is drawn anew for each."""
        world = World()
        road = world.road("only")
        world.start(secret=Secret(Kdf.MIKANET, bytes(32)), seconds=0.0)
        times: list[float] = []
        seen: set[bytes] = set()
        for _ in range(600):
            world.pass_time(0.1, step=0.05)
            logins = {packet for packet in road.made[0].sent if packet[0] == wire.LOGIN}
            if logins - seen:
                times.append(world.clock.seconds())
            seen = logins
        gaps = [round(later - sooner, 1) for sooner, later in itertools.pairwise(times)]
        self.assertGreater(len(set(gaps)), len(gaps) // 2)
        self.assertTrue(all(3.4 <= gap <= 8.6 for gap in gaps), gaps)

    def test_unknown_user(self) -> None:
        """An unknown name looks just the same."""
        world = World()
        road = world.road("only")
        world.start(user="nobody", seconds=20.0)
        self.assertEqual(len(world.server.sessions), 0)
        assert road.made[0].other is not None
        self.assertEqual({len(packet) for packet in road.made[0].other.sent}, {39})

    def test_logins_are_repeated_where_packets_are_lost(self) -> None:
        """A carrier that loses half of everything still brings a session."""
        world = World()
        world.road("bad", reliable=False, mtu=1200, loss=0.5)
        client = world.start(seconds=40.0)
        self.assertIsNotNone(client.link)

    def test_the_client_ends(self) -> None:
        """Stopping tells the server, which forgets the session at once."""
        world = World()
        world.road("only")
        client = world.start()
        client.stop()
        world.pass_time(0.1)
        self.assertEqual(len(world.server.sessions), 0)
        self.assertEqual(
            [each for each in world.clock.getDelayedCalls() if "MemoryCarrier" not in str(each.func)][1:], []
        )


class TroubleTests(SynchronousTestCase):
    """What applications are told while there is no session, or no carrier for it."""

    def attempt(self, world: World) -> list[Any]:
        """An application's attempt; what comes of it."""
        tunnel = PickaxeTunnel(world.client)
        outcome: list[Any] = []
        tunnel.stream_endpoint(Address("192.0.2.80", 80)).connect(Factory.forProtocol(App)).addBoth(outcome.append)
        return outcome

    def trouble(self, world: World, road_up: bool, **start: Any) -> tuple[Reason, str]:
        """Who comes at once waits until three seconds after the first attempt, who comes later not at all."""
        road = world.road("only")
        road.up = road_up
        world.start(seconds=0.1, **start)
        first = self.attempt(world)
        world.pass_time(2.7)
        self.assertEqual(first, [])
        world.pass_time(0.3)
        later = self.attempt(world)
        found = []
        for outcome in (first, later):
            self.assertIsInstance(outcome[0].value, ServerError)
            found.append((outcome[0].value.reason, str(outcome[0].value)))
        self.assertEqual(found[0], found[1])
        self.assertEqual(len(world.said), 1, world.said)
        world.pass_time(30.0)
        self.assertEqual(len(world.said), 1, world.said)
        self.assertEqual(len(self.attempt(world)), 1)
        return found[0]

    def test_wrong_password(self) -> None:
        """Password or user: the wire does not tell them apart, so the words name both."""
        reason, text = self.trouble(World(), True, secret=Secret(Kdf.MIKANET, bytes(32)))
        self.assertEqual((reason, text), (Reason.FAILURE, f"the tunnel's server {NOT_PROVED[1]}"))
        self.assertIn("the user or the password is not the same there", text)

    def test_unknown_user(self) -> None:
        """The same, to the letter."""
        reason, text = self.trouble(World(), True, user="nobody")
        self.assertEqual((reason, text), (Reason.FAILURE, f"the tunnel's server {NOT_PROVED[1]}"))

    def test_dead_server(self) -> None:
        """Its port is closed; when it comes up, doors open again and the user reads so."""
        world = World()
        reason, text = self.trouble(world, False)
        self.assertEqual(reason, Reason.REFUSED)
        self.assertEqual(text, "the tunnel's server refuses connections: is it running, and is the port right?")
        world.roads[0].up = True
        world.pass_time(3.0)
        self.assertIn("the server only can be used again", world.said)
        outcome = self.attempt(world)
        world.pass_time(0.2)
        self.assertIsInstance(outcome[0], App)

    def test_something_else_on_the_port(self) -> None:
        """What takes the connection and says nothing is no Pickaxe server."""
        world = World()
        world.server.accept = lambda carrier: None  # type: ignore[method-assign]  # a wall
        reason, text = self.trouble(world, True)
        self.assertEqual((reason, text), (Reason.TIMEOUT, f"the tunnel's server {NOT_ANSWERED[1]}"))

    def test_several_carriers(self) -> None:
        """With more than one, what is wrong with each."""
        world = World()
        for name in ("first", "second"):
            world.road(name).up = False
        world.start(seconds=3.1)
        (outcome,) = self.attempt(world)
        refused = "refuses connections: is it running, and is the port right?"
        self.assertEqual(str(outcome.value), f"the tunnel's server cannot be used: first {refused}; second {refused}")
        self.assertEqual(outcome.value.reason, Reason.REFUSED)

    def test_a_session_without_a_carrier(self) -> None:
        """Connections of a session wait for a carrier; new ones are refused after three seconds without any."""
        world = World()
        road = world.road("only")
        world.start()
        app, target = world.connect()
        road.up = False
        road.kill()
        world.pass_time(2.5)
        waiting = self.attempt(world)
        self.assertEqual(waiting, [])
        world.pass_time(0.6)
        (refused,) = self.attempt(world)
        self.assertEqual(refused.value.reason, Reason.REFUSED)
        self.assertIsInstance(waiting[0].value, ServerError)
        self.assertEqual(app.ends, [])
        target.receive(b"still here")
        road.up = True
        world.pass_time(3.0)
        self.assertEqual(app.received, b"still here")
        outcome = self.attempt(world)
        world.pass_time(0.2)
        self.assertIsInstance(outcome[0], App)


class ConnectionTests(SynchronousTestCase):
    """Connections on a session."""

    def setUp(self) -> None:
        """A session over one carrier."""
        self.world = World()
        self.world.road("only")
        self.client = self.world.start()

    def test_data_and_ends(self) -> None:
        """Bytes both ways; the target's end, then the application's: both see a clean end, and nothing is left."""
        app, target = self.world.connect()
        app.transport.write(b"question")  # type: ignore[union-attr]  # connected
        self.world.pass_time(0.1)
        self.assertEqual(target.bytes_written, b"question")
        target.receive(b"answer")
        target.receive_fin()
        self.world.pass_time(0.1)
        self.assertEqual(app.received, b"answer")
        target.settle()
        self.world.pass_time(0.2)
        self.assertEqual(app.ends, [ConnectionDone])
        self.assertTrue(target.fin or target.closed)
        self.assertFalse(target.aborted)
        assert self.client.link is not None
        self.assertEqual(len(self.client.link.mux), 0)
        (session,) = self.world.server.sessions.values()
        self.assertEqual(len(session.mux), 0)
        self.world.pass_time(1.0)
        self.assertEqual((session.mux._closing, self.client.link.mux._closing), (set(), set()))

    def test_resets(self) -> None:
        """A reset at either end is a reset at the other (X6)."""
        app, target = self.world.connect()
        target.lose()
        self.world.pass_time(0.1)
        self.assertEqual(app.ends, [ConnectionLost])
        app, target = self.world.connect()
        app.transport.abortConnection()  # type: ignore[union-attr]  # connected
        self.world.pass_time(0.1)
        self.assertTrue(target.aborted)

    def test_refusals(self) -> None:
        """The reason of a refusal comes back; one that is not wanted any more is closed at the server."""
        assert self.client.link is not None
        for port, reason in ((1, Reason.REFUSED), (2, Reason.POLICY)):
            made = self.client.link.connect(Address("192.0.2.80", port), Factory.forProtocol(App))
            self.world.pass_time(0.1)
            failure = self.failureResultOf(made, DestinationError)
            self.assertEqual(failure.value.reason, reason)  # type: ignore[union-attr]  # just asserted
        made = self.client.link.connect(Address("192.0.2.80", 80), Factory.forProtocol(App))
        made.cancel()
        made.addErrback(lambda _: None)
        self.world.pass_time(0.2)
        self.assertTrue(self.world.egress.targets[-1].aborted)

    def test_a_name_goes_to_the_server(self) -> None:
        """Names are the server's to look up, unless it does not know how."""
        assert self.client.link is not None
        self.client.link.connect(Address("example.com", 80), Factory.forProtocol(App))
        self.world.pass_time(0.1)
        self.assertEqual(self.world.egress.asked[-1], Address("example.com", 80))

    def test_a_slow_reader_stops_its_sender(self) -> None:
        """What nobody takes is not sent beyond the credit, and another connection does not feel it (P10)."""
        app, target = self.world.connect()
        app.transport.pauseProducing()  # type: ignore[union-attr]  # connected
        for _ in range(40):
            if target.reading:
                target.receive(bytes(20_000))
            self.world.pass_time(0.05)
        self.assertFalse(target.reading)
        other, second = self.world.connect()
        second.receive(b"unimpeded")
        self.world.pass_time(0.1)
        self.assertEqual(other.received, b"unimpeded")
        app.transport.resumeProducing()  # type: ignore[union-attr]  # connected
        self.world.pass_time(0.5)
        self.assertTrue(target.reading)
        self.assertGreater(len(app.received), INITIAL_CREDIT)

    def test_a_sender_beyond_its_credit_loses_the_connection(self) -> None:
        """Data without credit ends that connection with status 9, and no other."""
        app, target = self.world.connect()
        other, _ = self.world.connect()
        app.transport.pauseProducing()  # type: ignore[union-attr]  # connected
        (session,) = self.world.server.sessions.values()
        stream = next(iter(session.mux._streams.values()))
        stream.allow(1 << 40)
        for _ in range(5):
            target.receive(bytes(60_000))
            self.world.pass_time(0.05)
        self.assertEqual(app.ends, [ConnectionLost])
        self.assertEqual(other.ends, [])
        self.assertTrue(target.aborted)

    def test_waiting_for_a_session(self) -> None:
        """A tunnel starts its client, and connections wait until there is a session; one may be given up."""
        world = World()
        world.road("only")
        client = world.start(seconds=0.0)
        tunnel = PickaxeTunnel(client)
        made = [tunnel.stream_endpoint(Address("192.0.2.80", 80)).connect(Factory.forProtocol(App)) for _ in range(2)]
        self.assertEqual(tunnel.waiting, 2)
        made[1].cancel()
        made[1].addErrback(lambda _: None)
        self.assertEqual(tunnel.waiting, 1)
        world.pass_time(1.0)
        self.assertIsInstance(self.successResultOf(made[0]), App)
        self.assertEqual((tunnel.waiting, len(world.egress.targets)), (0, 1))
        with self.assertRaises(DestinationError):
            tunnel.datagram_endpoint(Address("192.0.2.80", 53))


class RoamingTests(SynchronousTestCase):
    """Carriers come and go; connections stay."""

    def chatter(self, world: World, app: App, target: Any, seconds: float, step: float = 0.05) -> bytes:
        """The target sends a little all the time; what it sent."""
        sent = b""
        for _ in range(round(seconds / step)):
            if target.reading:
                piece = world.rng.randbytes(500)
                target.receive(piece)
                sent += piece
            world.pass_time(step)
        return sent

    def test_a_lost_carrier(self) -> None:
        """The carrier is lost with data on the way: the next one carries on without a gap."""
        world = World()
        first, second = world.road("first"), world.road("second")
        client = world.start()
        app, target = world.connect()
        sent = self.chatter(world, app, target, 1.0)
        first.up = False
        first.kill()
        sent += self.chatter(world, app, target, 1.0)
        assert client.link is not None
        assert client.link.carrier is not None
        self.assertEqual(client.link.carrier.name, "second")
        self.assertGreater(len(second.made[0].sent), 0)
        world.pass_time(0.5)
        self.assertEqual(app.received, sent)
        first.up = True
        sent += self.chatter(world, app, target, 6.0)
        assert client.link.carrier is not None
        self.assertEqual(client.link.carrier.name, "first", "the better one is taken up again")
        world.pass_time(0.5)
        self.assertEqual(app.received, sent)

    def test_a_frozen_carrier(self) -> None:
        """A carrier that brings nothing any more, without a word, is left within three seconds."""
        world = World()
        first = world.road("first")
        world.road("second")
        client = world.start(seconds=4.0)
        app, target = world.connect()
        sent = self.chatter(world, app, target, 1.0)
        first.freeze()
        before = len(app.received)
        sent += self.chatter(world, app, target, 3.0)
        self.assertGreater(len(app.received), before)
        world.pass_time(0.5)
        self.assertEqual(app.received, sent)
        assert client.link is not None
        assert client.link.carrier is not None

    def test_a_frozen_carrier_that_brings_rubbish(self) -> None:
        """Neither garbage nor packets that came before make a frozen carrier look alive."""
        for repeated in (False, True):
            world = World()
            first = world.road("first")
            world.road("second")
            client = world.start(seconds=4.0)
            app, target = world.connect()
            sent = self.chatter(world, app, target, 1.0)
            assert client.link is not None
            near, far = first.made[0], first.made[0].other
            assert far is not None
            rubbish = far.sent[-3:] if repeated else [b"\x0b" + client.link.session.sid + bytes(40), b"\xff" * 50]
            first.freeze()
            first.up = False
            for _ in range(60):
                near.deliver(rubbish)
                sent += self.chatter(world, app, target, 0.05)
            assert client.link.carrier is not None
            self.assertEqual(client.link.carrier.name, "second")
            world.pass_time(0.5)
            self.assertEqual(app.received, sent)

    def test_it_goes_on_only_where_something_comes_back(self) -> None:
        """A carrier that opens and brings nothing is tried, and not said to carry the session."""
        world = World()
        first, second = world.road("first"), world.road("second", delay=0.02)
        world.start()
        first.up = False
        wall = MemoryRoad(world.clock, PickaxeServer(world.clock, world.server_config), "wall")
        world.client.slots[1]._source = wall  # from now on it leads to a server that does not know the session
        second.kill()
        world.pass_time(1.0)
        first.kill()
        world.pass_time(0.3)
        self.assertNotIn("the session goes on by second", world.said)
        world.client.slots[1]._source = second
        wall.kill()
        world.pass_time(0.5)
        self.assertEqual([line for line in world.said if "goes on" in line], ["the session goes on by second"])
        first.up = True
        world.pass_time(5.0)
        lines = [line for line in world.said if "goes on" in line]
        self.assertEqual(lines, ["the session goes on by second", "the session goes on by first"])

    def test_no_carrier_for_a_while(self) -> None:
        """With every carrier gone connections wait, and go on when one comes back (``--keep-session``)."""
        world = World()
        road = world.road("only")
        world.start()
        app, target = world.connect()
        road.up = False
        road.kill()
        target.receive(b"while nobody listens")
        world.pass_time(100.0, 0.25)
        self.assertEqual(app.ends, [])
        road.up = True
        world.pass_time(3.0)
        self.assertEqual(app.received, b"while nobody listens")

    def test_no_carrier_for_too_long(self) -> None:
        """After the time to keep a session it is over at both ends, with resets."""
        world = World(keep_session=60.0)
        road = world.road("only")
        world.start()
        app, target = world.connect()
        road.up = False
        road.kill()
        world.pass_time(61.0, 0.25)
        self.assertEqual(app.ends, [ConnectionLost])
        self.assertEqual(len(world.server.sessions), 1)
        world.pass_time(260.0, 0.5)
        self.assertEqual(len(world.server.sessions), 0)
        self.assertTrue(target.aborted)

    def test_a_server_that_forgot(self) -> None:
        """A server that was started anew knows no session: within P8's bound resets, and a new login."""
        world = World()
        world.road("only")
        client = world.start()
        app, _ = world.connect()
        world.restart_server()
        world.pass_time(LOST_AFTER + 8.0)
        self.assertEqual(app.ends, [ConnectionLost])
        self.assertIsNotNone(client.link)
        self.assertEqual(len(world.server.sessions), 1)

    def test_a_server_that_was_started_anew(self) -> None:
        """Where the network says that the carrier is gone, a new session is there within 3 s of the new server."""
        for down in (0.0, 0.3, 5.0, 31.0):
            world = World()
            road = world.road("only", delay=0.03)
            client = world.start()
            app, _ = world.connect()
            old = client.link
            road.up = False
            world.restart_server()
            world.pass_time(down)
            self.assertEqual(app.ends, [], "nobody knows yet whether the session is lost")
            road.up = True
            world.pass_time(3.0)
            self.assertEqual(app.ends, [ConnectionLost], down)
            self.assertIsNotNone(client.link, down)
            self.assertIsNot(client.link, old, down)
            self.assertEqual(len(world.server.sessions), 1, down)
            self.assertIn("the session is over: the server does not know it any more: it was started anew", world.said)
            app, target = world.connect()
            app.transport.write(b"new")  # type: ignore[union-attr]  # connected
            world.pass_time(0.2)
            self.assertEqual(target.bytes_written, b"new")

    def test_a_slow_answer_ends_no_session(self) -> None:
        """A new carrier whose answers take seconds is not taken for a server that forgot: it answers in order."""
        world = World()
        road = world.road("only", delay=0.02)
        client = world.start()
        app, target = world.connect()
        old = client.link
        road._make = lambda: MemoryCarrier(world.clock, "only", 1.3, True, 65_535, 0.0)
        road.kill()
        target.receive(b"on its way")
        world.pass_time(30.0)
        self.assertIs(client.link, old)
        self.assertEqual((app.received, app.ends), (b"on its way", []))
        self.assertEqual(len(world.server.sessions), 1)
        assert old is not None
        self.assertTrue(all(carrier.user is old for carrier in old.paths))
        app.transport.write(b"and back")  # type: ignore[union-attr]  # connected
        world.pass_time(3.0)
        self.assertEqual(target.bytes_written, b"and back")

    def test_a_login_response_that_names_the_session(self) -> None:
        """One whose first bytes are the session's number, from whoever is on the way, is dropped."""
        world = World()
        road = world.road("only")
        client = world.start()
        assert client.link is not None
        road.made[0].deliver([bytes([wire.LOGIN_RESPONSE]) + client.link.session.sid + bytes(34)])
        self.assertIsNotNone(client.link)
        world.connect()

    def test_a_small_bad_carrier(self) -> None:
        """Over packets of 110 bytes of which one in twenty is lost, fragments and resends bring everything (P2b)."""
        world = World()
        first = world.road("good")
        world.road("small", reliable=False, mtu=110, loss=0.05)
        world.start(seconds=6.0)
        app, target = world.connect()
        piece = world.rng.randbytes(30_000)
        target.receive(piece)
        first.up = False
        first.kill()
        world.pass_time(60.0)
        self.assertEqual(app.received, piece)

    def test_spread(self) -> None:
        """With policy spread both carriers carry data, and it comes out in order."""
        world = World(policy=Policy.SPREAD)
        roads = [world.road("first"), world.road("second", delay=0.04)]
        world.start(seconds=4.0)
        app, target = world.connect()
        counts = [len(road.made[-1].sent) for road in roads]
        sent = b""
        for _ in range(60):
            piece = world.rng.randbytes(2000)
            app.transport.write(piece)  # type: ignore[union-attr]  # connected
            sent += piece
            world.pass_time(0.01)
        world.pass_time(2.0)
        self.assertEqual(target.bytes_written, sent)
        self.assertTrue(all(len(road.made[-1].sent) > count + 10 for road, count in zip(roads, counts, strict=True)))

    def test_race(self) -> None:
        """With policy race the quicker one carries the data, whatever its place."""
        world = World(policy=Policy.RACE)
        world.road("slow", delay=0.2)
        world.road("quick", delay=0.01)
        client = world.start(seconds=15.0)
        assert client.link is not None
        assert client.link.carrier is not None
        self.assertEqual(client.link.carrier.name, "quick")


class RemoteForwardTests(SynchronousTestCase):
    """Ports at the server."""

    def world(self) -> World:
        """A world whose server lets clients listen, on ports in memory."""
        import dataclasses

        from twisted.internet.testing import MemoryReactorClock

        from mikanet.pickaxe.listening import ListenPolicy
        from mikanet.pickaxe.server import PickaxeServer

        world = World(remote_forwards=((8022, Address("127.0.0.1", 22)),))
        world.clock = MemoryReactorClock()
        config = dataclasses.replace(world.server_config, listen=ListenPolicy(((8000, 8100),)))
        world.server = PickaxeServer(world.clock, config)
        world.road("only")
        return world

    def test_a_port_follows_its_user(self) -> None:
        """A client that was started anew gets its port back from its old session, once that is silent."""
        world = self.world()
        world.start()
        self.assertIn("the server listens on port 8022 for 127.0.0.1:22", world.said)
        first = next(iter(world.server.sessions.values()))
        world.roads[0].freeze()  # the first client is gone without a word
        world.clock.advance(31.0)
        world.client.slots[0].stop()
        world.start()
        second = list(world.server.sessions.values())[-1]
        self.assertIsNot(first, second)
        self.assertEqual((len(first.ports._ports), len(second.ports._ports)), (0, 1))

    def test_a_port_in_use_is_asked_for_again(self) -> None:
        """After two seconds at first, and then every ten."""
        world = self.world()

        def taken(*_: Any, **__: Any) -> None:
            raise CannotListenError("", 8022, OSError())

        self.patch(world.clock, "listenTCP", taken)
        world.start(seconds=16.0)
        self.assertEqual(
            [text for text in world.said if "listen on port 8022" in text],
            [
                "the server cannot listen on port 8022: it is in use there; a session of this user that is gone without a"
                f" word gives it up after 30 s; asking again in {wait} s"
                for wait in (2, 10, 10)
            ],
        )

    def test_accepted_connections(self) -> None:
        """Who connects to the port reaches the client's side; one that is refused there is reset."""
        world = self.world()
        world.start()
        factory = world.clock.tcpServers[0][1]
        transport = MemoryTransport()
        transport.connect(factory.buildProtocol(None))
        transport.receive(b"hello")
        world.pass_time(0.2)
        host, port, dialled = world.clock.tcpClients[-1][:3]
        self.assertEqual((host, port), ("127.0.0.1", 22))
        far = MemoryTransport()
        far.connect(dialled.buildProtocol(None))
        self.assertEqual(far.bytes_written, b"hello")
        far.receive(b"welcome")
        world.pass_time(0.2)
        self.assertEqual(transport.bytes_written, b"welcome")
        other = MemoryTransport()
        other.connect(factory.buildProtocol(None))
        world.pass_time(0.2)
        dialled = world.clock.tcpClients[-1][2]
        dialled.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        world.pass_time(0.2)
        self.assertTrue(other.aborted)


class StrangerTests(SynchronousTestCase):
    """What a server does with packets that are nobody's."""

    def test_silence(self) -> None:
        """Packets without a session, and fragments of nothing, are answered by nothing and leave nothing behind."""
        world = World()
        road = world.road("only")
        road.open()
        carrier = road.made[0]
        packets = [b"", b"\x01", b"\x0a\1\2\3\4" + bytes(20), b"\xff\1\2\3\4" + bytes(20), bytes(18), bytes(300)]
        carrier.send(packets)
        world.pass_time(0.1)
        assert carrier.other is not None
        self.assertEqual(carrier.other.sent, [])
        self.assertEqual(len(world.server.sessions), 0)

    def test_a_wrong_first_packet_does_not_end_a_login(self) -> None:
        """Who has seen a SID cannot take the login from its user by sending something wrong."""
        world = World()
        road = world.road("only", delay=0.1)
        client = world.start(seconds=0.25)
        assert road.made[0].other is not None
        response = wire.decode_login_response(road.made[0].other.sent[0])
        road.open()
        road.made[1].send([b"\x0c" + response.sid + bytes(40)])
        world.pass_time(1.0)
        self.assertIsNotNone(client.link)

    def test_sessions_of_one_user_are_bounded(self) -> None:
        """Beyond --max-per-user a login leads to nothing."""
        from mikanet.guard.admission import AdmissionLimits

        world = World()
        config = dataclasses.replace(world.server_config, limits=AdmissionLimits(per_user=1))
        world.server = PickaxeServer(world.clock, config)
        world.road("only")
        world.start()
        world.start(seconds=8.0)
        self.assertEqual(len(world.server.sessions), 1)

    def test_who_never_acknowledges_is_ended(self) -> None:
        """A client that asks for ever more answers and acknowledges none of them loses its session, not our memory."""
        world = World()
        road = world.road("only")
        client = world.start()
        app, _ = world.connect()
        assert client.link is not None
        (session,) = world.server.sessions.values()
        session.session.sending.acknowledge = lambda *_: None  # type: ignore[method-assign]  # nothing counts as one
        self.patch(sending, "OVERRUN_PACKETS", 500)
        body = wire.encode_echo(wire.ECHO_REQUEST, bytes(16), bytes(1024))
        for _ in range(3):
            self.assertEqual(session.ended, False)
            for _ in range(200):
                client.link.session.send(wire.ECHO, body, now=world.clock.seconds())
            client.link.pump()
            world.pass_time(0.05)
        self.assertEqual(session.ended, True)
        self.assertEqual(world.server_config.counters["pickaxe.server.refused.overrun"], 1)
        self.assertGreater(len(road.made), 0)
        self.assertEqual(app.received, b"")

    def test_one_user_leaves_files(self) -> None:
        """Sessions of one user that connect to a black hole have a bound together, and others connect beside them."""
        world = World()
        targets = Targets(TargetLimits(40, 10))
        egress = Egress(MemoryReactorClock(), EgressPolicy(), targets=targets)
        world.server_config = dataclasses.replace(
            world.server_config, users={"alice": SECRET, "bob": SECRET}.get, egress=egress
        )
        world.server = PickaxeServer(world.clock, world.server_config)
        world.road("only")
        outcomes: list[Any] = []
        clients = [
            world.start("alice", seconds=1.0),
            world.start("alice", seconds=4.0),
            world.start("bob", seconds=1.0),
        ]
        for client in clients[:2]:
            assert client.link is not None
            for _ in range(8):
                made = client.link.connect(Address("93.184.216.34", 80), Factory.forProtocol(App))
                made.addErrback(lambda failure: outcomes.append(failure.value.reason))
        world.pass_time(0.2)
        self.assertEqual((targets.of("alice"), outcomes), (10, [Reason.LIMIT] * 6))
        assert clients[2].link is not None
        clients[2].link.connect(Address("93.184.216.34", 80), Factory.forProtocol(App)).addErrback(lambda _: None)
        world.pass_time(0.2)
        self.assertEqual((targets.of("bob"), targets.total), (1, 11))
        for link in list(world.server.sessions.values()):
            link.end()
        self.assertEqual(targets.total, 0)

    def test_unanswered_closes_count(self) -> None:
        """Connection ids whose Close was never answered are connections, to the cap."""
        world = World()
        world.road("only")
        client = world.start()
        assert client.link is not None
        (session,) = world.server.sessions.values()
        session.mux._closing.update(range(1 << 20, (1 << 20) + 4096))
        made = client.link.connect(Address("192.0.2.80", 80), Factory.forProtocol(App))
        world.pass_time(0.2)
        self.assertEqual(self.failureResultOf(made, DestinationError).value.reason, Reason.LIMIT)  # type: ignore[union-attr]

    def test_a_message_that_is_none(self) -> None:
        """An authentic message that no table allows is skipped; the session goes on."""
        world = World()
        world.road("only")
        client = world.start()
        assert client.link is not None
        for kind, body in (
            (wire.CONNECT, b"short"),
            (wire.LISTEN, bytes(40)),
            (14, b""),
            (wire.CLOSE, b""),
            (wire.ECHO, b""),
        ):
            client.link.send(kind, body)
        client.link.send(wire.CONNECT, bytes(16) + b"\x09what")
        client.link.pump()
        world.pass_time(0.2)
        app, target = world.connect()
        target.receive(b"still here")
        world.pass_time(0.1)
        self.assertEqual(app.received, b"still here")
