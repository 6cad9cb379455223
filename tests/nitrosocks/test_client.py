"""Tests of mikanet.nitrosocks.client, its mux and its datagrams: the client with everything but sockets and TLS."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, Reason, RemoteProtocolError, ServerError
from mikanet.interfaces import IPacketTransport, ITunnel
from mikanet.nitrosocks.client import NitroTunnel, Server
from mikanet.nitrosocks.client_protocol import NitroClientProtocol
from mikanet.nitrosocks.datagrams import DatagramFilter
from mikanet.nitrosocks.frames import Command, encode, encode_number
from mikanet.nitrosocks.link import Token
from mikanet.nitrosocks.mux import Mux
from mikanet.nitrosocks.tls import TlsFilter
from tests.filters.contract import Upper
from tests.nitrosocks.golden import TOKEN
from tests.nitrosocks.memory import App, PlainSide, World
from tests.support.transports import MemoryTransport


class TunnelTests(SynchronousTestCase):
    """Sessions, servers, and what the user is told."""

    def test_interface(self) -> None:
        """It is a tunnel."""
        verifyObject(ITunnel, World().tunnel)

    def test_one_session_for_all(self) -> None:
        """Streams that are opened while there is no session yet share the one that is made."""
        world = World()
        outcomes = [world.open()[1] for _ in range(5)]
        world.settle()
        self.assertEqual(len(world.wires), 1)
        self.assertTrue(all(isinstance(outcome[0], App) for outcome in outcomes))

    def test_failover(self) -> None:
        """The next server is tried when one cannot be reached, and is the first choice from then on."""
        world = World()
        tried: list[str] = []

        class Dead:
            """A server that is not there."""

            def connect(self, factory: object) -> object:
                """Refused."""
                tried.append("dead")
                return fail(error.ConnectionRefusedError())

        servers = [Server("dead", Dead()), Server("memory", world)]  # type: ignore[arg-type]
        world.tunnel = NitroTunnel(world.clock, servers, world.tunnel.config, world.reports.append)
        app, outcome = world.open()
        world.settle()
        self.assertIs(outcome[0], app)
        self.assertIn("the server dead", world.reports[0])
        world.tunnel.stop()
        world.settle()
        again = NitroTunnel(world.clock, servers, world.tunnel.config, world.reports.append)
        self.assertEqual(len(again.sessions), 0)
        self.assertEqual(tried, ["dead"])

    def test_unreachable(self) -> None:
        """Without a server a stream fails at once, the user is told once a minute, and the next stream tries again."""
        world = World()
        world.reachable = False
        for _ in range(3):
            _, outcome = world.open()
            world.settle()
            self.assertIsInstance(outcome[0].value, ServerError)
            self.assertIs(outcome[0].value.reason, Reason.REFUSED)
        self.assertEqual(len(world.reports), 1)
        world.reachable = True
        app, outcome = world.open()
        world.settle()
        self.assertIs(outcome[0], app)

    def test_doors_refuse_from_the_third_second_on(self) -> None:
        """A server that answers nothing: who waits is told after three seconds, who comes later at once, with the cause."""
        world = World()
        world.server.replace_tokens(world.realm, [Token("bob", b"b" * 40)])
        _, first = world.open()
        world.settle(2.0)
        self.assertEqual(first, [])
        world.settle(1.0)
        self.assertEqual(
            str(first[0].value),
            "the tunnel's server does not let us in within 3 s: check that it can be reached, that key, token and server name"
            " are of one realm, and that both clocks are right",
        )
        world.settle(9.0)
        _, later = world.open()
        self.assertIsInstance(later[0].value, ServerError)
        self.assertIs(later[0].value.reason, Reason.TIMEOUT)
        self.assertEqual(
            str(later[0].value),
            "the tunnel's server answers nothing: check that key, token and server name are of one realm, that the token is"
            " still in the server's file, and that both clocks are right",
        )
        world.server.replace_tokens(world.realm, [TOKEN])
        world.settle(20.0)
        app, outcome = world.open()
        world.settle()
        self.assertIs(outcome[0], app)

    def test_nobody_asks_any_more(self) -> None:
        """A minute after the last application asked, the client rests, and the next one finds out anew."""
        world = World()
        world.reachable = False
        world.open()
        world.settle(10.0)
        _, refused = world.open()
        self.assertIsInstance(refused[0].value, ServerError, "at once")
        world.settle(70.0)
        self.assertEqual(world.clock.getDelayedCalls(), [])
        world.reachable = True
        app, outcome = world.open()
        world.settle()
        self.assertIs(outcome[0], app)

    def test_refused_proof_waits(self) -> None:
        """After a challenge that cannot be used the next attempt waits a while (N12)."""
        world = World(client={"decrypt": self.refuse})
        _, outcome = world.open()
        world.settle()
        self.assertIs(outcome[0].value.reason, Reason.FAILURE)
        self.assertIn("does not let us in: ", str(outcome[0].value))
        _, outcome = world.open()
        world.settle()
        self.assertEqual((outcome, len(world.wires)), ([], 1))
        world.settle(1.0)
        self.assertEqual(len(world.wires), 2)

    @staticmethod
    def refuse(block: bytes) -> bytes:
        """A decryption that fails."""
        raise RemoteProtocolError("a challenge that cannot be decrypted")

    def test_wrong_private_key(self) -> None:
        """A client whose key does not fit the server's says so, instead of what its parser ran into."""
        said = set()
        for seed in range(6):
            world = World(seed=seed)
            server = world.raw()
            world.clock.advance(1)
            protocol = NitroClientProtocol(world.clock, replace(world.tunnel.config, k0=bytes(32)), None)
            wire = MemoryTransport("192.0.2.99")
            wire.connect(TlsFilter(protocol, PlainSide()))
            wire.receive(server.bytes_written)
            world.clock.advance(30)
            wire.settle()
            said.add(str(self.failureResultOf(protocol.opened).value))
        for each in said:
            self.assertTrue("private key is not the other half" in each or "too long waiting" in each, each)
        self.assertTrue(any("private key" in each for each in said))

    def test_forgotten_session(self) -> None:
        """A server that stands but does not know the session any more ends it after one silence: streams are reset."""
        world = World()
        app, _ = world.open()
        world.settle()
        for session in list(world.server.sessions):
            session.protocol = None
            session.end("forgotten")
        world.wires[0].cut()
        world.settle(11.0)
        self.assertIsNotNone(app.reason)
        self.assertEqual(world.tunnel.sessions, [])
        app, outcome = world.open()
        world.settle(11.0)
        self.assertIs(outcome[0], app)

    def test_gives_up_after_a_minute(self) -> None:
        """A server that cannot be reached for a minute has forgotten the session: its streams are reset."""
        world = World()
        app, _ = world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        world.settle(70.0, step=1.0)
        self.assertIsNotNone(app.reason)
        self.assertEqual(world.tunnel.sessions, [])

    def test_losses_are_in_the_log(self) -> None:
        """One line for a lost connection, one for a session that is given up, however many attempts are between."""
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        world = World()
        world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        world.settle(70.0, step=1.0)
        self.assertEqual(len([line for line in lines if "was lost; coming back" in line]), 1)
        self.assertEqual(len([line for line in lines if "is given up" in line]), 1)

    def test_attempts_back_off(self) -> None:
        """The first attempt to come back is at once, then after 1, 2, 4 ... seconds."""
        world = World()
        world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        before = world.tunnel.config.counters["nitrosocks.client.connections"]
        counts = []
        for _ in range(17):
            world.settle(1.0, step=0.5)
            counts.append(world.tunnel.config.counters["nitrosocks.client.connections"] - before)
        self.assertEqual([counts[at] for at in (0, 2, 6, 14)], [1, 2, 3, 4])

    def test_streams_wait_for_the_session(self) -> None:
        """A stream that is opened between two connections of a session is opened on the second one."""
        world = World()
        world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        world.settle()
        app, outcome = world.open()
        world.settle()
        self.assertEqual(outcome, [])
        world.reachable = True
        world.settle(3.0)
        self.assertIs(outcome[0], app)

    def two_servers(self) -> tuple[World, World]:
        """A client of two servers with a session on the first, and the world of the second."""
        world, other = World(), World(seed=5)
        other.clock = other.server.reactor = world.clock
        servers = [Server("first", world), Server("second", other)]  # type: ignore[list-item]  # as endpoints
        world.tunnel = NitroTunnel(world.clock, servers, world.tunnel.config, world.reports.append)
        world.open()
        world.settle()
        return world, other

    def test_another_server_at_once(self) -> None:
        """When the first attempt to come back is refused, new streams go to another server without waiting."""
        world, other = self.two_servers()
        world.reachable = False
        world.wires[0].cut()
        app, outcome = world.open()
        world.settle()
        other.carry()
        world.settle(0.5)
        other.carry()
        self.assertIs(outcome[0], app)
        self.assertEqual(len(other.egress.targets), 1)
        self.assertEqual(len(world.tunnel.sessions), 2)
        app, outcome = world.open()
        other.carry()
        self.assertIs(outcome[0], app)

    def test_new_session_after_a_moment(self) -> None:
        """A server that comes back without our session serves new streams within seconds, though it answers no RECONNECT."""
        world = World()
        world.open()
        world.settle()
        for session in list(world.server.sessions):
            session.protocol = None
            session.end("forgotten")
        world.reachable = False
        world.wires[0].cut()
        world.settle()
        app, outcome = world.open()
        world.settle(1.5)
        self.assertEqual(outcome, [])
        world.reachable = True
        world.settle(1.5)
        self.assertIs(outcome[0], app)
        self.assertEqual(len(world.tunnel.sessions), 2)

    def test_unsent_streams_move(self) -> None:
        """A stream whose OPEN never left is opened on the session that there is next; a cancelled one is not."""
        world, other = self.two_servers()
        world.wires[0].ends[0].producer.pauseProducing()
        app, outcome = world.open()
        factory = Factory.forProtocol(App)
        unwanted = world.tunnel.stream_endpoint(Address("192.0.2.80", 80)).connect(factory)
        self.assertEqual(outcome, [])
        world.reachable = False
        world.wires[0].cut()
        unwanted.cancel()
        self.failureResultOf(unwanted)
        for _ in range(4):
            world.settle(0.25)
            other.carry()
        self.assertIs(outcome[0], app)
        self.assertEqual((len(world.egress.targets), len(other.egress.targets)), (1, 1))

    def test_stop_during_an_attempt(self) -> None:
        """Stopping while an attempt to come back is under way ends it, and nothing is tried afterwards."""
        for error_of_endpoint in (error.ConnectingCancelledError(MemoryTransport().peer), None):
            world = World()
            world.open()
            world.settle()
            attempts: list[Deferred[object]] = []

            def connect(
                factory: object, problem: Exception | None = error_of_endpoint, seen: list[Deferred[object]] = attempts
            ) -> Deferred[object]:
                seen.append(Deferred(lambda each: each.errback(problem) if problem is not None else None))
                return seen[-1]

            world.connect = connect  # type: ignore[method-assign, assignment]
            world.wires[0].cut()
            world.clock.advance(0)
            self.assertEqual(len(attempts), 1)
            done: list[object] = []
            _, outcome = world.open()
            world.tunnel.stop().addCallback(done.append)
            self.assertEqual((done, len(outcome)), ([None], 1))
            world.clock.advance(90)
            self.assertEqual(len(attempts), 1)
            self.assertEqual([call for call in world.clock.getDelayedCalls() if "lient" in repr(call)], [])

    def test_last_attempt(self) -> None:
        """The last attempt to come back is made shortly before the server forgets the session."""
        world = World()
        app, _ = world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        world.settle(50.0, step=1.0)
        world.reachable = True
        world.settle(9.0, step=0.5)
        self.assertIsNone(app.reason)
        self.assertTrue(world.tunnel.sessions[0].mux.attached)

    def test_stop_while_away(self) -> None:
        """Stopping between two connections ends at once."""
        world = World()
        world.open()
        world.settle()
        world.reachable = False
        world.wires[0].cut()
        done: list[object] = []
        world.tunnel.stop().addCallback(done.append)
        world.settle()
        self.assertEqual(done, [None])

    def test_host_that_no_frame_can_carry(self) -> None:
        """It is refused before anything is sent."""
        tunnel = World().tunnel
        self.assertRaises(LocalProtocolError, tunnel.stream_endpoint, Address("a" * 300, 80))
        self.assertRaises(LocalProtocolError, tunnel.datagram_endpoint, Address("", 80))

    def test_binding(self) -> None:
        """Bound at both ends it works; at one end only it does not."""
        for server, client, works in ((True, True, True), (True, False, False)):
            world = World(server={"binding": server}, client={"binding": client})
            _, outcome = world.open()
            world.settle(11.0)
            self.assertEqual(isinstance(outcome[0], App), works)


