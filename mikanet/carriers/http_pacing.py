"""When what waits goes out: how the polling carriers make few big bodies of many small writes.

A request costs the same processor time whether it carries a byte or a megabyte, so a stream of data waits a moment for
more of itself, while a keystroke does not.
"""

from __future__ import annotations

from collections.abc import Callable

#: Bytes that wait at which a carrier takes no more, and at which it takes again.
HIGH_WATER, LOW_WATER = 1_048_576, 262_144

#: Up to so many bytes go out in the reactor's next turn: somebody types, or asks.
EAGER = 8_192

#: From so many bytes on they go out at once.
FULL = 262_144

#: Longest time, in seconds, that what lies between waits for more.
GATHER = 0.004

#: Bodies of so many bytes must pass a proxy.
LEAST_BODY = 16_384

#: Least and first size of a batch, and how long, in seconds, one should be under way at most, and at least before larger
#: ones are tried.
LEAST, FIRST = 65_536 + 4096, 262_144
SLOW, FAST = 2.0, 1.0


class Sizer:
    """Says how large a batch may be: as large as the path carries in a second or two.

    A body is of no use before it is there whole, so on a slow path large ones would hold up what a session needs to know.

    :param limit: largest batch.
    :ivar most: largest batch now.
    """

    __slots__ = ("_limit", "most")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.most = min(FIRST, limit)

    def arrived(self, size: int, seconds: float) -> None:
        """A batch of ``size`` bytes was under way for so long, to be acknowledged."""
        if size * 2 < self.most:
            return
        if seconds > SLOW:
            self.most = min(self._limit, max(LEAST, self.most // 2))
        elif seconds < FAST:
            self.most = min(self._limit, self.most * 2)


class BodyLimit:
    """The largest body that a proxy on the way takes, as far as is known: it answers 413 to others.

    :ivar most: bytes. :param report: takes a line for the user when that becomes less.
    """

    def __init__(self, most: int, report: Callable[[str], None] = lambda text: None) -> None:
        self.most = most
        self._report = report

    def refused(self, size: int) -> None:
        """A body of ``size`` bytes was: the next power of two below it is tried, down to :data:`LEAST_BODY`."""
        most = max(LEAST_BODY, 1 << (size - 1).bit_length() - 1)
        if most < min(size, self.most):
            self.most = most
            self._report(
                f"a proxy on the way takes no bodies of {size} bytes (it answered 413): {most} at most from now on"
            )


class Pacer:
    """Says when a batch may go."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None

    def due(self, waiting: int, now: float) -> float:
        """The moment at which ``waiting`` bytes go out, ``now`` or before that: at once."""
        if not waiting:
            self._since = None
            return now
        if self._since is None:
            self._since = now
        return now if waiting >= FULL or waiting <= EAGER else self._since + GATHER

    def sent(self) -> None:
        """A batch went out; what is left begins to wait anew."""
        self._since = None
