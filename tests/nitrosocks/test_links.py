"""Tests of both links as state machines: every packet in every state, proofs, the packet that means nothing, and time."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import AuthenticationError, RemoteProtocolError
from mikanet.nitrosocks.client_link import ClientLink
from mikanet.nitrosocks.keys import encrypt_challenge, length_key, locator_of
from mikanet.nitrosocks.link import KeysChanged, Link, Released, SessionOpened, SilenceError, Token
from mikanet.nitrosocks.realm import Realm
from mikanet.nitrosocks.server_link import ServerLink
from mikanet.nitrosocks.states import CLIENT_TABLE, SERVER_TABLE, ClientState, Inner, ServerState
from mikanet.nitrosocks.wire import (
    PHASE,
    SALT,
    Direction,
    EncryptType,
    HeaderMask,
    PacketReader,
    Type,
    header,
    mask_header,
)
from tests.nitrosocks.golden import K0, PUBLIC, TOKEN, UNIX_TIME, client_config, realm, server_config
from tests.support.feeding import mutations


class Pair:
    """A client's and a server's link, and what passes between them."""

    def __init__(
        self, seed: int = 1, server: dict[str, Any] | None = None, client: dict[str, Any] | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.authority: Any = (server or {}).get("authority") or realm()
        self.server_changes = {"authority": self.authority, **(server or {})}
        self.client_changes = client or {}
        self.now = 100.0
        self.renew()

    def renew(self, resume: Any = None, binding: tuple[bytes, bytes] = (b"", b"")) -> None:
        """A new connection."""
        self.client = ClientLink(client_config(self.rng.randbytes, **self.client_changes), self.now, resume, binding[0])
        self.server = ServerLink(server_config(self.rng.randbytes, **self.server_changes), self.now, binding[1])

    def up(self) -> None:
        """What the client sent arrives."""
        self.server.receive(self.client.take_output(), self.now)

    def down(self) -> None:
        """What the server sent arrives."""
        self.client.receive(self.server.take_output(), self.now)

    def carry(self) -> None:
        """Everything arrives."""
        for _ in range(6):
            self.up()
            self.down()

    def opened(self) -> Pair:
        """With a session that stands."""
        self.carry()
        assert self.client.is_open
        assert self.server.is_open
        self.authority.remember(self.server.session)
        return self

    def forge(self, sender: Link, kind: int, plain: bytes, phase: int | None = None) -> bytes:
        """A packet of any type as ``sender`` would seal it now."""
        assert sender._sealer is not None
        clear = header(kind | (sender._phase_out if phase is None else phase), len(plain) + 16)
        return mask_header(clear, sender._mask) + sender._sealer.seal(clear, plain)


def server_in(state: ServerState) -> Pair:
    """A pair whose server is in a state."""
    pair = Pair(server={"wait_first": True})
    if state is ServerState.GREETING:
        return pair
    pair.up()
    if state is ServerState.CHALLENGED:
        return pair
    pair.opened()
    if state is ServerState.REFRESHING:
        pair.server.refresh(pair.now)
    elif state is ServerState.CLOSING:
        pair.client.disconnect(pair.now)
        pair.up()
    elif state is ServerState.CLOSED:
        pair.client.disconnect(pair.now)
        pair.carry()
    return pair


def client_in(state: ClientState) -> Pair:
    """A pair whose client is in a state."""
    pair = Pair()
    if state is ClientState.WAITING:
        return pair
    if state in (ClientState.RETURNING, ClientState.RECONNECTING):
        pair.opened()
        session = pair.client.session
        assert session is not None
        pair.renew((session, session.chain.confirmed))
        if state is ClientState.RETURNING:
            return pair
    if state in (ClientState.ANSWERED, ClientState.RECONNECTING):
        pair.up()
        pair.down()
        return pair
    pair.opened()
    if state is ClientState.CLOSING:
        pair.client.disconnect(pair.now)
    elif state is ClientState.CLOSED:
        pair.client.disconnect(pair.now)
        pair.carry()
    return pair


class TableTests(SynchronousTestCase):
    """Every packet in every state is in the table, or fatal."""

    #: Contents that are right in size for each type.
    SIZES = {Type.DATA: 9, Type.DISCONNECT: 0}

    def walk(self, link: Link, sender: Link, kind: Type, table: Any) -> None:
        state = link.state
        plain = bytes(self.SIZES.get(kind, 32))
        packet = self.forge_for(link, sender, kind, plain)
        if (state, kind) in table:
            try:
                link.receive(packet, 100.0)
            except RemoteProtocolError:
                # Right type, wrong content: an answer to no question.
                self.assertIn(kind, (Type.HEARTBEAT_REPLY, Type.CONFIRM))
            else:
                self.assertIs(link.state, table[state, kind][1])
        else:
            events = len(link.events)
            self.assertRaises(RemoteProtocolError, link.receive, packet, 100.0)
            self.assertIs(link.state, state)
            self.assertEqual(len(link.events), events)

    def forge_for(self, link: Link, sender: Link, kind: Type, plain: bytes) -> bytes:
        return Pair.forge(Pair.__new__(Pair), sender, kind, plain)

    def test_every_state_can_be_reached(self) -> None:
        """The walk below begins in the states that it says."""
        for server_state in ServerState:
            self.assertIs(server_in(server_state).server.state, server_state)
        for client_state in ClientState:
            self.assertIs(client_in(client_state).client.state, client_state)

    def test_server(self) -> None:
        """Each type, sealed as the client would, in each state with a session."""
        for state in (ServerState.OPEN, ServerState.REFRESHING, ServerState.CLOSING):
            for kind in Type:
                pair = server_in(state)
                self.walk(pair.server, pair.client, kind, SERVER_TABLE)

    def test_server_before_a_session(self) -> None:
        """Before a session every packet that proves nothing is the one that may mean nothing, and a second is fatal."""
        for kind in range(128):
            pair = Pair(server={"wait_first": True})
            client = pair.client
            salt, mask = client._salt, HeaderMask(length_key(K0, client._salt, Direction.CLIENT))
            junk = mask_header(header(kind, 48), mask) + bytes(48)
            pair.server.receive(salt + junk, pair.now)
            self.assertIs(pair.server.state, ServerState.CHALLENGED)
            again = mask_header(header(kind, 48), mask) + bytes(48)
            self.assertRaises(RemoteProtocolError, pair.server.receive, again, pair.now)
            self.assertIs(pair.server.state, ServerState.CHALLENGED)

    def test_client(self) -> None:
        """Each type, sealed as the server would, in each state with a session."""
        for state in (ClientState.OPEN, ClientState.CLOSING):
            for kind in Type:
                pair = client_in(state)
                if state is ClientState.CLOSING and kind is Type.REFRESH:
                    pair.server.refresh(pair.now)
                    pair.down()
                    self.assertIs(pair.client.state, state)
                    continue
                self.walk(pair.client, pair.server, kind, CLIENT_TABLE)

    def test_client_before_a_session(self) -> None:
        """Before a session nothing but the next packet of the handshake is taken."""
        states = (ClientState.WAITING, ClientState.RETURNING, ClientState.ANSWERED, ClientState.RECONNECTING)
        for state in states:
            for kind in Type:
                pair = client_in(state)
                server = pair.server
                server.take_output()
                if state in (ClientState.WAITING, ClientState.RETURNING):
                    server._mask = HeaderMask(length_key(K0, server._salt, Direction.SERVER))
                    pair.client.receive(server._salt, pair.now)
                packet = mask_header(header(kind, 300), server._mask) + bytes(300)
                self.assertRaises(RemoteProtocolError, pair.client.receive, packet, pair.now)
                self.assertEqual(pair.client.events, [])
                self.assertIsNone(pair.client.session if state is not ClientState.RECONNECTING else None)

    def test_closed(self) -> None:
        """A closed link parses nothing."""
        pair = server_in(ServerState.CLOSED)
        pair.server.receive(bytes(100), pair.now)
        pair.client.receive(bytes(100), pair.now)
        self.assertEqual(pair.server.take_output() + pair.client.take_output(), b"")

    def test_unknown_types(self) -> None:
        """A type that there is not is fatal in a session."""
        for kind in (0, 13, 0x7F):
            pair = Pair().opened()
            packet = pair.forge(pair.client, kind, bytes(32))
            self.assertRaises(RemoteProtocolError, pair.server.receive, packet, pair.now)

    def test_actions_exist(self) -> None:
        """Each row of the tables names a method."""
        for table, side in ((SERVER_TABLE, ServerLink), (CLIENT_TABLE, ClientLink)):
            for action, _ in table.values():  # type: ignore[attr-defined]
                self.assertTrue(callable(getattr(side, f"_{action}")), action)

    def test_inner_inputs(self) -> None:
        """Inputs that are no packets are in the server's table only."""
        self.assertEqual([key for key in CLIENT_TABLE if isinstance(key[1], Inner)], [])


