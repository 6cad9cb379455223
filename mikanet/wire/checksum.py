"""The internet checksum (RFC 1071). No I/O."""

from __future__ import annotations

from collections.abc import Callable


def plain_checksum(data: bytes, initial: int = 0) -> int:
    """The checksum of ``data``: the complement of the ones' complement sum of its big-endian 16-bit words.

    :param initial: a sum to begin with, such as that of a pseudo header; not complemented.
    """
    # Modulo 2**16 - 1, a number is the sum of its 16-bit digits.
    total = int.from_bytes(data + b"\0" if len(data) & 1 else data, "big") + initial
    folded = total % 0xFFFF
    return ~(folded if folded or not total else 0xFFFF) & 0xFFFF


try:
    from mikanet import _speedups
except ImportError:  # an install without a compiler
    checksum: Callable[..., int] = plain_checksum
else:
    checksum = _speedups.checksum
