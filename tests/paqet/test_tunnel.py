"""paqet's client and server together, in memory: streams, datagrams, dialects, health, ends and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.egress import Egress, EgressPolicy, parse_rule
from mikanet.errors import DestinationError, Reason, ServerError, reason_of
from mikanet.guard.targets import TargetLimits, Targets
from mikanet.paqet.client import HALF_CLOSED_TIME, PaqetTunnel
from mikanet.paqet.connection import MAX_MISSED, PING_INTERVAL
from mikanet.paqet.server import MESSAGE_TIME
from mikanet.paqet.wire import MAX_DATAGRAM, Dialect, Message, MessageType, encode
from mikanet.relay import MemoryBudget
from mikanet.smux.connection import SmuxConnection
from mikanet.smux.forward import LAST_WORDS_TIME
from mikanet.smux.session import SmuxSettings
from tests.paqet.world import CLIENT_LINK, SERVER_LINK, SMUX, TARGET, Application, World
from tests.support.transports import LOST, MemoryTransport
from tests.support.vectors import load

VECTORS = load("paqet/messages.json")


def established(world: World, **changes: Any) -> tuple[PaqetTunnel, Application, MemoryTransport]:
    """A tunnel with one stream to a target that answered."""
    tunnel = world.live(**changes)
    application = world.connect(tunnel, b"early ")
    world.run(lambda: world.egress.waiting)
    return tunnel, application, world.egress.let_through()


class StreamTests(SynchronousTestCase):
    """TCP."""

    def test_both_ways(self) -> None:
        """Early bytes, bytes and a clean end reach the target; bytes and the target's end come back."""
        world = World()
        _, application, target = established(world)
        world.run(lambda: target.bytes_written == b"early ")
        application.transport.write(b"request")  # type: ignore[union-attr]
        world.run(lambda: target.bytes_written == b"early request")
        target.receive(b"response")
        world.run(lambda: application.received == [b"response"])
        target.receive_fin()
        world.run(lambda: application.lost is not None)
        assert application.lost is not None
        self.assertIs(application.lost.type, error.ConnectionDone)
        self.assertEqual(world.egress.dialled, [TARGET])
        self.assertEqual(world.factory.connections, set())

    def test_megabytes(self) -> None:
        """Two megabytes each way over a bad wire come through as they were."""
        world = World("delay=10ms loss=10% reorder=5% duplicate=1% corrupt=0.1%")
        _, application, target = established(world)
        up, down = world.net.random.randbytes(2_000_000), world.net.random.randbytes(2_000_000)
        application.transport.write(up)  # type: ignore[union-attr]
        target.receive(down)
        size = len(up)
        world.run(lambda: len(target.bytes_written) == size + 6 and sum(map(len, application.received)) == size, 300)
        self.assertEqual(target.bytes_written, b"early " + up)
        self.assertEqual(b"".join(application.received), down)

    def test_close_of_the_application(self) -> None:
        """A close of the application ends the target cleanly; a dial that is under way is given up."""
        world = World()
        tunnel, application, target = established(world)
        application.transport.loseConnection()  # type: ignore[union-attr]
        world.run(lambda: target.closed)
        self.assertFalse(target.aborted)
        other = world.connect(tunnel)
        world.run(lambda: len(world.egress.dialled) == 2)
        other.transport.abortConnection()  # type: ignore[union-attr]
        world.run(lambda: world.egress.cancelled == 1)
        self.assertEqual(world.factory.connections, set())

    def test_half_close(self) -> None:
        """When the application sends no more, the response still arrives; silence after it ends the stream."""
        world = World()
        _, application, target = established(world)
        application.transport.loseWriteConnection()  # type: ignore[union-attr]
        world.clock.sleep(HALF_CLOSED_TIME / 2)
        target.receive(b"late response")
        world.run(lambda: application.received == [b"late response"])
        self.assertFalse(target.fin)
        world.run(lambda: target.fin, 2 * HALF_CLOSED_TIME + 1)
        world.run(lambda: target.closed, LAST_WORDS_TIME + 1)

    def test_early_end(self) -> None:
        """What an application sends before it closes reaches a target that answers later, and then an end."""
        world = World()
        tunnel = world.live()
        application = world.connect(tunnel, b"all of it")
        world.run(lambda: world.egress.waiting)
        application.transport.loseConnection()  # type: ignore[union-attr]
        world.clock.sleep(1)
        self.assertEqual(world.egress.cancelled, 0)
        target = world.egress.let_through()
        self.assertEqual((target.bytes_written, target.fin, target.aborted), (b"all of it", True, False))
        target.receive_fin()
        world.clock.sleep(1)
        self.assertTrue(target.closed)
        self.assertEqual(world.factory.connections, set())

    def test_bursts(self) -> None:
        """As many connections as a session has streams, again and again, a second after one another: streams whose
        application has ended make room at once, at both ends, and none of the new ones fails."""
        world = World(smux=replace(SMUX, max_streams=40))
        tunnel = world.live(smux=replace(SMUX, max_streams=40))
        for _ in range(4):
            applications = [world.connect(tunnel, b"x") for _ in range(39)]
            world.run(lambda: len(world.egress.waiting) == 39)
            targets = [world.egress.let_through() for _ in range(39)]
            for target in targets:
                target.receive(b"answer")
            world.run(lambda apps=applications: all(each.received == [b"answer"] for each in apps))
            self.assertEqual([each.lost for each in applications], [None] * 39)
            for each in applications:
                each.transport.loseWriteConnection()  # type: ignore[union-attr]
            world.clock.sleep(1)
            self.assertEqual((world.failures, world.counters["paqet.server.refused.limit"]), ([], 0))
        self.assertEqual(world.ports[0].opened, 1)

    def test_target_not_reached(self) -> None:
        """The wire has no status: a target that is refused or silent shows as an end."""
        world = World()
        tunnel = world.live()
        world.egress.refuse = DestinationError(Reason.POLICY)
        application = world.connect(tunnel)
        world.run(lambda: application.lost is not None)
        self.assertEqual(world.counters["paqet.server.target.policy"], 1)

    def test_one_address_leaves_files(self) -> None:
        """Streams of one client's address to a black hole have a bound."""
        world = World()
        targets = Targets(TargetLimits(40, 3))
        policy = EgressPolicy(allow=(parse_rule("0.0.0.0/0"),))
        egress = Egress(MemoryReactorClock(), policy, targets=targets)
        world.factory.config = replace(world.factory.config, egress=egress)
        tunnel = world.live()
        applications = [world.connect(tunnel, to=Address("192.0.2.80", 80)) for _ in range(5)]
        world.run(lambda: sum(application.lost is not None for application in applications) == 2)
        self.assertEqual(targets.total, 3)
        self.assertEqual(world.counters["paqet.server.target.limit"], 2)

    def test_connections_take_turns(self) -> None:
        """Streams go to the connections in turn, and to the living where one is dead."""
        world = World()
        tunnel = world.live(connections=3)
        for _ in range(6):
            world.connect(tunnel)
        world.run(lambda: len(world.egress.dialled) == 6)
        used = [len(each._smux.streams) for each in tunnel.connections if each._smux is not None]
        self.assertEqual(used, [2, 2, 2])
        tunnel.connections[1].stop()
        for _ in range(4):
            world.connect(tunnel)
        used = [len(each._smux.streams) for each in tunnel.connections if each._smux is not None]
        self.assertEqual(sorted(used), [4, 4])

    def test_hosts_that_cannot_be_carried(self) -> None:
        """A host that no message can carry is refused before anything is sent."""
        tunnel = World().tunnel(start=False)
        for host in ("", "h" * 254):
            problem = self.assertRaises(DestinationError, tunnel.stream_endpoint, Address(host, 1))
            self.assertIs(problem.reason, Reason.HOST_UNREACHABLE)


