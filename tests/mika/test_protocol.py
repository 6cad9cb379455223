"""Mika's server protocol in memory: acceptance, relay, and every way to fail."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.crypto.replay import ReplaySet
from mikanet.errors import DestinationError, Reason
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.failures import FailureLog
from mikanet.guard.refusal import LINGER, TURN_AWAY_LINGER
from mikanet.mika.protocol import CHUNK_TIME, MikaServerConfig, MikaServerFactory
from mikanet.mika.session import ClientSession, Profile, derive_keys
from mikanet.mika.wire import Header, Kind
from mikanet.relay import MemoryBudget
from tests.support.egress import FakeEgress
from tests.support.feeding import mutations
from tests.support.transports import DONE, LOST, MemoryTransport

KEYS = {profile: derive_keys(b"a password for tests", profile) for profile in Profile}
NOW = 1_700_000_000
REFUSAL_TIME = 75.0


class ServerTestCase(SynchronousTestCase):
    """A server in memory."""

    profile = Profile.SPEC

    def setUp(self) -> None:
        """A server, its clock, and a way to make clients."""
        self.clock = Clock()
        self.egress = FakeEgress()
        self.replays = ReplaySet()
        self.rng = random.Random(7)
        self.make_factory()

    def make_factory(self, **changes: Any) -> None:
        """A factory with other settings."""
        settings: dict[str, Any] = {
            "keys": KEYS[self.profile],
            "egress": self.egress,
            "replays": self.replays,
            "refusal_time": REFUSAL_TIME,
            "wall_clock": lambda: NOW + self.clock.seconds(),
        }
        self.config = MikaServerConfig(**(settings | changes))
        self.factory = MikaServerFactory(self.clock, self.config)

    def connect(self) -> MemoryTransport:
        """A new connection to the server."""
        transport = MemoryTransport()
        protocol = self.factory.buildProtocol(transport.getPeer())
        assert protocol is not None
        transport.connect(protocol)
        return transport

    def client(self, kind: Kind = Kind.TCP, skew: int = 0) -> ClientSession:
        """A client's session, of now."""
        destination = Address("example.com", 443)
        if kind is Kind.HTTP and self.profile is Profile.SPEC:
            destination = None
        header = Header(kind, destination, int(NOW + self.clock.seconds()) + skew)
        return ClientSession(KEYS[self.profile], header, self.rng.randbytes(16), self.rng.randrange)

    def relay(self, early: bytes = b"") -> tuple[ClientSession, MemoryTransport, MemoryTransport]:
        """A running relay: the client's session, its transport, and the target's."""
        client, transport = self.client(), self.connect()
        transport.receive(client.open() + client.send(early))
        return client, transport, self.egress.let_through()

    def assert_refusal(self, transport: MemoryTransport, since: float = 0.0, remaining: float | None = None) -> None:
        """The connection is turned away in the one way: silence, and a FIN at its time, not a moment before (X2)."""
        left = REFUSAL_TIME - (self.clock.seconds() - since) if remaining is None else remaining
        self.clock.advance(left - 0.01)
        self.assertEqual(
            (transport.written, transport.fin, transport.closed, transport.aborted), ([], False, False, False)
        )
        transport.receive(b"more of it")
        self.clock.advance(0.02)
        self.assertTrue(transport.fin)
        self.assertEqual(transport.written, [])
        self.clock.advance(LINGER)
        self.assertTrue(transport.closed)
        self.assertFalse(transport.aborted)


