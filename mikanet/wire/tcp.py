"""TCP headers: flags by their letters, options, and whole segments with the checksum. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from mikanet.errors import RemoteProtocolError
from mikanet.wire.checksum import checksum

PROTOCOL = 6

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, NS = (1 << bit for bit in range(9))

#: Each flag's letter in flag lists.
LETTERS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "A": ACK, "U": URG, "E": ECE, "C": CWR, "N": NS}
ALL_FLAGS = 0x1FF
DEFAULT_FLAGS = PSH | ACK

HEADER = struct.Struct("!HHIIHHHH")
HEADER_LENGTH = HEADER.size


def parse_flags(text: str) -> int:
    """The number of a flag list's entry, such as 0x18 for ``PA``.

    :raises ValueError: for no letters, or one that is no flag.
    """
    if not text:
        raise ValueError("an entry without flags")
    flags = 0
    for letter in text:
        if letter not in LETTERS:
            raise ValueError(f"{letter!r} is not one of the flags {''.join(LETTERS)}")
        flags |= LETTERS[letter]
    return flags


def format_flags(flags: int) -> str:
    """The letters of a number."""
    return "".join(letter for letter, bit in LETTERS.items() if flags & bit)


def usable_flags(entries: Iterable[int]) -> tuple[int, ...]:
    """The entries of a peer's list that may be obeyed (Q7): none with RST, none without any of S, A, P, F and U."""
    carrying = SYN | ACK | PSH | FIN | URG
    return tuple(entry & ALL_FLAGS for entry in entries if not entry & RST and entry & carrying)


class TcpSegment(NamedTuple):
    """A TCP segment without its checksum, which is computed and checked."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    options: bytes
    payload: bytes
    urgent: int = 0


def pseudo_header_sum(source: bytes, destination: bytes, length: int, protocol: int = PROTOCOL) -> int:
    """The part of a checksum that stands for addresses, length and protocol: what ``checksum`` takes as its initial."""
    return int.from_bytes(source, "big") % 0xFFFF + int.from_bytes(destination, "big") % 0xFFFF + length + protocol


def encode(segment: TcpSegment, source: bytes, destination: bytes) -> bytes:
    """The bytes of a segment between two addresses (4 or 16 bytes each). Options are padded with zeros to words."""
    options = segment.options + bytes(-len(segment.options) % 4)
    offset = (HEADER_LENGTH + len(options)) // 4 << 12 | segment.flags
    fields = (segment.source_port, segment.destination_port, segment.seq, segment.ack, offset, segment.window)
    rest = options + segment.payload
    header = HEADER.pack(*fields, 0, segment.urgent)
    initial = pseudo_header_sum(source, destination, len(header) + len(rest))
    return HEADER.pack(*fields, checksum(header + rest, initial), segment.urgent) + rest


def decode(data: bytes, source: bytes, destination: bytes, check: bool = True) -> TcpSegment:
    """The segment that an IP packet between two addresses carries.

    :param check: look at the checksum; what a kernel sends has none yet where its device is to compute it.
    :raises RemoteProtocolError: if it is cut short or its checksum is wrong.
    """
    if len(data) < HEADER_LENGTH:
        raise RemoteProtocolError("a TCP header that is cut short")
    source_port, destination_port, seq, ack, offset, window, _, urgent = HEADER.unpack_from(data)
    length = (offset >> 12) * 4
    if not HEADER_LENGTH <= length <= len(data):
        raise RemoteProtocolError("a TCP header with a wrong length")
    if check and checksum(data, pseudo_header_sum(source, destination, len(data))):
        raise RemoteProtocolError("a TCP segment with a wrong checksum")
    options, payload = data[HEADER_LENGTH:length], data[length:]
    return TcpSegment(source_port, destination_port, seq, ack, offset & ALL_FLAGS, window, options, payload, urgent)


def mss_option(size: int) -> bytes:
    """Maximum segment size."""
    return struct.pack("!BBH", 2, 4, size)


def window_scale_option(shift: int) -> bytes:
    """Window scale."""
    return struct.pack("!BBB", 3, 3, shift)


def timestamps_option(value: int, echo: int) -> bytes:
    """Timestamps (RFC 7323)."""
    return struct.pack("!BBII", 8, 10, value, echo)


SACK_PERMITTED_OPTION = b"\x04\x02"
NOP_OPTION = b"\x01"
