"""KCP segments: constants and the 24-byte header. No I/O.

Layout, little-endian: ``conv 4 | cmd 1 | frg 1 | wnd 2 | ts 4 | sn 4 | una 4 | len 4 | data``. Several segments may
share one datagram. Source: kcp-go ``kcp.go`` (``segment.encode``, ``Input``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from mikanet.errors import RemoteProtocolError

HEADER = struct.Struct("<IBBHIIII")
HEADER_LENGTH = HEADER.size

PUSH = 81
ACK = 82
WASK = 83
WINS = 84

#: Mask, and half, of the 32-bit circle on which sn, una and ts live.
MASK = 0xFFFFFFFF
HALF = 0x80000000


class SegmentError(RemoteProtocolError):
    """A datagram that is not KCP, or not of this conversation."""


class ImpossibleAckError(RemoteProtocolError):
    """The peer acknowledged what was never sent."""


class Segment(NamedTuple):
    """One segment as it stands on the wire."""

    conv: int
    cmd: int
    frg: int
    wnd: int
    ts: int
    sn: int
    una: int
    data: bytes


def serial_difference(a: int, b: int) -> int:
    """How far ``a`` is ahead of ``b`` on the 32-bit circle: -2**31 to 2**31 - 1."""
    return ((a - b + HALF) & MASK) - HALF


def encode(segment: Segment) -> bytes:
    """The bytes of one segment."""
    return HEADER.pack(*segment[:7], len(segment.data)) + segment.data


def decode(datagram: bytes) -> Iterator[Segment]:
    """The segments of a datagram; trailing bytes shorter than a header are ignored, as kcp-go does.

    The hot path in :mod:`mikanet.kcp.arq` unpacks headers itself; this is for looking at datagrams.

    :raises SegmentError: at the first segment with an unknown command or a length beyond the datagram.
    """
    at = 0
    while len(datagram) - at >= HEADER_LENGTH:
        conv, cmd, frg, wnd, ts, sn, una, length = HEADER.unpack_from(datagram, at)
        at += HEADER_LENGTH
        if not PUSH <= cmd <= WINS or length > len(datagram) - at:
            raise SegmentError("not a KCP segment")
        yield Segment(conv, cmd, frg, wnd, ts, sn, una, datagram[at : at + length])
        at += length


def opens_session(datagram: bytes, rcv_wnd: int) -> int | None:
    """The conv of a datagram that may open a session, else None.

    It may if its first segment is well formed and its sn lies in the first receive window (Q5).
    """
    if len(datagram) < HEADER_LENGTH:
        return None
    conv, cmd, _, _, _, sn, _, length = HEADER.unpack_from(datagram)
    if not PUSH <= cmd <= WINS or length > len(datagram) - HEADER_LENGTH or sn >= rcv_wnd:
        return None
    return int(conv)
