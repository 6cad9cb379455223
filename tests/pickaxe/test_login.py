"""Tests of mikanet.pickaxe.login and client_login: both ends of a login, and everybody who means no good."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import network_of
from mikanet.pickaxe import wire
from mikanet.pickaxe.client_login import MAX_CANDIDATES, ClientLogin
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.login import (
    KNOWN_TIME,
    MAX_PENDING,
    MAX_PENDING_PER_NETWORK,
    MAX_PER_KNOWN_ADDRESS,
    MAX_PER_NAME,
    MAX_PER_NETWORK,
    PENDING_TIME,
    SPENT_TIME,
    THROTTLE_TIME,
    LoginDesk,
    Throttle,
)
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.session import Role, Session
from tests.support.feeding import mutations

SECRET = Secret(Kdf.MIKANET, bytes(range(32)))
USERS = {"alice": SECRET}


def login_packet(user: str, lid: bytes) -> bytes:
    """A login."""
    return wire.encode_login(wire.Login(lid, (1, 0), user))


class DeskTestCase(SynchronousTestCase):
    """A server's desk."""

    throttle = Throttle.NETWORK
    table = False

    def setUp(self) -> None:
        """A desk that knows alice."""
        self.rng = random.Random(3)
        self.taken: set[bytes] = set()
        self.desk = LoginDesk(
            USERS.get,
            self.rng.randbytes(32),
            self.rng.randbytes,
            self.taken.__contains__,
            throttle=self.throttle,
            table=self.table,
        )
        self.now = 100.0

    def login(self, user: str = "alice", host: str = "192.0.2.1", lid: bytes | None = None) -> bytes:
        """Log in; the response."""
        response = self.desk.login(login_packet(user, lid or self.rng.randbytes(16)), host, self.now)
        assert response is not None
        return response

    def is_real(self, response: bytes) -> bool:
        """Whether a session can come of a response for somebody who knows alice's secret."""
        said = wire.decode_login_response(response)
        pending = self.desk.pending(said.sid, self.now)
        return pending is not None and pending.user is not None


