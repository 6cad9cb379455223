"""What a wire must know of Ethernet frames: where damage may fall, sums, mirrors and a translator's rebinds. No I/O."""

from __future__ import annotations

import struct
from typing import NamedTuple

_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_ETHERNET = 14
#: Where the checksum stands in each transport's header.
_SUM_AT = {_TCP: 16, _UDP: 6, _ICMP: 2, _ICMPV6: 2}


class Layout(NamedTuple):
    """Offsets in a frame that holds IP, whole and not a fragment.

    :ivar transport: where the transport's header begins; ``end`` where the IP packet ends (padding may follow).
    """

    version: int
    protocol: int
    transport: int
    end: int

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Offset of the source and of the destination address, and their length."""
        first = _ETHERNET + (12 if self.version == 4 else 8)
        size = 4 if self.version == 4 else 16
        return first, first + size, size


def layout(frame: bytes | bytearray) -> Layout | None:
    """The layout of a frame; None if it holds no IP packet that can be changed (a fragment, for one)."""
    if len(frame) < _ETHERNET + 20:
        return None
    kind = int.from_bytes(frame[12:14], "big")
    if kind == _IPV4 and frame[14] >> 4 == 4:
        if int.from_bytes(frame[20:22], "big") & 0x3FFF:
            return None
        transport = _ETHERNET + (frame[14] & 15) * 4
        found = Layout(4, frame[23], transport, _ETHERNET + int.from_bytes(frame[16:18], "big"))
    elif kind == _IPV6 and len(frame) >= _ETHERNET + 40:
        found = Layout(6, frame[20], _ETHERNET + 40, _ETHERNET + 40 + int.from_bytes(frame[18:20], "big"))
    else:
        return None
    return found if found.transport <= found.end <= len(frame) else None


def is_group(frame: bytes) -> bool:
    """Whether a frame is for more than one station, or none of IP at all: such frames are the machines' own talk."""
    return bool(frame[0] & 1) or frame[12:14] not in (b"\x08\x00", b"\x86\xdd")


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    # 2**16 is 1 modulo 2**16 - 1, so the remainder is the folded sum, which is all ones where a remainder is 0.
    number = int.from_bytes(data, "big")
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


class FrameRules:
    """Rules for Ethernet frames with IP: damage anywhere behind the Ethernet header, forgery in the payload."""

    def whole(self, packet: bytes) -> tuple[int, int]:
        """All but the Ethernet header."""
        return min(_ETHERNET, len(packet)), len(packet)

    def payload(self, packet: bytes) -> tuple[int, int]:
        """What TCP, UDP or another transport carries."""
        found = layout(packet)
        if found is None:
            return 0, 0
        header = 8
        if found.protocol == _TCP:
            header = (packet[found.transport + 12] >> 4) * 4 if found.end >= found.transport + 20 else found.end
        return min(found.transport + header, found.end), found.end

    def mend(self, packet: bytearray) -> None:
        """Compute the sums of the IP header and of the transport anew."""
        found = layout(packet)
        if found is None:
            return
        if found.version == 4:
            packet[24:26] = b"\0\0"
            struct.pack_into("!H", packet, 24, checksum(packet[_ETHERNET : found.transport]))
        at = _SUM_AT.get(found.protocol)
        if at is None or found.transport + at + 2 > found.end:
            return
        at += found.transport
        packet[at : at + 2] = b"\0\0"
        covered = packet[found.transport : found.end]
        if found.protocol != _ICMP:
            first, second, size = found.addresses
            length = struct.pack("!II", len(covered), found.protocol)
            covered = packet[first : second + size] + length + covered
        value = checksum(covered)
        if found.protocol == _UDP and value == 0:
            value = 0xFFFF
        struct.pack_into("!H", packet, at, value)


def mirrored(frame: bytes) -> bytes:
    """A frame as its own answer: stations, addresses and ports change places. The sums stay right, being sums."""
    out = bytearray(frame)
    out[0:6], out[6:12] = frame[6:12], frame[0:6]
    found = layout(frame)
    if found is not None:
        first, second, size = found.addresses
        out[first : first + size], out[second : second + size] = (
            frame[second : second + size],
            frame[first : first + size],
        )
        if found.protocol in (_TCP, _UDP) and found.transport + 4 <= found.end:
            at = found.transport
            out[at : at + 2], out[at + 2 : at + 4] = frame[at + 2 : at + 4], frame[at : at + 2]
    return bytes(out)


class Translator:
    """An address translator that gives the client a new port, or address, at each rebind.

    Only frames of TCP and UDP are touched. What is sent to an address of an earlier binding has no way to the client.
    """

    def __init__(self, by_address: bool) -> None:
        self._by_address = by_address
        self._rules = FrameRules()
        # public port or address -> the client's own, with the binding in which it was given out
        self._given: dict[tuple[int, bytes], tuple[bytes, int]] = {}

    def up(self, frame: bytes, binding: int) -> bytes:
        """A frame on its way from the client."""
        return self._translated(frame, binding, outwards=True) or frame

    def down(self, frame: bytes, binding: int) -> bytes | None:
        """A frame on its way to the client; None if it is for an address that the client has no longer."""
        return self._translated(frame, binding, outwards=False)

    def _translated(self, frame: bytes, binding: int, outwards: bool) -> bytes | None:
        found = layout(frame)
        if found is None or found.protocol not in (_TCP, _UDP) or found.transport + 4 > found.end:
            return frame
        if self._by_address:
            source, target, size = found.addresses
        else:
            source, target, size = found.transport, found.transport + 2, 2
        at = source if outwards else target
        old = frame[at : at + size]
        if outwards:
            new = self._public(found.protocol, old, binding)
        else:
            new, given = self._given.get((found.protocol, old), (old, 0))
            if given != binding:
                return None
        if new == old:
            return frame
        out = bytearray(frame)
        out[at : at + size] = new
        self._rules.mend(out)
        return bytes(out)

    def _public(self, protocol: int, private: bytes, binding: int) -> bytes:
        if not binding:
            public = private
        elif self._by_address:
            public = private[:-1] + bytes([100 + binding % 100])
        else:
            port = (int.from_bytes(private, "big") - 1024 + binding * 7919) % 64512 + 1024
            public = port.to_bytes(2, "big")
        if len(self._given) > 10000:
            self._given.clear()
        self._given[protocol, public] = private, binding
        return public
