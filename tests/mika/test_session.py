"""Mika's sessions: keys, whole streams of the original, time and replay."""

from __future__ import annotations

import hashlib
import random

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.crypto.replay import ReplaySet
from mikanet.errors import AuthenticationError, ConfigError, ProtocolError
from mikanet.mika.session import ClientSession, Keys, Profile, ServerSession, derive_keys
from mikanet.mika.wire import Header, Kind
from tests.support.feeding import fragmentations, mutations
from tests.support.vectors import load

VECTORS = load("mika/vectors.json")

PASSWORD = b"a password for tests"


def go_keys(vector: dict) -> Keys:
    """The keys of a recorded stream."""
    return derive_keys(vector["password"].encode(), Profile.GO, vector["method"])


def server(keys: Keys, now: float, replays: ReplaySet | None = None) -> ServerSession:
    """A server's session at Unix time ``now``."""
    return ServerSession(keys, ReplaySet() if replays is None else replays, lambda: now)


class KeyTests(SynchronousTestCase):
    """Keys from passwords (M1)."""

    def test_go_keys(self) -> None:
        """Profile go derives what the original derives, for each method and password."""
        for vector in VECTORS["keys"]:
            keys = derive_keys(bytes.fromhex(vector["password_utf8_hex"]), Profile.GO, vector["method"])
            self.assertEqual((keys.up.hex(), keys.down.hex()), (vector["key"], vector["key"]))

    def test_spec_keys(self) -> None:
        """Profile spec derives each direction's key by scrypt from its part of the password; the longer half is first."""
        keys = derive_keys(b"abcdefghi", Profile.SPEC)
        for key, part, salt in ((keys.up, b"abcde", b"mika up"), (keys.down, b"fghi", b"mika down")):
            self.assertEqual(key, hashlib.scrypt(part, salt=salt, n=32768, r=8, p=1, maxmem=2**26, dklen=64)[:32])

    def test_bad_methods(self) -> None:
        """Unknown methods, and methods of the other profile, are the user's mistakes."""
        for profile, method in ((Profile.GO, "rc4"), (Profile.SPEC, "rc4"), (Profile.SPEC, "aes-128-cfb")):
            with self.assertRaises(ConfigError):
                derive_keys(PASSWORD, profile, method)

    def test_repr_hides_keys(self) -> None:
        """Keys never reach a repr (X10)."""
        keys = derive_keys(PASSWORD, Profile.GO)
        self.assertNotIn(repr(keys.up), repr(keys))


class OriginalStreamTests(SynchronousTestCase):
    """Whole streams recorded from the original program."""

    def test_client_makes_the_same_stream(self) -> None:
        """With the original's IV, time and writes, our client's bytes are the original's."""
        for vector in VECTORS["streams"]:
            host, _, port = vector["address"].rpartition(":")
            header = Header(Kind(vector["protocol"]), Address(host.strip("[]"), int(port)), vector["unix_time"])
            session = ClientSession(go_keys(vector), header, bytes.fromhex(vector["iv"]))
            stream = session.open() + b"".join(
                session.send_datagram(bytes.fromhex(c["payload"]))
                for c in vector["chunks"]  # one chunk each
            )
            self.assertEqual(stream.hex(), vector["client_stream"], vector["name"])

    def test_client_reads_the_response(self) -> None:
        """The original server's response is deciphered, in any fragmentation."""
        for vector in VECTORS["streams"]:
            wire_bytes = bytes.fromhex(vector["server_stream"])
            for pieces in fragmentations(wire_bytes, most_cuts=20):
                header = Header(Kind.TCP, Address("a", 1), 0)
                session = ClientSession(go_keys(vector), header, bytes.fromhex(vector["iv"]))
                self.assertEqual(b"".join(map(session.receive, pieces)).hex(), vector["response_plain"])

    def test_server_reads_the_stream(self) -> None:
        """The original client's stream is accepted at its own time, in any fragmentation."""
        for vector in VECTORS["streams"]:
            expected = "".join(chunk["payload"] for chunk in vector["chunks"])
            for pieces in fragmentations(bytes.fromhex(vector["client_stream"]), most_cuts=20):
                session = server(go_keys(vector), vector["unix_time"])
                got = b"".join(b"".join(session.receive(piece)) for piece in pieces)
                self.assertEqual(got.hex(), expected)
                assert session.header is not None
                self.assertEqual(str(session.header.destination), vector["address"])

    def test_server_answers_the_same(self) -> None:
        """Our server's response bytes are the original's."""
        for vector in VECTORS["streams"]:
            session = server(go_keys(vector), vector["unix_time"])
            session.receive(bytes.fromhex(vector["client_iv_and_header_wire"]))
            self.assertEqual(session.send(bytes.fromhex(vector["response_plain"])).hex(), vector["server_stream"])

    def test_verdicts(self) -> None:
        """We accept what the original accepts and refuse what it refuses."""
        for vector in VECTORS["server_verdicts"]:
            session = server(go_keys(vector), vector["verify_with_clock_at"])
            try:
                session.receive(bytes.fromhex(vector["stream"]))
                verdict = session.header is not None
            except AuthenticationError:
                verdict = False
            self.assertEqual(verdict, vector["verdict_of_real_server"] == "accepted", vector["name"])


