"""The block and stream ciphers in plain Python, by public vectors."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.block_salsa20 import plain_keystream
from mikanet.crypto.block_tea import TEA_CYCLES, tea_encryptor, xtea_encryptor
from mikanet.crypto.block_twofish import twofish_encryptor


class BlockTests(SynchronousTestCase):
    """One block each; whole packets are in test_packets."""

    def test_xtea(self) -> None:
        """The widely published vector of XTEA with 32 cycles."""
        encrypt = xtea_encryptor(bytes(range(16)))
        self.assertEqual(encrypt(b"ABCDEFGH").hex(), "497df3d072612cb5")

    def test_tea_has_half_the_usual_cycles(self) -> None:
        """kcp-go's TEA has 8 cycles; its packets in the vectors tell (test_packets)."""
        self.assertEqual(TEA_CYCLES, 8)
        self.assertEqual(len(tea_encryptor(bytes(16))(bytes(8))), 8)

    def test_twofish(self) -> None:
        """The paper's vectors for 256-bit keys: the worked example, and the first steps of the iterated table."""
        key = bytes.fromhex("0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff")
        self.assertEqual(twofish_encryptor(key)(bytes(16)).hex(), "37527be0052334b89f0cfccae87cfa20")
        self.assertEqual(twofish_encryptor(bytes(32))(bytes(16)).hex(), "57ff739d4dc92c1bd7fc01700cc8216f")

    def test_salsa20(self) -> None:
        """The first bytes of set 1, vector 0 of the eSTREAM vectors for 256-bit keys."""
        stream = plain_keystream(b"\x80" + bytes(31), bytes(8), 64)
        self.assertEqual(stream[:16].hex(), "e3be8fdd8beca2e3ea8ef9475b29a6e7")
