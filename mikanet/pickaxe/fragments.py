"""Putting fragments together again (P2b). Plain Python, no I/O.

Fragments of byte-identical resends fill each other's holes. Nothing here is authenticated: the packet that comes out is,
by its MAC, and a wrong one is forgotten with all its fragments.
"""

from __future__ import annotations

from collections import OrderedDict

from mikanet.pickaxe.wire import Fragment

#: Most bytes of unfinished packets, per session.
MAX_BYTES = 256 * 1024


class _Unfinished:
    __slots__ = ("data", "have", "missing")

    def __init__(self, total: int) -> None:
        self.data = bytearray(total)
        self.have: list[tuple[int, int]] = []
        self.missing = total

    def add(self, start: int, data: bytes) -> None:
        """Fill in what is not there yet; what came first stays."""
        stop = start + len(data)
        at = start
        for first, last in sorted(self.have):
            if last <= at:
                continue
            if first >= stop:
                break
            if first > at:
                self.data[at:first] = data[at - start : first - start]
            at = last
        if at < stop:
            self.data[at:stop] = data[at - start :]
        merged = []
        for first, last in self.have:
            if last < start or first > stop:
                merged.append((first, last))
            else:
                start, stop = min(start, first), max(stop, last)
        merged.append((start, stop))
        self.have = merged
        self.missing = len(self.data) - sum(last - first for first, last in merged)


class Reassembler:
    """The unfinished packets of one session, or of several.

    :param limit: bytes; the oldest are given up beyond it.
    """

    __slots__ = ("_limit", "_size", "_unfinished")

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._unfinished: OrderedDict[tuple[bytes, int, int], _Unfinished] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes kept now."""
        return self._size

    def add(self, fragment: Fragment) -> bytes | None:
        """Take a fragment; the packet when it is complete."""
        key = (fragment.sid, fragment.counter, fragment.total)
        found = self._unfinished.get(key)
        if found is None:
            if fragment.total > self._limit:
                return None
            while self._size + fragment.total > self._limit:
                _, old = self._unfinished.popitem(last=False)
                self._size -= len(old.data)
            found = self._unfinished[key] = _Unfinished(fragment.total)
            self._size += fragment.total
        found.add(fragment.offset, fragment.data)
        if found.missing:
            return None
        del self._unfinished[key]
        self._size -= fragment.total
        return bytes(found.data)
