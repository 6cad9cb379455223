"""The packet blocks that kcp-go's programs know, by name, and how a shared secret becomes their key. No I/O.

Source: kcptun and paqet pick the block by these names; both stretch the secret with PBKDF2 to 32 bytes, of which each
block takes the first bytes that it needs.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mikanet.errors import ConfigError


class Kdf(enum.Enum):
    """How the shared secret is stretched: (PBKDF2 hash, salt, iterations)."""

    PAQET = ("sha256", b"paqet", 100_000)
    KCPTUN = ("sha1", b"kcp-go", 4096)


def derive_key(secret: bytes, kdf: Kdf) -> bytes:
    """The 32-byte key of a secret (the raw bytes of its text in UTF-8; it may be empty)."""
    hash_name, salt, iterations = kdf.value
    return hashlib.pbkdf2_hmac(hash_name, secret, salt, iterations, 32)


@dataclass(frozen=True, slots=True)
class Block:
    """What is fixed about one block.

    :ivar key_length: bytes of key that it takes.
    :ivar overhead: bytes that it adds to each packet.
    :ivar protects: False for those that keep no packet from being read or changed on purpose (X11): the null blocks,
        and the streams, whose encrypted CRC can be mended by whoever flips bits.
    :ivar costly: True for ciphers in plain Python, which take a millisecond for a packet.
    """

    name: str
    key_length: int
    overhead: int = 20
    protects: bool = True
    costly: bool = False


#: Every block by its name in configuration files. ``chacha20`` is our reading of a document that lists it; no released
#: program has it.
BLOCKS: Mapping[str, Block] = MappingProxyType(
    {
        block.name: block
        for block in (
            Block("aes", 32),
            Block("aes-128", 16),
            Block("aes-192", 24),
            Block("aes-128-gcm", 16, overhead=28),
            Block("blowfish", 32),
            Block("twofish", 32, costly=True),
            Block("cast5", 16),
            Block("3des", 24),
            Block("tea", 16, costly=True),
            Block("xtea", 16, costly=True),
            Block("sm4", 16),
            Block("salsa20", 32, protects=False),
            Block("chacha20", 32, protects=False),
            Block("xor", 32, protects=False),
            Block("none", 0, protects=False),
            Block("null", 0, overhead=0, protects=False),
        )
    }
)


def block_named(name: str, insecure_ok: bool = False) -> Block:
    """The block called ``name``.

    :raises ConfigError: for an unknown name, or one that cannot protect when ``insecure_ok`` is not set.
    """
    block = BLOCKS.get(name)
    if block is None:
        raise ConfigError(f"{name!r} is not a block: give one of {', '.join(BLOCKS)}")
    if not block.protects and not insecure_ok:
        raise ConfigError(f"block {name} does not protect what it carries: choose another, or say that this is wanted")
    return block