class AcceptanceTests(ServerTestCase):
    """A good request becomes a relay."""

    def test_dials_once_the_header_is_whole(self) -> None:
        """Byte by byte or at once, the target is dialled when the header's last byte is there."""
        client, transport = self.client(), self.connect()
        flight = client.open()
        for index in range(len(flight)):
            self.assertEqual(self.egress.dialled, [])
            transport.receive(flight[index : index + 1])
        self.assertEqual(self.egress.dialled, [Address("example.com", 443)])
        self.assertTrue(transport.no_delay and transport.keep_alive)

    def test_early_data_waits_for_the_target(self) -> None:
        """What came with the header, and before the target stood, reaches it first and in order."""
        client, transport = self.client(), self.connect()
        transport.receive(client.open() + client.send(b"one "))
        transport.receive(client.send(b"two "))
        target = self.egress.let_through()
        transport.receive(client.send(b"three"))
        self.assertEqual(target.bytes_written, b"one two three")

    def test_both_ways(self) -> None:
        """Data flows both ways, and megabytes of it stay themselves."""
        client, transport, target = self.relay(b"early")
        up, down = self.rng.randbytes(1_000_000), self.rng.randbytes(1_000_000)
        wire = client.send(up)
        for start in range(0, len(wire), 65536):
            transport.receive(wire[start : start + 65536])
        self.assertEqual(target.bytes_written, b"early" + up)
        for start in range(0, len(down), 65536):
            target.receive(down[start : start + 65536])
        self.assertEqual(client.receive(transport.bytes_written), down)

    def test_back_pressure_both_ways(self) -> None:
        """Each side's full buffer stops reading on the other side."""
        _, transport, target = self.relay()
        transport.producer.pauseProducing()
        self.assertFalse(target.reading)
        transport.producer.resumeProducing()
        self.assertTrue(target.reading)
        target.producer.pauseProducing()
        self.assertFalse(transport.reading)
        target.producer.resumeProducing()
        self.assertTrue(transport.reading)

    def test_reading_stops_while_the_target_is_slow_to_dial(self) -> None:
        """Early data is bounded: beyond 64 KiB the client is not read until the target stands."""
        client, transport = self.client(), self.connect()
        transport.receive(client.open() + client.send(bytes(70_000)))
        self.assertFalse(transport.reading)
        target = self.egress.let_through()
        self.assertTrue(transport.reading)
        self.assertEqual(len(target.bytes_written), 70_000)

    def test_half_close_up(self) -> None:
        """The client's authenticated end becomes the target's FIN, and the response goes on (M5)."""
        client, transport, target = self.relay(b"request")
        transport.receive(client.end())
        transport.receive_fin()
        self.assertTrue(target.fin)
        target.receive(b"response")
        self.assertEqual(client.receive(transport.bytes_written), b"response")
        target.receive_fin()
        self.assertTrue(transport.closed and target.closed)
        self.assertFalse(transport.aborted or target.aborted)

    def test_half_close_down(self) -> None:
        """The target's FIN becomes ours, and the client's data goes on."""
        client, transport, target = self.relay()
        target.receive_fin()
        self.assertTrue(transport.fin)
        transport.receive(client.send(b"still talking"))
        self.assertEqual(target.bytes_written, b"still talking")
        transport.receive(client.end())
        self.assertTrue(target.closed and transport.closed)

    def test_end_before_the_target_stands(self) -> None:
        """A client that sent everything and its end before the dial was done loses nothing."""
        client, transport = self.client(), self.connect()
        transport.receive(client.open() + client.send(b"all of it") + client.end())
        transport.receive_fin()
        target = self.egress.let_through()
        self.assertEqual(target.bytes_written, b"all of it")
        self.assertTrue(target.fin)

    def test_abnormal_ends_are_resets(self) -> None:
        """A lost client resets the target, a lost target resets the client (X6)."""
        _, transport, target = self.relay()
        transport.lose(LOST)
        self.assertTrue(target.aborted)
        _, transport, target = self.relay()
        target.lose(LOST)
        self.assertTrue(transport.aborted)

    def test_fin_without_the_end_mark_is_abnormal(self) -> None:
        """A cut upstream resets the target: nobody takes a truncated request for a whole one (M5)."""
        _, transport, target = self.relay(b"half a requ")
        transport.receive_fin()
        self.assertTrue(target.aborted and transport.aborted)
        self.assertFalse(target.fin)

    def test_unreachable_and_forbidden_targets(self) -> None:
        """After proof, a target that cannot be had is answered at once with a reset (X2)."""
        for problem in (DestinationError(Reason.POLICY), TwistedRefused()):
            self.egress.refuse = problem
            transport = self.connect()
            transport.receive(self.client().open())
            self.assertTrue(transport.aborted)
        self.assertEqual(self.config.counters["mika.server.target.policy"], 1)
        self.assertEqual(self.config.counters["mika.server.target.refused"], 1)

    def test_a_client_that_goes_cancels_the_dial(self) -> None:
        """Nothing is dialled for nobody."""
        transport = self.connect()
        transport.receive(self.client().open())
        transport.lose(LOST)
        self.assertEqual(self.egress.cancelled, 1)

    def test_connections_are_known_while_they_live(self) -> None:
        """The factory's set has every connection and only those."""
        _, transport, _ = self.relay()
        self.assertEqual(len(self.factory.connections), 1)
        self.assertEqual(self.factory.admission.verified, 1)
        transport.lose(DONE)
        self.assertEqual(len(self.factory.connections), 0)
        self.assertEqual(self.factory.admission.verified, 0)

    def test_no_timers_are_left(self) -> None:
        """When all connections are gone, so are their timers."""
        client, transport, _ = self.relay()
        transport.receive(client.send(b"x" * 100)[:50])
        transport.lose(LOST)
        silent = self.connect()
        silent.lose(LOST)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_memory_budget(self) -> None:
        """When the relays' buffers have used the budget, a new request is answered with a reset (X5)."""
        self.make_factory(budget=MemoryBudget(1))
        _, transport, target = self.relay()
        target.producer.pauseProducing()
        refused = self.connect()
        refused.receive(self.client().open())
        self.assertTrue(refused.aborted)
        target.producer.resumeProducing()
        self.relay()
        self.assertFalse(transport.aborted)


