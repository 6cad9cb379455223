"""Mika's byte layouts: header, chunks and datagrams. Plain Python, no I/O, no cipher.

Source: the Mika document, and ``docs/protocols/mika.rst``, which states every byte with both profiles. All numbers are
big-endian.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hmac import compare_digest
from hmac import digest as hmac_digest

from mikanet.address import Address
from mikanet.errors import AuthenticationError, RemoteProtocolError
from mikanet.wire.socks import decode_address, encode_address

IV_SIZE = 16
MAC_SIZE = 10
VERSION = 1

#: Data bytes in one chunk that a receiver takes: what the length field can say.
MAX_CHUNK = 65535

#: Zero-length chunks in a row that end the client's direction (M5).
END_RUN = 3

#: Longest datagram that fits UDP over IPv4.
MAX_DATAGRAM = 65507

_PREFIX = struct.Struct("!BBHB")
_ID = struct.Struct("!Q")
_CHUNK_HEAD = struct.Struct("!H10s")
_LENGTH = struct.Struct("!H")

#: A header's longest address: atyp, length, name, port.
_MAX_ADDRESS = 1 + 1 + 255 + 2
MAX_HEADER = _PREFIX.size + _MAX_ADDRESS + _ID.size + MAC_SIZE


class Command(enum.IntEnum):
    """What the client wants. ``CONTROL`` is defined by the document and refused (M7)."""

    FORWARD = 1
    CONTROL = 2


class Kind(enum.IntEnum):
    """How the data after the header is to be resolved. ``ADMIN`` is defined by the document and refused (M7)."""

    TCP = 1
    HTTP = 2
    UDP = 3
    ADMIN = 5


@dataclass(frozen=True, slots=True)
class Header:
    """A request header.

    :ivar kind: TCP, HTTP or UDP.
    :ivar destination: the target; None for HTTP where the profile carries none.
    :ivar moment: the chunk id, Unix seconds.
    """

    kind: Kind
    destination: Address | None
    moment: int


def encode_header(header: Header, iv: bytes, key: bytes) -> bytes:
    """The header in clear, with its MAC under ``iv + key``; 13 to 282 bytes."""
    address = encode_address(header.destination) if header.destination is not None else b""
    fields = _PREFIX.pack(VERSION, Command.FORWARD, 0, header.kind) + address + _ID.pack(header.moment)
    return fields + hmac_digest(iv + key, fields, "sha1")[:MAC_SIZE]


def decode_header(data: bytes | bytearray, iv: bytes, key: bytes, http_address: bool) -> tuple[Header, int] | None:
    """The header at the start of ``data`` and its length; None while it is incomplete.

    Nothing of it is used before its MAC is right. Each fixed byte must be legal as soon as it is there, so no input
    makes a receiver wait for more than ``MAX_HEADER`` bytes.

    :param http_address: whether kind HTTP carries an address.
    :raises AuthenticationError: if it is no legal header, or its MAC is wrong.
    """
    if len(data) < _PREFIX.size:
        return None
    version, command, reserved, kind_number = _PREFIX.unpack_from(data)
    if (
        version != VERSION
        or command != Command.FORWARD
        or reserved
        or kind_number not in (Kind.TCP, Kind.HTTP, Kind.UDP)
    ):
        raise AuthenticationError("not a Mika header")
    kind = Kind(kind_number)
    offset = _PREFIX.size
    destination = None
    if kind is not Kind.HTTP or http_address:
        try:
            decoded = decode_address(data, offset)
        except RemoteProtocolError as error:
            raise AuthenticationError("no legal address") from error
        if decoded is None:
            return None
        destination, offset = decoded
    end = offset + _ID.size + MAC_SIZE
    if len(data) < end:
        return None
    fields = bytes(data[: offset + _ID.size])
    tag = bytes(data[offset + _ID.size : end])
    if not compare_digest(hmac_digest(iv + key, fields, "sha1")[:MAC_SIZE], tag):
        raise AuthenticationError("wrong header MAC")
    return Header(kind, destination, _ID.unpack_from(data, offset)[0]), end


class ChunkWriter:
    """Cuts data into chunks. The id of each is one above the one before; it is not on the wire.

    :param moment: the header's chunk id.
    :param max_chunk: most data bytes in one chunk.
    :param first_sizes: yields, for the shaped start of a stream, how many empty chunks to put before the next data
        chunk and how much data that one may hold (M6); after its end all chunks are as large as can be.
    """

    __slots__ = ("_first_sizes", "_iv", "_max_chunk", "_next_id")

    def __init__(
        self, iv: bytes, moment: int, max_chunk: int, first_sizes: Iterator[tuple[int, int]] | None = None
    ) -> None:
        self._iv = iv
        self._next_id = moment + 1
        self._max_chunk = max_chunk
        self._first_sizes = first_sizes

    def write(self, data: bytes) -> bytes:
        """``data`` (not empty) as one or more chunks, in clear."""
        parts: list[bytes | memoryview] = []
        view = memoryview(data)
        offset = 0
        while self._first_sizes is not None and offset < len(data):
            empty, size = next(self._first_sizes, (0, 0))
            if not size:
                self._first_sizes = None
                break
            for _ in range(empty):
                self._append(parts, view[:0])
            self._append(parts, view[offset : offset + size])
            offset += size
        for start in range(offset, len(data), self._max_chunk):
            self._append(parts, view[start : start + self._max_chunk])
        return b"".join(parts)

    def write_one(self, data: bytes) -> bytes:
        """``data``, 0 to 65535 bytes, as exactly one chunk, in clear."""
        parts: list[bytes | memoryview] = []
        self._append(parts, memoryview(data))
        return b"".join(parts)

    def end(self) -> bytes:
        """The end of this direction (M5), in clear."""
        parts: list[bytes | memoryview] = []
        for _ in range(END_RUN):
            self._append(parts, memoryview(b""))
        return b"".join(parts)

    def _append(self, parts: list[bytes | memoryview], data: memoryview) -> None:
        chunk_id = self._next_id
        self._next_id = chunk_id + 1 & 0xFFFFFFFFFFFFFFFF
        tag = hmac_digest(self._iv + _ID.pack(chunk_id), data, "sha1")
        parts.append(_CHUNK_HEAD.pack(len(data), tag[:MAC_SIZE]))
        parts.append(data)


class ChunkReader:
    """Takes the chunks of one stream apart, in any fragmentation, and gives only data whose MAC was right.

    :ivar next_id: the id of the chunk that is awaited or incomplete.
    :ivar ended: whether the end mark has come.
    """

    __slots__ = ("_empty_run", "_iv", "_pending", "ended", "next_id")

    def __init__(self, iv: bytes, moment: int) -> None:
        self._iv = iv
        self._pending = bytearray()
        self._empty_run = 0
        self.next_id = moment + 1
        self.ended = False

    @property
    def incomplete(self) -> bool:
        """Whether a chunk has begun and not ended."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every chunk that ``data`` completes; empty chunks give nothing.

        :raises AuthenticationError: if a MAC is wrong; nothing of this call is delivered then.
        :raises RemoteProtocolError: if something follows the end mark.
        """
        out: list[bytes] = []
        offset = self._complete_pending(data, out) if self._pending else 0
        view = memoryview(data)
        size = len(data)
        while size - offset >= _CHUNK_HEAD.size:
            length, tag = _CHUNK_HEAD.unpack_from(data, offset)
            end = offset + _CHUNK_HEAD.size + length
            if end > size:
                break
            self._accept(view[offset + _CHUNK_HEAD.size : end], tag, out)
            offset = end
        if offset < size:
            self._pending += view[offset:]
            if self.ended:
                raise RemoteProtocolError("data after the end")
        return out

    def _complete_pending(self, data: bytes, out: list[bytes]) -> int:
        """Fill the unfinished chunk from ``data``; returns how much of it was used."""
        pending = self._pending
        used = 0
        if len(pending) < _CHUNK_HEAD.size:
            used = min(_CHUNK_HEAD.size - len(pending), len(data))
            pending += data[:used]
            if len(pending) < _CHUNK_HEAD.size:
                return used
        length, tag = _CHUNK_HEAD.unpack_from(pending)
        wanted = _CHUNK_HEAD.size + length - len(pending)
        taken = data[used : used + wanted]
        pending += taken
        used += len(taken)
        if len(taken) == wanted:
            # A new buffer: the old one may be as large as a chunk, and most streams are idle most of the time.
            self._pending = bytearray()
            self._accept(memoryview(pending)[_CHUNK_HEAD.size :], tag, out)
        return used

    def _accept(self, data: memoryview, tag: bytes, out: list[bytes]) -> None:
        if self.ended:
            raise RemoteProtocolError("data after the end")
        expected = hmac_digest(self._iv + _ID.pack(self.next_id), data, "sha1")[:MAC_SIZE]
        if not compare_digest(expected, tag):
            raise AuthenticationError("wrong chunk MAC")
        self.next_id = self.next_id + 1 & 0xFFFFFFFFFFFFFFFF
        if data:
            self._empty_run = 0
            out.append(bytes(data))
        else:
            self._empty_run += 1
            self.ended = self._empty_run == END_RUN


class DatagramReader:
    """Takes the server's datagrams apart: a 16-bit length before each (M7)."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The datagrams that ``data`` completes."""
        pending = self._pending
        pending += data
        out: list[bytes] = []
        offset = 0
        while len(pending) - offset >= _LENGTH.size:
            end = offset + _LENGTH.size + _LENGTH.unpack_from(pending, offset)[0]
            if end > len(pending):
                break
            out.append(bytes(pending[offset + _LENGTH.size : end]))
            offset = end
        del pending[:offset]
        return out


def encode_datagram(data: bytes) -> bytes:
    """One datagram, at most 65535 bytes, as the server sends it, in clear."""
    return _LENGTH.pack(len(data)) + data


#: The start of a stream that is cut at random edges, in bytes (M6).
SHAPED_START = 4096


def shaped_sizes(random_below: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Random chunk edges for the first 4 KiB of a stream, with 0 to 2 empty chunks between data chunks (M6).

    :param random_below: a random whole number from 0 to its argument less one.
    """
    sent = 0
    while sent < SHAPED_START:
        size = min(1 + random_below(1400), SHAPED_START - sent)
        yield (random_below(3) if sent else 0), size
        sent += size
