"""WebSocket frames (RFC 6455), both roles, plain Python: bytes in, events out, and frames made of payloads.

Only what a tunnel needs: binary messages of a bounded size, ping, pong and close; text, extensions and everything else
that the RFC forbids or that was never agreed is the one error. Of the opening handshake only the answer to a key is
here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass

from mikanet.errors import RemoteProtocolError
from mikanet.fec.reedsolomon import combine

#: Most pieces of one message; peers of ours never cut one, proxies hardly ever.
MAX_FRAGMENTS = 1024

#: Largest payload of a control frame (RFC 6455 section 5.5).
MAX_CONTROL = 125

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3

_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10
_FIN, _MASKED = 0x80, 0x80

#: Close codes (RFC 6455 section 7.4.1).
NORMAL, GOING_AWAY, PROTOCOL_ERROR = 1000, 1001, 1002


@dataclass(frozen=True, slots=True)
class Message:
    """A whole binary message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered with a pong of the same payload."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer closes. ``code`` is 1005 if it said none."""

    code: int


Event = Message | Ping | Pong | Close


def mask(data: bytes, key: bytes) -> bytes:
    """``data`` under a masking key of 4 bytes; masking twice gives it back."""
    size = len(data)
    pad = (key * ((size + 3) // 4))[:size]
    if size < 256:  # below, a call costs more than the bytes
        return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")
    # A sum in GF(2^8) is XOR, and this one runs in C where a compiler was: ten times as fast as whole numbers.
    return combine([b"\x01\x01"], [data, pad], size)[0]


def _frame(opcode: int, payload: bytes, key: bytes | None) -> bytes:
    size = len(payload)
    bit = 0 if key is None else _MASKED
    if size < 126:
        head = bytes((_FIN | opcode, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", _FIN | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", _FIN | opcode, bit | 127, size)
    return head + payload if key is None else b"".join((head, key, mask(payload, key)))


def message(payload: bytes, key: bytes | None) -> bytes:
    """A binary message in one frame. ``key`` is the client's masking key; servers have None."""
    return _frame(_BINARY, payload, key)


def ping(payload: bytes, key: bytes | None) -> bytes:
    """A ping frame."""
    return _frame(_PING, payload, key)


def pong(payload: bytes, key: bytes | None) -> bytes:
    """A pong frame."""
    return _frame(_PONG, payload, key)


def close(code: int, key: bytes | None) -> bytes:
    """A close frame."""
    return _frame(_CLOSE, code.to_bytes(2, "big"), key)


class FrameReader:
    """Reads what the peer sends.

    :param masked: whether its frames must be masked: a client's must, a server's must not be.
    :param max_message: largest message; a frame that announces more is refused before its payload comes. May be changed
        between calls.
    """

    __slots__ = ("_closed", "_fragments", "_have", "_masked", "_need", "_pieces", "_size", "max_message")

    def __init__(self, masked: bool, max_message: int) -> None:
        self._masked = masked
        self.max_message = max_message
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 2
        self._fragments: list[bytes] | None = None
        self._size = 0
        self._closed = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes. After a close there are none.

        :raises RemoteProtocolError: if the peer breaks a rule.
        """
        events: list[Event] = []
        if self._closed or not data:
            return events
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return events
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        offset = 0
        while not self._closed:
            end = self._frame_end(data, offset)
            if end < 0:
                break
            self._take(data, offset, end, events)
            offset = end
        rest = data[offset:] if offset else data
        self._pieces = [rest] if rest else []
        self._have = len(rest)
        return events

    def _frame_end(self, data: bytes, offset: int) -> int:
        """Where the frame at ``offset`` ends; -1, with ``_need`` set, if it is not all here."""
        have = len(data) - offset
        if have < 2:
            self._need = 2
            return -1
        size = self._check_head(data[offset], data[offset + 1])
        head = 2 + (4 if self._masked else 0)
        if size > 125:
            wide = 2 if size == 126 else 8
            head += wide
            if have < 2 + wide:
                self._need = 2 + wide
                return -1
            size = self._long_size(data[offset + 2 : offset + 2 + wide])
        self._need = head + size
        return offset + self._need if have >= self._need else -1

    def _check_head(self, first: int, second: int) -> int:
        """The short length, if the head's two bytes may stand there."""
        opcode = first & 0x0F
        if first & 0x70:
            raise RemoteProtocolError("a frame with reserved bits")
        if bool(second & _MASKED) != self._masked:
            raise RemoteProtocolError("a frame that is not masked" if self._masked else "a masked frame from a server")
        size = second & 0x7F
        if opcode & 0x08:
            if opcode > _PONG or not first & _FIN or size > MAX_CONTROL:
                raise RemoteProtocolError("a bad control frame")
        elif opcode not in (_CONTINUATION, _BINARY) or (opcode == _BINARY) != (self._fragments is None):
            raise RemoteProtocolError("an unexpected kind of frame")
        elif size <= 125:
            self._check_size(size)
        return size

    def _long_size(self, field: bytes) -> int:
        size = int.from_bytes(field, "big")
        if size < (126 if len(field) == 2 else 65536):
            raise RemoteProtocolError("a length in more bytes than it needs")
        self._check_size(size)
        return size

    def _check_size(self, size: int) -> None:
        if self._size + size > self.max_message:
            raise RemoteProtocolError("a message above the limit")

    def _take(self, data: bytes, start: int, end: int, events: list[Event]) -> None:
        """Act on a whole frame."""
        first, short = data[start], data[start + 1] & 0x7F
        start += 2 if short < 126 else 4 if short == 126 else 10
        payload = mask(data[start + 4 : end], data[start : start + 4]) if self._masked else data[start:end]
        opcode = first & 0x0F
        if opcode & 0x08:
            events.append(self._control(opcode, payload))
        elif self._fragments is None:
            if first & _FIN:
                events.append(Message(payload))
            else:
                self._fragments, self._size = [payload], len(payload)
        else:
            self._fragments.append(payload)
            self._size += len(payload)
            if first & _FIN:
                events.append(Message(b"".join(self._fragments)))
                self._fragments, self._size = None, 0
            elif len(self._fragments) > MAX_FRAGMENTS:
                raise RemoteProtocolError("a message in too many pieces")

    def _control(self, opcode: int, payload: bytes) -> Event:
        if opcode == _PING:
            return Ping(payload)
        if opcode == _PONG:
            return Pong(payload)
        if len(payload) == 1:
            raise RemoteProtocolError("half a close code")
        self._closed = True
        return Close(int.from_bytes(payload[:2], "big") if payload else 1005)


def accept(key: bytes) -> bytes:
    """What a server answers to a ``Sec-WebSocket-Key`` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def is_key(key: bytes) -> bool:
    """Whether a ``Sec-WebSocket-Key`` is one: 16 bytes in base64."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False
