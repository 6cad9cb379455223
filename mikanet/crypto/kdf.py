"""Key derivation from passwords."""

from __future__ import annotations

import hashlib


def evp_bytes_to_key(password: bytes, length: int) -> bytes:
    """``length`` key bytes as OpenSSL's EVP_BytesToKey makes them: MD5, one round, no salt.

    Offers no protection against guessing; it exists for peers that use it.
    """
    key = digest = b""
    while len(key) < length:
        digest = hashlib.md5(digest + password, usedforsecurity=False).digest()
        key += digest
    return key[:length]


def scrypt_key(secret: bytes, salt: bytes) -> bytes:
    """32 key bytes by scrypt (RFC 7914) with N = 2^15, r = 8, p = 1: about 0.1 s and 32 MiB for each guess."""
    return hashlib.scrypt(secret, salt=salt, n=2**15, r=8, p=1, maxmem=64 * 1024 * 1024, dklen=32)
