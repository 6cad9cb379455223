"""IPv4 and IPv6 packets without options, extension headers or fragments. No I/O."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from mikanet.errors import RemoteProtocolError
from mikanet.wire import ethernet
from mikanet.wire.checksum import checksum

#: version and IHL, TOS, length, ID, flags and offset, TTL, protocol, checksum, source, destination
V4_HEADER = struct.Struct("!BBHHHBBH4s4s")
#: version, traffic class and flow label, payload length, next header, hop limit, source, destination
V6_HEADER = struct.Struct("!IHBB16s16s")
V4_LENGTH, V6_LENGTH = V4_HEADER.size, V6_HEADER.size

DONT_FRAGMENT = 0x4000
_FRAGMENT = 0x3FFF  # more fragments, or an offset
_MAX_LENGTH = 65535


class IpPacket(NamedTuple):
    """An IP packet of either family.

    :ivar tos: IPv4's type of service, IPv6's traffic class. :ivar ttl: or hop limit.
    :ivar dont_fragment: IPv4 only. :ivar identification: of IPv4, the flow label of IPv6.
    """

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    payload: bytes
    tos: int = 0
    ttl: int = 64
    identification: int = 0
    dont_fragment: bool = True

    @property
    def ethertype(self) -> int:
        """What an Ethernet frame calls it."""
        return ethernet.IPV4 if self.source.version == 4 else ethernet.IPV6


def encode(packet: IpPacket) -> bytes:
    """The bytes of a packet.

    :raises ValueError: if the payload does not fit, or the families differ.
    """
    if packet.source.version != packet.destination.version:
        raise ValueError("addresses of two families")
    source, destination, payload = packet.source.packed, packet.destination.packed, packet.payload
    if packet.source.version == 6:
        if len(payload) > _MAX_LENGTH:
            raise ValueError("a payload that does not fit a packet")
        first = 6 << 28 | packet.tos << 20 | packet.identification
        return V6_HEADER.pack(first, len(payload), packet.protocol, packet.ttl, source, destination) + payload
    length = V4_LENGTH + len(payload)
    if length > _MAX_LENGTH:
        raise ValueError("a payload that does not fit a packet")
    flags = DONT_FRAGMENT if packet.dont_fragment else 0
    before = (0x45, packet.tos, length, packet.identification, flags, packet.ttl, packet.protocol)
    header = V4_HEADER.pack(*before, 0, source, destination)
    return V4_HEADER.pack(*before, checksum(header), source, destination) + payload


def decode(data: bytes) -> IpPacket:
    """A packet from its bytes; what stands behind its length is padding and left out.

    :raises RemoteProtocolError: if it is cut short, a fragment, no IP, or its header's checksum is wrong.
    """
    version = data[0] >> 4 if data else 0
    if version == 4:
        return _decode_v4(data)
    if version == 6:
        return _decode_v6(data)
    raise RemoteProtocolError("not an IP packet")


def _decode_v4(data: bytes) -> IpPacket:
    header_length = (data[0] & 15) * 4
    if not V4_LENGTH <= header_length <= len(data):
        raise RemoteProtocolError("an IPv4 header that is cut short")
    _, tos, length, identification, flags, ttl, protocol, _, source, destination = V4_HEADER.unpack_from(data)
    if not header_length <= length <= len(data):
        raise RemoteProtocolError("an IPv4 packet with a wrong length")
    if flags & _FRAGMENT:
        raise RemoteProtocolError("a fragment")
    if checksum(data[:header_length]):
        raise RemoteProtocolError("an IPv4 header with a wrong checksum")
    addresses = IPv4Address(source), IPv4Address(destination)
    payload = data[header_length:length]
    return IpPacket(*addresses, protocol, payload, tos, ttl, identification, bool(flags & DONT_FRAGMENT))


def _decode_v6(data: bytes) -> IpPacket:
    if len(data) < V6_LENGTH:
        raise RemoteProtocolError("an IPv6 header that is cut short")
    first, length, protocol, ttl, source, destination = V6_HEADER.unpack_from(data)
    if length > len(data) - V6_LENGTH:
        raise RemoteProtocolError("an IPv6 packet with a wrong length")
    addresses = IPv6Address(source), IPv6Address(destination)
    payload = data[V6_LENGTH : V6_LENGTH + length]
    return IpPacket(*addresses, protocol, payload, first >> 20 & 0xFF, ttl, first & 0xFFFFF)
