"""How large the datagrams of a session may be: found by trying, as RFC 8899 has it. No I/O; the clock is passed in.

KCP cuts its segments before it numbers them, so one that is too large for the path can never be sent in smaller pieces: a session
that begins with the largest size stalls without a word on a path that does not carry it. So it begins with a size that
nearly every path carries, and a datagram with one new segment is now and then filled up to a larger size. If the segment is
acknowledged without having been sent again, the path carries that size; after three that were not, it does not.

The filling is a copy of the number of a segment that the peer has: every KCP acknowledges and drops it.
"""

from __future__ import annotations

#: UDP payload, or the payload of our TCP segments, that is taken for carried: BASE_PLPMTU of RFC 8899.
BASE_PACKET = 1200
#: MAX_PROBES of RFC 8899, and its PMTU_RAISE_TIMER in milliseconds.
MAX_PROBES, RAISE_MS = 3, 600_000
#: The search ends when it is that near (our choice), in bytes.
NEAR = 16
#: Transmissions of a large segment that stayed without an answer, while smaller ones pass, after which the path carries its size
#: no more (our choice).
STUCK_AFTER = 6
#: After so many of them the peer has to have been heard, or else it is the whole path that is away (our choice).
UNANSWERED = 2


class PathMtu:
    """The search: first the largest size, which most paths carry, then by halves.

    :param base: a size that is taken for carried; :param full: the largest that is wanted.
    :ivar size: largest datagram that the path is known to carry.
    :ivar refused: smallest that it is known not to carry; 0 if there is none.
    """

    __slots__ = ("_failures", "_raise_at", "base", "full", "refused", "size")

    def __init__(self, base: int, full: int) -> None:
        self.base = min(base, full)
        self.size = self.base
        self.full = full
        self.refused = 0
        self._failures = 0
        self._raise_at = 0

    def wanted(self, now: int) -> int:
        """The size to try next; 0 if there is none now."""
        if self.size >= self.full:
            return 0
        if not self.refused:
            return self.full
        if self.refused - self.size <= NEAR:
            if now < self._raise_at:
                return 0
            self.refused = 0  # perhaps the path is another one by now
            return self.full
        return (self.size + self.refused) // 2

    @property
    def settled(self) -> bool:
        """Whether the search is over for now."""
        return self.size >= self.full or (bool(self.refused) and self.refused - self.size <= NEAR)

    def passed(self, size: int) -> None:
        """A datagram of this size arrived."""
        self._failures = 0
        self.size = max(self.size, size)

    def failed(self, size: int, now: int) -> None:
        """One of this size did not, perhaps by chance."""
        self._failures += 1
        if self._failures >= MAX_PROBES:
            self._failures = 0
            self.refused = size
            self._raise_at = now + RAISE_MS