class DatagramTests(SynchronousTestCase):
    """UDP."""

    def test_datagrams_stay_whole(self) -> None:
        """Datagrams of every size up to the largest cross one by one, both ways, in order."""
        world = World()
        flow = world.connect(world.live(), udp=True)
        world.run(lambda: flow.transport is not None)
        sizes = [1, 20, 1306, 1307, MAX_DATAGRAM]
        for size in sizes:
            flow.transport.write(bytes(size))  # type: ignore[union-attr]
        world.run(lambda: world.sockets and len(world.sockets[0].sent) == len(sizes))
        self.assertEqual([len(each) for each in world.sockets[0].sent], sizes)
        self.assertEqual((world.sockets[0].peer, world.egress.resolved), (("93.184.216.34", 443), [TARGET]))
        for size in sizes:
            world.sockets[0].protocol.datagramReceived(bytes(size), None)
        world.run(lambda: len(flow.received) == len(sizes))
        self.assertEqual([len(each) for each in flow.received], sizes)

    def test_too_long_and_empty(self) -> None:
        """Datagrams above 4096 bytes are lost at the edges, and empty ones do not exist."""
        world = World()
        flow = world.connect(world.live(), udp=True)
        for data in (bytes(4097), b"", b"good"):
            flow.transport.write(data)  # type: ignore[union-attr]
        world.run(lambda: world.sockets and world.sockets[0].sent == [b"good"])
        for data in (bytes(4097), b"", b"answer"):
            world.sockets[0].protocol.datagramReceived(data, None)
        world.run(lambda: flow.received == [b"answer"])

    def test_end_of_a_flow(self) -> None:
        """A flow that is closed lets go of its socket; one that fails ends the stream."""
        world = World()
        tunnel = world.live()
        flow = world.connect(tunnel, b"x", udp=True)
        world.run(lambda: world.sockets)
        flow.transport.loseConnection()  # type: ignore[union-attr]
        world.run(lambda: world.sockets[0].closed)
        world.egress.refuse = DestinationError(Reason.POLICY)
        refused = world.connect(tunnel, b"x", udp=True)
        world.run(lambda: refused.lost is not None)

    def test_idle_flow(self) -> None:
        """A flow that carries nothing ends by the server's clock too."""
        world = World()
        flow = world.connect(world.live(), b"x", udp=True)
        world.run(lambda: flow.lost is not None, 300)
        self.assertTrue(world.sockets[0].closed)


