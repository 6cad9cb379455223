"""Replay set: the exact memory of what a server has accepted inside a time window (M3). Plain Python.

The set is exact because a false hit would refuse an honest peer, and it is bounded in time because older ids are refused
by their time. It fails closed: when it is full, or when it cannot know what was accepted, it refuses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

#: How far, in seconds, a peer's clock may be from ours either way; the edge itself is accepted.
TIME_WINDOW = 30

#: How long after its own time an entry is kept, in seconds: one more than the window.
KEEP = TIME_WINDOW + 1

#: One entry of the journal: the 16-byte IV and the id.
ENTRY = struct.Struct("!16sQ")

# An entry with this IV carries no IV but the highest forgotten id.
_FLOOR_MARK = bytes(16)


class ReplaySet:
    """Remembers accepted IVs until their time has passed.

    :param record: called with 24 bytes for each accepted entry, before :meth:`accept` answers; what it writes must
        survive a kill of the process. If it raises OSError the entry is refused.
    :param floor: ids up to this one are refused, as their IVs may have been accepted and forgotten.
    :param capacity: most entries; when they are all in use, everything is refused.
    """

    def __init__(
        self, record: Callable[[bytes], object] = lambda _: None, floor: int = -1, capacity: int = 1_000_000
    ) -> None:
        self._record = record
        self._by_id: dict[int, set[bytes]] = {}
        self._size = 0
        self._floor = floor
        self._capacity = capacity
        self._evicted_at = 0

    def __len__(self) -> int:
        return self._size

    def accept(self, iv: bytes, moment: int, now: float) -> bool:
        """Whether a header with this 16-byte IV and this id (Unix seconds) is fresh at Unix time ``now``.

        If so it is remembered, and never accepted again.
        """
        second = int(now)
        if abs(second - moment) > TIME_WINDOW or moment <= self._floor:
            return False
        if second != self._evicted_at:
            self._evict(second)
        known = self._by_id.get(moment)
        if known is not None and iv in known:
            return False
        if self._size >= self._capacity or iv == _FLOOR_MARK:
            return False
        try:
            self._record(ENTRY.pack(iv, moment))
        except OSError:
            return False
        self._add(iv, moment)
        return True

    def _add(self, iv: bytes, moment: int) -> None:
        self._by_id.setdefault(moment, set()).add(iv)
        self._size += 1

    def _evict(self, second: int) -> None:
        self._evicted_at = second
        for moment in [each for each in self._by_id if each + KEEP < second]:
            self._size -= len(self._by_id.pop(moment))
            self._floor = max(self._floor, moment)

    def entries(self, now: float) -> Iterable[bytes]:
        """What a new journal must hold, 24 bytes each: the floor, then every entry still in time."""
        self._evict(int(now))
        if self._floor >= 0:
            yield ENTRY.pack(_FLOOR_MARK, self._floor)
        for moment, ivs in self._by_id.items():
            for iv in ivs:
                yield ENTRY.pack(iv, moment)

    def restore(self, journal: bytes) -> None:
        """Take over the entries of an earlier process; a last entry that was cut short is ignored."""
        whole = len(journal) - len(journal) % ENTRY.size
        for iv, moment in ENTRY.iter_unpack(journal[:whole]):
            if iv == _FLOOR_MARK:
                self._floor = max(self._floor, moment)
            elif iv not in self._by_id.get(moment, ()):
                self._add(iv, moment)