class MuxTests(SynchronousTestCase):
    """Frames that should not come."""

    def attached(self, server: bool = True, taken: list[bytes] | None = None) -> Mux:
        """A mux on a connection that takes everything."""
        world = World()

        class Port:
            """Takes frames."""

            writable = True
            addresses = (MemoryTransport().getPeer(), MemoryTransport().getHost())

            def send(self, frames: list[bytes]) -> None:
                """Note them, if somebody wants to know."""
                if taken is not None:
                    taken.extend(frames)

        mux = Mux(world.clock, (lambda stream, destination, datagrams: None) if server else None)
        mux.attach(Port(), resumed=False)
        return mux

    def test_refused(self) -> None:
        """Frames for streams that never were, in the wrong direction, or at the wrong time are refused."""
        opening = encode(1, Command.OPEN, b"\x01\x01\x02\x03\x04\x00\x50")
        for server, frames in (
            (True, [encode(1, Command.BYTES, b"x")]),
            (True, [encode(1, Command.EOF)]),
            (True, [opening, encode(1, Command.REPLY, b"\0")]),
            (True, [opening, opening]),
            (True, [encode_number(0, Command.RESUME, 0)]),
            (True, [encode_number(0, Command.ACK, 1)]),
            (True, [encode(0, Command.BYTES, b"x")]),
            (False, [opening]),
            (False, [encode(1, Command.REPLY, b"\0")]),
            (True, [opening, *(encode(1, Command.BYTES, bytes(16000)) for _ in range(17))]),
            (True, [opening, encode(1, Command.EOF), encode(1, Command.BYTES, b"x")]),
        ):
            mux = self.attached(server)
            mux.begin()

            def feed(mux: Mux = mux, frames: list[bytes] = frames) -> None:
                for frame in frames:
                    mux.frame_received(frame)
                mux.finish()

            self.assertRaises(RemoteProtocolError, feed)

    def test_close_is_told_at_once(self) -> None:
        """A stream that is closed while its peer still sends is reset there without waiting for anything else."""
        frames: list[bytes] = []
        mux = self.attached(taken=frames)
        mux.begin()
        mux.frame_received(encode(1, Command.OPEN, b"\x01\x01\x02\x03\x04\x00\x50"))
        mux.finish()
        stream = mux.streams[1]
        stream.connect(App())
        mux.reply(stream, None)
        stream.loseWriteConnection()
        frames.clear()
        stream.loseConnection()
        self.assertEqual(frames, [encode(1, Command.RESET)])

    def test_late_frames(self) -> None:
        """Frames for a stream that we have ended are passed over."""
        mux = self.attached()
        mux.frame_received(encode(1, Command.OPEN, b"\x01\x01\x02\x03\x04\x00\x50"))
        mux.streams[1].abortConnection()
        for frame in (encode(1, Command.BYTES, b"x"), encode_number(1, Command.CREDIT, 5), encode(1, Command.RESET)):
            mux.frame_received(frame)
        mux.finish()
        self.assertEqual(mux.streams, {})

    def test_a_link_is_a_producer(self) -> None:
        """A connection that is full stops the streams, and goes on with them."""
        world = World()
        app, _ = world.open()
        world.settle()
        link = world.wires[0].ends[0].producer
        self.assertIsInstance(link, NitroClientProtocol)
        link.pauseProducing()
        app.transport.write(b"later")  # type: ignore[union-attr]
        world.settle()
        self.assertEqual(world.egress.targets[0].bytes_written, b"")
        link.resumeProducing()
        world.settle()
        self.assertEqual(world.egress.targets[0].bytes_written, b"later")


