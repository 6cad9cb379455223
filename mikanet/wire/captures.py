"""Files of captured packets: pcap and pcapng, read in either byte order; pcapng is what is written. No I/O.

Source: the pcap and pcapng file formats (IETF drafts of the opsawg working group).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mikanet.errors import RemoteProtocolError

#: Link types (``LINKTYPE_...``).
ETHERNET, RAW_IP, LINUX_SLL, LINUX_SLL2 = 1, 101, 113, 276
#: Bytes before the IP packet in each of them.
IP_AT = {ETHERNET: 14, RAW_IP: 0, LINUX_SLL: 16, LINUX_SLL2: 20}

_PCAP_MAGICS = {0xA1B2C3D4: 1e-6, 0xA1B23C4D: 1e-9}
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_OPT_COMMENT, _OPT_TSRESOL = 1, 9
#: Longest packet and block that is read.
_MAX_PACKET, _MAX_BLOCK = 262_144, 16 << 20
_MAX_INTERFACES = 1000
_MAX_COMMENT = 60_000

#: Gives as many bytes of a file as it is asked for, fewer at its end.
Read = Callable[[int], bytes]


class CaptureError(RemoteProtocolError):
    """Not a file of captured packets, or a damaged one."""


class Captured(NamedTuple):
    """One packet of a file.

    :ivar time: Unix time in seconds. :ivar link_type: what ``data`` begins with.
    """

    time: float
    data: bytes
    link_type: int


def read_captures(read: Read) -> Iterator[Captured]:
    """The packets of a file.

    :raises CaptureError: if it is not one, or as soon as something in it is wrong. A file that just ends, as that of
        a program that was killed, is read up to there.
    """
    first = read(4)
    for order in "<>":
        if len(first) == 4:
            (magic,) = struct.unpack(f"{order}I", first)
            if magic in _PCAP_MAGICS:
                return _read_pcap(read, order, _PCAP_MAGICS[magic])
            if magic == _SECTION:
                return _read_pcapng(read)
    raise CaptureError("neither a pcap nor a pcapng file")


def _read_pcap(read: Read, order: str, unit: float) -> Iterator[Captured]:
    head = read(20)
    if len(head) < 20:
        raise CaptureError("the file ends in its header")
    link_type = struct.unpack(f"{order}I", head[16:])[0] & 0x0FFFFFFF
    record = struct.Struct(f"{order}IIII")
    while len(head := read(16)) == 16:
        seconds, fraction, length, _ = record.unpack(head)
        if length > _MAX_PACKET:
            raise CaptureError("a packet is longer than packets can be")
        data = read(length)
        if len(data) < length:
            return
        yield Captured(seconds + fraction * unit, data, link_type)


def _read_pcapng(read: Read) -> Iterator[Captured]:
    order = "<"
    interfaces: list[tuple[int, float]] = []  # link type and time unit
    kind, head = _SECTION, read(4)
    while len(head) == 4:
        if kind == _SECTION:
            magic = read(4)
            order = "<" if magic == _BYTE_ORDER.to_bytes(4, "little") else ">"
            if int.from_bytes(magic, "little" if order == "<" else "big") != _BYTE_ORDER:
                raise CaptureError("a section has no byte order")
            interfaces.clear()
        (length,) = struct.unpack(f"{order}I", head)
        taken = 12 if kind == _SECTION else 8
        if not taken + 4 <= length <= _MAX_BLOCK or length % 4:
            raise CaptureError("a block has a wrong length")
        rest = read(length - taken)
        if len(rest) < length - taken:
            return
        body = rest[:-4]
        if kind == _INTERFACE:
            if len(interfaces) >= _MAX_INTERFACES:
                raise CaptureError("too many interfaces")
            interfaces.append(_interface(body, order))
        elif kind in (_ENHANCED, _SIMPLE):
            yield _packet(body, order, interfaces, kind == _ENHANCED)
        next_kind = read(4)
        if len(next_kind) < 4:
            return
        (kind,) = struct.unpack(f"{order}I", next_kind)
        head = read(4)


def _interface(body: bytes, order: str) -> tuple[int, float]:
    if len(body) < 8:
        raise CaptureError("an interface is cut short")
    (link_type,) = struct.unpack_from(f"{order}H", body)
    unit, at = 1e-6, 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(f"{order}HH", body, at)
        if not code:
            break
        if code == _OPT_TSRESOL and length == 1 and at + 4 < len(body):
            value = body[at + 4]
            unit = 2.0 ** -(value & 0x7F) if value & 0x80 else 10.0**-value
        at += 4 + length + -length % 4
    return link_type, unit


def _packet(body: bytes, order: str, interfaces: list[tuple[int, float]], enhanced: bool) -> Captured:
    size = 20 if enhanced else 4
    if len(body) < size:
        raise CaptureError("a packet is cut short")
    if enhanced:
        number, high, low, length, _ = struct.unpack_from(f"{order}IIIII", body)
    else:
        number, high, low, length = 0, 0, 0, min(struct.unpack_from(f"{order}I", body)[0], len(body) - size)
    if number >= len(interfaces):
        raise CaptureError("a packet of an interface that is not described")
    if length > len(body) - size:
        raise CaptureError("a packet is cut short")
    link_type, unit = interfaces[number]
    return Captured((high << 32 | low) * unit, body[size : size + length], link_type)


# -- writing


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def file_header(link_type: int = ETHERNET) -> bytes:
    """What a pcapng file begins with: its section and one interface, whose times are microseconds."""
    section = _block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1))
    return section + _block(_INTERFACE, struct.pack("<HHI", link_type, 0, 0))


def packet_block(packet: Captured, comment: str = "") -> bytes:
    """A packet of the file, with a comment that programs show beside it."""
    microseconds = round(packet.time * 1e6)
    length = len(packet.data)
    body = struct.pack("<IIIII", 0, microseconds >> 32, microseconds & 0xFFFFFFFF, length, length)
    body += packet.data + bytes(-length % 4)
    if comment:
        text = comment.encode()[:_MAX_COMMENT]
        body += struct.pack("<HH", _OPT_COMMENT, len(text)) + text + bytes(-len(text) % 4) + bytes(4)
    return _block(_ENHANCED, body)
