"""Salsa20/20: the key stream in plain Python, or pycryptodome's where that is installed. No I/O.

Source: Bernstein, "The Salsa20 family of stream ciphers". The plain form is some two hundred times slower; it is there
so that nothing depends on an optional package.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_BLOCK = struct.Struct("<16I")
_MASK = 0xFFFFFFFF
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")

# (target, first addend, second addend, rotation): the sixteen steps of a column round, then of a row round.
_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


def _double_round(x: list[int]) -> None:
    for a, b, c, d in _COLUMNS + _ROWS:
        t = (x[a] + x[d]) & _MASK
        x[b] ^= (t << 7 | t >> 25) & _MASK
        t = (x[b] + x[a]) & _MASK
        x[c] ^= (t << 9 | t >> 23) & _MASK
        t = (x[c] + x[b]) & _MASK
        x[d] ^= (t << 13 | t >> 19) & _MASK
        t = (x[d] + x[c]) & _MASK
        x[a] ^= (t << 18 | t >> 14) & _MASK


def plain_keystream(key: bytes, nonce: bytes, length: int) -> bytes:
    """``length`` bytes of key stream from block 0, for a 32-byte key and an 8-byte nonce."""
    k = struct.unpack("<8I", key)
    n0, n1 = struct.unpack("<2I", nonce)
    blocks = []
    for counter in range((length + 63) // 64):
        start = [_SIGMA[0], *k[:4], _SIGMA[1], n0, n1, counter, 0, _SIGMA[2], *k[4:], _SIGMA[3]]
        x = start.copy()
        for _ in range(10):
            _double_round(x)
        blocks.append(_BLOCK.pack(*((a + b) & _MASK for a, b in zip(x, start, strict=True))))
    return b"".join(blocks)[:length]


def plain_salsa20(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """``data`` under the key stream."""
    stream = int.from_bytes(plain_keystream(key, nonce, len(data)), "little")
    return (int.from_bytes(data, "little") ^ stream).to_bytes(len(data), "little")


salsa20: Callable[[bytes, bytes, bytes], bytes]
try:
    from Crypto.Cipher import Salsa20
except ImportError:  # pragma: no cover - depends on what is installed
    salsa20 = plain_salsa20
else:

    def _library_salsa20(key: bytes, nonce: bytes, data: bytes) -> bytes:
        return Salsa20.new(key, nonce).encrypt(data)

    salsa20 = _library_salsa20
