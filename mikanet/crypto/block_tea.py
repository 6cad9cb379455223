"""TEA and XTEA as kcp-go uses them: 8-byte blocks, big-endian words, encrypt direction only (for CFB). No I/O.

Source: the TEA and XTEA papers of Needham and Wheeler. kcp-go runs TEA with 16 rounds, which is 8 cycles, half the
usual number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_WORDS = struct.Struct(">II")
_KEY = struct.Struct(">IIII")
_DELTA = 0x9E3779B9
_MASK = 0xFFFFFFFF

#: kcp-go's number of TEA cycles (two rounds each).
TEA_CYCLES = 8
XTEA_CYCLES = 32


def tea_encryptor(key: bytes) -> Callable[[bytes], bytes]:
    """A function that encrypts one 8-byte block under a 16-byte key."""
    k0, k1, k2, k3 = _KEY.unpack(key)
    sums = [(_DELTA * i) & _MASK for i in range(1, TEA_CYCLES + 1)]

    def encrypt(block: bytes) -> bytes:
        v0, v1 = _WORDS.unpack(block)
        for total in sums:
            v0 = (v0 + (((v1 << 4) + k0) ^ (v1 + total) ^ ((v1 >> 5) + k1))) & _MASK
            v1 = (v1 + (((v0 << 4) + k2) ^ (v0 + total) ^ ((v0 >> 5) + k3))) & _MASK
        return _WORDS.pack(v0, v1)

    return encrypt


def xtea_encryptor(key: bytes) -> Callable[[bytes], bytes]:
    """A function that encrypts one 8-byte block under a 16-byte key."""
    words = _KEY.unpack(key)
    schedule = []
    total = 0
    for _ in range(XTEA_CYCLES):
        first = (total + words[total & 3]) & _MASK
        total = (total + _DELTA) & _MASK
        schedule.append((first, (total + words[(total >> 11) & 3]) & _MASK))

    def encrypt(block: bytes) -> bytes:
        v0, v1 = _WORDS.unpack(block)
        for first, second in schedule:
            v0 = (v0 + ((((v1 << 4) ^ (v1 >> 5)) + v1) ^ first)) & _MASK
            v1 = (v1 + ((((v0 << 4) ^ (v0 >> 5)) + v0) ^ second)) & _MASK
        return _WORDS.pack(v0, v1)

    return encrypt
