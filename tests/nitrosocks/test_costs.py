"""What somebody without key and token can cost a NitroSocks server inside TLS: operations and bytes, counted."""

from __future__ import annotations

import random
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from mikanet.nitrosocks.keys import encrypt_challenge
from mikanet.nitrosocks.protocol import RealmConfig
from mikanet.nitrosocks.realm import Realm
from mikanet.nitrosocks.wire import CHALLENGE_BLOCK, HEADER, MAX_CHALLENGE_PAD, MAX_HANDSHAKE_BODY, SALT
from tests.nitrosocks.golden import K0, PUBLIC, TOKEN
from tests.nitrosocks.memory import REFUSAL_TIME, World


class CostTests(SynchronousTestCase):
    """Noise, and what became of it."""

    def setUp(self) -> None:
        """A server that counts its RSA operations and comparisons with tokens."""
        self.encrypted = self.compared = 0
        self.world = World()
        realm = Realm("", [TOKEN], lambda: 1.7e9)
        self.patch(realm, "match", self.match)
        config = RealmConfig(realm, K0, self.encrypt)
        self.world = World(server={"realms": {"": config}})

    def encrypt(self, data: bytes) -> bytes:
        """One public operation."""
        self.encrypted += 1
        return partial(encrypt_challenge, PUBLIC)(data)

    def match(self, signature: bytes, r1: bytes) -> None:
        """One proof, compared with every token."""
        self.compared += 1

    def test_noise(self) -> None:
        """A connection costs one public RSA operation and one challenge, whatever it sends; tokens are not looked at."""
        rng = random.Random(5)
        for number in range(60):
            transport = self.world.raw()
            for _ in range(rng.randrange(1, 5)):
                transport.receive(rng.randbytes(rng.randrange(1, 4000)))
            self.world.clock.advance(1.0)
            self.assertLessEqual(self.encrypted, number + 1)
            self.assertLessEqual(
                len(transport.bytes_written),
                SALT + HEADER + CHALLENGE_BLOCK + MAX_CHALLENGE_PAD,
                "more than a challenge",
            )
            transport.receive_fin()
        self.assertEqual(self.compared, 0)

    def test_kept_bytes(self) -> None:
        """Of what such a connection sends one unfinished packet is kept at most; after its refusal nothing."""
        rng = random.Random(6)
        for _ in range(40):
            transport = self.world.raw()
            for _ in range(200):
                transport.receive(rng.randbytes(97))
                (server,) = self.world.server.connections
                link = server.link
                if link is not None:
                    reader = link._reader
                    kept = len(reader._data) - reader._at + reader._size
                    self.assertLessEqual(kept, MAX_HANDSHAKE_BODY + SALT + 97)
            for seconds in (REFUSAL_TIME, 10):
                self.world.clock.advance(seconds)
            transport.settle()
            self.assertEqual(self.world.server.connections, set())
