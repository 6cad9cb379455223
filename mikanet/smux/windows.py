"""How much each stream's peer may send: windows whose sum stays within one buffer (version 2). No I/O.

A stream keeps what it was announced until its application has read it, however long that takes. So no stream is given
all that is free: a small base is reserved for every stream that there may be, and of the rest a stream gets half while
it is nearly the only one that wants it, and else a quarter of what is left. Streams that nobody reads thus leave
something for those that come after them, and get their windows back when they are read.
"""

from __future__ import annotations

#: What a sender may have outstanding on a stream until the first UPD of its receiver (smux).
INITIAL_WINDOW = 262_144


class Window:
    """What one stream may still receive.

    :ivar consumed: bytes that the application took. :ivar received: bytes that came.
    :ivar limit: bytes that may come, counted from the stream's beginning; it never falls.
    """

    __slots__ = ("announced", "consumed", "limit", "over", "received", "size", "unreported")

    def __init__(self) -> None:
        self.consumed = 0
        self.received = 0
        self.limit = INITIAL_WINDOW
        self.announced = 0  # as limit, but as far as we have agreed to it
        self.size = 0  # the last window that was told, or meant; 0 before the first
        self.unreported = 0
        self.over = False  # nothing more will come

    @property
    def committed(self) -> int:
        """Bytes of the buffer that the stream may come to fill."""
        return self.announced - self.consumed


class WindowBank:
    """Shares one buffer among the windows of a session's streams.

    :param total: bytes of the buffer. :param most: bytes of one window. :param streams: most streams at once.
    """

    __slots__ = ("_base", "_bases", "_extra", "_most")

    def __init__(self, total: int, most: int, streams: int) -> None:
        self._base = max(total // (2 * streams), 1)
        self._bases = total - self._base * streams  # what there is beyond all bases
        self._extra = 0  # what windows hold beyond their bases
        self._most = most

    def open(self, window: Window) -> int | None:
        """Begin a window; what the peer must be told at once, None if the protocol's first window will do."""
        lone = min(self._most, self._base + self._bases // 2)
        size = min(self._share(window), INITIAL_WINDOW)
        self._announce(window, size)
        return size if size < min(INITIAL_WINDOW, lone) else None

    def consumed(self, window: Window, count: int) -> int | None:
        """The application took bytes; the window to tell the peer with the count of bytes taken, None for not now."""
        before = self._beyond(window)
        window.consumed += count
        self._extra += self._beyond(window) - before
        if window.over:
            return None
        window.unreported += count
        if window.size and window.unreported < window.size // 2:
            return None
        window.unreported = 0
        window.size = self._announce(window, self._share(window))
        return window.size

    def close(self, window: Window) -> None:
        """Nothing more is kept of what comes for this stream."""
        self._extra -= self._beyond(window)
        window.announced = window.consumed

    def ended(self, window: Window) -> None:
        """Nothing more will come: only what has come and is not read counts."""
        before = self._beyond(window)
        window.over = True
        window.announced = min(window.announced, window.received)
        self._extra += self._beyond(window) - before

    def _beyond(self, window: Window) -> int:
        return max(window.committed - self._base, 0)

    def _share(self, window: Window) -> int:
        others = self._extra - self._beyond(window)
        free = max(self._bases - others, 0)
        return min(self._most, self._base + free // (2 if others <= self._bases // 8 else 4))

    def _announce(self, window: Window, size: int) -> int:
        before = self._beyond(window)
        window.announced = max(window.announced, window.consumed + size)
        window.limit = max(window.limit, window.announced)
        self._extra += self._beyond(window) - before
        return window.committed
