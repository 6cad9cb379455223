"""Numbers of connections that need no memory until a link begins. No I/O, no clock.

Whoever sends a first question gets a number; nothing is kept of it, so that no flood of first questions can push out
those of others. A number is a counter and twelve zero bits under a permutation of 32 bits (a Feistel network of keyed
BLAKE2s), which depends on the half minute and, where that stays the same, on the asker's address: the server knows its
own numbers again, gives none twice within half a minute, and nobody else can tell which ones it has given.
"""

from __future__ import annotations

from hashlib import blake2s

#: Seconds after which numbers are made in another way; one is good until the next such span ends.
SPAN = 30.0
KEY_SIZE = 32
_CHECK_BITS = 12
_COUNTS = 1 << (32 - _CHECK_BITS)
_ROUNDS = range(4)


class Numbers:
    """Gives numbers and knows them again.

    :param key: :data:`KEY_SIZE` random bytes of this process.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def give(self, group: str, now: float) -> int:
        """A new number for an asker of this address group (empty where askers change their address)."""
        self._count = (self._count + 1) % _COUNTS
        left, right = divmod(self._count << _CHECK_BITS, 1 << 16)
        tweak = self._tweak(group, int(now // SPAN))
        for turn in _ROUNDS:
            left, right = right, left ^ self._mix(tweak, turn, right)
        return left << 16 | right

    def knows(self, number: int, group: str, now: float) -> bool:
        """Whether this is a number that was given to this address group in this span or the one before."""
        span = int(now // SPAN)
        return any(self._is_ours(number, self._tweak(group, each)) for each in (span, span - 1))

    def _is_ours(self, number: int, tweak: bytes) -> bool:
        left, right = divmod(number, 1 << 16)
        for turn in reversed(_ROUNDS):
            left, right = right ^ self._mix(tweak, turn, left), left
        return not right & ((1 << _CHECK_BITS) - 1)

    @staticmethod
    def _tweak(group: str, span: int) -> bytes:
        return span.to_bytes(8, "big", signed=True) + group.encode()

    def _mix(self, tweak: bytes, turn: int, half: int) -> int:
        data = bytes([turn]) + half.to_bytes(2, "big") + tweak
        return int.from_bytes(blake2s(data, digest_size=2, key=self._key).digest(), "big")