class DeskTests(DeskTestCase):
    """What is answered (P6)."""

    def test_a_client_and_a_server_agree(self) -> None:
        """Both ends come to the same keys: the client's first packet proves itself at the server."""
        login = ClientLogin("alice", SECRET, self.rng.randbytes, self.now)
        response = self.desk.login(login.packet, "192.0.2.1", self.now)
        assert response is not None
        session = login.response(response)
        assert session is not None
        path = Path(True)
        session.use(path, self.now)
        session.ask(self.now)
        ((_, packets),) = session.flush(self.now)
        pending = self.desk.pending(session.sid, self.now)
        assert pending is not None
        server = Session(Role.SERVER, pending.sid, pending.session_keys(), self.rng.randbytes)
        server.receive(packets[0], Path(True), self.now)
        self.assertTrue(server.proven)
        self.assertEqual(pending.user, "alice")
        self.desk.proved(pending)
        self.assertIsNone(self.desk.pending(session.sid, self.now))

    def test_known_and_unknown_look_the_same(self) -> None:
        """An unknown name gets an answer of the same form, a pending login, and keys that nobody has."""
        known, unknown = self.login("alice"), self.login("mallory")
        self.assertEqual(len(known), len(unknown))
        self.assertEqual(known[17:19], unknown[17:19])
        self.assertTrue(self.is_real(known))
        said = wire.decode_login_response(unknown)
        pending = self.desk.pending(said.sid, self.now)
        assert pending is not None
        self.assertIsNone(pending.user)
        self.assertEqual(len(pending.session_keys().client), 32)

    def test_duplicates_get_the_identical_response(self) -> None:
        """The same login by several carriers and networks is one login."""
        lid = self.rng.randbytes(16)
        first = self.login(lid=lid)
        self.assertEqual(self.login(lid=lid, host="2001:db8::1"), first)
        self.assertEqual(len(self.desk), 1)
        self.assertIsNone(self.desk.login(login_packet("mallory", lid), "192.0.2.1", self.now))

    def test_throttle_by_network(self) -> None:
        """A fourth fresh login from the same network within three seconds looks answered, and is not (decision 0071)."""
        for index in range(MAX_PER_NETWORK):
            self.assertTrue(self.is_real(self.login(host=f"192.0.2.{index}")))
        self.assertFalse(self.is_real(self.login(host="192.0.2.99")))
        self.assertTrue(self.is_real(self.login(host="198.51.100.1")))
        self.now += THROTTLE_TIME
        self.assertTrue(self.is_real(self.login()))

    def test_a_proved_login_is_not_counted(self) -> None:
        """Who proves a login may log in again at once, as often as it likes."""
        for _ in range(3 * MAX_PER_NAME):
            response = self.login()
            self.assertTrue(self.is_real(response))
            pending = self.desk.pending(wire.decode_login_response(response).sid, self.now)
            assert pending is not None
            self.desk.proved(pending)

    def prove(self, response: bytes) -> None:
        """Show that a login was an honest one."""
        pending = self.desk.pending(wire.decode_login_response(response).sid, self.now)
        assert pending is not None
        self.desk.proved(pending)

    def flood(self, hosts: list[str], seconds: float) -> None:
        """30 logins a second of alice's name from these addresses in turn."""
        for index in range(int(30 * seconds)):
            self.login(host=hosts[index % len(hosts)])
            self.now += 1 / 30

    def test_floods_from_elsewhere_lock_nobody_out(self) -> None:
        """Where a name has authenticated lately it gets in beside any flood of that name, from any address of the network."""
        self.prove(self.login())
        for _ in range(20):
            self.flood([f"10.0.{network}.1" for network in range(3)], 1.0)
            self.assertFalse(self.is_real(self.login(host="198.51.100.1")), "a new network")
            response = self.login()
            self.assertTrue(self.is_real(response))
            self.prove(response)
            self.assertTrue(self.is_real(self.login(host="192.0.2.77")))

    def test_floods_from_the_next_house_lock_nobody_out(self) -> None:
        """In such a network each address has room of its own."""
        self.prove(self.login())
        for _ in range(20):
            self.flood(["192.0.2.2", "192.0.2.3"], 1.0)
            self.assertTrue(self.is_real(self.login()))
        for _ in range(MAX_PER_KNOWN_ADDRESS):
            self.login()
        self.assertFalse(self.is_real(self.login()))

    def test_networks_are_known_by_proof_for_a_week(self) -> None:
        """A login that is not proved makes nothing known, nor does that of another name; what is known is forgotten."""
        self.login()
        self.login("mallory")
        self.flood(["10.0.1.1", "10.0.2.1", "10.0.3.1"], 4.0)
        self.assertFalse(self.is_real(self.login()))
        self.now += THROTTLE_TIME
        self.prove(self.login())
        self.now += KNOWN_TIME + 1
        self.flood(["10.0.1.1", "10.0.2.1", "10.0.3.1"], 4.0)
        self.assertFalse(self.is_real(self.login()))

    def test_late_copies(self) -> None:
        """A copy of a login that was proved, or is over, is no new one, and takes no place from others."""
        proved, expired = self.rng.randbytes(16), self.rng.randbytes(16)
        response = self.login(lid=proved)
        pending = self.desk.pending(wire.decode_login_response(response).sid, self.now)
        assert pending is not None
        self.desk.proved(pending)
        self.login(lid=expired)
        self.now += PENDING_TIME + 0.1
        for _ in range(MAX_PER_NAME):
            for lid in (proved, expired):
                self.assertIsNone(self.desk.login(login_packet("alice", lid), "192.0.2.1", self.now))
        self.assertTrue(self.is_real(self.login()))
        self.now += SPENT_TIME + 0.1
        self.assertIsNotNone(self.desk.login(login_packet("alice", proved), "192.0.2.1", self.now))

    def test_throttle_by_name(self) -> None:
        """From everywhere together a name has eight logins in three seconds."""
        real = [self.is_real(self.login(host=f"10.0.{index}.1")) for index in range(12)]
        self.assertEqual(real, [True] * MAX_PER_NAME + [False] * 4)

    def test_unknown_names_are_throttled_alike(self) -> None:
        """The books of the throttle are kept for names that do not exist, too."""
        before = len(self.desk._recent)
        self.login("mallory")
        self.assertEqual(len(self.desk._recent), before + 3)

    def test_a_known_network_is_no_shorter_way(self) -> None:
        """A login costs the same looks at the books whether its name has authenticated from there or does not exist."""
        known = self.login("alice")
        pending = self.desk.pending(wire.decode_login_response(known).sid, self.now)
        assert pending is not None
        self.desk.proved(pending)
        looks: dict[str, list[int]] = {"alice": [], "mallory": []}

        class Counting(OrderedDict[bytes, deque[float]]):
            """Counts what is done to it."""

            done = 0

            def get(self, key: bytes, default: Any = None) -> Any:
                Counting.done += 1
                return super().get(key, default)

            def __setitem__(self, key: bytes, value: deque[float]) -> None:
                Counting.done += 1
                super().__setitem__(key, value)

        self.desk._recent = Counting(self.desk._recent)
        for _ in range(20):
            for name, counts in looks.items():
                before = Counting.done
                self.login(name)
                counts.append(Counting.done - before)
        self.assertEqual(set(looks["alice"]), set(looks["mallory"]))
        self.assertEqual(len(set(looks["alice"])), 1)

    def test_pending_logins_expire(self) -> None:
        """After ten seconds nothing is left of a login that was not proved."""
        said = wire.decode_login_response(self.login())
        self.now += PENDING_TIME + 0.1
        self.assertIsNone(self.desk.pending(said.sid, self.now))
        self.assertEqual(len(self.desk), 0)
        self.assertEqual(self.desk._by_network, {})

    def test_flood(self) -> None:
        """20,000 logins of one network do not wash away another's, and the books stay bounded."""
        honest = self.login(host="198.51.100.1")
        for index in range(20_000):
            self.login(f"user{index % 7000}", host="203.0.113.5")
        self.assertTrue(self.is_real(honest))
        self.assertLessEqual(len(self.desk), MAX_PENDING_PER_NETWORK + 1)

    def test_flood_from_everywhere(self) -> None:
        """From 10,000 networks the table is full at 4,096, and goes on working."""
        for index in range(10_000):
            self.login(f"user{index}", host=f"10.{index >> 8}.{index & 255}.1")
        self.assertEqual(len(self.desk), MAX_PENDING)
        self.assertEqual(len(self.desk._by_sid), MAX_PENDING)
        self.assertTrue(self.is_real(self.login()))

    def test_derivations_of_the_draft_are_few(self) -> None:
        """Whoever sends logins and packets behind them, from however many networks, makes the server derive six keys at once
        and three a second; those who have proved a login from their network have as many for themselves."""
        secret = Secret(Kdf.DRAFT, b"password")
        users = {"alice": secret}
        self.desk = LoginDesk(
            users.get, self.rng.randbytes(32), self.rng.randbytes, self.taken.__contains__, kdf=Kdf.DRAFT
        )

        def derives(host: str, count: int = 1) -> int:
            done = 0
            for number in range(count):
                said = wire.decode_login_response(self.login(f"user {number}", host))
                pending = self.desk.pending(said.sid, self.now)
                assert pending is not None
                done += self.desk.may_derive(pending, self.now)
            return done

        honest = wire.decode_login_response(self.login("alice", "203.0.113.1"))
        pending = self.desk.pending(honest.sid, self.now)
        assert pending is not None
        self.assertTrue(self.desk.may_derive(pending, self.now))
        pending.session_keys()
        self.desk.proved(pending)
        self.assertEqual(derives("198.51.100.1", 20), 3)
        self.assertEqual(sum(derives(f"100.{number}.0.1") for number in range(100)), 2)
        self.assertEqual(derives("203.0.113.1"), 1)
        self.now += 1
        self.assertEqual(sum(derives(f"100.{number}.1.1") for number in range(100)), 3)
        self.assertEqual(derives("203.0.113.1", 5), 2)

    def test_keys_that_are_cheap_or_there_are_not_counted(self) -> None:
        """Our own way of deriving keys costs little, and keys that are there cost nothing."""
        for number in range(50):
            said = wire.decode_login_response(self.login("alice", f"100.{number}.0.1"))
            pending = self.desk.pending(said.sid, self.now)
            assert pending is not None
            self.assertTrue(self.desk.may_derive(pending, self.now))

    def test_sids_are_free_ones(self) -> None:
        """A session id that is in use is not given out."""
        desk = LoginDesk(
            USERS.get, bytes(32), iter_bytes([b"n" * 16, b"SID1", b"m" * 16, b"SID2"]), {b"SID1"}.__contains__
        )
        response = desk.login(login_packet("alice", bytes(16)), "", 0.0)
        assert response is not None
        self.assertEqual(wire.decode_login_response(response).sid, b"SID2")

    def test_mutations(self) -> None:
        """Mutated logins are answered, or not; nothing else."""
        golden = [login_packet(name, bytes(range(16))) for name in ("alice", "zoë", "x" * 255)]
        for packet in mutations(golden, 10_000, seed=2):
            response = self.desk.login(packet, "192.0.2.1", self.now)
            self.assertIn(None if response is None else len(response), (None, 39))

    def test_networks(self) -> None:
        """A network is a /24 or a /48; an IPv4 address in IPv6 clothes is one of IPv4."""
        self.assertEqual(network_of("192.0.2.1"), network_of("192.0.2.254"))
        self.assertNotEqual(network_of("192.0.2.1"), network_of("192.0.3.1"))
        self.assertEqual(network_of("2001:db8:1:2::1"), network_of("2001:db8:1:ffff::9"))
        self.assertEqual(network_of("::ffff:192.0.2.1"), network_of("192.0.2.7"))
        self.assertEqual(network_of(""), "")


