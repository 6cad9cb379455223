"""Cipher streams: one key, one IV, one direction, any number of pieces. Over ``cryptography``."""

from __future__ import annotations

import functools

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES

try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:  # cryptography before 47
    from cryptography.hazmat.primitives.ciphers.modes import CFB


# Checking a key costs more than making a context, and a server has few keys.
_aes = functools.lru_cache(maxsize=32)(AES)


def cfb_encryptor(key: bytes, iv: bytes) -> CipherContext:
    """AES-CFB with 128-bit feedback; ``key`` of 16, 24 or 32 bytes, ``iv`` of 16. ``update`` keeps the length."""
    return Cipher(_aes(key), CFB(iv)).encryptor()


def cfb_decryptor(key: bytes, iv: bytes) -> CipherContext:
    """The inverse of :func:`cfb_encryptor`."""
    return Cipher(_aes(key), CFB(iv)).decryptor()
