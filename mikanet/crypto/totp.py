"""Crypto: time-based one-time passwords (RFC 6238). No I/O; the time is passed in."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

#: Length of a time step in seconds, and Unix time of step 0 (RFC 6238 section 4.1: X and T0).
STEP: Final = 30
EPOCH: Final = 0


def step_of(unix_time: float) -> int:
    """The number of the time step that a moment lies in."""
    return (int(unix_time) - EPOCH) // STEP


def totp(key: bytes, step: int, digits: int = 8, digest: str = "sha256") -> str:
    """The password of one time step as ``digits`` decimal digits.

    Source: RFC 6238 section 4, with RFC 4226 section 5.3 for the truncation.
    """
    mac = hmac.digest(key, step.to_bytes(8, "big"), getattr(hashlib, digest))
    offset = mac[-1] & 0xF
    number = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**digits:0{digits}d}"
