"""Messages of a polled link: the client asks, the server answers each question once. No I/O.

A polled link is what DNS and ICMP have in common. Its layers: these messages, :mod:`~mikanet.carriers.polled_arq` (lost
segments), :mod:`~mikanet.carriers.polled_pace` (how many questions), and the two ends. Big-endian throughout; the
tables stand in ``docs/protocols/pickaxe-dns.rst``.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from zlib import crc32

from mikanet.errors import RemoteProtocolError

VERSION = 1


class Kind(enum.IntEnum):
    """First byte of every message, low four bits."""

    HELLO = 1
    PROBE = 2
    START = 3
    DATA = 4
    CLOSE = 5


#: In the first byte of DATA: a segment follows.
SEGMENT = 0x10
#: Likewise: a segment came that had been there before, so somebody takes for lost what is only late.
TWICE = 0x20
_HELLO = struct.Struct("!BB8s")
_WELCOME = struct.Struct("!B8sI")
_PROBE = struct.Struct("!BIHH")
_PROBED = struct.Struct("!BI")
_START = struct.Struct("!BIHHBBH")
_CONNECTION = struct.Struct("!BI")
_UP = struct.Struct("!BIHHB")
_DOWN = struct.Struct("!BBBHB")
_NUMBER = struct.Struct("!H")

#: Bytes of a DATA question and answer around a segment, without selective acknowledgements.
UP_OVERHEAD, DOWN_OVERHEAD = _UP.size + 2, _DOWN.size + 2
#: Seconds of one unit of the time for which a question was held.
HELD_UNIT = 0.02
CHALLENGE_SIZE = 8
#: Longest pattern that a probe may ask for.
MAX_PATTERN = 4096
_PATTERN = bytes((7 * n + (n >> 8)) & 0xFF for n in range(256)) * (MAX_PATTERN // 256)


@dataclass(frozen=True, slots=True)
class Hello:
    """Somebody wants a link."""

    challenge: bytes


@dataclass(frozen=True, slots=True)
class Probe:
    """Does a message of this size get through, and an answer of that? :ivar salt: makes each try a new name."""

    connection: int
    size: int
    salt: int


@dataclass(frozen=True, slots=True)
class Start:
    """The link begins.

    :ivar way: by which its questions will come: in DNS the type of the records asked for.
    :ivar size: largest answer that passes. :ivar stock: questions that the server keeps. :ivar hold: seconds for which it
        may.
    """

    connection: int
    way: int
    size: int
    stock: int
    hold: float


@dataclass(frozen=True, slots=True)
class Close:
    """The link ends."""

    connection: int


@dataclass(slots=True)
class Up:
    """A question with data or without.

    :ivar number: of the question. :ivar ack: next segment expected. :ivar sack: bit n from the lowest: segment
        ``ack + 1 + n`` is here. :ivar told: of so many segments, None of all. :ivar twice: a segment came a second time.

    :ivar sequence: of the segment, None without one.
    """

    connection: int
    number: int
    ack: int
    sack: int
    told: int | None
    sequence: int | None
    data: bytes
    twice: bool


@dataclass(slots=True)
class Down:
    """An answer. :ivar held: seconds for which the question waited. :ivar backlog: segments that wait, at most 255."""

    held: float
    backlog: int
    ack: int
    sack: int
    told: int | None
    sequence: int | None
    data: bytes
    twice: bool


Question = Hello | Probe | Start | Close | Up


def hello(challenge: bytes) -> bytes:
    """The first question."""
    return _HELLO.pack(Kind.HELLO, VERSION, challenge)


def welcome(challenge: bytes, connection: int) -> bytes:
    """Its answer."""
    return _WELCOME.pack(Kind.HELLO, challenge, connection)


def read_welcome(message: bytes, challenge: bytes) -> int | None:
    """The connection's number; None if this answers something else."""
    if len(message) != _WELCOME.size:
        return None
    kind, echoed, connection = _WELCOME.unpack(message)
    return int(connection) if kind == Kind.HELLO and echoed == challenge else None


def probe(connection: int, size: int, salt: int, length: int = 0) -> bytes:
    """A probe filled up to ``length`` bytes that asks for an answer of ``size`` bytes."""
    head = _PROBE.pack(Kind.PROBE, connection, size, salt)
    return head + _PATTERN[: max(0, length - len(head))]


def probed(question: bytes, size: int) -> bytes:
    """The answer to a probe: what of it came, and a pattern."""
    return _PROBED.pack(Kind.PROBE, crc32(question)) + _PATTERN[: max(0, size - _PROBED.size)]


def read_probed(message: bytes, question: bytes) -> int | None:
    """The size of an answer to a probe if nothing in it was changed on either way."""
    return len(message) if message == probed(question, len(message)) else None


