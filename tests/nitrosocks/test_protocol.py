"""Tests of mikanet.nitrosocks.protocol: the server with everything below it but sockets and TLS."""

from __future__ import annotations

import random
from types import SimpleNamespace

from twisted.internet import error
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.egress import Egress, EgressPolicy, parse_rule
from mikanet.errors import DestinationError, Reason
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.failures import FailureLog
from mikanet.guard.targets import TargetLimits, Targets
from mikanet.nitrosocks import protocol, resend
from mikanet.nitrosocks.client_link import ClientLink
from mikanet.nitrosocks.frames import Command, encode
from mikanet.nitrosocks.keys import KeyChain, length_key
from mikanet.nitrosocks.link import Released, SessionKeys, Token
from mikanet.nitrosocks.protocol import NitroServerFactory, OpenStreams, ServerSession
from mikanet.nitrosocks.wire import HEADER, SALT, Direction, HeaderMask, Type
from tests.nitrosocks.golden import K0, TOKEN
from tests.nitrosocks.memory import REFUSAL_TIME, World


class StrangerTests(SynchronousTestCase):
    """Who proves nothing."""

    def refused(self, data: bytes, wait_first: bool = True) -> tuple[bytes, float]:
        """What a connection with these bytes was answered, and when it was ended."""
        world = World(server={"wait_first": wait_first})
        transport = world.raw()
        if data:
            transport.receive(data)
        while not transport.fin and world.clock.seconds() < 200:
            world.clock.advance(0.5)
        return transport.bytes_written, world.clock.seconds()

    def test_silence_and_noise(self) -> None:
        """Silence, noise, impossible lengths and HTTP all end in one way: no byte but a challenge, one moment."""
        for data in (b"", b"x", bytes(16), b"\xff" * 4000, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 8):
            answer, when = self.refused(data)
            self.assertEqual(when, REFUSAL_TIME, data[:10])
            self.assertIn(len(answer), (0, *range(16 + 3 + 256, 16 + 3 + 256 + 256)))

    def reaction(self, data: bytes, pieces: int) -> tuple[float, int, float]:
        """What a server that speaks first does: when it sends, how much, and when it ends; its chance is always the same."""
        world = World(seed=7)
        transport = world.raw()
        for at in range(pieces):
            transport.receive(data[at * len(data) // pieces : (at + 1) * len(data) // pieces])
        spoke = -1.0
        while world.clock.seconds() < 0.3:
            if spoke < 0 and transport.written:
                spoke = world.clock.seconds()
            world.clock.advance(1 / 512)
        size = len(transport.bytes_written)
        transport.receive(bytes(100))
        world.clock.advance(REFUSAL_TIME - world.clock.seconds() - 0.1)
        self.assertFalse(transport.fin or transport.closed or transport.aborted)
        world.clock.advance(0.2)
        self.assertTrue(transport.fin)
        self.assertEqual(len(transport.bytes_written), size)
        return spoke, size, world.clock.seconds()

    def test_no_length_is_special(self) -> None:
        """Without wait-first random bytes of any length get what silence gets: the same bytes at the same moment."""
        rng = random.Random(221)
        silence = self.reaction(b"", 0)
        self.assertGreater(silence[1], 270)
        whole = 0
        for size in (*range(1, 222), 1042, 1043, 4096, 5000, 20000):
            data = rng.randbytes(size)
            found = self.reaction(data, 1 + size % 3)
            if size >= SALT + HEADER and self.is_packet(data):
                whole += 1  # that is no matter of length; it may bring the challenge forward
                self.assertLessEqual(found[0], silence[0])
                self.assertGreater(found[1], 270)
            else:
                self.assertEqual(found, silence, size)
        self.assertLess(whole, 10)

    @staticmethod
    def is_packet(data: bytes) -> bool:
        """Whether these bytes happen to be a salt and a whole packet."""
        mask = HeaderMask(length_key(K0, data[:SALT], Direction.CLIENT)).next()
        length = (int.from_bytes(data[SALT : SALT + HEADER], "big") ^ mask) >> 8
        return 0 < length <= min(1024, len(data) - SALT - HEADER)

    def test_wait_first_is_one_in_sixty(self) -> None:
        """With wait-first few random probes look like a packet; those that do draw the challenge, the others nothing."""
        rng = random.Random(64)
        for size in (*range(0, 222, 13), *(1100,) * 30):
            data = rng.randbytes(size)
            world = World(server={"wait_first": True})
            transport = world.raw()
            transport.receive(data)
            world.clock.advance(1)
            spoke = bool(transport.written)
            self.assertEqual(spoke, size >= SALT + HEADER and self.is_packet(data))

    def test_wait_first(self) -> None:
        """With wait-first a connection that says nothing hears nothing; without, it hears a challenge."""
        self.assertEqual(self.refused(b"", wait_first=True)[0], b"")
        self.assertGreater(len(self.refused(b"", wait_first=False)[0]), 270)

    def test_early_end(self) -> None:
        """A prober's end does not shorten the wait."""
        world = World(server={"wait_first": True})
        transport = world.raw()
        transport.receive(b"probe")
        transport.receive_fin()
        world.clock.advance(REFUSAL_TIME - 0.1)
        self.assertFalse(transport.fin or transport.closed or transport.aborted)
        world.clock.advance(0.2)
        self.assertTrue(transport.fin or transport.closed)

    def test_wrong_token(self) -> None:
        """A wrong token is a stranger's, too: counted, unanswered, ended at the one moment."""
        world = World(client={"token": b"not the token that the server has"})
        lines: list[str] = []
        world.server.failures = FailureLog(world.clock, "nitrosocks", lines.append)
        _, outcome = world.open()
        world.settle(11.0)
        self.assertEqual(world.server.counters["nitrosocks.server.refused.before_proof"], 1)
        self.assertEqual(len(outcome), 1)
        self.assertIn("it answers nothing", world.reports[0])
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], r"^authentication failed from 192\.0\.2\.\d+ \(nitrosocks\)$")
        self.assertEqual(world.wires[0].ways[1].packets[-1].type, Type.CHALLENGE)

    def test_cap(self) -> None:
        """Above the cap of unverified connections one is ended at once."""
        world = World(server={"limits": AdmissionLimits(unverified=10, unverified_per_address=2)})
        for _ in range(2):
            world.raw()
        world.clock.advance(3)
        world.raw()
        world.raw()
        world.clock.advance(3)
        self.assertTrue(world.raw().fin)

    def test_cap_per_user(self) -> None:
        """A proven client above its own cap is cut."""
        world = World(server={"limits": AdmissionLimits(per_user=1)})
        world.open()
        world.settle()
        second = World(seed=2)
        second.server = world.server
        _, outcome = second.open()
        second.settle(1.0)
        self.assertEqual(len(outcome), 1)
        self.assertEqual(world.server.counters["nitrosocks.server.limit.verified"], 1)