class HttpAndUdpTests(ServerTestCase):
    """The other kinds of request (M7)."""

    def test_http_goes_where_its_first_request_says(self) -> None:
        """The target is the authority of the first request, which is passed on unchanged."""
        request = b"GET /x HTTP/1.1\r\nHost: www.example.org:8080\r\n\r\n"
        client, transport = self.client(Kind.HTTP), self.connect()
        transport.receive(client.open())
        for byte in request:
            self.assertEqual(self.egress.dialled, [])
            transport.receive(client.send(bytes([byte])))
        self.assertEqual(self.egress.dialled, [Address("www.example.org", 8080)])
        target = self.egress.let_through()
        self.assertEqual(target.bytes_written, request)

    def test_http_that_names_no_target(self) -> None:
        """What is not HTTP, or names nothing, is reset; so is a head that ends early or never does."""
        for request in (
            b"\x00\x01\x02\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"G" * 20_000,
        ):
            client, transport = self.client(Kind.HTTP), self.connect()
            transport.receive(client.open() + client.send(request))
            self.assertTrue(transport.aborted, request[:20])
        client, transport = self.client(Kind.HTTP), self.connect()
        transport.receive(client.open() + client.send(b"GET / HT") + client.end())
        self.assertTrue(transport.aborted)
        client, transport = self.client(Kind.HTTP), self.connect()
        transport.receive(client.open() + client.send(b"GET / HT"))
        self.clock.advance(CHUNK_TIME)
        self.assertTrue(transport.aborted)
        self.assertEqual(self.egress.dialled, [])

    def test_control_and_admin_are_refused(self) -> None:
        """Command 2 and kind 5 are turned away like anything unknown."""
        for kind, command in ((5, 1), (4, 1), (1, 2)):
            iv = self.rng.randbytes(16)
            session = ClientSession(KEYS[self.profile], Header(Kind.TCP, Address("a", 1), NOW), iv)
            flight = bytearray(session.open())
            flight[16 + 4] ^= 1 ^ kind
            flight[16 + 1] ^= 1 ^ command
            transport = self.connect()
            transport.receive(bytes(flight))
            self.assert_refusal(transport, since=self.clock.seconds())