class DialectTests(SynchronousTestCase):
    """Three ways to write messages."""

    def test_every_pair(self) -> None:
        """A client that speaks what the server takes gets through; any other is told what to write, and why."""
        for taken in Dialect:
            for spoken in Dialect:
                world = World(dialects=(taken,))
                tunnel = world.tunnel(dialects=(spoken,))
                if taken is spoken:
                    application = world.connect(tunnel, b"hello")
                    world.run(lambda world=world: world.egress.waiting)
                    target = world.egress.let_through()
                    world.run(lambda target=target: target.bytes_written == b"hello")
                    flow = world.connect(tunnel, b"datagram", udp=True)
                    world.run(lambda world=world: world.sockets and world.sockets[0].sent == [b"datagram"])
                    self.assertIsNone(application.lost or flow.lost)
                else:
                    world.run(lambda world=world: world.said)
                    self.assertIn(f"speaks dialect {taken.value} and not {spoken.value}", world.said[0])
                    world.connect(tunnel)
                    self.assertIs(reason_of(world.failures[0].value), Reason.HOST_UNREACHABLE)

    def test_client_finds_the_dialect(self) -> None:
        """A client that may speak several takes the server's."""
        for taken in Dialect:
            world = World(dialects=(taken,))
            tunnel = world.live(dialects=tuple(Dialect))
            self.assertIs(tunnel.connections[0].dialect, taken)

    def go_gob(self, world: World) -> list[bytes]:
        """Make the world's server one that reads gob as Go's decoder does; the messages that it got."""
        got: list[bytes] = []
        ping, pong = (bytes.fromhex(VECTORS["gob"][number]["wire"]) for number in (0, 1))

        class GoServer(Protocol):
            data = b""

            def dataReceived(self, data: bytes) -> None:
                # A message is its length, one byte below 128, and so many more; five of them are a PING.
                self.data += data
                at, count = 0, 0
                while at < len(self.data) and self.data[at] < 128 and at + 1 + self.data[at] <= len(self.data):
                    at, count = at + 1 + self.data[at], count + 1
                assert self.transport is not None
                if count and self.data[0] != ping[0]:
                    self.transport.loseConnection()  # not the description of a type
                elif self.data == ping:
                    got.append(self.data)
                    self.transport.write(pong)
                    self.transport.loseConnection()
                elif self.data.startswith(ping[:1]) and count:
                    got.append(self.data)

        made = world.factory.buildProtocol

        def build(addr: Any) -> Any:
            smux: Any = made(addr)
            smux._factory.buildProtocol = lambda _: GoServer()
            return smux

        world.factory.buildProtocol = build  # type: ignore[method-assign]
        return got

    def test_go_server_of_the_document(self) -> None:
        """A gob server of the original waits for ever for the rest of a question in another dialect; it is found all the
        same, at once, and by the next sessions asked in gob alone."""
        world = World()
        got = self.go_gob(world)
        tunnel = world.tunnel()
        world.run(lambda: tunnel.connections[0].live, 3)
        connection = tunnel.connections[0]
        self.assertIs(connection.dialect, Dialect.GOB)
        assert connection._smux is not None
        world.clock.sleep(1)
        self.assertEqual(len(connection._smux.streams), 0)
        world.connect(tunnel, b"hello", to=TARGET)
        wanted = encode(Message(MessageType.TCP, TARGET), Dialect.GOB)
        world.run(lambda: any(each.startswith(wanted) for each in got))
        world.net.sessions.abort_all()
        opened = world.ports[0].opened
        world.run(lambda: world.ports[0].opened > opened and connection.live, 60)
        self.assertIs(connection.dialect, Dialect.GOB)

    def test_go_server_and_another_dialect_wanted(self) -> None:
        """A client that may not speak gob says what the server speaks, though its own question gets no answer."""
        world = World()
        self.go_gob(world)
        world.tunnel(dialects=(Dialect.A21,))
        world.run(lambda: world.said, 5)
        self.assertIn("speaks dialect gob and not a21: write dialect: gob", world.said[0])

    def test_server_that_changes_its_dialect(self) -> None:
        """A server that was replaced by one of another dialect is found again."""
        for before, after in ((Dialect.GOB, Dialect.A21), (Dialect.A21, Dialect.GOB)):
            world = World(dialects=(before,))
            tunnel = world.live()
            world.factory.config = replace(world.factory.config, dialects=(after,))
            world.net.sessions.abort_all()
            world.run(lambda connection=tunnel.connections[0], after=after: connection.dialect is after, 60)

    def test_server_says_what_it_does_not_take(self) -> None:
        """A server that meets clients of a dialect that it does not take says so once; not because of a client that asks in
        several and goes on in one that it takes."""
        for taken in Dialect:
            for spoken in Dialect:
                world = World(dialects=(taken,))
                with capturedLogs() as logs:
                    world.live(dialects=(taken,))
                    for _ in range(3):
                        # An original client: no PING.
                        smux = SmuxConnection(SMUX, True, world.clock)
                        world.net.client(smux, CLIENT_LINK, ("original", len(world.net.clients)))
                        smux.open(Application(encode(Message(MessageType.TCP, TARGET), spoken)))
                        world.clock.sleep(2 * MESSAGE_TIME + 10)
                said = [each["log_format"] for each in logs if "client speaks dialect" in each.get("log_format", "")]
                self.assertEqual(len(said), int(taken is not spoken), (taken, spoken))

    def test_dialect_is_told_when_the_client_goes(self) -> None:
        """A client that gives up and goes leaves no timer; what it spoke is said then."""
        world = World(dialects=(Dialect.A21,))
        smux = SmuxConnection(SMUX, True, world.clock)
        session = world.net.client(smux, CLIENT_LINK, ("original", 1))
        smux.open(Application(encode(Message(MessageType.TCP, TARGET), Dialect.GOB)))
        world.clock.sleep(1)
        self.assertEqual(len(world.factory.deadlines), 1)
        with capturedLogs() as logs:
            world.net.sessions.abort_all()
            session.kcp.abortConnection()
        self.assertIn("speaks dialect", str([each.get("log_format") for each in logs]))
        self.assertEqual(len(world.factory.deadlines), 0)

    def test_server_takes_all_in_one_session(self) -> None:
        """A server that takes all three tells them apart stream by stream."""
        world = World(dialects=tuple(Dialect))
        tunnels = [world.live(dialects=(dialect,)) for dialect in (Dialect.GOB, Dialect.A21)]
        for number, tunnel in enumerate(tunnels):
            world.connect(tunnel, to=Address("example.com", 1 + number))
        world.run(lambda: len(world.egress.dialled) == 2)
        self.assertEqual({each.port for each in world.egress.dialled}, {1, 2})

    def test_gob_message_stands_alone(self) -> None:
        """In gob the message has a frame of its own: the original's decoder throws away what follows in the same one."""
        world = World(dialects=(Dialect.GOB,))
        tunnel = world.live(dialects=(Dialect.GOB,))
        frames: list[bytes] = []
        session = next(iter(world.net.sessions._by_peer.values()))[0]
        streams = cast(Any, session.kcp.upper)._factory
        accept = streams.buildProtocol

        def build(addr: Any) -> Any:
            stream = accept(addr)
            take = stream.dataReceived

            def received(data: bytes) -> None:
                frames.append(data)
                take(data)

            stream.dataReceived = received
            return stream

        streams.buildProtocol = build
        world.connect(tunnel, b"data")
        world.run(lambda: world.egress.dialled)
        self.assertEqual(frames, [encode(Message(MessageType.TCP, TARGET), Dialect.GOB), b"data"])