class LoginTests(SynchronousTestCase):
    """Phases 2 to 4."""

    def test_both_ciphers(self) -> None:
        """Data passes both ways under either cipher."""
        for encrypt_type in EncryptType:
            pair = Pair(server={"encrypt_type": encrypt_type}).opened()
            pair.client.send_data(b"up")
            pair.server.send_data(b"down")
            pair.carry()
            self.assertEqual(pair.server.events[-1], b"up")
            self.assertEqual(pair.client.events[-1], b"down")

    def test_weaker_cipher(self) -> None:
        """A client that wants 256 bits does not answer a server that offers 128."""
        pair = Pair(server={"encrypt_type": EncryptType.AES_128_GCM}, client={"least_type": EncryptType.AES_256_GCM})
        pair.up()
        self.assertRaises(RemoteProtocolError, pair.down)
        self.assertEqual(pair.client.take_output(), b"")

    def test_version_field(self) -> None:
        """The field may be absent."""
        self.assertTrue(Pair(server={"version": None}).opened().client.is_open)

    def test_challenge_comes_by_itself(self) -> None:
        """Without wait-first the challenge leaves within a quarter of a second, whether or not the client spoke."""
        pair = Pair()
        self.assertLessEqual(pair.server.next_deadline(), pair.now + 0.25)
        pair.now += 0.25
        pair.server.timer_fired(pair.now)
        self.assertIs(pair.server.state, ServerState.CHALLENGED)
        self.assertGreaterEqual(len(pair.server.take_output()), SALT + 3 + 256)

    def test_wait_first(self) -> None:
        """With wait-first a silent client hears nothing at all, and a timer ends it."""
        pair = Pair(server={"wait_first": True})
        pair.now += 9.9
        pair.server.timer_fired(pair.now)
        self.assertEqual(pair.server.take_output(), b"")
        pair.now += 0.2
        self.assertRaises(SilenceError, pair.server.timer_fired, pair.now)
        self.assertEqual(pair.server.take_output(), b"")

    def test_obfuscation_late(self) -> None:
        """The packet that means nothing may also come after the challenge: it is passed over, once (N2)."""
        pair = Pair()
        pair.now += 0.25
        pair.server.timer_fired(pair.now)
        pair.carry()
        self.assertTrue(pair.server.is_open)

    def test_no_obfuscation(self) -> None:
        """A client that sends none is served, too."""
        pair = Pair()
        pair.client.take_output()
        pair.now += 0.25
        pair.server.timer_fired(pair.now)
        pair.down()
        salt = pair.client._salt
        mask = HeaderMask(length_key(K0, salt, Direction.CLIENT))
        response = pair.client.take_output()
        clear = header(Type.RESPONSE, 48)
        pair.server.receive(salt + mask_header(clear, mask) + response[3:], pair.now)
        self.assertTrue(pair.server.is_open)

    def bad_response(self, early: bool) -> Pair:
        """A pair whose server got the obfuscation before the challenge or not, and then a wrong response."""
        pair = Pair(client={"token": Token("", b"another token of the same length")})
        if early:
            pair.up()
        else:
            junkless = pair.client
            junkless.take_output()
            junkless._mask = HeaderMask(length_key(K0, junkless._salt, Direction.CLIENT))
            junkless._output.append(junkless._salt)
            pair.now += 0.25
            pair.server.timer_fired(pair.now)
        pair.down()
        return pair

    def test_wrong_response_after_obfuscation(self) -> None:
        """Case 1 of the document: the free packet is used up, and a wrong response ends it at once."""
        pair = self.bad_response(early=True)
        self.assertRaises(AuthenticationError, pair.up)
        self.assertEqual(pair.server.take_output(), b"")

    def test_wrong_response_without_obfuscation(self) -> None:
        """Case 2: it is taken for the packet that means nothing, and only time ends it."""
        pair = self.bad_response(early=False)
        pair.up()
        self.assertIs(pair.server.state, ServerState.CHALLENGED)
        self.assertEqual(pair.server.take_output(), b"")
        pair.now += 10.0
        self.assertRaises(SilenceError, pair.server.timer_fired, pair.now)

    def test_too_much_before_a_session(self) -> None:
        """A header above 1,024, or more than 4 KiB, ends parsing."""
        pair = Pair(server={"wait_first": True})
        self.assertRaises(RemoteProtocolError, pair.server.receive, bytes(16) + b"\xff" * 4096, pair.now)

    def test_one_time_password(self) -> None:
        """A clock that is 29 s off is always right, one that is 61 s off never, and between them the step decides."""
        for phase in (0.0, 7.5, 15.0, 29.9):
            server_time = 1_700_000_010.0 + phase  # a multiple of 30, and the phase
            expected = {-61: False, -29: True, 0: True, 29: True, 61: False}
            for off in (*expected, -59, -31, 31, 59):
                steps = abs((int(server_time + off)) // 30 - int(server_time) // 30)
                pair = Pair(
                    server={"authority": realm(lambda server_time=server_time: server_time)},
                    client={"wall_clock": lambda off=off, server_time=server_time: server_time + off},
                )
                try:
                    pair.carry()
                except AuthenticationError:
                    pass
                self.assertEqual(pair.server.is_open, expected.get(off, steps <= 1), (phase, off))

    def test_parallel_logins(self) -> None:
        """Two logins within one step of the clock are fine."""
        authority = realm()
        for _ in range(2):
            Pair(server={"authority": authority}).opened()

    def test_recorded_response(self) -> None:
        """What a client said once opens nothing again, not even with the same salt."""
        pair = Pair()
        flight = pair.client.take_output()
        pair.server.receive(flight, pair.now)
        pair.down()
        response = pair.client.take_output()
        other = ServerLink(server_config(random.Random(9).randbytes, authority=pair.authority), pair.now)
        other.receive(flight, pair.now)
        self.assertRaises(AuthenticationError, other.receive, response, pair.now)

    def test_flipped_bits(self) -> None:
        """No response with a flipped bit opens a session, nor does any other byte string of its length."""
        rng = random.Random(2)
        for index in range(51):
            pair = Pair(seed=index)
            pair.up()
            pair.down()
            flight = bytearray(pair.client.take_output())
            flight[index] ^= 1 << rng.randrange(8)
            try:
                pair.server.receive(bytes(flight), pair.now)
            except RemoteProtocolError:
                pass
            self.assertFalse(pair.server.is_open)
            self.assertEqual(pair.server.take_output(), b"")

    def test_binding(self) -> None:
        """With the TLS exporter in the transcript a relay between two TLS connections is noticed; without it, not."""
        pair = Pair()
        pair.renew(binding=(b"one connection", b"one connection"))
        pair.carry()
        self.assertTrue(pair.client.is_open)
        pair.renew(binding=(b"one connection", b"another one"))
        self.assertRaises(AuthenticationError, pair.carry)

    def test_mutated_flights(self) -> None:
        """Ten thousand mutations of a client's first flight and response open nothing and raise nothing else."""
        pair = Pair()
        flight = pair.client.take_output()
        pair.server.receive(flight, pair.now)
        pair.down()
        golden = [flight, flight + pair.client.take_output()]
        block = bytes(256)
        config = server_config(random.Random(4).randbytes, encrypt=lambda text: block, authority=pair.authority)
        for data in mutations(golden, 10_000, seed=11):
            server = ServerLink(config, 0.0)
            try:
                server.receive(data, 0.0)
            except RemoteProtocolError:
                pass
            self.assertFalse(server.is_open)

    def test_mutated_challenges(self) -> None:
        """Mutations of a server's first flight make a client answer nothing, or what a server cannot use."""
        pair = Pair(seed=3)
        pair.up()
        flight = pair.server.take_output()
        for data in mutations([flight], 1000, seed=12):
            if data[: len(flight)] == flight:
                continue
            client = ClientLink(client_config(random.Random(1).randbytes), 0.0)
            try:
                client.receive(data, 0.0)
            except RemoteProtocolError:
                pass
            self.assertFalse(client.is_open)


class FalseServerTests(SynchronousTestCase):
    """A server that knows the public half and not the token (N5)."""

    def test_ten_thousand(self) -> None:
        """None of 10,000 sessions that such a server hands out is taken."""
        block_of: dict[bytes, bytes] = {}

        def encrypt(text: bytes) -> bytes:
            # RSA costs most of the time here: one real block serves for all, with everything else fresh.
            if not block_of:
                block_of[b""] = encrypt_challenge(PUBLIC, text)
                block_of[b"text"] = text
            return block_of[b""]

        class Anybody:
            """Takes every signature for that of a token of its own guessing."""

            token = Token("guess", b"a token that is only a guess")

            def match(self, signature: bytes, r1: bytes) -> Token:
                return self.token

            def verify(self, token: Token, signature: bytes, r1: bytes) -> bool:
                return True

            def find(self, locator: bytes) -> None:
                return None

        rng = random.Random(6)
        draws = [rng.randbytes(32), rng.randbytes(32)]
        accepted = answered = 0
        for _ in range(10_000):
            values = iter([rng.randbytes(16), bytes(8), *draws, bytes(8), b"", rng.randbytes(32)])
            server = ServerLink(
                server_config(lambda size, values=values: next(values), encrypt=encrypt, authority=Anybody()), 0.0
            )
            config = client_config(rng.randbytes, decrypt=lambda block: block_of[b"text"])
            client = ClientLink(config, 0.0)
            server.receive(client.take_output(), 0.0)
            client.receive(server.take_output(), 0.0)
            server.receive(client.take_output(), 0.0)
            answer = server.take_output()
            answered += bool(answer)
            try:
                client.receive(answer, 0.0)
            except AuthenticationError:
                pass
            accepted += client.is_open
        self.assertEqual((answered, accepted), (10_000, 0))

    def test_other_pair(self) -> None:
        """A server with another pair cannot even make a client answer."""
        other = rsa.generate_private_key(65537, 2048).public_key()
        pair = Pair(server={"encrypt": partial(encrypt_challenge, other)})
        pair.up()
        self.assertRaises(RemoteProtocolError, pair.down)
        self.assertEqual(pair.client.take_output(), b"")


class RefreshTests(SynchronousTestCase):
    """Phase 5.1 (N7)."""

    def test_data_in_flight(self) -> None:
        """Data of the client under the old key is taken until the first packet under the new one, and never after."""
        pair = Pair().opened()
        pair.client.send_data(b"old 1")
        pair.server.refresh(pair.now)
        pair.client.send_data(b"old 2")
        pair.server.send_data(b"new")
        old = (pair.client._sealer, pair.client._phase_out)
        pair.up()
        self.assertIs(pair.server.state, ServerState.REFRESHING)
        pair.down()
        pair.up()
        self.assertIs(pair.server.state, ServerState.OPEN)
        self.assertEqual([each for each in pair.server.events if isinstance(each, bytes)], [b"old 1", b"old 2"])
        self.assertEqual([each for each in pair.client.events if isinstance(each, bytes)], [b"new"])
        pair.client._sealer, pair.client._phase_out = old
        pair.client.send_data(b"too late")
        self.assertRaises(RemoteProtocolError, pair.up)

    def test_time(self) -> None:
        """After 120 s a key is refreshed; one that the client does not use within 10 s ends the connection."""
        pair = Pair().opened()
        for _ in range(4):
            pair.now += 30
            pair.client.heartbeat(pair.now)
            pair.carry()
        pair.server.timer_fired(pair.now)
        self.assertIs(pair.server.state, ServerState.REFRESHING)
        pair.now += 10
        self.assertRaises(SilenceError, pair.server.timer_fired, pair.now)

    def test_volume(self) -> None:
        """So it is after as many bytes as are set."""
        pair = Pair(server={"refresh_bytes": 5000}).opened()
        for _ in range(4):
            pair.client.send_data(bytes(1000))
            pair.up()
            self.assertFalse(pair.server.wants_refresh)
        pair.server.send_data(bytes(1000))
        self.assertTrue(pair.server.wants_refresh)
        pair.server.refresh(pair.now)
        self.assertFalse(pair.server.wants_refresh)

    def test_one_at_a_time(self) -> None:
        """A second refresh waits for the first."""
        pair = Pair().opened()
        pair.server.refresh(pair.now)
        pair.server.refresh(pair.now)
        assert pair.server.session is not None
        self.assertEqual(len(pair.server.session.chain.newest_first()), 2)
        pair.carry()
        self.assertEqual(len(pair.server.session.chain.newest_first()), 1)

    def test_many(self) -> None:
        """A hundred refreshes in a row, with data around each."""
        pair = Pair().opened()
        for number in range(100):
            pair.server.send_data(b"%d" % number)
            pair.server.refresh(pair.now)
            pair.client.send_data(b"%d" % number)
            pair.carry()
        for link in (pair.client, pair.server):
            data = [each for each in link.events if isinstance(each, bytes)]
            self.assertEqual(data, [b"%d" % number for number in range(100)])

    def test_no_phase_without_refresh(self) -> None:
        """A flipped phase bit without a refresh is fatal at either end."""
        pair = Pair().opened()
        packet = pair.forge(pair.client, Type.DATA, b"x", PHASE)
        self.assertRaises(AuthenticationError, pair.server.receive, packet, pair.now)
        packet = pair.forge(pair.server, Type.DATA, b"x", PHASE)
        self.assertRaises(AuthenticationError, pair.client.receive, packet, pair.now)


class ReconnectionTests(SynchronousTestCase):
    """Phase 5.2 (N8)."""

    def back(self, pair: Pair, key: bytes | None = None) -> None:
        session = pair.client.session
        assert session is not None
        pair.renew((session, key or session.chain.newest_first()[0]))
        pair.carry()

    def test_again_and_again(self) -> None:
        """A session comes back on one connection after the other, each time under a new key."""
        pair = Pair().opened()
        keys = set()
        for _ in range(5):
            self.back(pair)
            self.assertEqual(pair.server.events[0], SessionOpened(pair.server.session, True))  # type: ignore[arg-type]
            pair.server.send_data(b"down")
            pair.client.send_data(b"up")
            pair.carry()
            pair.authority.remember(pair.server.session)
            assert pair.server.session is not None
            keys.add(pair.server.session.chain.confirmed)
            self.assertEqual(pair.client.session.chain.newest_first(), pair.server.session.chain.newest_first())  # type: ignore[union-attr]
        self.assertEqual(len(keys), 5)

    def test_lost_refresh(self) -> None:
        """A REFRESH that never arrived is no dead end: the old key's locator is still known."""
        pair = Pair().opened()
        pair.server.refresh(pair.now)
        pair.server.take_output()
        pair.authority.remember(pair.server.session)
        self.back(pair)
        self.assertTrue(pair.client.is_open)

    def test_lost_answer_to_refresh(self) -> None:
        """Nor is one whose answer was lost: the client comes with the new key, and the old one retires."""
        pair = Pair().opened()
        assert pair.client.session is not None
        old = pair.client.session.chain.confirmed
        pair.server.refresh(pair.now)
        pair.server.send_data(b"under the new key")
        pair.authority.remember(pair.server.session)
        pair.down()
        self.back(pair)
        self.assertTrue(pair.client.is_open)
        assert pair.server.session is not None
        self.assertNotIn(old, pair.server.session.chain.newest_first())

    def test_lost_recovery(self) -> None:
        """A RECOVERY that never arrived is repeated on the next connection, to the same key."""
        pair = Pair().opened()
        session = pair.client.session
        assert session is not None
        for _ in range(3):
            pair.renew((session, session.chain.newest_first()[0]))
            pair.up()
            pair.down()
            pair.up()
            self.assertTrue(pair.server.is_open)
            pair.authority.remember(pair.server.session)
        pair.renew((session, session.chain.newest_first()[0]))
        pair.carry()
        self.assertTrue(pair.client.is_open)

    def test_recovery_that_nobody_confirmed(self) -> None:
        """A client that got RECOVERY and nothing more may come with either key."""
        for which in (0, 1):
            pair = Pair().opened()
            self.back(pair)
            pair.authority.remember(pair.server.session)
            session = pair.client.session
            assert session is not None
            self.assertEqual(len(session.chain.newest_first()), 2)
            self.back(pair, session.chain.newest_first()[which])
            self.assertTrue(pair.client.is_open, which)

    def test_old_keys_retire(self) -> None:
        """Two generations back a key is unknown."""
        pair = Pair().opened()
        assert pair.client.session is not None
        old = pair.client.session.chain.confirmed
        pair.server.refresh(pair.now)
        pair.carry()
        pair.authority.remember(pair.server.session)
        self.assertIsNone(pair.authority.find(locator_of(old)))

    def test_revoked(self) -> None:
        """A session of a token that is gone does not come back."""
        pair = Pair().opened()
        self.assertEqual(pair.authority.replace([Token("bob", b"x" * 32)]), [pair.server.session])
        session = pair.client.session
        assert session is not None
        pair.renew((session, session.chain.confirmed))
        pair.up()
        pair.down()
        self.assertRaises(AuthenticationError, pair.up)

    def test_expired_password(self) -> None:
        """Nor does one whose client's clock is far off."""
        pair = Pair().opened()
        session = pair.client.session
        assert session is not None
        pair.client_changes = {"wall_clock": lambda: UNIX_TIME + 90}
        pair.renew((session, session.chain.confirmed))
        pair.up()
        pair.down()
        self.assertRaises(AuthenticationError, pair.up)

    def test_recorded(self) -> None:
        """A recorded RECONNECT, sent to a new challenge, opens nothing."""
        pair = Pair().opened()
        session = pair.client.session
        assert session is not None
        pair.renew((session, session.chain.confirmed))
        flight = pair.client.take_output()
        pair.server.receive(flight, pair.now)
        pair.down()
        reconnect = pair.client.take_output()
        other = ServerLink(server_config(random.Random(9).randbytes, authority=pair.authority), pair.now)
        other.receive(flight, pair.now)
        self.assertRaises(AuthenticationError, other.receive, reconnect, pair.now)

    def test_flipped_bits(self) -> None:
        """No RECONNECT with a flipped bit is taken; the session is as it was."""
        for index in range(67):
            pair = Pair().opened()
            session = pair.client.session
            assert session is not None
            assert pair.server.session is not None
            before = pair.server.session.chain.newest_first()
            pair.renew((session, session.chain.confirmed))
            pair.up()
            pair.down()
            flight = bytearray(pair.client.take_output())
            flight[index] ^= 0x10
            try:
                pair.server.receive(bytes(flight), pair.now)
            except RemoteProtocolError:
                pass
            self.assertFalse(pair.server.is_open)
            found = pair.authority.find(locator_of(before[0]))
            self.assertEqual(found[0].chain.newest_first(), before)


class ReleaseTests(SynchronousTestCase):
    """Phase 6."""

    def test_three_steps(self) -> None:
        """DISCONNECT, R2, Sha256(R2): both ends know that it is over."""
        pair = Pair().opened()
        pair.client.disconnect(pair.now)
        pair.carry()
        self.assertEqual(pair.client.events[-1], Released(True))
        self.assertEqual(pair.server.events[-1], Released(True))

    def test_wrong_confirmation(self) -> None:
        """A confirmation of something else is fatal."""
        pair = Pair().opened()
        pair.client.disconnect(pair.now)
        pair.up()
        packet = pair.forge(pair.client, Type.CONFIRM, bytes(32))
        self.assertRaises(RemoteProtocolError, pair.server.receive, packet, pair.now)

    def test_server_does_not_answer(self) -> None:
        """6.1: the client has told, and lets go after five seconds."""
        pair = Pair().opened()
        pair.client.disconnect(pair.now)
        pair.client.timer_fired(pair.now + 5)
        self.assertEqual(pair.client.events[-1], Released(False))

    def test_client_does_not_confirm(self) -> None:
        """The server lets go five seconds after its acknowledgement."""
        pair = Pair().opened()
        pair.client.disconnect(pair.now)
        pair.up()
        pair.server.timer_fired(pair.now + 4.9)
        self.assertNotIsInstance(pair.server.events[-1], Released)
        pair.server.timer_fired(pair.now + 5)
        self.assertEqual(pair.server.events[-1], Released(False))

    def test_server_ends(self) -> None:
        """6.2: the server's notification ends the session at the client at once."""
        pair = Pair().opened()
        pair.server.notify_disconnect()
        pair.down()
        self.assertEqual(pair.client.events[-1], Released(False))
        self.assertIs(pair.client.state, ClientState.CLOSED)

    def test_both_at_once(self) -> None:
        """Two ends that let go at the same time are both free."""
        pair = Pair().opened()
        pair.client.disconnect(pair.now)
        pair.server.notify_disconnect()
        pair.down()
        self.assertIs(pair.client.state, ClientState.CLOSED)

    def test_during_refresh(self) -> None:
        """A release that crosses a refresh goes through its three steps."""
        pair = Pair().opened()
        pair.server.refresh(pair.now)
        pair.client.disconnect(pair.now)
        pair.carry()
        self.assertEqual(pair.server.events[-1], Released(True))
        self.assertEqual(pair.client.events[-1], Released(True))

    def test_not_empty(self) -> None:
        """Only an empty packet releases."""
        pair = Pair().opened()
        packet = pair.forge(pair.client, Type.DISCONNECT, b"x")
        self.assertRaises(RemoteProtocolError, pair.server.receive, packet, pair.now)
        pair = Pair().opened()
        packet = pair.forge(pair.client, Type.DATA, b"")
        self.assertRaises(RemoteProtocolError, pair.server.receive, packet, pair.now)


class LivenessTests(SynchronousTestCase):
    """Heartbeats and silence (N10)."""

    def test_heartbeat(self) -> None:
        """After 10 to 20 s without a word the client asks, and the answer is checked."""
        pair = Pair().opened()
        due = pair.client.next_deadline() - pair.now
        self.assertTrue(10 <= due <= 20)
        pair.now += due
        pair.client.timer_fired(pair.now)
        pair.carry()
        self.assertGreater(pair.client.next_deadline(), pair.now + 9.9)

    def test_intervals_differ(self) -> None:
        """Each connection has its own interval."""
        dues = {round(Pair(seed).opened().client.next_deadline(), 3) for seed in range(8)}
        self.assertGreater(len(dues), 6)

    def test_two_misses(self) -> None:
        """One answer may be missing, not two."""
        pair = Pair().opened()
        pair.now = pair.client.next_deadline()
        pair.client.timer_fired(pair.now)
        pair.now += 10
        pair.client.timer_fired(pair.now)
        pair.now += 10
        self.assertRaises(SilenceError, pair.client.timer_fired, pair.now)

    def test_late_answers(self) -> None:
        """Answers that come late are taken in their order."""
        pair = Pair().opened()
        pair.now = pair.client.next_deadline()
        pair.client.timer_fired(pair.now)
        pair.now += 10
        pair.client.timer_fired(pair.now)
        pair.carry()
        self.assertTrue(pair.client.is_open)
        self.assertGreater(pair.client.next_deadline(), pair.now)

    def test_wrong_answer(self) -> None:
        """An answer to another question is fatal, as is one to none."""
        pair = Pair().opened()
        packet = pair.forge(pair.server, Type.HEARTBEAT_REPLY, bytes(32))
        self.assertRaises(RemoteProtocolError, pair.client.receive, packet, pair.now)

    def test_server_hears_nothing(self) -> None:
        """After 45 s of silence the server takes the client for lost."""
        pair = Pair().opened()
        pair.server.timer_fired(pair.now + 44)
        self.assertRaises(SilenceError, pair.server.timer_fired, pair.now + 45)

    def test_handshake_time(self) -> None:
        """Ten seconds are the most for the handshake, at either end."""
        pair = Pair()
        self.assertEqual(pair.client.next_deadline(), pair.now + 10)
        self.assertRaises(SilenceError, pair.client.timer_fired, pair.now + 10)
        self.assertRaises(SilenceError, pair.server.timer_fired, pair.now + 10)


class LookTests(SynchronousTestCase):
    """What somebody inside TLS sees who lacks the public half."""

    def test_no_fixed_byte(self) -> None:
        """Over 2,000 sessions no byte at any of the first offsets, from either side, is more common than chance allows.

        Chi-square with 255 degrees of freedom; 377 is passed once in a million tables, and there are 700 of them.
        """
        rng = random.Random(8)
        first_up = [ClientLink(client_config(rng.randbytes), 0.0).take_output()[:35] for _ in range(2000)]
        first_down = []
        for _ in range(2000):
            server = ServerLink(server_config(rng.randbytes), 0.0)
            server.timer_fired(0.25)
            first_down.append(server.take_output()[:275])
        for flights in (first_up, first_down):
            for offset in range(len(flights[0])):
                counts = [0] * 256
                for flight in flights:
                    counts[flight[offset]] += 1
                expected = len(flights) / 256
                chi = sum((count - expected) ** 2 / expected for count in counts)
                self.assertLess(chi, 377, offset)

    def test_masks_need_the_public_half(self) -> None:
        """With another K0 a session's headers make no sense."""
        pair = Pair()
        flight = pair.client.take_output()
        reader = PacketReader(1024)
        reader.feed(flight)
        self.assertIsNone(reader.next())
        assert reader.salt is not None
        reader.mask = HeaderMask(length_key(bytes(32), reader.salt, Direction.CLIENT))
        try:
            packet = reader.next()
        except RemoteProtocolError:
            return
        self.assertTrue(packet is None or len(packet.body) != len(flight) - SALT - 3)


class RealmTests(SynchronousTestCase):
    """Tokens and sessions of a realm."""

    def test_many_tokens(self) -> None:
        """Among a thousand tokens each opens its own session."""
        tokens = [Token(f"user{number}", b"token of user %d, long enough" % number) for number in range(1000)]
        authority = Realm("", tokens, lambda: UNIX_TIME)
        for number in (0, 500, 999):
            pair = Pair(server={"authority": authority}, client={"token": tokens[number]})
            pair.opened()
            assert pair.server.session is not None
            self.assertEqual(pair.server.session.token.name, f"user{number}")

    def test_forgotten(self) -> None:
        """A forgotten session's locators are gone; forgetting twice is no error."""
        pair = Pair().opened()
        assert pair.server.session is not None
        self.assertEqual(len(pair.authority), 1)
        pair.authority.forget(pair.server.session)
        pair.authority.forget(pair.server.session)
        self.assertEqual(len(pair.authority), 0)
        self.assertIsNone(pair.authority.find(locator_of(pair.server.session.chain.confirmed)))

    def test_replaced_tokens(self) -> None:
        """A token whose secret changed counts as gone, one that stayed does not."""
        pair = Pair().opened()
        self.assertEqual(pair.authority.replace([TOKEN, Token("bob", b"b" * 32)]), [])
        self.assertEqual(pair.authority.replace([Token("alice", b"new" * 12)]), [pair.server.session])

    def test_passwords_do_not_pile_up(self) -> None:
        """One-time passwords of past steps are dropped."""
        now = [UNIX_TIME]
        authority = realm(lambda: now[0])
        for _ in range(50):
            authority.match(bytes(32), bytes(32))
            now[0] += 30
        self.assertLess(len(authority._passwords), 8)

    def test_keys_changed_events(self) -> None:
        """Each change of a session's keys is told, so that locators can follow."""
        pair = Pair().opened()
        pair.server.refresh(pair.now)
        pair.carry()
        self.assertEqual(pair.server.events.count(KeysChanged()), 2)