class RefusalTests(ServerTestCase):
    """Everything that proves nothing is turned away in one way (X2)."""

    def test_failures_are_named_in_the_log(self) -> None:
        """A wrong password, an old request, a replay and garbage are; an honest request and silence are not."""
        lines: list[str] = []
        self.factory.failures = FailureLog(self.clock, "mika", lines.append)
        good = self.client().open()
        self.connect().receive(good)
        self.connect().receive(b"")
        self.clock.advance(REFUSAL_TIME + 1)
        self.assertEqual(lines, [])
        wrong = ClientSession(
            derive_keys(b"another password", self.profile),
            Header(Kind.TCP, Address("example.com", 443), int(NOW + self.clock.seconds())),
            self.rng.randbytes(16),
            self.rng.randrange,
        )
        for data in (wrong.open(), good, self.client(skew=-31).open(), self.rng.randbytes(16384)):
            self.connect().receive(data)
        self.assertEqual(lines, ["authentication failed from 192.0.2.1 (mika)"] * 4)

    def test_all_failures_look_the_same(self) -> None:
        """Silence, random bytes, a cut flight, a changed one, a replay, an old one, a wrong password: one reaction."""
        good = self.client().open()
        self.connect().receive(good)
        changed = bytearray(self.client().open())
        changed[30] ^= 1
        self.clock.advance(1.5)
        started = self.clock.seconds()
        inputs = [
            b"",
            self.rng.randbytes(1),
            self.rng.randbytes(221),
            self.rng.randbytes(16384),
            self.client().open()[:20],
            bytes(changed),
            good,
            self.client(skew=-31).open(),
            self.client(skew=31).open(),
            b"GET / HTTP/1.1\r\n\r\n",
        ]
        transports = []
        for data in inputs:
            transport = self.connect()
            if data:
                transport.receive(data)
            transports.append(transport)
        self.clock.advance(REFUSAL_TIME - 0.01)
        for transport, data in zip(transports, inputs, strict=True):
            self.assertEqual(
                (transport.written, transport.fin, transport.closed, transport.aborted),
                ([], False, False, False),
                data[:9],
            )
        self.clock.advance(0.02)
        self.assertLess(self.clock.seconds() - started, REFUSAL_TIME + 0.05)
        for transport, data in zip(transports, inputs, strict=True):
            self.assertEqual((transport.written, transport.fin, transport.aborted), ([], True, False), data[:9])
        self.assertEqual(len(self.egress.dialled), 1)

    def test_every_length_of_random_bytes(self) -> None:
        """Random probes of every length from 1 to 221 are refused, and no target is opened."""
        transports = []
        for length in range(1, 222):
            transport = self.connect()
            transport.receive(self.rng.randbytes(length))
            transports.append(transport)
        self.clock.advance(REFUSAL_TIME)
        self.assertTrue(all(each.fin and not each.written and not each.aborted for each in transports))
        self.assertEqual(self.egress.dialled, [])

    def test_an_early_fin_shortens_nothing(self) -> None:
        """A prober that ends its side waits as long as one that does not; then the connection is closed at once."""
        for data in (b"", b"x" * 300):
            transport = self.connect()
            if data:
                transport.receive(data)
            transport.receive_fin()
            self.clock.advance(REFUSAL_TIME - 0.01)
            self.assertFalse(transport.fin or transport.closed)
            self.clock.advance(0.02)
            self.assertTrue(transport.fin)
            self.clock.advance(LINGER)
            self.assertTrue(transport.closed)

    def test_every_flipped_bit_of_a_first_flight(self) -> None:
        """None of the changed flights opens a target or changes the reaction (M2)."""
        flight = self.client().open()
        for bit in range(len(flight) * 8):
            changed = bytearray(flight)
            changed[bit // 8] ^= 1 << bit % 8
            transport = self.connect()
            transport.receive(bytes(changed))
            self.assertEqual((transport.written, transport.closed, transport.aborted), ([], False, False))
        self.assertEqual(self.egress.dialled, [])

    def test_a_bad_chunk(self) -> None:
        """A wrong chunk resets the target, delivers nothing more, and drains the client from then on (M4)."""
        client, transport, target = self.relay(b"good")
        self.clock.advance(1000)
        bad = bytearray(client.send(b"bad"))
        bad[-1] ^= 1
        transport.receive(bytes(bad))
        self.assertTrue(target.aborted)
        target.settle()
        transport.receive(client.send(b"later"))
        self.assertEqual(target.bytes_written, b"good")
        self.assert_refusal(transport, since=1000)

    def test_a_bad_chunk_with_the_header(self) -> None:
        """In one piece with its header a bad chunk is the same failure as alone: it counts from now, after proof."""
        for pieces in (1, 2):
            client, transport = self.client(), self.connect()
            started = self.clock.seconds()
            self.clock.advance(10)
            bad = bytearray(client.open() + client.send(b"bad"))
            bad[-1] ^= 1
            cut = len(bad) - 5 if pieces == 2 else len(bad)
            for piece in (bad[:cut], bad[cut:]):
                if piece:
                    transport.receive(bytes(piece))
            self.assert_refusal(transport, remaining=REFUSAL_TIME)
            self.assertGreater(self.clock.seconds() - started, REFUSAL_TIME + 10)

    def test_a_bad_chunk_of_an_http_request(self) -> None:
        """The time for an HTTP head does not cut a refusal short."""
        client, transport = self.client(Kind.HTTP), self.connect()
        transport.receive(client.open())
        bad = bytearray(client.send(b"GET / HTTP/1.1\r\n"))
        bad[-1] ^= 1
        transport.receive(bytes(bad))
        self.assert_refusal(transport, remaining=REFUSAL_TIME)

    def test_a_bad_chunk_while_dialling(self) -> None:
        """The dial is given up, and the client drained as ever: no reset tells that a target was being dialled."""
        client, transport = self.client(), self.connect()
        transport.receive(client.open())
        bad = bytearray(client.send(b"bad"))
        bad[0] ^= 1
        bad[5] ^= 1
        transport.receive(bytes(bad) + bytes(70_000))
        self.assertEqual(self.egress.cancelled, 1)
        self.assert_refusal(transport)

    def test_a_chunk_that_is_never_finished(self) -> None:
        """After 30 s the promise of a chunk is a failure; a busy stream is none (M4)."""
        client, transport, target = self.relay()
        wire = client.send(bytes(1000)) + client.send(bytes(1000))
        transport.receive(wire[:500])
        self.clock.advance(CHUNK_TIME - 1)
        transport.receive(wire[500:1600])
        self.clock.advance(CHUNK_TIME - 1)
        self.assertFalse(target.aborted)
        self.clock.advance(CHUNK_TIME)
        self.assertTrue(target.aborted)
        self.assert_refusal(transport, remaining=REFUSAL_TIME)

    def test_admission_ends_what_it_does_not_let_in(self) -> None:
        """Over the cap a connection gets a FIN at once, and no reset for what it has sent already (X3)."""
        self.make_factory(limits=AdmissionLimits(unverified_per_address=2))
        for _ in range(2):
            self.connect()
        self.clock.advance(3)
        transport = MemoryTransport()
        transport.connect(self.factory.buildProtocol(transport.getPeer()))
        self.assertTrue(transport.fin)
        transport.receive(self.client().open())
        self.assertEqual((transport.closed, transport.aborted, self.egress.dialled), (False, False, []))
        self.clock.advance(TURN_AWAY_LINGER)
        self.assertTrue(transport.closed)
        self.assertEqual(len(self.factory.connections), 2)
        self.assertEqual(self.config.counters["mika.server.limit.unverified"], 1)

    def test_verified_cap(self) -> None:
        """A proved connection above the cap is reset at once."""
        self.make_factory(limits=AdmissionLimits(connections=1, per_user=1))
        self.relay()
        transport = self.connect()
        transport.receive(self.client().open())
        self.assertTrue(transport.aborted)
        transport.settle()
        self.assertEqual(self.factory.admission.verified, 1)

    def test_mutated_streams(self) -> None:
        """10,000 mutated streams: no exception leaves the protocol, and targets get nothing but what was sent."""
        client = self.client()
        sent = self.rng.randbytes(2000)
        stream = client.open() + client.send(sent) + client.end()
        for data in mutations([stream], 10_000, seed=8):
            self.replays = ReplaySet()
            self.make_factory()
            transport = self.connect()
            transport.receive(data)
            while self.egress.waiting:
                deferred, factory = self.egress.waiting.pop()
                if not deferred.called:
                    target = MemoryTransport()
                    target.connect(factory.buildProtocol(None))
                    deferred.callback(target.protocol)
                    self.assertTrue(sent.startswith(target.bytes_written))


class GoProfileTests(AcceptanceTests):
    """The same with profile go, but for the rules that differ."""

    profile = Profile.GO

    def test_fin_without_the_end_mark_is_abnormal(self) -> None:
        """The original sends no end mark: its FIN is taken as the end of its direction."""
        client, transport, target = self.relay(b"request")
        transport.receive_fin()
        self.assertTrue(target.fin)
        self.assertFalse(target.aborted)
        target.receive(b"response")
        self.assertEqual(client.receive(transport.bytes_written), b"response")

    def test_http_carries_an_address(self) -> None:
        """The original's HTTP request names its target in the header."""
        client, transport = self.client(Kind.HTTP), self.connect()
        transport.receive(client.open())
        self.assertEqual(self.egress.dialled, [Address("example.com", 443)])
