"""Cipher streams and key derivation, against published vectors."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.kdf import evp_bytes_to_key, scrypt_key
from mikanet.crypto.streams import cfb_decryptor, cfb_encryptor

# NIST SP 800-38A, F.3.17: CFB128-AES256.Encrypt.
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
IV = bytes(range(16))
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHER = bytes.fromhex(
    "dc7e84bfda79164b7ecd8486985d386039ffed143b28b1c832113c6331e5407b"
    "df10132415e54b92a13ed0a8267ae2f975a385741ab9cef82031623d55b1e471"
)


class CfbTests(SynchronousTestCase):
    """AES-CFB as a stream."""

    def test_published_vector(self) -> None:
        """The standard's AES-256 vector, both ways."""
        self.assertEqual(cfb_encryptor(KEY, IV).update(PLAIN), CIPHER)
        self.assertEqual(cfb_decryptor(KEY, IV).update(CIPHER), PLAIN)

    def test_pieces_do_not_matter(self) -> None:
        """Partial blocks carry over between pieces of any size."""
        rng = random.Random(1)
        encryptor, decryptor = cfb_encryptor(KEY, IV), cfb_decryptor(KEY, IV)
        rest, cipher = PLAIN, b""
        while rest:
            size = rng.randint(1, 9)
            cipher += encryptor.update(rest[:size])
            rest = rest[size:]
        self.assertEqual(cipher, CIPHER)
        self.assertEqual(b"".join(decryptor.update(cipher[i : i + 5]) for i in range(0, 64, 5)), PLAIN)


class KdfTests(SynchronousTestCase):
    """Keys from passwords."""

    def test_evp_bytes_to_key(self) -> None:
        """The original's own test vector, and its prefixes."""
        expected = "3858f62230ac3c915f300c664312c63f568378529614d22ddb49237d2f60bfdf"
        for length in (16, 24, 32):
            self.assertEqual(evp_bytes_to_key(b"foobar", length).hex(), expected[: 2 * length])

    def test_scrypt(self) -> None:
        """32 bytes that depend on every part."""
        keys = {scrypt_key(secret, salt) for secret in (b"a", b"b") for salt in (b"mika up", b"mika down")}
        self.assertEqual({len(key) for key in keys}, {32})
        self.assertEqual(len(keys), 4)
