"""The frames of a raw port: making them, with header fields that go on as paqet's do, and opening them. No I/O.

Both are hot paths. What is the same for all packets of one length to a peer is prepared once, with the part of the
checksum that it makes; of a packet itself only the payload is summed.

Source: paqet v1.0.0-alpha.21 on the wire; :doc:`/protocols/raw-packets` has the table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from mikanet.errors import RemoteProtocolError
from mikanet.wire import ethernet, ip, tcp
from mikanet.wire.checksum import checksum

TOS = 184  # DSCP 46
TTL = 64
WINDOW = 65535
MSS = 1460
WINDOW_SCALE = 8
#: Largest payload that is taken, as paqet's.
MAX_PAYLOAD = 1500
#: What stands before a payload at most: IP, and TCP with the options of an entry with SYN.
MAX_HEADERS_V4, MAX_HEADERS_V6 = ip.V4_LENGTH + 40, ip.V6_LENGTH + 40

_MASK = 0xFFFFFFFF
_ACK_AHEAD = 1400
_PLAIN_OFFSET, _SYN_OFFSET = 8 << 12, 10 << 12

#: Behind what is prepared: seq | ack | offset and flags | window | checksum | urgent | options.
_PLAIN = "IIHHHHIII"
_SYN = "IIHHHHIIIII"
#: 32-bit words of options, around the timestamps' value and echo.
_NOP_NOP_TIMESTAMPS = int.from_bytes(tcp.NOP_OPTION * 2 + tcp.timestamps_option(0, 0)[:2], "big")
_MSS = int.from_bytes(tcp.mss_option(MSS), "big")
_SACK_TIMESTAMPS = int.from_bytes(tcp.SACK_PERMITTED_OPTION + tcp.timestamps_option(0, 0)[:2], "big")
_NOP_SCALE = int.from_bytes(tcp.NOP_OPTION + tcp.window_scale_option(WINDOW_SCALE), "big")
_SYN_WORDS = _MSS + _SACK_TIMESTAMPS + _NOP_SCALE
_STRUCTS = {
    size: (struct.Struct(f"!{size}s{_PLAIN}").pack, struct.Struct(f"!{size}s{_SYN}").pack)
    for size in (ethernet.HEADER_LENGTH + ip.V4_LENGTH + 4, ethernet.HEADER_LENGTH + ip.V6_LENGTH + 4)
}
#: Lengths whose prefixes a path keeps.
_MAX_PREFIXES = 64


class FlagCycle:
    """A flag list that is used entry by entry, over and over.

    :ivar at: the entry that is next. :ivar packed: all entries, 16 bits each, big-endian.
    :ivar has_syn: whether an entry has SYN, which makes another header.
    """

    __slots__ = ("at", "entries", "has_syn", "packed")

    def __init__(self, entries: Sequence[int]) -> None:
        self.entries = tuple(entries)
        self.at = 0
        self.packed = struct.pack(f"!{len(self.entries)}H", *self.entries)
        self.has_syn = any(entry & tcp.SYN for entry in self.entries)


class FramePath:
    """The way of frames from us to one peer: everything that does not change from packet to packet.

    :param stations: (destination, source) of the Ethernet header.
    :param source: and ``destination``: addresses of one family.
    :ivar cycle: the flag list in use.
    :ivar template: all up to the ports, for some length; :ivar sum: of what never changes and TCP's checksum covers.
    :raises ValueError: if the families differ.
    """

    __slots__ = ("_destination", "_ports", "_prefixes", "_source", "_stations", "cycle", "packers", "sum", "template")

    def __init__(
        self,
        stations: tuple[bytes, bytes],
        source: IPv4Address | IPv6Address,
        destination: IPv4Address | IPv6Address,
        ports: tuple[int, int],
        cycle: FlagCycle,
    ) -> None:
        if source.version != destination.version:
            raise ValueError("addresses of two families")
        self._stations = stations
        self._source = source
        self._destination = destination
        self._ports = struct.pack("!HH", *ports)
        self.sum = tcp.pseudo_header_sum(source.packed, destination.packed, 0) + sum(ports) + WINDOW
        self._prefixes: dict[int, tuple[bytes, int]] = {}
        self.cycle = cycle
        self.template, _ = self.prefix(0)
        self.packers = _STRUCTS[len(self.template)]

    def prefix(self, length: int) -> tuple[bytes, int]:
        """All up to the ports for a TCP segment of ``length`` bytes, and its sum, the pseudo header's with it."""
        found = self._prefixes.get(length)
        if found is None:
            if len(self._prefixes) >= _MAX_PREFIXES:
                self._prefixes.clear()
            packet = ip.IpPacket(self._source, self._destination, tcp.PROTOCOL, bytes(length), TOS, TTL)
            header = ip.encode(packet)[: -length or None]
            frame = ethernet.EthernetFrame(*self._stations, packet.ethertype, header + self._ports)
            found = self._prefixes[length] = (ethernet.encode(frame), self.sum + length)
        return found


