"""ICMP echo messages (RFC 792, RFC 4443), and a mark that tells our payloads and their direction. No I/O.

The kernel of an asked host may send a request's payload back by itself: the mark's last bit says who wrote it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from mikanet.errors import RemoteProtocolError
from mikanet.wire.checksum import checksum

ECHO_REPLY, ECHO_REQUEST = 0, 8
ECHO_REQUEST6, ECHO_REPLY6 = 128, 129
_HEADER = struct.Struct("!BBHHH")
HEADER_SIZE = _HEADER.size
#: What our payloads begin with, the client's and the server's.
MARK_UP, MARK_DOWN = b"\x9a\x70", b"\x9a\x71"
MARK_SIZE = 2


class Echo(NamedTuple):
    """An echo message. :ivar type: of either family."""

    type: int
    ident: int
    sequence: int
    payload: bytes


def encode(kind: int, ident: int, sequence: int, payload: bytes) -> bytes:
    """An echo message. ICMPv6's checksum covers addresses, and is left to the kernel."""
    if kind in (ECHO_REQUEST6, ECHO_REPLY6):
        return _HEADER.pack(kind, 0, 0, ident, sequence) + payload
    total = checksum(_HEADER.pack(kind, 0, 0, ident, sequence) + payload)
    return _HEADER.pack(kind, 0, total, ident, sequence) + payload


def decode(message: bytes) -> Echo:
    """Read an echo message, request or reply, without its IP header.

    The checksum is the kernel's affair: raw sockets are given no packet whose sum it has not checked.

    :raises RemoteProtocolError: if it is none.
    """
    if len(message) < HEADER_SIZE:
        raise RemoteProtocolError("an ICMP message is too short")
    kind, code, _, ident, sequence = _HEADER.unpack_from(message)
    if kind not in (ECHO_REPLY, ECHO_REQUEST, ECHO_REQUEST6, ECHO_REPLY6) or code:
        raise RemoteProtocolError("not an ICMP echo")
    return Echo(kind, ident, sequence, message[HEADER_SIZE:])


def without_ip_header(packet: bytes) -> bytes:
    """What an IPv4 raw socket gives, without the IP header.

    :raises RemoteProtocolError: if that is broken.
    """
    if not packet or packet[0] >> 4 != 4 or (size := (packet[0] & 15) * 4) < 20 or size > len(packet):
        raise RemoteProtocolError("a broken IPv4 header")
    return packet[size:]
