"""Base32 with the extended hex alphabet (RFC 4648, section 7), lower case, without padding. No I/O.

The alphabet is that of DNS names: case does not matter, and the order of encoded texts is that of the bytes. Python's own
codec works character by character; here a whole text goes through the big-integer and base64 routines written in C.
"""

from __future__ import annotations

from binascii import b2a_base64

from mikanet.errors import RemoteProtocolError

ALPHABET = b"0123456789abcdefghijklmnopqrstuv"
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FROM_BASE64 = bytes.maketrans(_BASE64[:32], ALPHABET)
_LEGAL = ALPHABET + ALPHABET[10:].upper()
#: Texts of n characters can only be whole bytes if n modulo 8 is one of these.
_WHOLE = (True, False, True, False, True, True, False, True)


def _spreads(groups: int) -> list[tuple[int, int]]:
    """How ``groups`` groups of 5 bits become groups of 6: for each halving the mask of what moves up, and how far."""
    steps = []
    half = groups // 2
    while half:
        slot = ((1 << 5 * half) - 1) << 5 * half
        mask = sum(slot << 12 * half * number for number in range(groups // (2 * half)))
        steps.append((mask, half))
        half //= 2
    return steps


_SPREADS = {1 << power: _spreads(1 << power) for power in range(3, 10)}
_GROUPS = [max(8, 1 << (n - 1).bit_length()) for n in range(513)]
#: Longest input of :func:`encode`, in bytes: more than any DNS name holds.
MAX_ENCODE = 320


def encoded_size(count: int) -> int:
    """How many characters ``count`` bytes become."""
    return (count * 8 + 4) // 5


def encode(data: bytes) -> bytes:
    """The text of ``data``, of at most :data:`MAX_ENCODE` bytes."""
    size = (len(data) * 8 + 4) // 5
    groups = _GROUPS[size]
    value = int.from_bytes(data, "big") << (5 * groups - 8 * len(data))
    for mask, distance in _SPREADS[groups]:
        moved = value & mask
        value += (moved << distance) - moved
    return b2a_base64(value.to_bytes(groups * 6 // 8, "big"), newline=False)[:size].translate(_FROM_BASE64)


def decode(text: bytes) -> bytes:
    """The bytes behind a text, in whichever case.

    :raises RemoteProtocolError: for other characters, a length that no bytes have, or bits left over that are not 0.
    """
    size = len(text)
    if not size:
        return b""
    if text.translate(None, _LEGAL) or not _WHOLE[size & 7]:
        raise RemoteProtocolError("not base32")
    spare = size * 5 & 7
    value = int(text, 32)
    if value & ((1 << spare) - 1):
        raise RemoteProtocolError("base32 with bits left over")
    return (value >> spare).to_bytes(size * 5 >> 3, "big")