class FloodTests(SynchronousTestCase):
    """Clients that ask and do not take the answers."""

    def opened(self) -> tuple[World, ClientLink]:
        """A world with a session, and the client's link, to be misused; the server's answers to it are never carried."""
        world = World()
        world.open()
        world.settle()
        link = world.wires[0].ends[0].producer.link
        return world, link

    def say(self, world: World, link: ClientLink) -> None:
        """Carry what the link has to say to the server."""
        world.wires[0].ends[0].protocol.write(link.take_output())
        world.wires[0].ends[1].receive(b"".join(self.fresh(world)))

    def fresh(self, world: World) -> list[bytes]:
        """What the client wrote since the last time."""
        written = world.wires[0].ends[0].written
        at, self.taken = getattr(self, "taken", world.wires[0]._taken[0]), len(written)
        return written[at:]

    def test_heartbeats(self) -> None:
        """From a client that sends heartbeats and reads no answer nothing is read after a while, until it reads."""
        world, link = self.opened()
        end = world.wires[0].ends[1]
        end.producer.pauseProducing()
        for _ in range(10):
            link._send(Type.HEARTBEAT, bytes(32))
        self.say(world, link)
        self.assertTrue(end.reading)
        for _ in range(200):
            for _ in range(10):
                link._send(Type.HEARTBEAT, bytes(32))
            self.say(world, link)
        self.assertFalse(end.reading)
        end.producer.resumeProducing()
        self.assertTrue(end.reading)

    def flood(self, world: World, link: ClientLink, count: int) -> None:
        """Ask for so many streams to where nobody may go."""
        world.egress.fails = DestinationError(Reason.POLICY)
        for sid in range(2, count, 100):
            for each in range(100):
                link.send_data(encode(sid + each, Command.OPEN, b"\x01\x0a\x00\x00\x01\x00\x50"))
            self.say(world, link)
            if world.wires[0].ends[1].aborted:
                return

    def test_openings_of_one_that_does_not_read(self) -> None:
        """A session whose client opens streams and reads no replies is ended, not parked."""
        world, link = self.opened()
        world.wires[0].ends[1].producer.pauseProducing()
        self.flood(world, link, 10_000)
        self.assertTrue(world.wires[0].ends[1].aborted)
        self.assertEqual(len(world.server.sessions), 0)
        self.assertEqual(world.server.counters["nitrosocks.server.flooded"], 1)

    def test_openings_of_one_that_does_not_acknowledge(self) -> None:
        """The same for a client that reads, and acknowledges nothing."""
        self.patch(resend, "MAX_FRAMES_KEPT", 1000)
        world, link = self.opened()
        self.flood(world, link, 9_100)
        self.assertFalse(world.wires[0].ends[1].aborted)
        self.flood_on(world, link)
        self.assertTrue(world.wires[0].ends[1].aborted)
        self.assertEqual(len(world.server.sessions), 0)

    def flood_on(self, world: World, link: ClientLink) -> None:
        """A few more."""
        for each in range(200):
            link.send_data(encode(10_000 + each, Command.OPEN, b"\x01\x0a\x00\x00\x01\x00\x50"))
        self.say(world, link)


