"""Twofish with a 256-bit key, encrypt direction only (for CFB). No I/O.

Source: Schneier and others, "Twofish: A 128-Bit Block Cipher" (1998); the names are the paper's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

_WORDS = struct.Struct("<IIII")
_MASK = 0xFFFFFFFF
_RHO = 0x01010101
_MDS_POLYNOMIAL = 0x169
_RS_POLYNOMIAL = 0x14D

_MDS = ((0x01, 0xEF, 0x5B, 0x5B), (0x5B, 0xEF, 0xEF, 0x01), (0xEF, 0x5B, 0x01, 0xEF), (0xEF, 0x01, 0xEF, 0x5B))
_RS = (
    (0x01, 0xA4, 0x55, 0x87, 0x5A, 0x58, 0xDB, 0x9E),
    (0xA4, 0x56, 0x82, 0xF3, 0x1E, 0xC6, 0x68, 0xE5),
    (0x02, 0xA1, 0xFC, 0xC1, 0x47, 0xAE, 0x3D, 0x19),
    (0xA4, 0x55, 0x87, 0x5A, 0x58, 0xDB, 0x9E, 0x03),
)
_Q0_NIBBLES = ("817d6f320b59eca4", "ecb81235f4a6709d", "ba5e6d90c8f32471", "d7f4126e9b3085ca")
_Q1_NIBBLES = ("28bdf76e31940ac5", "1e2b4c376da5f908", "4c75169a0ed82b3f", "b951c3de647f208a")


def _permutation(nibbles: Sequence[str]) -> list[int]:
    tables = [[int(digit, 16) for digit in row] for row in nibbles]
    result = []
    for value in range(256):
        a, b = value >> 4, value & 15
        for first, second in ((tables[0], tables[1]), (tables[2], tables[3])):
            a, b = a ^ b, a ^ ((b >> 1) | (b << 3) & 15) ^ (a << 3) & 15
            a, b = first[a], second[b]
        result.append(b << 4 | a)
    return result


_Q0 = _permutation(_Q0_NIBBLES)
_Q1 = _permutation(_Q1_NIBBLES)

# For byte i of a word: which permutation comes at each of the five steps, the one nearest the input first.
_STEPS = (
    (_Q1, _Q1, _Q0, _Q0, _Q1),
    (_Q0, _Q1, _Q1, _Q0, _Q0),
    (_Q0, _Q0, _Q0, _Q1, _Q1),
    (_Q1, _Q0, _Q1, _Q1, _Q0),
)


def _multiply(a: int, b: int, polynomial: int) -> int:
    result = 0
    while b:
        if b & 1:
            result ^= a
        a <<= 1
        if a & 0x100:
            a ^= polynomial
        b >>= 1
    return result


def _mds_column(position: int, value: int) -> int:
    return sum(_multiply(_MDS[row][position], value, _MDS_POLYNOMIAL) << (8 * row) for row in range(4))


_MDS_TABLES = [[_mds_column(position, value) for value in range(256)] for position in range(4)]


def _keyed_table(position: int, words: Sequence[int]) -> list[int]:
    """What byte ``position`` contributes to h(X, words), for each value of the byte."""
    key_bytes = [(word >> (8 * position)) & 0xFF for word in reversed(words)]
    first, *others = _STEPS[position]
    mds = _MDS_TABLES[position]
    table = []
    for value in range(256):
        value = first[value]
        for key_byte, step in zip(key_bytes, others, strict=True):
            value = step[value ^ key_byte]
        table.append(mds[value])
    return table


def _rol(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _MASK


def _round_keys(words: Sequence[int]) -> list[int]:
    even = [_keyed_table(position, words[0::2]) for position in range(4)]
    odd = [_keyed_table(position, words[1::2]) for position in range(4)]
    keys = []
    for i in range(20):
        # h of a word whose four bytes are all 2i, and all 2i + 1.
        a = even[0][2 * i] ^ even[1][2 * i] ^ even[2][2 * i] ^ even[3][2 * i]
        b = _rol(odd[0][2 * i + 1] ^ odd[1][2 * i + 1] ^ odd[2][2 * i + 1] ^ odd[3][2 * i + 1], 8)
        keys += [(a + b) & _MASK, _rol((a + 2 * b) & _MASK, 9)]
    return keys


def _s_box_words(key: bytes) -> list[int]:
    words = []
    for start in range(0, 32, 8):
        rows = (
            [_multiply(_RS[row][column], key[start + column], _RS_POLYNOMIAL) for column in range(8)]
            for row in range(4)
        )
        word = 0
        for row, products in enumerate(rows):
            for product in products:
                word ^= product << (8 * row)
        words.append(word)
    return words[::-1]


def twofish_encryptor(key: bytes) -> Callable[[bytes], bytes]:
    """A function that encrypts one 16-byte block under a 32-byte key."""
    keys = _round_keys(struct.unpack("<8I", key))
    s0, s1, s2, s3 = (_keyed_table(position, _s_box_words(key)) for position in range(4))
    input_keys, output_keys = keys[:4], keys[4:8]
    rounds = [(keys[8 + 2 * r], keys[9 + 2 * r]) for r in range(16)]

    def encrypt(block: bytes) -> bytes:
        r0, r1, r2, r3 = (word ^ k for word, k in zip(_WORDS.unpack(block), input_keys, strict=True))
        for k0, k1 in rounds:
            t0 = s0[r0 & 255] ^ s1[r0 >> 8 & 255] ^ s2[r0 >> 16 & 255] ^ s3[r0 >> 24]
            t1 = s1[r1 & 255] ^ s2[r1 >> 8 & 255] ^ s3[r1 >> 16 & 255] ^ s0[r1 >> 24]
            r2 ^= (t0 + t1 + k0) & _MASK
            r2 = (r2 >> 1) | (r2 & 1) << 31
            r3 = ((r3 << 1) & _MASK | r3 >> 31) ^ (t0 + 2 * t1 + k1) & _MASK
            r0, r1, r2, r3 = r2, r3, r0, r1
        return _WORDS.pack(*(word ^ k for word, k in zip((r2, r3, r0, r1), output_keys, strict=True)))

    return encrypt
