"""Numbers of connections that need no memory until a link begins. No I/O, no clock.

Whoever sends a first question gets a number; nothing is kept of it, so that no flood of first questions can push out
those of others. A number is a counter and twelve zero bits under a permutation of 32 bits (a Feistel network of keyed
BLAKE2s), which depends on the half minute and, where that stays the same, on the asker's address: the server knows its
own numbers again, gives none twice within half a minute, and nobody else can tell which ones it has given.

Who sends a number that was given to his own address has shown that answers reach him there. Where the address is not in
the permutation, the last numbers are remembered with whom they went to; a flood that pushes them out costs others a way
over TCP, or small answers, and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2s

#: Seconds after which numbers are made in another way; one is good until the next such span ends.
SPAN = 30.0
KEY_SIZE = 32
_CHECK_BITS = 12
_COUNTS = 1 << (32 - _CHECK_BITS)
_ROUNDS = range(4)
#: Numbers of which is remembered to whom they went.
_MAX_GIVEN = 65_536


class Numbers:
    """Gives numbers and knows them again.

    :param key: :data:`KEY_SIZE` random bytes of this process.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0
        self._given: OrderedDict[int, str] = OrderedDict()

    def give(self, group: str, now: float, host: str = "") -> int:
        """A new number for an asker of this address group (empty where askers change their address).

        :param host: the address group that the answer goes to, to be remembered where ``group`` is empty.
        """
        number = self._next(group, now)
        if host and not group:
            self._given[number] = host
            if len(self._given) > _MAX_GIVEN:
                self._given.popitem(last=False)
        return number

    def shows(self, number: int, group: str, host: str, now: float) -> bool:
        """Whether who sends this number from ``host`` has got an answer there."""
        if group:
            return group == host and self.knows(number, group, now)
        return self._given.get(number) == host and self.knows(number, group, now)

    def _next(self, group: str, now: float) -> int:
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