class ParkingTests(SynchronousTestCase):
    """Who may keep how many sessions."""

    def session(self, server: NitroServerFactory, name: str) -> ServerSession:
        """A session that has lost its connection."""
        session = ServerSession(
            server, server.config.realms[""].realm, SessionKeys(Token(name, b"x"), KeyChain(bytes(32)))
        )
        server.add(session)
        session.lose()
        return session

    def test_who_has_most_makes_room(self) -> None:
        """One client with very many parked sessions loses its own oldest ones, nobody else's."""
        self.patch(protocol, "MAX_PARKED", 10)
        server = World().server
        bob = self.session(server, "bob")
        many = [self.session(server, "alice") for _ in range(30)]
        self.assertIn(bob, server.sessions)
        self.assertEqual([each in server.sessions for each in many], [False] * 21 + [True] * 9)
        self.assertEqual(server.counters["nitrosocks.server.parked.evicted"], 21)
        server.end_parked()
        self.assertEqual((len(server.sessions), len(server._of_user)), (0, 0))

    def test_parked_ones_count(self) -> None:
        """Parked sessions count in the cap per client: the oldest of them make room for a new one."""
        server = World(server={"limits": AdmissionLimits(per_user=3)}).server
        several = [self.session(server, "alice") for _ in range(5)]
        self.assertEqual([each in server.sessions for each in several], [False, False, True, True, True])