class FlagTests(SynchronousTestCase):
    """Flag lists."""

    def test_list_lives_as_long_as_its_session(self) -> None:
        """The server's port learns the list, and forgets it when the session ends."""
        world = World()
        tunnel = world.live(remote_flags=(0x18, 0x10))
        world.run(lambda: world.flags)
        self.assertEqual([flags for _, flags in world.flags], [(0x18, 0x10)])
        tunnel.stop()
        world.run(lambda: len(world.flags) == 2)
        self.assertEqual(world.flags[1], (world.flags[0][0], ()))

    def test_newer_session_keeps_its_list(self) -> None:
        """A session that replaces another at the same address keeps its own list when the old one ends."""
        world = World()
        old = world.live(remote_flags=(0x10,), fixed=("client", 5))
        world.run(lambda: world.flags)
        old.connections[0].stop()
        world.live(remote_flags=(0x12,), fixed=("client", 5))
        world.run(lambda: len(world.flags) >= 2)
        world.clock.sleep(60)
        self.assertEqual(world.flags[-1][1], (0x12,))

    def test_list_of_a_proven_session_and_end_of_the_old(self) -> None:
        """The list of a new session, obeyed before the old one is ended, is not taken away with that one."""
        world = World()
        client = IPv4Address("TCP", "10.0.0.1", 5)
        old, new = (world.factory.buildProtocol(client) for _ in range(2))
        assert old is not None
        assert new is not None
        cast(Any, old._factory).flags_received((0x10,))
        cast(Any, new._factory).flags_received((0x12,))
        for session in (old, new):
            assert session._on_lost is not None
            session._on_lost(LOST)
        self.assertEqual([flags for _, flags in world.flags], [(0x10,), (0x12,), ()])


