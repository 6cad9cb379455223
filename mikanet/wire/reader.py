"""Wire: a bounded buffer for streams that are parsed message by message. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mikanet.errors import RemoteProtocolError

T = TypeVar("T")

#: Looks for one message in a buffer from an offset: the message and the offset behind it, or None for "more bytes
#: needed". Raises RemoteProtocolError for bytes that no more bytes can mend.
Parser = Callable[[bytearray, int], tuple[T, int] | None]


class Reader:
    """Keeps the bytes of a stream until a parser takes them.

    However much is fed at once, all of it may be taken; but no single message may stay incomplete beyond ``limit``.

    :param limit: most bytes of an incomplete message.
    """

    __slots__ = ("_at", "_buffer", "_limit")

    def __init__(self, limit: int) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._limit = limit

    def feed(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._buffer += data

    def next(self, parse: Parser[T]) -> T | None:
        """The next message, or None while its bytes are not all here.

        :raises RemoteProtocolError: if the parser refuses, or the message goes on beyond the limit.
        """
        found = parse(self._buffer, self._at)
        if found is None:
            if len(self._buffer) - self._at > self._limit:
                raise RemoteProtocolError("a message is longer than its protocol allows")
            return None
        message, self._at = found
        return message

    def rest(self) -> bytes:
        """What has been fed and not taken; the reader is empty afterwards."""
        rest = bytes(self._buffer[self._at :])
        self._buffer.clear()
        self._at = 0
        return rest