class SessionTests(SynchronousTestCase):
    """Sessions and their ends."""

    def test_removed_token_of_one_that_does_not_read(self) -> None:
        """A client whose token is gone and that has not read for a while is cut at once."""
        world = World()
        world.open()
        world.settle()
        world.wires[0].ends[1].producer.pauseProducing()
        world.server.replace_tokens(world.realm, [])
        self.assertTrue(world.wires[0].ends[1].aborted)
        self.assertEqual(len(world.server.sessions), 0)

    def test_goodbye_that_nobody_reads(self) -> None:
        """A connection whose session has ended is cut when its client has not taken the goodbye after a while."""
        world = World()
        world.open()
        world.settle()
        end = world.wires[0].ends[1]
        world.server.replace_tokens(world.realm, [])
        world.clock.advance(4.9)
        self.assertFalse(end.aborted)
        world.clock.advance(0.2)
        self.assertTrue(end.aborted)

    def test_release_that_nobody_reads(self) -> None:
        """The same after the client's own release."""
        world = World()
        world.open()
        world.settle()
        end = world.wires[0].ends[1]
        end.producer.on_event(Released(clean=True))
        world.clock.advance(5.1)
        self.assertTrue(end.aborted)

    def test_parked_session_expires(self) -> None:
        """A session whose client does not come back within a minute is over, and its target is reset."""
        world = World()
        world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        world.clock.advance(59)
        self.assertFalse(world.egress.targets[0].aborted)
        world.clock.advance(2)
        self.assertTrue(world.egress.targets[0].aborted)
        self.assertEqual(len(world.server.sessions), 0)
        self.assertEqual(world.server.counters["nitrosocks.server.expired"], 1)

    def test_silent_client_is_parked(self) -> None:
        """After 45 s without a word the connection is cut, and the session waits."""
        world = World()
        world.open()
        world.settle()
        for wire in world.wires:
            wire.carry = lambda: False  # type: ignore[method-assign]  # the network swallows everything
        world.reachable = False
        world.clock.advance(46)
        self.assertEqual(world.server.counters["nitrosocks.server.parked"], 1)

    def test_release(self) -> None:
        """A client that stops releases its session in three steps, and the server keeps nothing."""
        world = World()
        world.open()
        world.settle()
        done: list[object] = []
        world.tunnel.stop().addCallback(done.append)
        world.settle()
        self.assertEqual(done, [None])
        kinds = [packet.type for way in world.wires[0].ways for packet in way.packets]
        self.assertTrue({Type.DISCONNECT, Type.DISCONNECT_ACK, Type.CONFIRM} <= set(kinds))
        self.assertEqual(len(world.server.sessions) + len(world.realm), 0)
        self.assertEqual(world.server.counters["nitrosocks.server.released"], 1)
        self.assertTrue(world.egress.targets[0].aborted)

    def test_removed_token(self) -> None:
        """A removed token's session is ended, its client told; a second token's goes on."""
        world = World()
        app, _ = world.open()
        world.settle()
        self.assertEqual(world.server.replace_tokens(world.realm, [Token("bob", b"b" * 40)]), 1)
        world.settle()
        self.assertIsNotNone(app.reason)
        self.assertEqual(world.wires[0].ways[1].packets[-1].type, Type.DISCONNECT)
        self.assertTrue(world.egress.targets[0].aborted)
        _, outcome = world.open()
        world.settle(12.0)
        self.assertEqual(len(outcome), 1)
        self.assertEqual(world.server.replace_tokens(world.realm, [TOKEN]), 0)
        world.settle(20.0)  # the client finds out by itself
        app, outcome = world.open()
        world.settle(12.0)
        self.assertIs(outcome[0], app)

    def test_end_of_the_process(self) -> None:
        """Draining counts streams; the end tells every client, with streams or without."""
        world = World()
        app, _ = world.open()
        world.settle()
        streams = OpenStreams(world.server)
        self.assertEqual(len(streams), 1)
        app.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
        world.egress.targets[0].receive_fin()
        world.settle()
        self.assertEqual(len(streams), 0)
        for connection in streams:
            connection.abort()
        world.settle()
        self.assertEqual(world.tunnel.sessions, [])

    def test_draining(self) -> None:
        """A server that is about to end opens no new streams."""
        world = World()
        world.open()
        world.settle()
        world.server.draining = True
        _, outcome = world.open()
        world.settle()
        self.assertEqual(outcome[0].value.reason, Reason.FAILURE)

    def test_old_connection_is_cut(self) -> None:
        """When a session comes back while its old connection still seems alive, the old one is cut only then."""
        world = World()
        app, _ = world.open()
        world.settle()
        old = world.wires[0]
        old.ends[0].lose()  # only the client knows
        old.dead = True
        world.settle(0.5)
        self.assertTrue(old.ends[1].aborted)
        app.transport.write(b"hello")  # type: ignore[union-attr]
        world.settle()
        self.assertEqual(world.egress.targets[0].bytes_written, b"hello")