class HealthTests(SynchronousTestCase):
    """What a client knows of its server."""

    def test_server_that_is_away(self) -> None:
        """Without a server an attempt to connect fails in time, and the user is told once; when it comes, it is used."""
        world = World()
        sessions, world.net.sessions = world.net.sessions, cast(Any, _Nobody())
        tunnel = world.tunnel()
        world.connect(tunnel)
        failures = world.failures
        world.run(lambda: failures, 20)
        self.assertIs(reason_of(failures[0].value), Reason.TIMEOUT)
        world.clock.sleep(30)
        world.net.sessions = sessions
        world.run(lambda: tunnel.connections[0].live, 60)
        self.assertIn("answers nothing; trying again: check", world.said[0])
        self.assertLessEqual(len(world.said), 3)
        self.assertEqual(world.said[-1], "the server server:9999 answers")

    def test_doors_refuse_from_the_third_second_on(self) -> None:
        """Who waits is told after three seconds, who comes later at once, until the server answers; the words name the key."""
        world = World()
        sessions, world.net.sessions = world.net.sessions, cast(Any, _Nobody())
        tunnel = world.tunnel()
        began = world.clock.seconds()
        world.connect(tunnel)
        world.run(lambda: world.failures, 20)
        self.assertLess(world.clock.seconds() - began, 3.5)
        problem = world.failures[0].value
        self.assertIsInstance(problem, ServerError)
        self.assertEqual(
            str(problem),
            "the tunnel's server answers nothing; trying again: check that it runs, that key and block are its own, and"
            " that its port can be reached",
        )
        world.connect(tunnel)
        self.assertEqual(len(world.failures), 1, "at once")
        world.clock.sleep(40)
        world.connect(tunnel)
        self.assertEqual(len(world.failures), 1, "at once, also when nobody has asked for a while")
        world.net.sessions = sessions
        world.run(lambda: tunnel.connections[0].live, 60)
        app = world.connect(tunnel)
        world.run(lambda: app.transport is not None)
        self.assertEqual(world.failures, [])

    def test_wrong_key(self) -> None:
        """With another key nothing is answered, nothing opened and nothing counted but failed checks (X2)."""
        world = World()
        tunnel = world.tunnel(link=replace(CLIENT_LINK, key=bytes(32)))
        world.run(lambda: world.said, 30)
        self.assertFalse(tunnel.connections[0].live)
        self.assertEqual(world.net.counters["kcp.server.opened"], 0)
        self.assertGreater(world.net.counters["kcp.server.dropped.check"], 0)

    def test_three_missed(self) -> None:
        """A server whose session lives and whose messages get no answer is left for a new session; streams are reset."""
        world = World()
        _, application, _ = established(world)
        sessions = world.ports[0].opened
        session = next(iter(world.net.sessions._by_peer.values()))[0]
        streams = cast(Any, session.kcp.upper)._factory
        streams.buildProtocol = lambda addr: Application()
        world.run(lambda: application.lost is not None, PING_INTERVAL * (MAX_MISSED + 2))
        assert application.lost is not None
        self.assertIsNot(application.lost.type, error.ConnectionDone)
        world.run(lambda: world.ports[0].opened == sessions + 1)
        self.assertEqual(world.tunnels[0]._config.counters["paqet.client.unhealthy"], 1)

    def test_healthy_for_long(self) -> None:
        """Ten minutes of PINGs leave one session, and no stream behind."""
        world = World()
        tunnel = world.live()
        world.clock.sleep(600)
        self.assertEqual(world.ports[0].opened, 1)
        self.assertGreater(world.counters["paqet.server.message.a21.ping"], 55)
        smux = tunnel.connections[0]._smux
        assert smux is not None
        self.assertLessEqual(len(smux.streams), 1)

    def test_server_that_restarts(self) -> None:
        """Streams of a server that is gone are reset, and a new session follows by itself."""
        world = World()
        tunnel, application, target = established(world)
        world.net.sessions.abort_all()
        self.assertTrue(target.aborted)
        world.run(lambda: application.lost is not None, 30)
        assert application.lost is not None
        self.assertIsNot(application.lost.type, error.ConnectionDone)
        world.run(lambda: tunnel.connections[0].live, 30)
        again = world.connect(tunnel, b"again")
        world.run(lambda: world.egress.waiting)
        self.assertIsNone(again.lost)

    def test_new_stream_at_the_end_of_a_session(self) -> None:
        """Who opens a new stream when told of the end of the old one gets it in the next session."""
        world = World()
        tunnel, application, _ = established(world)
        again: list[Application] = []
        application.connectionLost = lambda reason=None: again.append(world.connect(tunnel, b"again"))  # type: ignore[assignment]
        world.net.sessions.abort_all()
        world.run(lambda: world.egress.waiting, 30)
        target = world.egress.let_through()
        world.run(lambda: target.bytes_written == b"again")
        self.assertEqual(len(again), 1)

    def test_idle_tunnel_of_a_program(self) -> None:
        """A tunnel that is not resident begins when it is wanted and lets go when idle."""
        world = World()
        tunnel = world.tunnel(start=False, resident=False)
        application = world.connect(tunnel)
        self.assertTrue(world.ports[0].started)
        world.run(lambda: world.egress.waiting)
        world.clock.sleep(60)
        self.assertTrue(tunnel.connections[0].live)
        application.transport.loseConnection()  # type: ignore[union-attr]
        world.run(lambda: not tunnel.connections[0].live, 60)
        world.clock.sleep(60)
        self.assertEqual(world.ports[0].opened, 1)
        world.connect(tunnel)
        world.run(lambda: len(world.egress.dialled) == 2)

    def test_stop(self) -> None:
        """After the stop nothing goes on."""
        world = World()
        tunnel = world.live(connections=2)
        waiting = world.connect(tunnel)
        tunnel.stop()
        self.assertTrue(all(port.stopped for port in world.ports))
        world.clock.sleep(100)
        self.assertEqual([port.opened for port in world.ports], [1, 1])
        self.assertIsNotNone(waiting.lost)


