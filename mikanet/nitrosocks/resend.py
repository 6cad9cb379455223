"""NitroSocks: nothing is lost, and nothing comes twice, when one connection of a session follows another (N9).

Counts frames both ways, and keeps what was sent until the peer has it. Plain Python.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from mikanet.errors import RemoteProtocolError

#: Bytes without acknowledgement at which streams pause (N9).
MAX_UNACKNOWLEDGED: Final = 4 * 1024 * 1024

#: The same in frames; and the bytes and frames at which even what is no content waits: a peer that acknowledges nothing
#: can make us answer no longer. Our choice.
MAX_FRAMES: Final = 32_768
MAX_BYTES_KEPT: Final = 2 * MAX_UNACKNOWLEDGED
MAX_FRAMES_KEPT: Final = 2 * MAX_FRAMES

#: Bytes received after which an acknowledgement is due: with something else that is sent, and alone; and seconds after
#: which one is due for less.
ACK_BYTES: Final = 64 * 1024
ACK_BYTES_ALONE: Final = 256 * 1024
ACK_TIME: Final = 1.0


class Ledger:
    """What was sent and received in one session.

    :ivar received: counted frames that came. :ivar kept: bytes of frames that the peer may not have.
    """

    __slots__ = ("_again", "_frames", "_since_ack", "_told", "kept", "received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.kept = 0
        self._frames: deque[bytes] = deque()
        self._again: deque[bytes] = deque()
        self._since_ack = 0
        self._told = 0

    # -- output

    @property
    def has_room(self) -> bool:
        """Whether more content may be sent."""
        return self.kept < MAX_UNACKNOWLEDGED and len(self._frames) < MAX_FRAMES

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be sent at all."""
        return self.kept >= MAX_BYTES_KEPT or len(self._frames) >= MAX_FRAMES_KEPT

    def keep(self, frame: bytes) -> None:
        """A counted frame is sent now, for the first time."""
        self._frames.append(frame)
        self.kept += len(frame)
        self.sent += 1

    def acknowledged(self, count: int) -> None:
        """The peer has the first ``count`` frames.

        :raises RemoteProtocolError: if that is less than it said before, or more than there were.
        """
        frames = self._frames
        new = count - (self.sent - len(frames))
        if not 0 <= new <= len(frames) - len(self._again):
            raise RemoteProtocolError("an acknowledgement of what cannot have come")
        for _ in range(new):
            self.kept -= len(frames.popleft())

    def resume(self, count: int) -> None:
        """A new connection: the peer has the first ``count`` frames, and the rest is to be sent again.

        :raises RemoteProtocolError: as :meth:`acknowledged`.
        """
        self._again.clear()
        self.acknowledged(count)
        self._again.extend(self._frames)

    def next_again(self) -> bytes | None:
        """The next frame that is to be sent again."""
        return self._again.popleft() if self._again else None

    # -- input

    def count(self, size: int) -> None:
        """A counted frame came."""
        self.received += 1
        self._since_ack += size

    @property
    def wants_ack(self) -> bool:
        """Whether there is something to acknowledge."""
        return self.received != self._told

    def ack_due(self, *, alone: bool) -> bool:
        """Whether an acknowledgement should go out now, with other frames or alone."""
        return self._since_ack >= (ACK_BYTES_ALONE if alone else ACK_BYTES)

    def tell(self) -> int:
        """The count for an ACK or RESUME that goes out now."""
        self._told = self.received
        self._since_ack = 0
        return self.received
