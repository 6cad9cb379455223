"""Tests of mikanet.pickaxe.keys. The draft's values are worked out with a standard library from the draft's rules; our
own are computed here by hand, from hashlib and hmac alone."""

from __future__ import annotations

import hashlib
import hmac

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.pickaxe.keys import Handshake, Kdf, Mac, Secret, SessionKeys, derive, derive_draft, normal_user, stretch
from mikanet.pickaxe.wire import LoginResponse

LID = bytes(range(16))
NONCE = bytes(range(16, 32))
RESPONSE = LoginResponse(LID, (1, 0), bytes([1, 2, 3, 4]), NONCE)
DRAFT_KEY = bytes.fromhex("8bd52a3368ccca8f75334fdde72ca8f53e9af041f0b048027df8f2bea5297925")


class DraftTests(SynchronousTestCase):
    """The author's draft."""

    def test_key(self) -> None:
        """PBKDF2 over LID, SID, nonce and UID."""
        few = derive_draft("test", b"test@123", RESPONSE, 23)
        self.assertEqual(few.hex(), "dd59c9822bd6d5d489e5150e3c9e30df35df3bda11fcfef97717767f6c0a5841")
        self.assertEqual(derive_draft("test", b"test@123", RESPONSE), DRAFT_KEY)

    def test_session_keys(self) -> None:
        """One key for both directions."""
        keys = Secret.of_password(Kdf.DRAFT, "test", b"test@123").session_keys(Handshake("test", (1, 0), RESPONSE))
        self.assertEqual(keys, SessionKeys(DRAFT_KEY, DRAFT_KEY))

    def test_mac(self) -> None:
        """The first 8 bytes of HMAC-SHA256, on the draft's own input."""
        covered = bytes.fromhex("0c0102030400000000000000010000000000000000202122232425262728292a2b2c2d2e2f")
        mac = Mac(DRAFT_KEY)
        self.assertEqual(mac.tag(covered).hex(), "300a9c1ac00b234d")
        self.assertEqual(mac.tag(covered[:5], covered[5:9], covered[9:]).hex(), "300a9c1ac00b234d")
        self.assertTrue(mac.matches(bytes.fromhex("300a9c1ac00b234d"), covered[:5], covered[5:]))
        self.assertFalse(mac.matches(bytes.fromhex("300a9c1ac00b234e"), covered[:5], covered[5:]))


class OurTests(SynchronousTestCase):
    """Our own derivation (P1)."""

    def test_stretch(self) -> None:
        """PBKDF2 with 600,000 iterations and a salt of the user's name."""
        salt = hashlib.sha256(b"pickaxe" + "zoë".encode()).digest()
        expected = hashlib.pbkdf2_hmac("sha256", b"a password", salt, 600_000, 32)
        self.assertEqual(stretch("zoë", b"a password"), expected)

    def test_derive(self) -> None:
        """HKDF over all five inputs, and then one key for each direction."""
        secret = bytes(range(32))
        keys = derive(secret, Handshake("test", (1, 0), RESPONSE))
        info = b"pickaxe" + bytes([1, 0, 1, 0]) + b"test"
        extracted = hmac.digest(LID + bytes([1, 2, 3, 4]) + NONCE, secret, "sha256")
        key = hmac.digest(extracted, info + b"\x01", "sha256")
        self.assertEqual(keys.client, hmac.digest(key, b"client mac\x01", "sha256"))
        self.assertEqual(keys.server, hmac.digest(key, b"server mac\x01", "sha256"))

    def test_every_input_counts(self) -> None:
        """Another user, version, LID, SID, nonce or password gives other keys."""
        secret = bytes(32)
        handshakes = [
            Handshake("test", (1, 0), RESPONSE),
            Handshake("tess", (1, 0), RESPONSE),
            Handshake("test", (1, 1), RESPONSE),
            Handshake("test", (1, 0), LoginResponse(LID, (1, 1), RESPONSE.sid, NONCE)),
            Handshake("test", (1, 0), LoginResponse(NONCE, (1, 0), RESPONSE.sid, NONCE)),
            Handshake("test", (1, 0), LoginResponse(LID, (1, 0), bytes(4), NONCE)),
            Handshake("test", (1, 0), LoginResponse(LID, (1, 0), RESPONSE.sid, LID)),
        ]
        keys = {derive(secret, handshake).client for handshake in handshakes}
        keys.add(derive(bytes(31) + b"x", handshakes[0]).client)
        self.assertEqual(len(keys), 8)

    def test_secrets_are_not_shown(self) -> None:
        """Neither keys nor passwords stand in a repr."""
        secret = Secret(Kdf.DRAFT, b"hidden")
        self.assertNotIn("hidden", repr(secret))
        self.assertEqual(repr(SessionKeys(b"hidden", b"hidden")), "SessionKeys(...)")

    def test_names(self) -> None:
        """Names are compared in one form, and have bounds."""
        self.assertEqual(normal_user("zoe\u0308"), "zoë")
        for name in ("", "x" * 256, "a\nb"):
            with self.assertRaises(ConfigError):
                normal_user(name)