class DatagramTests(SynchronousTestCase):
    """Datagrams."""

    def test_full_stream_drops(self) -> None:
        """While the stream's queue is full datagrams are dropped whole."""
        transport = MemoryTransport()
        filter_ = DatagramFilter(Upper())
        filter_.makeConnection(transport)
        filter_.write(b"one")
        transport.producer.pauseProducing()
        filter_.write(b"two")
        transport.producer.resumeProducing()
        filter_.write(b"three")
        self.assertEqual(transport.bytes_written, b"\0\3one\0\5three")
        filter_.dataReceived(b"\0\2ab\0\1")
        filter_.dataReceived(b"c")
        self.assertEqual(filter_.upper.received, [b"ab", b"c"])  # type: ignore[attr-defined]

    def test_nonsense(self) -> None:
        """An impossible length ends the flow."""
        transport = MemoryTransport()
        filter_ = DatagramFilter(Upper())
        filter_.makeConnection(transport)
        filter_.dataReceived(b"\xff\xff")
        self.assertTrue(transport.aborted)

    def test_sizes(self) -> None:
        """Overlong datagrams are not sent, empty ones are; it is a packet transport."""
        transport = MemoryTransport()
        filter_ = DatagramFilter(Upper())
        filter_.makeConnection(transport)
        verifyObject(IPacketTransport, filter_)
        for size in (0, 65508):
            filter_.write(bytes(size))
        self.assertEqual(transport.written, [b"\0\0"])
        filter_.registerProducer(object(), True)
        filter_.unregisterProducer()
