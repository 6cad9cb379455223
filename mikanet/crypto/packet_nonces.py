"""Nonces that look random and that their maker knows again, for ever and without remembering any (Q3). No I/O.

kcp-go's packets carry neither direction nor counter, so whoever sends one back to its sender has a good packet. But a
nonce may be anything that does not repeat. Here it is a counter and a mark under a permutation whose key never leaves
this process: no two are the same, to others they are random, and what comes out of the inverse with the mark behind a
number that has been used is our own. A nonce of somebody else does so with a probability below 2**-60.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

RandomBytes = Callable[[int], bytes]

_LANE = 16
#: Of the 80-bit permutation: as many as make it good for nearly 2**40 nonces, on halves of 40 bits (Patarin 2004).
_ROUNDS = 6
_HALF, _TAG = 5, 2
_PAD = bytes(_LANE - 2 * _HALF - _TAG)
#: Nonces made at a time where one alone costs much.
_POOL = 128


class OwnNonces(Protocol):
    """A source of nonces.

    :ivar length: bytes of one.
    """

    length: int

    def take(self, size: int) -> bytes:
        """The next nonces, one after the other; ``size`` is a multiple of :attr:`length`."""

    def own(self, packets: Sequence[bytes]) -> list[bool]:
        """For each packet, of at least :attr:`length` bytes, whether it begins with a nonce that was taken here."""


class BlockNonces:
    """16 bytes: AES of ``counter 8 | mark 8``."""

    length = 16

    def __init__(self, random_bytes: RandomBytes) -> None:
        cipher = Cipher(algorithms.AES(random_bytes(32)), modes.ECB())  # one block, never twice the same
        self._permute, self._invert = cipher.encryptor(), cipher.decryptor()
        self._mark = random_bytes(8)
        self._next = 0

    def take(self, size: int) -> bytes:
        """See :meth:`OwnNonces.take`."""
        first, mark = self._next, self._mark
        self._next += size // self.length
        return self._permute.update(b"".join([n.to_bytes(8, "big") + mark for n in range(first, self._next)]))

    def own(self, packets: Sequence[bytes]) -> list[bool]:
        """See :meth:`OwnNonces.own`."""
        length, mark = self.length, self._mark
        plain = self._invert.update(b"".join([packet[:length] for packet in packets]))
        if mark not in plain:
            return [False] * len(packets)
        return [
            plain[at + 8 : at + length] == mark and int.from_bytes(plain[at : at + 8], "big") < self._next
            for at in range(0, len(plain), length)
        ]


class WideNonces:
    """12 bytes: a number of 10 under a Feistel network with AES for its rounds, and 2 of the number's AES under another key.

    The network's inverse costs microseconds, which every packet of the peer would have to bear. So the last two bytes are
    looked at first: they let one foreign packet in 65,536 through to it. All of a batch goes through a round at once: each
    number has a lane of 16 bytes in one large number.
    """

    length = 2 * _HALF + _TAG

    def __init__(self, random_bytes: RandomBytes) -> None:
        cipher, tags = (Cipher(algorithms.AES(random_bytes(32)), modes.ECB()) for _ in range(2))  # functions on blocks
        self._round, self._tag = cipher.encryptor(), tags.encryptor()
        self._next = 0
        self._pool = b""

    def take(self, size: int) -> bytes:
        """See :meth:`OwnNonces.take`."""
        if len(self._pool) < size:
            self._pool += self._make(max(_POOL, size // self.length))
        taken, self._pool = self._pool[:size], self._pool[size:]
        return taken

    def _make(self, count: int) -> bytes:
        numbers = [n.to_bytes(2 * _HALF, "big") for n in range(self._next, self._next + count)]
        left, right = (_number([number[at : at + _HALF] for number in numbers]) for at in (0, _HALF))
        self._next += count
        mask, rounds = _rounds(count)
        for number in rounds:
            left, right = right, left ^ self._mixed(right | number, count) & mask
        lanes = (left | right << 8 * _HALF).to_bytes(_LANE * count, "little")
        tags = self._tag.update(lanes)
        return b"".join([lanes[at : at + 2 * _HALF] + tags[at : at + _TAG] for at in range(0, len(lanes), _LANE)])

    def own(self, packets: Sequence[bytes]) -> list[bool]:
        """See :meth:`OwnNonces.own`."""
        length, count = self.length, len(packets)
        numbers, tags, carries = _masks(count)
        given = int.from_bytes(b"".join([packet[:length] + _PAD for packet in packets]), "little")
        made = self._tag.update((given & numbers).to_bytes(_LANE * count, "little"))
        # Adding ones to a difference carries beyond the tag, except where the tags are the same.
        different = ((int.from_bytes(made, "little") << 8 * 2 * _HALF ^ given) & tags) + tags & carries
        if different == carries:
            return [False] * count
        return [
            not different >> 8 * (_LANE * at + length) & 1 and self._number_of(packet) < self._next
            for at, packet in enumerate(packets)
        ]

    def _number_of(self, packet: bytes) -> int:
        """The inverse of the network."""
        mask, rounds = _rounds(1)
        left, right = (int.from_bytes(packet[at : at + _HALF], "little") for at in (0, _HALF))
        for number in reversed(rounds):
            left, right = right ^ self._mixed(left | number, 1) & mask, left
        return int.from_bytes(left.to_bytes(_HALF, "little") + right.to_bytes(_HALF, "little"), "big")

    def _mixed(self, lanes: int, count: int) -> int:
        """The round function, of each lane: AES of a half and the number of the round."""
        return int.from_bytes(self._round.update(lanes.to_bytes(_LANE * count, "little")), "little")


def _number(halves: Sequence[bytes]) -> int:
    """Pieces of at most a lane as one number, a lane for each."""
    return int.from_bytes(b"".join([half.ljust(_LANE, b"\0") for half in halves]), "little")


@lru_cache(maxsize=128)
def _rounds(count: int) -> tuple[int, tuple[int, ...]]:
    """For so many lanes: a mask of their halves, and the numbers of the rounds behind those."""
    mask = _number([b"\xff" * _HALF] * count)
    return mask, tuple(_number([bytes(_HALF) + bytes((number,))] * count) for number in range(_ROUNDS))


@lru_cache(maxsize=128)
def _masks(count: int) -> tuple[int, int, int]:
    """For so many lanes: of their numbers, of the tags behind those, and of the bit behind these."""
    end = 8 * 2 * _HALF
    ones = _number([b"\1"] * count)
    return ones * ((1 << end) - 1), ones * ((1 << 8 * _TAG) - 1 << end), ones << end + 8 * _TAG
