"""Putting fragments together again (P2b). Plain Python, no I/O.

Fragments of byte-identical resends fill each other's holes. Nothing here is authenticated: the packet that comes out is,
by its MAC, and a wrong one is forgotten with all its fragments. So what a fragment costs is bounded: it has at least
:data:`~mikanet.pickaxe.wire.MIN_FRAGMENT` bytes unless it is its packet's last, and a packet has at most
:data:`MAX_RANGES` separate ranges, which are searched and not walked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict

from mikanet.pickaxe.wire import Fragment

#: Most bytes of unfinished packets, per session.
MAX_BYTES = 256 * 1024

#: Most separate ranges of one packet (our choice): any packet in fragments of 256 bytes comes together in any order, and
#: one that is sent in order may lose every second of the smallest.
MAX_RANGES = 128

#: What an unfinished packet counts besides its length, in bytes: about what Python's objects take.
OVERHEAD = 512

#: Before a login is proved: the longest packet that is put together, and how many fragments are looked at (our choice).
#: The first packet is an echo request, far shorter than this.
MAX_UNPROVED_PACKET, MAX_UNPROVED_FRAGMENTS = 2048, 64


class _Unfinished:
    """One packet. Range *i* is from ``starts[i]`` to ``stops[i]``; ranges are in order and do not touch."""

    __slots__ = ("data", "missing", "starts", "stops")

    def __init__(self, total: int) -> None:
        self.data = bytearray(total)
        self.starts: list[int] = []
        self.stops: list[int] = []
        self.missing = total

    def add(self, start: int, data: bytes) -> None:
        """Fill in what is not there yet; what came first stays. One range too many is as good as lost."""
        starts, stops = self.starts, self.stops
        stop = start + len(data)
        # The ranges that it touches are first, first + 1, ..., last - 1.
        first, last = bisect_left(stops, start), bisect_right(starts, stop)
        if first == last and len(starts) >= MAX_RANGES:
            return
        at = start
        for index in range(first, last):
            if starts[index] > at:
                self._fill(at, starts[index], start, data)
            at = max(at, stops[index])
        if at < stop:
            self._fill(at, stop, start, data)
        if first < last:
            start, stop = min(start, starts[first]), max(stop, stops[last - 1])
        starts[first:last] = [start]
        stops[first:last] = [stop]

    def _fill(self, at: int, stop: int, start: int, data: bytes) -> None:
        self.data[at:stop] = data[at - start : stop - start]
        self.missing -= stop - at


class Reassembler:
    """The unfinished packets of one session.

    :param limit: bytes; the oldest are given up beyond it.
    """

    __slots__ = ("_limit", "_size", "_unfinished")

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._unfinished: OrderedDict[tuple[bytes, int, int], _Unfinished] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes kept now, with :data:`OVERHEAD` for each packet."""
        return self._size

    def add(self, fragment: Fragment) -> bytes | None:
        """Take a fragment; the packet when it is complete."""
        key = (fragment.sid, fragment.counter, fragment.total)
        found = self._unfinished.get(key)
        if found is None:
            size = fragment.total + OVERHEAD
            if size > self._limit:
                return None
            while self._size + size > self._limit:
                (_, _, total), _ = self._unfinished.popitem(last=False)
                self._size -= total + OVERHEAD
            found = self._unfinished[key] = _Unfinished(fragment.total)
            self._size += size
        found.add(fragment.offset, fragment.data)
        if found.missing:
            return None
        del self._unfinished[key]
        self._size -= fragment.total + OVERHEAD
        return bytes(found.data)


class UnprovedFragments:
    """The fragments of one login that nobody has proved: few, and of one short packet at a time."""

    __slots__ = ("_left", "_reassembler")

    def __init__(self) -> None:
        self._left = MAX_UNPROVED_FRAGMENTS
        self._reassembler = Reassembler(MAX_UNPROVED_PACKET + OVERHEAD)

    def add(self, fragment: Fragment) -> bytes | None:
        """Take a fragment; the packet when it is complete. None, too, for what is too long or one too many."""
        if not self._left:
            return None
        self._left -= 1
        return self._reassembler.add(fragment)
