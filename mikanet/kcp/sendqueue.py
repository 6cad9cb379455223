"""What was written and has no sequence number yet, cut into segments when the window lets them go. No I/O."""

from __future__ import annotations

from collections import deque

from mikanet.errors import LocalProtocolError

#: Most fragments of one message: the fragment number is one byte.
MAX_FRAGMENTS = 255


class StreamQueue:
    """Writes as one run of bytes, cut into full segments; fragment numbers are 0.

    :ivar mss: bytes of a full segment, from the next that is cut on.

    kcp-go tops up its last waiting segment with each write. Cutting late comes to the same and copies once.
    """

    __slots__ = ("_chunks", "_head", "_length", "mss")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self._chunks: deque[bytes] = deque()
        self._head = 0  # bytes of the first chunk that are gone
        self._length = 0

    def put(self, data: bytes) -> None:
        """Add a write."""
        if data:
            self._chunks.append(data)
            self._length += len(data)

    def segments(self) -> int:
        """How many segments wait."""
        return -(-self._length // self.mss)

    def take(self, count: int, most: int | None = None) -> list[tuple[int, bytes]]:
        """The next segments, at most ``count``, as (frg, data), of at most ``most`` bytes each."""
        mss, chunks, head = self.mss if most is None else min(self.mss, most), self._chunks, self._head
        taken: list[tuple[int, bytes]] = []
        while len(taken) < count and chunks:
            chunk = chunks[0]
            data = chunk[head : head + mss]
            head += len(data)
            if head == len(chunk):
                chunks.popleft()
                head = 0
                if len(data) < mss and chunks:
                    data, head = self._top_up(data, mss)
            taken.append((0, data))
            self._length -= len(data)
        self._head = head
        return taken

    def _top_up(self, data: bytes, mss: int) -> tuple[bytes, int]:
        parts = [data]
        missing = mss - len(data)
        head = 0
        while missing and self._chunks:
            chunk = self._chunks[0]
            if len(chunk) > missing:
                parts.append(chunk[:missing])
                head, missing = missing, 0
            else:
                parts.append(self._chunks.popleft())
                missing -= len(chunk)
        return b"".join(parts), head


class MessageQueue:
    """Each write a message of its own, in fragments counted down to 0.

    :ivar mss: bytes of a full fragment, from the next message on.
    """

    __slots__ = ("_waiting", "mss")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self._waiting: deque[tuple[int, bytes]] = deque()

    def put(self, data: bytes) -> None:
        """Add a message.

        :raises LocalProtocolError: if it has more fragments than can be numbered.
        """
        mss = self.mss
        count = -(-len(data) // mss)
        if count > MAX_FRAGMENTS:
            raise LocalProtocolError(f"a KCP message of {len(data)} bytes has more than {MAX_FRAGMENTS} fragments")
        self._waiting.extend((count - 1 - i, data[i * mss : (i + 1) * mss]) for i in range(count))

    def segments(self) -> int:
        """How many segments wait."""
        return len(self._waiting)

    def take(self, count: int, most: int | None = None) -> list[tuple[int, bytes]]:
        """The next segments, at most ``count``, as (frg, data); fragments have been counted and stay as long as they are."""
        waiting = self._waiting
        return [waiting.popleft() for _ in range(min(count, len(waiting)))]