class SessionTests(SynchronousTestCase):
    """Both of our ends, profile spec."""

    keys = derive_keys(PASSWORD)
    now = 1_700_000_000

    def client(self, moment: int | None = None, kind: Kind = Kind.TCP, seed: int = 1) -> ClientSession:
        """A client's session."""
        destination = None if kind is Kind.HTTP else Address("example.com", 443)
        rng = random.Random(seed)
        header = Header(kind, destination, self.now if moment is None else moment)
        return ClientSession(self.keys, header, rng.randbytes(16), rng.randrange)

    def test_directions_have_keys_of_their_own(self) -> None:
        """The same plaintext both ways gives unrelated bytes: no key stream is used twice (M1)."""
        client = self.client()
        accepted = server(self.keys, self.now)
        first_flight = client.open()
        accepted.receive(first_flight)
        response = accepted.send(bytes.fromhex("0101000001030b"))
        self.assertNotEqual(response[:7], first_flight[16:23])

    def test_time_edges(self) -> None:
        """A clock 29 or 30 s off is taken, 31 s is not, either way (M3)."""
        for skew, accepted in ((-31, False), (-30, True), (-29, True), (29, True), (30, True), (31, False)):
            session = server(self.keys, self.now)
            try:
                session.receive(self.client(self.now + skew).open())
                verdict = session.header is not None
            except AuthenticationError:
                verdict = False
            self.assertEqual(verdict, accepted, skew)

    def test_replay_is_refused(self) -> None:
        """The same first flight is never accepted twice (M3)."""
        replays = ReplaySet()
        flight = self.client().open()
        server(self.keys, self.now, replays).receive(flight)
        for later in (0, 5, 29, 31, 61):
            with self.assertRaises(AuthenticationError):
                server(self.keys, self.now + later, replays).receive(flight)

    def test_ten_thousand_replays(self) -> None:
        """Of 10,000 recorded first flights, none is accepted again at any time inside the window (M3)."""
        replays = ReplaySet()
        flights = [self.client(seed=seed).open() for seed in range(10_000)]
        for flight in flights:
            server(self.keys, self.now, replays).receive(flight)
        accepted = 0
        for index, flight in enumerate(flights):
            session = server(self.keys, self.now + (0, 5, 29, 30)[index % 4], replays)
            try:
                session.receive(flight)
            except AuthenticationError:
                continue
            accepted += session.header is not None
        self.assertEqual(accepted, 0)

    def test_every_flipped_bit_of_a_flight_is_refused(self) -> None:
        """No bit of IV or header can be changed (M2)."""
        flight = self.client().open()
        for bit in range(len(flight) * 8):
            changed = bytearray(flight)
            changed[bit // 8] ^= 1 << bit % 8
            session = server(self.keys, self.now)
            try:
                session.receive(bytes(changed))
            except AuthenticationError:
                continue
            self.assertIsNone(session.header, bit)

    def test_wrong_password(self) -> None:
        """Another password's flight is refused."""
        with self.assertRaises(AuthenticationError):
            server(derive_keys(b"another password, longer"), self.now).receive(self.client().open() + bytes(300))

    def test_http_and_udp(self) -> None:
        """An HTTP header carries no address in this profile; a UDP chunk is a datagram each way (M7)."""
        session = server(self.keys, self.now)
        session.receive(self.client(kind=Kind.HTTP).open())
        assert session.header is not None
        self.assertIsNone(session.header.destination)
        client = self.client(kind=Kind.UDP)
        session = server(self.keys, self.now)
        session.receive(client.open())
        up = [b"a", b"b" * 60000, b"c"]
        self.assertEqual(session.receive(b"".join(map(client.send_datagram, up))), up)
        down = b"".join(map(session.send_datagram, up))
        self.assertEqual(client.receive_datagrams(down[:9]) + client.receive_datagrams(down[9:]), up)

    def test_mutations(self) -> None:
        """10,000 mutated streams raise only the declared error and deliver only a prefix of what was sent."""
        client = self.client()
        sent = random.Random(3).randbytes(3000)
        stream = client.open() + client.send(sent) + client.end()
        for data in mutations([stream], 10_000, seed=4):
            session = server(self.keys, self.now)
            try:
                delivered = b"".join(session.receive(data))
            except ProtocolError:
                continue
            self.assertTrue(sent.startswith(delivered))