def start(connection: int, way: int, size: int, stock: int, hold: float, salt: int) -> bytes:
    """The question that begins the link."""
    return _START.pack(Kind.START, connection, way, size, stock, min(255, round(hold * 10)), salt)


STARTED = bytes([Kind.START])
CLOSED = bytes([Kind.CLOSE])


def close(connection: int) -> bytes:
    """The client's end of the link."""
    return _CONNECTION.pack(Kind.CLOSE, connection)


#: In the byte that counts the bytes of selective acknowledgements: there are more, of which nothing is said.
_MORE = 0x80


def _selective(sack: int, most: int) -> tuple[int, bytes]:
    """Selective acknowledgements of at most so many bytes, lowest bits first, behind their count."""
    size = (sack.bit_length() + 7) >> 3
    if size <= most:
        return size, sack.to_bytes(size, "little")
    return most | _MORE, (sack & ((1 << 8 * most) - 1)).to_bytes(most, "little")


def up(
    connection: int, number: int, ack: int, sack: int, most_sack: int, twice: bool, sequence: int | None, data: bytes
) -> bytes:
    """A DATA question."""
    kind = Kind.DATA | TWICE if twice else Kind.DATA
    size, bits = _selective(sack, most_sack) if sack else (0, b"")
    if sequence is None:
        return _UP.pack(kind, connection, number, ack, size) + bits
    head = _UP.pack(kind | SEGMENT, connection, number, ack, size)
    return head + bits + _NUMBER.pack(sequence) + data


def down(
    held: float, backlog: int, ack: int, sack: int, most_sack: int, twice: bool, sequence: int | None, data: bytes
) -> bytes:
    """A DATA answer."""
    size, bits = _selective(sack, most_sack) if sack else (0, b"")
    kind = Kind.DATA | (0 if sequence is None else SEGMENT) | (TWICE if twice else 0)
    head = _DOWN.pack(kind, min(255, int(held / HELD_UNIT)), min(backlog, 255), ack, size) + bits
    return head if sequence is None else head + _NUMBER.pack(sequence) + data


def _rest(message: bytes, at: int, size: int, segment: int) -> tuple[int, int | None, int | None, bytes]:
    sack, told = 0, None
    if size:
        if size & _MORE:
            size -= _MORE
            told = 8 * size
        sack = int.from_bytes(message[at : at + size], "little")
        at += size
    if not segment:
        if at != len(message):
            raise RemoteProtocolError("a polled message has another length than it says")
        return sack, told, None, b""
    if at + 2 >= len(message):
        raise RemoteProtocolError("a polled message ends before its segment")
    return sack, told, message[at] << 8 | message[at + 1], message[at + 2 :]


def is_data(message: bytes) -> bool:
    """Whether this looks like a DATA question."""
    return bool(message) and message[0] & ~(SEGMENT | TWICE) == Kind.DATA


def read_question(message: bytes) -> Question:
    """What the client asks.

    :raises RemoteProtocolError: if this is no question.
    """
    if not message:
        raise RemoteProtocolError("an empty question")
    kind = message[0]
    try:
        if kind & ~(SEGMENT | TWICE) == Kind.DATA:
            _, connection, number, ack, bits = _UP.unpack_from(message)
            rest = _rest(message, _UP.size, bits, kind & SEGMENT)
            return Up(connection, number, ack, *rest, kind & TWICE != 0)
        if kind == Kind.HELLO:
            _, version, challenge = _HELLO.unpack(message)
            if version != VERSION:
                raise RemoteProtocolError("another version of polled links")
            return Hello(challenge)
        if kind == Kind.PROBE:
            _, connection, size, salt = _PROBE.unpack_from(message)
            return Probe(connection, size, salt)
        if kind == Kind.START:
            _, connection, way, size, stock, hold, _ = _START.unpack(message)
            return Start(connection, way, size, stock, hold / 10)
        if kind == Kind.CLOSE:
            return Close(_CONNECTION.unpack(message)[1])
    except struct.error:
        raise RemoteProtocolError("a question of the wrong length") from None
    raise RemoteProtocolError("a question of an unknown kind")


def read_down(message: bytes) -> Down:
    """An answer on a link that began.

    :raises RemoteProtocolError: if it is none.
    """
    if len(message) < _DOWN.size:
        raise RemoteProtocolError("an answer is too short")
    kind, held, backlog, ack, bits = _DOWN.unpack_from(message)
    if kind & ~(SEGMENT | TWICE) != Kind.DATA:
        raise RemoteProtocolError("an answer of an unknown kind")
    rest = _rest(message, _DOWN.size, bits, kind & SEGMENT)
    return Down(held * HELD_UNIT, backlog, ack, *rest, kind & TWICE != 0)
