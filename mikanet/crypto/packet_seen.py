"""What passed before: packets that come twice (Q3). No I/O.

kcp-go's packets carry neither direction nor counter, so a copy is as good as the original. But each begins with random
bytes, and those can be remembered: here in two generations of a bit map, each packet leaving four bits. A false hit
drops a good packet, at most two in ten thousand, and KCP repairs that as any loss. Packets of our own that come back
need no memory: see :mod:`mikanet.crypto.packet_nonces`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

#: Leading bytes of a packet that stand for it: four slices of 24 bits.
IDENTITY_LENGTH = 12
_MAP_LENGTH = (1 << 24) // 8

#: Packets per generation: four bits each fill a tenth of a map, so a stranger hits one of the two maps with a
#: probability below 2 * 0.1 ** 4.
GENERATION = 440_000

#: What :data:`check_and_add` says.
NOWHERE, IN_NEWER, IN_OLDER = 0, 1, 2

CheckAndAdd = Callable[[bytearray, bytearray, bytes], int]


def plain_check_and_add(newer: bytearray, older: bytearray, packet: bytes) -> int:
    """Where the packet's four bits are all set; afterwards they are in ``newer``."""
    bits = int.from_bytes(packet[:IDENTITY_LENGTH], "little")
    in_newer = in_older = True
    for _ in range(4):
        at, bit = bits >> 3 & 0x1FFFFF, 1 << (bits & 7)
        if not newer[at] & bit:
            in_newer = False
            newer[at] |= bit
        if not older[at] & bit:
            in_older = False
        bits >>= 24
    return IN_NEWER if in_newer else IN_OLDER if in_older else NOWHERE


try:
    from mikanet import _speedups
except ImportError:  # an install without a compiler
    check_and_add: CheckAndAdd = plain_check_and_add
else:
    check_and_add = _speedups.check_and_add


class SeenPackets:
    """Remembers the last 440,000 to 880,000 packets in 4 MiB.

    Packets whose leading bytes are not random (block ``null``) do not belong here. Those shorter than
    :data:`IDENTITY_LENGTH` are never seen.
    """

    __slots__ = ("_check", "_count", "_generation", "_newer", "_older")

    def __init__(self, generation: int = GENERATION, check: CheckAndAdd = check_and_add) -> None:
        self._check = check
        self._generation = generation
        self._count = 0
        self._newer = bytearray(_MAP_LENGTH)
        self._older = bytearray(_MAP_LENGTH)

    def passed_before(self, packets: Iterable[bytes]) -> list[bool]:
        """For each packet whether it passed before; all of them are remembered from now on."""
        check, newer, older, room = self._check, self._newer, self._older, self._generation - self._count
        passed = []
        for packet in packets:
            if len(packet) < IDENTITY_LENGTH:
                passed.append(False)
                continue
            found = check(newer, older, packet)
            passed.append(found != NOWHERE)
            if found != IN_NEWER:
                room -= 1
                if not room:
                    older = self._older = newer
                    newer = self._newer = bytearray(_MAP_LENGTH)
                    room = self._generation
        self._count = self._generation - room
        return passed

    def check_and_add(self, packet: bytes) -> bool:
        """Whether this packet passed before; it is remembered from now on."""
        return self.passed_before((packet,))[0]