class _Nobody:
    """A server that is away."""

    def packets_received(self, peer: Any, packets: Any) -> None:
        """Lost."""


class NetworkTests(SynchronousTestCase):
    """A network that changes."""

    def silent(self) -> tuple[World, PaqetTunnel]:
        """A tunnel whose packets have just begun to get lost, with something to send."""
        world = World()
        tunnel, application, _ = established(world)
        world.net.sessions.abort_all()
        application.transport.write(b"x")  # type: ignore[union-attr]
        return world, tunnel

    def test_silence_without_change(self) -> None:
        """While nothing is acknowledged, name and way are looked up again every few seconds; the session goes on."""
        world, tunnel = self.silent()
        began = tunnel.connections[0].live
        world.clock.sleep(8)
        self.assertTrue(began and tunnel.connections[0].live)
        self.assertIn(world.ports[0].looks, (1, 2))
        self.assertEqual(world.ports[0].opened, 1)

    def test_silence_and_change(self) -> None:
        """If they are others than before, a session begins at once, long before the old one would have died of silence."""
        world, tunnel = self.silent()
        world.ports[0].moved = True
        world.run(lambda: world.ports[0].opened == 2, 6)
        world.ports[0].moved = False
        world.run(lambda: tunnel.connections[0].live, 2)

    def test_told_of_a_change(self) -> None:
        """When the kernel tells of a change there is a look at once, and nothing else while all is as before."""
        world = World()
        tunnel, _, _ = established(world)
        tunnel.network_changed()
        self.assertEqual((world.ports[0].looks, world.ports[0].opened), (1, 1))
        world.ports[0].moved = True
        tunnel.network_changed()
        world.ports[0].moved = False
        world.run(lambda: world.ports[0].opened == 2 and tunnel.connections[0].live, 2)

    def test_nothing_is_left(self) -> None:
        """A tunnel that has ended watches no more."""
        world = World()
        tunnel, _, _ = established(world)
        tunnel.stop()
        tunnel.network_changed()
        world.clock.sleep(60)
        self.assertEqual((world.ports[0].looks, world.ports[0].opened), (0, 1))


