"""paqet's messages: what opens a smux stream, in three dialects. No I/O.

=======  =====================================================  ===========================================
dialect  a message                                              spoken by
=======  =====================================================  ===========================================
gob      type descriptions, then one struct (:mod:`.gob`)       the document; the original up to alpha.19
a20      ``50 01 | type 1 | body``                              alpha.20
a21      ``50 01 | type 1 | body length 2 | body``              alpha.21
=======  =====================================================  ===========================================

Big-endian. Bodies: PING and PONG none; TCP and UDP ``host length 1 | host | port 2``; flags ``count 1 | 2 each``.
The flags are those of :mod:`mikanet.wire.tcp`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.paqet import gob
from mikanet.wire.tcp import ALL_FLAGS

#: Largest datagram through a UDP stream, each way; one datagram is one smux frame.
MAX_DATAGRAM = 4096
#: Longest body of a binary message that is read.
MAX_BODY = 4096
#: Longest host of a binary message, in bytes, and most entries of a flag list.
MAX_HOST, MAX_FLAGS = 253, 64

_MAGIC = b"\x50\x01"
_HEADER_A20, _HEADER_A21 = 3, 5
#: Bytes by which a gob of the original is known: length, number and kind of its first type.
_GOB_BEGINS = 4


class MessageError(RemoteProtocolError):
    """Not a message, or not one of a dialect that is taken. It ends the stream; the session lives."""


class Dialect(enum.Enum):
    """How messages are written."""

    GOB = "gob"
    A20 = "a20"
    A21 = "a21"


class MessageType(enum.IntEnum):
    """What a stream is for."""

    PING = 1
    PONG = 2
    FLAGS = 3
    TCP = 4
    UDP = 5


_WITH_ADDRESS = (MessageType.TCP, MessageType.UDP)


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    :ivar destination: of TCP and UDP; its host may be empty on the wire.
    :ivar flags: bit masks, of FLAGS.
    """

    type: MessageType
    destination: Address | None = None
    flags: tuple[int, ...] = ()


# -- writing


def encode(message: Message, dialect: Dialect) -> bytes:
    """The bytes of a message.

    :raises LocalProtocolError: if its host or flag list is longer than the dialect can say.
    """
    destination = message.destination
    if dialect is Dialect.GOB:
        host, port = (destination.host, destination.port) if destination is not None else ("", 0)
        encoded = gob.encode(gob.Proto(message.type, host, port, message.flags), destination is not None)
        if len(encoded) > gob.MAX_MESSAGE:
            raise LocalProtocolError("a message is longer than it may be")
        return encoded
    body = _encode_body(message)
    length = len(body).to_bytes(2, "big") if dialect is Dialect.A21 else b""
    return _MAGIC + bytes((message.type,)) + length + body


def _encode_body(message: Message) -> bytes:
    if message.destination is not None:
        host = message.destination.host.encode()
        if len(host) > MAX_HOST:
            raise LocalProtocolError("the host is longer than a message can carry")
        return bytes((len(host),)) + host + message.destination.port.to_bytes(2, "big")
    if message.type is MessageType.FLAGS:
        if len(message.flags) > MAX_FLAGS:
            raise LocalProtocolError(f"there are at most {MAX_FLAGS} flag entries")
        return bytes((len(message.flags),)) + b"".join(mask.to_bytes(2, "big") for mask in message.flags)
    return b""


# -- reading


def dialect_of(data: bytes) -> Dialect | None:
    """The dialect of a message, of which the first bytes or all are there; None if it looks like none of them."""
    if data.startswith(gob.DESCRIPTORS[:_GOB_BEGINS]):
        return Dialect.GOB
    reader = MessageReader((Dialect.A20, Dialect.A21))
    try:
        reader.feed(data)
    except MessageError:
        return None
    return reader.dialect