class FrameMaker:
    """Makes the frames of one socket, whose header fields go on from packet to packet whoever it is for.

    :param epoch_ms: Unix time in milliseconds when the socket was opened.
    :ivar epoch: the low 32 bits of that. :ivar sent: packets made so far.
    """

    __slots__ = ("epoch", "sent")

    def __init__(self, epoch_ms: int) -> None:
        self.epoch = epoch_ms & _MASK
        self.sent = 0

    def count(self, cycle: FlagCycle, packets: int) -> None:
        """So many packets were made elsewhere, with these flags."""
        self.sent += packets
        cycle.at = (cycle.at + packets) % len(cycle.entries)

    def make(self, path: FramePath, payloads: Iterable[bytes]) -> list[bytes]:
        """A frame for each payload."""
        epoch, number = self.epoch, self.sent
        cycle = path.cycle
        entries, at = cycle.entries, cycle.at
        count = len(entries)
        pack, pack_syn = path.packers
        frames = []
        for payload in payloads:
            number += 1
            flags = entries[at]
            if count > 1:
                at = (at + 1) % count
            tsval = (epoch + (number >> 3)) & _MASK
            if flags & tcp.SYN:
                seq = 1 + (number & 7)
                ack = seq + 1 if flags & tcp.ACK else 0
                flags |= _SYN_OFFSET
                prefix, total = path.prefix(40 + len(payload))
                total = checksum(payload, total + flags + seq + ack + tsval + _SYN_WORDS)
                head = pack_syn(prefix, seq, ack, flags, WINDOW, total, 0, _MSS, _SACK_TIMESTAMPS, tsval, 0, _NOP_SCALE)
            else:
                seq = (epoch + (number << 7)) & _MASK
                ack = (seq - (number & 0x3FF) + _ACK_AHEAD) & _MASK
                echo = (tsval - number % 200 - 50) & _MASK
                flags |= _PLAIN_OFFSET
                prefix, total = path.prefix(32 + len(payload))
                total = checksum(payload, total + flags + seq + ack + _NOP_NOP_TIMESTAMPS + tsval + echo)
                head = pack(prefix, seq, ack, flags, WINDOW, total, 0, _NOP_NOP_TIMESTAMPS, tsval, echo)
            frames.append(head + payload)
        self.sent = number
        cycle.at = at
        return frames


#: Of a frame that came: the sender's address (4 or 16 bytes) with its port (2 bytes), and the payload.
Opened = tuple[bytes, bytes]


def open_frame(frame: bytes) -> Opened | None:
    """The sender and the payload of a frame whose lengths and checksums are right; else None.

    A frame without a payload gives None as well. Padding is cut off.
    """
    length = len(frame)
    if length < 54:
        return None
    kind = frame[12:15]
    if kind == b"\x08\x00\x45":
        end = 14 + (frame[16] << 8 | frame[17])
        begin = 34 + (frame[46] >> 4) * 4
        if not 54 <= begin < end <= length or frame[23] != 6 or frame[21] or frame[20] & 0x3F:
            return None
        if checksum(frame[26:end], end - 28) or checksum(frame[14:34]):
            return None
        key = frame[26:30] + frame[34:36]
    elif kind[:2] == b"\x86\xdd":
        if length < 74:
            return None
        end = 54 + (frame[18] << 8 | frame[19])
        begin = 54 + (frame[66] >> 4) * 4
        if not 74 <= begin < end <= length or frame[20] != 6 or frame[14] >> 4 != 6:
            return None
        if checksum(frame[22:end], end - 48):
            return None
        key = frame[22:38] + frame[54:56]
    else:
        return _open_unusual(frame)
    return (key, frame[begin:end]) if end - begin <= MAX_PAYLOAD else None


#: Payloads that came one after the other from one sender: the station of the first frame, the sender's key, payloads.
Run = tuple[bytes, bytes, list[bytes]]


def open_runs(frames: Iterable[bytes]) -> tuple[list[Run], list[bytes]]:
    """The runs in a batch of frames, and the frames that are refused."""
    runs: list[Run] = []
    refused: list[bytes] = []
    current: tuple[bytes, bytes] | None = None
    for frame in frames:
        opened = open_frame(frame)
        if opened is None:
            refused.append(frame)
            continue
        key, payload = opened
        station = frame[6:12]
        if (station, key) != current:
            current = station, key
            payloads: list[bytes] = []
            runs.append((station, key, payloads))
        payloads.append(payload)
    return runs, refused


def _open_unusual(frame: bytes) -> Opened | None:
    """The same for a frame with IPv4 options, and anything else."""
    try:
        source, segment = parse_frame(frame)
    except RemoteProtocolError:
        return None
    if not 0 < len(segment.payload) <= MAX_PAYLOAD:
        return None
    return source.packed + segment.source_port.to_bytes(2, "big"), segment.payload


def parse_frame(frame: bytes) -> tuple[IPv4Address | IPv6Address, tcp.TcpSegment]:
    """The sender's address and the TCP segment of a frame, whatever it carries.

    :raises RemoteProtocolError: if it is none, or a checksum is wrong.
    """
    outer = ethernet.decode(frame)
    if outer.ethertype not in (ethernet.IPV4, ethernet.IPV6):
        raise RemoteProtocolError("not an IP packet")
    packet = ip.decode(outer.payload)
    if packet.protocol != tcp.PROTOCOL or packet.ethertype != outer.ethertype:
        raise RemoteProtocolError("not a TCP packet")
    return packet.source, tcp.decode(packet.payload, packet.source.packed, packet.destination.packed)


def refusal(frame: bytes) -> str:
    """Why :func:`open_frame` gave nothing, as a counter's name: ``rst``, ``empty``, ``too-long`` or ``malformed``."""
    try:
        _, segment = parse_frame(frame)
    except RemoteProtocolError:
        return "malformed"
    if segment.payload:
        return "too-long"
    return "rst" if segment.flags & tcp.RST else "empty"


def split_key(key: bytes) -> tuple[str, int]:
    """The peer that a key of :func:`open_frame` names."""
    address = IPv4Address(key[:-2]) if len(key) == 6 else IPv6Address(key[:-2])
    return str(address), int.from_bytes(key[-2:], "big")