class RefusalTests(SynchronousTestCase):
    """What a server does not do."""

    def raw_stream(self, world: World, data: bytes) -> Application:
        """A stream with these first bytes."""
        smux = world.tunnels[0].connections[0]._smux
        assert smux is not None
        application = Application(data)
        smux.open(application)
        return application

    def test_nonsense_ends_the_stream_alone(self) -> None:
        """A stream that begins with no message is ended, and the session lives."""
        world = World()
        world.live()
        for data in (
            b"\x50\x02",
            b"\x50\x01\x09",
            bytes(300),
            encode(Message(MessageType.TCP, Address("", 80)), Dialect.A21),
        ):
            stream = self.raw_stream(world, data)
            world.run(lambda stream=stream: stream.lost is not None)
        self.assertEqual(world.counters["paqet.server.refused.message"], 4)
        self.assertTrue(world.tunnels[0].connections[0].live)
        self.assertEqual(world.egress.dialled, [])

    def test_stream_without_a_message(self) -> None:
        """A stream that says nothing is ended after its time; one that is closed at once is harmless."""
        world = World()
        world.live()
        stream = self.raw_stream(world, b"")
        world.run(lambda: stream.lost is not None, MESSAGE_TIME + 5)
        self.assertEqual(world.counters["paqet.server.refused.silent"], 1)
        self.raw_stream(world, b"").transport.loseConnection()  # type: ignore[union-attr]
        world.clock.sleep(MESSAGE_TIME + 5)
        self.assertEqual(world.counters["paqet.server.refused.silent"], 1)

    def test_limits(self) -> None:
        """Over the cap of streams, over the budget, or while the server stops, no target is opened."""
        world = World(max_streams=1)
        tunnel, first, _ = established(world)
        second = world.connect(tunnel)
        world.run(lambda: second.lost is not None)
        self.assertEqual((world.counters["paqet.server.refused.limit"], first.lost), (1, None))
        full = World(budget=MemoryBudget(0))
        refused = full.connect(full.live())
        full.run(lambda: refused.lost is not None)
        world.factory.draining = True
        third = world.connect(tunnel)
        world.run(lambda: third.lost is not None)
        self.assertEqual(len(world.egress.dialled), 1)
        self.assertEqual(world.counters["paqet.server.refused.draining"], 1)

    def test_streams_of_one_session(self) -> None:
        """A session has so many streams and no more; the client says so."""
        world = World(smux=SmuxSettings(2, 65535, max_streams=4))
        tunnel = world.live(smux=replace(SMUX, max_streams=4))
        for _ in range(4):
            world.connect(tunnel)
        world.connect(tunnel)
        self.assertIs(reason_of(world.failures[0].value), Reason.LIMIT)