class MessageReader:
    """Takes a stream's first bytes until its message is there.

    The first byte tells gob from the binary dialects. Those two have the same head; where both are taken, the fourth
    byte tells them apart: it is the high byte of a length below 257 in a21, and the length of a host or list in a20. A
    message that says nothing after its third byte is a20's if the piece fed ends there: both programs write a message
    in one piece.

    :param dialects: those that are taken.
    :ivar dialect: that of the message, once it is there.
    :ivar rest: bytes that came behind it.
    """

    __slots__ = ("_buffer", "_dialects", "_gob", "dialect", "rest")

    def __init__(self, dialects: Collection[Dialect]) -> None:
        self._dialects = dialects
        self._buffer = b""
        self._gob: gob.GobReader | None = None
        self.dialect: Dialect | None = None
        self.rest = b""

    def feed(self, data: bytes) -> Message | None:
        """The message, when it is there.

        :raises MessageError: if it is none, or of a dialect that is not taken.
        """
        if not data:
            return None
        buffer = self._buffer = self._buffer + data
        if self._gob is not None or buffer[0] != _MAGIC[0]:
            return self._feed_gob(data)
        if buffer[:2] != _MAGIC[: len(buffer)]:
            raise MessageError("neither the magic nor the version of a message")
        if len(buffer) < _HEADER_A20:
            return None
        try:
            kind = MessageType(buffer[2])
        except ValueError:
            raise MessageError(f"there is no message of type {buffer[2]}") from None
        dialect = self._tell(kind, buffer)
        if dialect is None:
            return None
        return self._read_a20(kind, buffer) if dialect is Dialect.A20 else self._read_a21(kind, buffer)

    def _tell(self, kind: MessageType, buffer: bytes) -> Dialect | None:
        """The binary dialect that the buffer is of; None while that is open."""
        a20, a21 = Dialect.A20 in self._dialects, Dialect.A21 in self._dialects
        if not a20 and not a21:
            raise MessageError("a binary message is not taken")
        if a20 != a21:
            return Dialect.A20 if a20 else Dialect.A21
        if kind is MessageType.PING or kind is MessageType.PONG:
            return Dialect.A20 if len(buffer) == _HEADER_A20 else Dialect.A21
        if len(buffer) < 4:
            return None
        if kind is MessageType.FLAGS:
            return Dialect.A21 if buffer[3] == 0 and len(buffer) > 4 else Dialect.A20
        if len(buffer) < _HEADER_A21:
            return None
        return Dialect.A21 if buffer[3] == 0 or buffer[3:5] == b"\1\0" else Dialect.A20

    def _read_a21(self, kind: MessageType, buffer: bytes) -> Message | None:
        if len(buffer) < _HEADER_A21:
            return None
        length = int.from_bytes(buffer[3:5], "big")
        if length > _longest_body(kind):
            raise MessageError("a message is longer than it may be")
        end = _HEADER_A21 + length
        if len(buffer) < end:
            return None
        message, used = _read_body(kind, buffer[_HEADER_A21:end])
        if message is None or (used != length and kind > MessageType.PONG):
            raise MessageError("the length of a message is not that of its parts")
        return self._done(message, Dialect.A21, buffer[end:])

    def _read_a20(self, kind: MessageType, buffer: bytes) -> Message | None:
        message, used = _read_body(kind, buffer[_HEADER_A20 : _HEADER_A20 + _longest_body(kind)])
        return None if message is None else self._done(message, Dialect.A20, buffer[_HEADER_A20 + used :])

    def _feed_gob(self, data: bytes) -> Message | None:
        if Dialect.GOB not in self._dialects:
            raise MessageError("a gob is not taken")
        reader = self._gob = self._gob or gob.GobReader()
        proto = reader.feed(data)
        if proto is None:
            return None
        try:
            kind = MessageType(proto.type)
        except ValueError:
            raise MessageError(f"there is no message of type {proto.type}") from None
        if not 0 <= proto.port <= 65535 or len(proto.flags) > MAX_FLAGS:
            raise MessageError("a port or a list of flags is out of bounds")
        destination = _destination(proto.host, proto.port) if kind in _WITH_ADDRESS else None
        flags = proto.flags if kind is MessageType.FLAGS else ()
        return self._done(Message(kind, destination, flags), Dialect.GOB, self._buffer[reader.used :])

    def _done(self, message: Message, dialect: Dialect, rest: bytes) -> Message:
        self.dialect, self.rest = dialect, rest
        self._buffer = b""
        return message


def _longest_body(kind: MessageType) -> int:
    # A ping's body means nothing and is read all the same, as the original does.
    return {MessageType.FLAGS: 1 + 2 * MAX_FLAGS, MessageType.TCP: 3 + MAX_HOST, MessageType.UDP: 3 + MAX_HOST}.get(
        kind, MAX_BODY
    )


def _read_body(kind: MessageType, body: bytes) -> tuple[Message | None, int]:
    """The message of a body and how much of it that took; None while something is missing."""
    if kind in _WITH_ADDRESS:
        if not body:
            return None, 0
        if body[0] > MAX_HOST:
            raise MessageError("a host is longer than it may be")
        end = 1 + body[0]
        if len(body) < end + 2:
            return None, 0
        try:
            host = body[1:end].decode()
        except UnicodeDecodeError:
            raise MessageError("a host is no text") from None
        return Message(kind, _destination(host, int.from_bytes(body[end : end + 2], "big"))), end + 2
    if kind is MessageType.FLAGS:
        if not body:
            return None, 0
        if body[0] > MAX_FLAGS:
            raise MessageError("a list of flags is longer than it may be")
        end = 1 + 2 * body[0]
        if len(body) < end:
            return None, 0
        masks = (int.from_bytes(body[at : at + 2], "big") & ALL_FLAGS for at in range(1, end, 2))
        return Message(kind, flags=tuple(masks)), end
    return Message(kind), 0


def _destination(host: str, port: int) -> Address:
    if not host.isprintable():
        raise MessageError("a host is no text")
    return Address(host, port)