class StreamTests(SynchronousTestCase):
    """Streams and their targets."""

    def test_replies(self) -> None:
        """Each reason of a target that cannot be had reaches the client as what it is."""
        for problem, reason in (
            (error.ConnectionRefusedError(), Reason.REFUSED),
            (DestinationError(Reason.POLICY), Reason.POLICY),
            (error.DNSLookupError(), Reason.HOST_UNREACHABLE),
            (error.NoRouteError(), Reason.NETWORK_UNREACHABLE),
            (error.TimeoutError(), Reason.TIMEOUT),
        ):
            world = World()
            world.egress.fails = problem
            _, outcome = world.open()
            world.settle()
            self.assertEqual(outcome[0].value.reason, reason)
            self.assertEqual([len(session.mux.streams) for session in world.server.sessions], [0])

    def test_one_user_leaves_files(self) -> None:
        """Streams of one user to a black hole, over TCP, have a bound; one more is told so."""
        targets = Targets(TargetLimits(40, 3))
        policy = EgressPolicy(allow=(parse_rule("192.0.2.80/32"),))
        world = World(server={"egress": Egress(MemoryReactorClock(), policy, targets=targets)})
        outcomes = [world.open()[1] for _ in range(5)]
        world.settle()
        self.assertEqual([outcome[0].type for outcome in outcomes[3:]], [DestinationError] * 2)
        self.assertEqual(world.server.counters["nitrosocks.server.target.limit"], 2)
        self.assertEqual((targets.total, [len(outcome) for outcome in outcomes[:3]]), (3, [0] * 3))

    def test_half_close_both_ways(self) -> None:
        """Each direction ends alone; with both ended nothing is left of the stream."""
        world = World()
        app, _ = world.open()
        world.settle()
        target = world.egress.targets[0]
        app.transport.write(b"question")  # type: ignore[union-attr]
        app.transport.loseWriteConnection()  # type: ignore[union-attr]
        world.settle()
        self.assertEqual((target.bytes_written, target.fin), (b"question", True))
        target.receive(b"answer")
        target.receive_fin()
        world.settle()
        self.assertEqual((bytes(app.got), app.ended), (b"answer", True))
        app.transport.loseConnection()  # type: ignore[union-attr]
        world.settle()
        session = next(iter(world.server.sessions))
        self.assertEqual((len(session.mux.streams), len(world.tunnel.sessions[0].mux.streams)), (0, 0))

    def test_resets(self) -> None:
        """A reset of either end is one at the other."""
        world = World()
        app, _ = world.open()
        world.settle()
        world.egress.targets[0].lose()
        world.settle()
        self.assertIsInstance(app.reason.value, error.ConnectionLost)  # type: ignore[union-attr]
        app, _ = world.open()
        world.settle()
        app.transport.abortConnection()  # type: ignore[union-attr]
        world.settle()
        self.assertTrue(world.egress.targets[1].aborted)

    def test_cancelled_opening(self) -> None:
        """A stream that nobody wants any more is given up at the server while it dials."""
        world = World()
        world.egress.holds = True
        from mikanet.address import Address  # the only test that needs it
        from tests.nitrosocks.memory import App, Factory

        opening = world.tunnel.stream_endpoint(Address("192.0.2.80", 80)).connect(Factory.forProtocol(App))
        opening.addErrback(lambda _: None)
        world.settle()
        self.assertEqual(len(world.egress.held), 1)
        opening.cancel()
        world.settle()
        session = next(iter(world.server.sessions))
        self.assertEqual(len(session.mux.streams), 0)

    def test_back_pressure(self) -> None:
        """A target that takes nothing stops its stream after a window and the buffers, and no other stream."""
        world = World()
        slow, _ = world.open()
        world.settle()
        target = world.egress.targets[0]
        end = target.protocol
        target.registerProducer = lambda producer, streaming: None  # type: ignore[method-assign]
        end.peer.pauseProducing()
        slow.transport.write(bytes(1_000_000))  # type: ignore[union-attr]
        world.settle()
        self.assertLessEqual(len(target.bytes_written), 0)
        quick, _ = world.open()
        world.settle()
        quick.transport.write(b"quick")  # type: ignore[union-attr]
        world.settle()
        self.assertEqual(world.egress.targets[1].bytes_written, b"quick")
        end.peer.resumeProducing()
        world.settle(1.0)
        self.assertEqual(len(target.bytes_written), 1_000_000)

    def test_windows_grow(self) -> None:
        """A stream that has brought a mebibyte may have more on the way."""
        world = World()
        app, _ = world.open()
        world.settle()
        for _ in range(40):
            app.transport.write(bytes(65536))  # type: ignore[union-attr]
            world.settle()
        stream = next(iter(next(iter(world.server.sessions)).mux.streams.values()))
        self.assertEqual(stream.window, 1024 * 1024)
        self.assertEqual(len(world.egress.targets[0].bytes_written), 40 * 65536)

    def test_datagrams_that_cannot_be(self) -> None:
        """Nonsense in a flow of datagrams, and one that is too long for its path, end no connection."""
        world = World()
        outcomes = [world.open(datagrams=True)[1] for _ in range(2)]
        world.settle()
        streams = next(iter(world.server.sessions)).mux.streams
        self.assertEqual(sorted(streams), [1, 2])

        def too_long(data: bytes) -> None:
            raise error.MessageLengthError

        target = streams[2].protocol._target  # type: ignore[union-attr]
        target._port = SimpleNamespace(write=too_long, stopListening=lambda: None)
        for outcome in outcomes:
            outcome[0].transport.transport.write(b"\0\1x")
        world.settle()
        self.assertEqual(sorted(streams), [1, 2])
        outcomes[0][0].transport.transport.write(b"\xff\xff" * 5)
        world.settle()
        self.assertEqual(sorted(streams), [2])
        self.assertEqual(len(world.wires), 1)

    def test_many_streams(self) -> None:
        """A session has 1,024 streams; one more goes to a second session."""
        world = World()
        outcomes = [world.open()[1] for _ in range(1025)]
        world.settle()
        self.assertTrue(all(outcome and not hasattr(outcome[0], "value") for outcome in outcomes))
        self.assertEqual(len(world.tunnel.sessions), 2)

    def test_realms(self) -> None:
        """The server name chooses the realm; an unknown one, or none, is the default's."""
        world = World()
        other = World(seed=9)
        config = world.server.config
        config.realms["second.example"] = other.server.config.realms[""]  # type: ignore[index]
        for name, realm in ((b"second.example", other.realm), (b"SECOND.example", other.realm), (None, world.realm)):
            world.server_side.name = name
            before = len(realm)
            client = World(seed=3)
            client.server, client.server_side = world.server, world.server_side
            _, outcome = client.open()
            client.settle()
            self.assertEqual(len(outcome), 1)
            self.assertEqual(len(realm), before + 1)
