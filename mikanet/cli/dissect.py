"""What captured packets of a paqet link say, layer by layer: TCP or UDP, cipher, FEC, KCP, smux, messages. No I/O.

It follows both directions of every conversation and puts their bytes in order, as the ends do, but it answers nothing
and may begin in the middle.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from mikanet.address import Address
from mikanet.crypto.packets import PacketCipher
from mikanet.errors import RemoteProtocolError
from mikanet.fec.header import DATA, OUT_OF_BAND, OVERHEAD, PARITY
from mikanet.kcp.segment import ACK, PUSH, WASK, Segment, decode, serial_difference
from mikanet.paqet.wire import Dialect, Message, MessageReader, MessageType
from mikanet.smux.frame import HEADER, HEADER_LENGTH, UPDATE, Cmd, FrameReader
from mikanet.wire import ip, tcp

#: Conversations, segments that came too early in one, and streams of one, that are remembered.
_MAX_FLOWS, _MAX_EARLY, _MAX_STREAMS = 1024, 2048, 4096
_UDP = 17
_UDP_HEADER = struct.Struct("!HHHH")
_FEC_HEADER = struct.Struct("<IH")
#: Least length of an opened packet.
_SHORTEST = 12


class Verdict(Enum):
    """What became of a packet."""

    OPENED = "opened"
    EMPTY = "no payload"
    RESET = "a kernel's RST"
    LOCKED = "not opened"
    MALFORMED = "malformed"


class Line(NamedTuple):
    """One fact about a packet, with the layer that it is of."""

    layer: str
    text: str


class Dissected(NamedTuple):
    """What a packet says.

    :ivar towards_server: whether it goes to the server's port.
    """

    source: Address
    destination: Address
    towards_server: bool
    verdict: Verdict
    lines: tuple[Line, ...]


@dataclass
class _Stream:
    """What a smux stream is for; ``reader`` is None once that is known, or cannot be."""

    reader: MessageReader | None = field(default_factory=lambda: MessageReader(frozenset(Dialect)))


@dataclass
class _Flow:
    """One direction of a conversation."""

    next_sn: int | None = None
    early: dict[int, bytes] = field(default_factory=dict)
    frames: FrameReader | None = None


class Dissector:
    """Follows the packets of one server port.

    :param port: the server's. :param protocol: 6 or 17.
    :ivar seen_dialects: those of the messages so far.
    """

    def __init__(self, cipher: PacketCipher, port: int, protocol: int = tcp.PROTOCOL) -> None:
        self._cipher = cipher
        self._port = port
        self._protocol = protocol
        self._flows: OrderedDict[tuple[Address, int, bool], _Flow] = OrderedDict()
        self._streams: OrderedDict[tuple[Address, int, int, bool], _Stream] = OrderedDict()
        self.seen_dialects: set[Dialect] = set()

    def packet(self, data: bytes) -> Dissected | None:
        """What an IP packet says; None if it is not of this port.

        Padding behind the packet is left out, and its checksums are looked at.
        """
        try:
            outer = ip.decode(data)
        except RemoteProtocolError:
            return None
        if outer.protocol != self._protocol or len(outer.payload) < 8:
            return None
        source_port, destination_port = struct.unpack_from("!HH", outer.payload)
        if self._port not in (source_port, destination_port):
            return None
        source, destination = Address(str(outer.source), source_port), Address(str(outer.destination), destination_port)
        towards_server = destination_port == self._port
        verdict, lines = self._transport(outer, source if towards_server else destination, towards_server)
        return Dissected(source, destination, towards_server, verdict, tuple(lines))

    def _transport(self, outer: ip.IpPacket, client: Address, towards_server: bool) -> tuple[Verdict, list[Line]]:
        if self._protocol == _UDP:
            payload = outer.payload[_UDP_HEADER.size :]
            lines = [Line("udp", f"{len(payload)} bytes")]
        else:
            addresses = outer.source.packed, outer.destination.packed
            try:
                segment = tcp.decode(outer.payload, *addresses, check=False)
                if segment.payload:  # those without are a kernel's, which may leave the checksum to its device
                    tcp.decode(outer.payload, *addresses)
            except RemoteProtocolError as problem:
                return Verdict.MALFORMED, [Line("tcp", f"{problem}")]
            payload = segment.payload
            lines = [Line("tcp", f"{tcp.format_flags(segment.flags)} {len(payload)} bytes")]
            if not payload and segment.flags & tcp.RST:
                return Verdict.RESET, [Line("tcp", "RST of a kernel: nothing at the sender holds it back")]
        if not payload:
            return Verdict.EMPTY, lines
        (body,) = self._cipher.open([payload])
        if body is None or len(body) < _SHORTEST:
            return Verdict.LOCKED, [*lines, Line("cipher", "not opened: another key or block, or damaged on the way")]
        lines += self._body(body, client, towards_server)
        return Verdict.OPENED, lines

    # -- FEC and KCP

    def _body(self, body: bytes, client: Address, towards_server: bool) -> list[Line]:
        lines = []
        seqid, kind = _FEC_HEADER.unpack_from(body)
        if DATA <= kind <= OUT_OF_BAND:
            name = {DATA: "data", PARITY: "parity"}.get(kind, "out of band")
            lines.append(Line("fec", f"{name} {seqid}, {len(body) - OVERHEAD} bytes"))
            if kind != DATA:
                return lines
            body = body[OVERHEAD:]
        try:
            for segment in decode(body):
                lines += self._segment(segment, client, towards_server)
        except RemoteProtocolError:
            lines.append(Line("kcp", f"not a segment: {len(body)} bytes"))
        return lines

    def _segment(self, segment: Segment, client: Address, towards_server: bool) -> list[Line]:
        name = {PUSH: "PUSH", ACK: "ACK", WASK: "WASK"}.get(segment.cmd, "WINS")
        text = f"{segment.conv:08x} {name} sn {segment.sn} una {segment.una} wnd {segment.wnd} ts {segment.ts}"
        if segment.cmd != PUSH:
            return [Line("kcp", text)]
        text += f", {len(segment.data)} bytes"
        flow = self._flow(client, segment.conv, towards_server)
        if flow.next_sn is None:
            flow.next_sn = segment.sn
            flow.frames = FrameReader(2) if segment.sn == 0 else None
        ahead = serial_difference(segment.sn, flow.next_sn)
        if ahead < 0 or segment.sn in flow.early:
            return [Line("kcp", f"{text}, again")]
        if ahead > 0:
            text += f", {ahead} early"
        flow.early[segment.sn] = segment.data
        lines = [Line("kcp", text)]
        for data in self._in_order(flow, lines):
            lines += self._bytes(flow, data, client, segment.conv, towards_server)
        return lines

    def _flow(self, client: Address, conv: int, towards_server: bool) -> _Flow:
        key = (client, conv, towards_server)
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= _MAX_FLOWS:
                self._flows.popitem(last=False)
            flow = self._flows[key] = _Flow()
        return flow

    @staticmethod
    def _in_order(flow: _Flow, lines: list[Line]) -> list[bytes]:
        """The segments that are now in order; a gap that is never filled is given up in the end."""
        assert flow.next_sn is not None
        first = flow.next_sn
        if len(flow.early) > _MAX_EARLY and first not in flow.early:
            flow.next_sn = min(flow.early, key=lambda sn: serial_difference(sn, first))
            flow.frames = None
            lines.append(Line("kcp", f"segments {first} to {flow.next_sn - 1} are not in the capture"))
        ready = []
        while (data := flow.early.pop(flow.next_sn, None)) is not None:
            ready.append(data)
            flow.next_sn = (flow.next_sn + 1) & 0xFFFFFFFF
        return ready

    # -- smux and messages

    def _bytes(self, flow: _Flow, data: bytes, client: Address, conv: int, towards_server: bool) -> list[Line]:
        if flow.frames is None:
            if not _begins_frame(data):
                return [Line("smux", f"inside a frame that began earlier: {len(data)} bytes")]
            flow.frames = FrameReader(2)
        try:
            frames = flow.frames.feed(data)
        except RemoteProtocolError:
            flow.frames = None
            return [Line("smux", "not a frame")]
        lines = []
        for cmd, sid, body in frames:
            text = f"stream {sid} {cmd.name}"
            if cmd is Cmd.PSH:
                text += f" {len(body)} bytes"
            elif cmd is Cmd.UPD:
                consumed, window = UPDATE.unpack_from(body)
                text += f" consumed {consumed} window {window}"
            lines.append(Line("smux", text if cmd is not Cmd.NOP else "NOP"))
            if cmd is Cmd.SYN or cmd is Cmd.PSH:
                lines += self._message((client, conv, sid, towards_server), cmd, body)
        return lines

    def _message(self, key: tuple[Address, int, int, bool], cmd: Cmd, body: bytes) -> list[Line]:
        """The message that a stream begins with; of a server's direction only a PONG is one."""
        if cmd is Cmd.SYN:
            if len(self._streams) >= _MAX_STREAMS:
                self._streams.popitem(last=False)
            self._streams[key] = _Stream()
            return []
        stream = self._streams.get(key)
        if stream is None or stream.reader is None:
            return []
        try:
            message = stream.reader.feed(body)
        except RemoteProtocolError as problem:
            stream.reader = None
            return [Line("paqet", f"not a message: {problem}")]
        if message is None:
            return []
        dialect = stream.reader.dialect
        assert dialect is not None
        stream.reader = None
        self.seen_dialects.add(dialect)
        if message.type is MessageType.PING:
            self._streams[(*key[:3], not key[3])] = _Stream()
        return [Line("paqet", f"{describe(message)} ({dialect.value})")]


def _begins_frame(data: bytes) -> bool:
    """Whether a segment begins with what can be a smux header."""
    if len(data) < HEADER_LENGTH:
        return False
    version, cmd, length, _ = HEADER.unpack_from(data)
    return bool(
        version == 2 and cmd <= Cmd.UPD and (cmd == Cmd.PSH or length == (UPDATE.size if cmd == Cmd.UPD else 0))
    )


def describe(message: Message) -> str:
    """A message in words."""
    if message.destination is not None:
        return f"{message.type.name} to {message.destination}"
    if message.flags:
        return f"{message.type.name} {' '.join(map(tcp.format_flags, message.flags))}"
    return message.type.name
