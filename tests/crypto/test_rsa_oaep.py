"""RSA-OAEP and its key files."""

from __future__ import annotations

import os
import random

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto import rsa_oaep
from mikanet.errors import ConfigError, RemoteProtocolError
from tests.megaki.golden import SERVER_KEY, VECTORS

RAW = bytes.fromhex(VECTORS["server_cert_260_bytes"])
LOCKED = VECTORS["server_private_key_pem_encrypted"].encode()
PASSPHRASE = VECTORS["server_private_key_passphrase"].encode()


class FileTests(SynchronousTestCase):
    """Key files."""

    def test_the_originals_private_key(self) -> None:
        """The original's encrypted PEM is read with its passphrase, and our clear PEM is the recorded one."""
        key = rsa_oaep.load_private(LOCKED, "server-private.pem", PASSPHRASE)
        self.assertEqual(rsa_oaep.private_to_pem(key).decode(), VECTORS["server_private_key_pem_clear"])
        locked = rsa_oaep.private_to_pem(key, b"another")
        self.assertEqual(len(locked), len(LOCKED))
        self.assertEqual(locked.split(b",")[:2], LOCKED.split(b",")[:2])
        again = rsa_oaep.load_private(locked, "x", b"another")
        self.assertEqual(again.private_numbers(), key.private_numbers())

    def test_server_cert(self) -> None:
        """260 bytes and PEM give the same public key, and it gives the 260 bytes again."""
        public = SERVER_KEY.public_key()
        self.assertEqual(rsa_oaep.public_to_raw(public), RAW)
        for content in (RAW, rsa_oaep.public_to_pem(public)):
            self.assertEqual(rsa_oaep.public_to_raw(rsa_oaep.load_public(content, "x")), RAW)

    def test_mistakes(self) -> None:
        """Each mistake is one line that says what is wrong and names the file, without secrets."""
        small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
        curve = ec.generate_private_key(ec.SECP256R1())
        pem, form, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        for content, passphrase, word in (
            (LOCKED, None, "passphrase"),
            (LOCKED, b"wrong", "wrong passphrase"),
            (rsa_oaep.private_to_pem(SERVER_KEY), b"needless", "has no passphrase"),
            (b"nonsense", None, "no private key"),
            (small.private_bytes(pem, form, plain), None, "2048"),
            (curve.private_bytes(pem, form, plain), None, "RSA"),
        ):
            with self.assertRaises(ConfigError) as caught:
                rsa_oaep.load_private(content, "the-file", passphrase)
            self.assertIn(word, str(caught.exception))
            self.assertIn("the-file", str(caught.exception))
        for public in (b"", RAW[:-1], bytes(260), b"nonsense"):
            with self.assertRaises(ConfigError):
                rsa_oaep.load_public(public, "x")


class PublicKeyTests(SynchronousTestCase):
    """Public keys of strangers (K2)."""

    def test_refused(self) -> None:
        """Even, short, or overlong: only an odd modulus of 2,048 bits with an odd exponent from 3 on is a key."""
        modulus, exponent = RAW[:256], RAW[256:]
        even = modulus[:-1] + bytes([modulus[-1] & 0xFE])
        for raw in (
            even + exponent,
            b"\0" + modulus[1:] + exponent,
            b"\x7f" + modulus[1:] + exponent,
            modulus + (0).to_bytes(4),
            modulus + (1).to_bytes(4),
            modulus + (65536).to_bytes(4),
            RAW[:-1],
            RAW + b"\0",
        ):
            with self.assertRaises(RemoteProtocolError):
                rsa_oaep.public_from_raw(raw)

    def test_accepted_exponents(self) -> None:
        """Exponents from 3 to the largest of 4 bytes are taken, and a block can be encrypted."""
        for exponent in (3, 65537, 2**32 - 1):
            key = rsa_oaep.public_from_raw(RAW[:256] + exponent.to_bytes(4))
            self.assertEqual(len(rsa_oaep.encrypt(key, bytes(48))), 256)

    def test_random(self) -> None:
        """260 random bytes raise the declared error or are a key; nothing else happens."""
        rng = random.Random(2)
        for _ in range(500):
            try:
                rsa_oaep.public_from_raw(rng.randbytes(260))
            except RemoteProtocolError:
                continue


class BlockTests(SynchronousTestCase):
    """Encrypted blocks."""

    def test_round_trip(self) -> None:
        """Anything up to 214 bytes."""
        for size in (0, 1, 48, 214):
            plain = os.urandom(size)
            block = rsa_oaep.encrypt(SERVER_KEY.public_key(), plain)
            self.assertEqual(len(block), 256)
            self.assertEqual(rsa_oaep.decrypt(SERVER_KEY, block), plain)

    def test_bad_blocks(self) -> None:
        """Flipped, random and wrongly sized blocks raise the declared error, always the same."""
        block = rsa_oaep.encrypt(SERVER_KEY.public_key(), b"x")
        bad = [b"", block[:-1], block + b"\0", bytes(256), b"\xff" * 256, os.urandom(256)]
        bad += [block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :] for at in range(0, 256, 16)]
        texts = set()
        for each in bad:
            with self.assertRaises(RemoteProtocolError) as caught:
                rsa_oaep.decrypt(SERVER_KEY, each)
            texts.add(str(caught.exception))
        self.assertEqual(len(texts), 1)