def iter_bytes(values: list[bytes]) -> object:
    """Randomness that is known."""
    found = iter(values)
    return lambda size: next(found)


class LetterTests(DeskTestCase):
    """The settings for those who want the document's letter."""

    throttle = Throttle.NAME
    table = True

    def test_throttle_by_name_alone(self) -> None:
        """One login in three seconds for a name, wherever it comes from."""
        self.assertTrue(self.is_real(self.login()))
        self.assertFalse(self.is_real(self.login(host="198.51.100.1")))

    def test_table(self) -> None:
        """The response is the table's: the SID is the beginning of the nonce."""
        response = self.login()
        self.assertEqual(len(response), 35)
        self.assertTrue(self.is_real(response))


class ClientLoginTests(SynchronousTestCase):
    """The client's end."""

    def test_only_answers_to_this_login(self) -> None:
        """Another LID, another version, other lengths: no candidate."""
        login = ClientLogin("alice", SECRET, random.Random(1).randbytes, 0.0)
        lid = login.packet[1:17]
        good = wire.encode_login_response(wire.LoginResponse(lid, (1, 0), b"SIDS", bytes(16)))
        for packet in (
            wire.encode_login_response(wire.LoginResponse(bytes(16), (1, 0), b"SIDS", bytes(16))),
            wire.encode_login_response(wire.LoginResponse(lid, (2, 0), b"SIDS", bytes(16))),
            good[:-1],
            b"",
        ):
            self.assertIsNone(login.response(packet))
        self.assertFalse(login.answered)
        self.assertIsNotNone(login.response(good))
        self.assertIsNone(login.response(good), "the same answer by another carrier says nothing new")
        self.assertTrue(login.answered)

    def test_forged_answers_are_bounded(self) -> None:
        """Somebody on the way who answers a thousand times makes a few candidates, no more."""
        login = ClientLogin("alice", SECRET, random.Random(1).randbytes, 0.0)
        lid = login.packet[1:17]
        made = [
            login.response(wire.encode_login_response(wire.LoginResponse(lid, (1, 0), index.to_bytes(4), bytes(16))))
            for index in range(1000)
        ]
        self.assertEqual(sum(each is not None for each in made), MAX_CANDIDATES)