class ProofTests(SynchronousTestCase):
    """Nothing happens for a recording (Q4)."""

    def test_replayed_session(self) -> None:
        """A recorded session that opened a target opens none when a fresh server process gets it again."""
        world = World()
        world.net.client_port.keep = True
        established(world)
        recorded = list(world.net.client_port.sent)
        self.assertEqual(len(world.egress.dialled), 1)
        fresh = World()
        for packet in recorded:
            fresh.net.sessions.packets_received(("10.6.6.6", 1), [packet])
        fresh.clock.sleep(20)
        self.assertEqual(fresh.net.counters["kcp.server.opened"], 1)
        self.assertEqual((fresh.egress.dialled, fresh.flags), ([], []))
        self.assertEqual(len(fresh.net.sessions), 0)

    def test_replay_at_the_address_of_a_session(self) -> None:
        """The recording of an earlier session, sent from the address of the live one, ends nothing and opens nothing."""
        world = World(link=SERVER_LINK)
        world.net.client_port.keep = True
        established(world, fixed=("client", 7))
        recorded = list(world.net.client_port.sent)
        fresh = World()
        _, application, target = established(fresh, fixed=("client", 7))
        for packet in recorded:
            fresh.net.sessions.packets_received(("client", 7), [packet])
        fresh.clock.sleep(10)
        target.receive(b"still here")
        fresh.run(lambda: application.received == [b"still here"])
        self.assertEqual(len(fresh.egress.dialled), 1)
        self.assertEqual(fresh.net.counters["kcp.server.replaced"], 0)

    def test_reflected_packets(self) -> None:
        """Every packet that returns to its sender is dropped there."""
        world = World("delay=10ms mirror=100%")
        _, application, target = established(world)
        target.receive(b"answer")
        world.run(lambda: application.received == [b"answer"])
        world.clock.sleep(1)
        self.assertEqual(len(world.egress.dialled), 1)
        self.assertGreater(world.net.counters["kcp.server.dropped.repeated"], 3)
