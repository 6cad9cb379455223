"""The worst inputs that we know of, for every codec and state machine that a peer reaches before authentication, and for
those that an authenticated user reaches: one line each in :data:`LOADS`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from mikanet.carriers import http_frames, polled_wire
from mikanet.carriers.http_batches import split
from mikanet.carriers.polled_arq import Receiver, Sender
from mikanet.carriers.polled_numbers import KEY_SIZE, Numbers
from mikanet.carriers.polled_server import PolledServer
from mikanet.errors import RemoteProtocolError
from mikanet.fec.decoder import FecDecoder
from mikanet.fec.reedsolomon import ReedSolomon
from mikanet.filters.packetizer import PacketReader
from mikanet.kcp.arq import Arq
from mikanet.kcp.segment import ACK, HEADER, PUSH, WASK
from mikanet.kcp.settings import ArqSettings
from mikanet.mika.wire import ChunkReader, ChunkWriter, DatagramReader
from mikanet.pickaxe import wire as pickaxe
from mikanet.pickaxe.fragments import Reassembler, UnprovedFragments
from mikanet.pickaxe.keys import SessionKeys
from mikanet.pickaxe.login import LoginDesk
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.session import Role, Session
from mikanet.smux import frame as smux
from mikanet.smux.session import Session as SmuxSession
from mikanet.smux.session import SmuxSettings, StreamData
from mikanet.wire import dns
from tests.lab.codecs import CODECS
from tests.lab.growth import Load
from tests.lab.server_loads import SERVER_LOADS

Parts = Sequence[bytes]
_KEYS = SessionKeys(bytes(32), bytes(range(32)))


def _cut(make: Callable[[int], bytes], size: int = 1) -> Callable[[int], Parts]:
    """What ``make`` gives, in pieces of ``size`` bytes."""

    def pieces(count: int) -> Parts:
        data = make(count)
        return [data[at : at + size] for at in range(0, len(data), size)]

    return pieces


def _one(make: Callable[[int], bytes]) -> Callable[[int], Parts]:
    return lambda count: [make(count)]


def _golden(name: str) -> Callable[[int], Parts]:
    """A codec's longest golden input, again and again, in single bytes."""

    def pieces(count: int) -> Parts:
        data = max(CODECS[name].golden(), key=len)
        return [bytes([byte]) for byte in (data * (1 + count // len(data)))[:count]]

    return pieces


# -- Pickaxe


def _fragments(step: int, size: int, order: int = 1) -> Callable[[int], Parts]:
    """Fragments of packets of 60,000 bytes, ``size`` bytes at each ``step``."""

    def make(count: int) -> Parts:
        per_packet = 60_000 // step
        parts = []
        for index in range(count):
            packet, place = divmod(index, per_packet)
            head = struct.pack("<B4sHBHH", pickaxe.FRAGMENT, b"SIDS", packet & 0xFFFF, 0, 60_000, place * step)
            parts.append(head + bytes(size))
        return parts[::order]

    return make


def _reassemble(make: Callable[[], Any]) -> Callable[[Parts], None]:
    def run(parts: Parts) -> None:
        reassembler = make()
        for part in parts:
            try:
                reassembler.add(pickaxe.decode_fragment(part))
            except RemoteProtocolError:
                pass

    return run


def _numbered(kind: int, body: Callable[[int], bytes], order: Callable[[int], Sequence[int]]) -> Callable[[int], Parts]:
    """A client's packets whose numbers come in a certain order."""

    def make(count: int) -> Parts:
        client = Session(Role.CLIENT, b"SIDS", _KEYS, bytes)
        path = Path(True)
        client.use(path, 0.0)
        for index in range(count):
            client.send(kind, body(index), now=0.0)
        packets = [packet for _, group in client.flush(0.0) for packet in group if len(packet) < 1000][:count]
        return [packets[index] for index in order(len(packets))]

    return make


def _evens_then_odds(count: int) -> list[int]:
    return [*range(1, count, 2), *range(0, count, 2)]


def _pickaxe_server(parts: Parts) -> None:
    """A server's session that has sent much, and takes these."""
    server = Session(Role.SERVER, b"SIDS", _KEYS, bytes)
    path = Path(False)
    for index, part in enumerate(parts):
        now = index * 0.001
        server.receive(part, path, now)
        if len(server.sending) < 3000:
            for _ in range(4):
                server.send(pickaxe.DATA, b"CIDSx", now=now)
        server.flush(now)


def _acknowledged(parts: Parts) -> None:
    """A session that has sent as many packets as there are parts, which one echo acknowledges."""
    server = Session(Role.SERVER, b"SIDS", _KEYS, bytes)
    path = Path(True)
    server.use(path, 0.0)
    for part in parts:
        server.sending.measured = True
        server.send(pickaxe.DATA, part, now=0.0)
    server.flush(0.0)
    for index in range(0, len(parts), 2):
        server.sending.acknowledge(index + 1, 0.1)


def _progress(index: int) -> bytes:
    """An echo request that says that every second of our packets is missing."""
    data = pickaxe.encode_progress(index // 8, b"\x55" * 32)
    return pickaxe.encode_echo(pickaxe.ECHO_REQUEST, index.to_bytes(16, "big"), data)


def _logins(count: int) -> Parts:
    return [
        pickaxe.encode_login(pickaxe.Login(index.to_bytes(16, "big"), (1, 0), f"user{index % 1000}"))
        for index in range(count)
    ]


def _desk(parts: Parts) -> None:
    desk = LoginDesk(lambda _: None, bytes(32), _counting(), lambda _: False)
    for index, part in enumerate(parts):
        desk.login(part, f"10.{index >> 8 & 255}.{index & 255}.1", index * 0.001)


def _counting() -> Callable[[int], bytes]:
    state = [0]

    def draw(size: int) -> bytes:
        state[0] += 1
        return state[0].to_bytes(size, "little")

    return draw


def _feed(make: Callable[[], Any]) -> Callable[[Parts], None]:
    def run(parts: Parts) -> None:
        feed = make().feed
        for part in parts:
            feed(part)

    return run


def _packets(count: int) -> bytes:
    return struct.pack("<IB", 1, 0) * count


# -- polled links


def _segments(order: Callable[[int], Sequence[int]]) -> Callable[[int], Parts]:
    """Segments, numbered, in windows of 1,000."""

    def make(count: int) -> Parts:
        numbers = [base + index for base in range(0, count, 1000) for index in order(min(1000, count - base))]
        return [struct.pack("!H", number & 0xFFFF) + b"\0\1x" for number in numbers]

    return make


def _receive(parts: Parts) -> None:
    receiver = Receiver()
    for part in parts:
        receiver.take(part[0] << 8 | part[1], part[2:])


def _acknowledge(parts: Parts) -> None:
    """A sender with a full window, whose peer names every second segment anew with each message."""
    sender = Sender()
    sender.push([bytes(1000)] * 8)
    for index, part in enumerate(parts):
        now = index * 0.01
        while sender.take(1, now) is not None:
            pass
        sender.acknowledged(0, int.from_bytes(part, "little"), None, now)


def _questions(count: int) -> Parts:
    """First questions, then questions with segments behind a gap."""
    hellos = [polled_wire.hello(index.to_bytes(8, "big")) for index in range(count // 2)]
    return hellos + [
        polled_wire.up(1, index & 0xFFFF, 0, (1 << 1000) - 1, 28, False, index % 900 + 1, b"x")
        for index in range(count - len(hellos))
    ]


def _polled_server(parts: Parts) -> None:
    server = PolledServer(lambda path, message: None, Numbers(bytes(KEY_SIZE)), lambda link, path: True)
    number = Numbers(bytes(KEY_SIZE)).give("", 0.0)
    server.question(polled_wire.start(number, 0, 1000, 8, 3.0, 1), None, 1000, 0.0)
    for index, part in enumerate(parts):
        if polled_wire.is_data(part):
            part = part[:1] + number.to_bytes(4, "big") + part[5:]
        try:
            found = server.question(part, None, 1000, index * 0.001)
        except RemoteProtocolError:
            continue
        if found is not None:
            found[0].flush(index * 0.001)


# -- KCP, FEC, smux


def _kcp(cmd: int, sn: Callable[[int], int], size: int = 1) -> Callable[[int], Parts]:
    return lambda count: [
        HEADER.pack(7, cmd, 0, 1024, index, sn(index), 0, size * (cmd == PUSH)) + bytes(size * (cmd == PUSH))
        for index in range(count)
    ]


def _arq(parts: Parts) -> None:
    arq = Arq(7, ArqSettings())
    for index, part in enumerate(parts):
        arq.input(part, index)
        arq.receive_stream()
        if not index % 64:
            arq.flush(index)


def _arq_sending(parts: Parts) -> None:
    """The same with a full window of ours in flight."""
    arq = Arq(7, ArqSettings())
    arq.send(bytes(1_000_000))
    arq.flush(0)
    for index, part in enumerate(parts):
        try:
            arq.input(part, index)
        except RemoteProtocolError:
            pass
        if not index % 64:
            arq.flush(index)


def _fec(parts: Parts) -> None:
    decoder = FecDecoder(ReedSolomon(10, 3))
    for part in parts:
        decoder.receive(part, [])


def _shards(kind: Callable[[int], int], spread: int = 1) -> Callable[[int], Parts]:
    return lambda count: [struct.pack("<IHH", index * spread, kind(index), 3) + b"x" for index in range(count)]


def _smux(parts: Parts) -> None:
    session = SmuxSession(SmuxSettings(version=2), client=False)
    for part in parts:
        for event in session.data_received(part):
            if isinstance(event, StreamData):
                session.consumed(event.sid, len(event.data))
        session.take_output(100_000)


def _smux_frames(cmd: smux.Cmd, body: bytes, sid: Callable[[int], int]) -> Callable[[int], Parts]:
    return lambda count: [smux.HEADER.pack(2, cmd, len(body), sid(index)) + body for index in range(count)]


def _smux_data(count: int) -> Parts:
    return [smux.HEADER.pack(2, smux.Cmd.SYN, 0, 1), *_smux_frames(smux.Cmd.PSH, b"x", lambda _: 1)(count)]


# -- codecs of several systems


def _pointers(count: int) -> bytes:
    """A DNS message whose records' names are pointers to one long name."""
    first = b"\x01a" * 120 + b"\0" + struct.pack("!HHIH", 1, 1, 0, 0)
    return (
        struct.pack("!6H", 1, 0x8180, 0, count + 1, 0, 0)
        + first
        + struct.pack("!HHHIH", 0xC000 | 12, 1, 1, 0, 0) * count
    )


def _pointers_to_pointers(count: int) -> bytes:
    """A DNS message whose records' names are pointers, each to the one before."""
    first = b"\x01a\0" + struct.pack("!HHIH", 1, 1, 0, 0)
    places = [12, *(12 + len(first) + 12 * index for index in range(count))]
    return (
        struct.pack("!6H", 1, 0x8180, 0, count + 1, 0, 0)
        + first
        + b"".join(struct.pack("!HHHIH", 0xC000 | place, 1, 1, 0, 0) for place in places[:count])
    )


def _labels(count: int) -> bytes:
    """A DNS message with many records of long names."""
    name = b"\x01a" * 120 + b"\0"
    return struct.pack("!6H", 1, 0x8180, 0, count, 0, 0) + (name + struct.pack("!HHIH", 1, 1, 0, 0)) * count


def _chunks(size: int) -> Callable[[int], bytes]:
    def make(count: int) -> bytes:
        writer = ChunkWriter(bytes(16), 1000, 65_535)
        return b"".join(writer.write(bytes(size)) for _ in range(count))

    return make


def _websocket(count: int) -> bytes:
    return b"".join(http_frames.message(b"x", b"\1\2\3\4") for _ in range(count))


def _in_crumbs(count: int) -> bytes:
    """WebSocket messages in as many frames of nothing as there may be."""
    crumbs = b"\x02\x80\0\0\0\0" + b"\0\x80\0\0\0\0" * 1000 + b"\x80\x80\0\0\0\0"
    return crumbs * (1 + count // 1000)


def _through(name: str) -> Callable[[Parts], Any]:
    """Into a codec of the fuzzer."""
    return CODECS[name].run


def _packet(name: str) -> Load:
    """A codec of whole packets that gets its golden input, longer and longer."""

    def make(count: int) -> Parts:
        data = max(CODECS[name].golden(), key=len)
        return [(data * (1 + count // len(data)))[:count]]

    return Load(f"{name}/long", make, _through(name), (name,), 65_536)


def _streams(name: str) -> Load:
    """A stream codec that gets its golden input in single bytes, and then more of it."""
    # Few: what the codec's own harness gathers grows, too.
    return Load(f"{name}/bytes", _golden(name), _through(name), (name,), 4096, 1024)


_ORDERS: dict[str, Callable[[int], Sequence[int]]] = {
    "gaps": _evens_then_odds,
    "backwards": lambda count: range(count - 1, -1, -1),
}

#: Every load, by name.
LOADS: dict[str, Load] = {
    load.name: load
    for load in (
        *(
            Load(f"pickaxe-fragments/{name}", make, run, ("pickaxe-fragment",), 65_536)
            for name, make in (
                ("crumbs", _fragments(2, 1)),
                ("gaps", _fragments(64, 32)),
                ("backwards", _fragments(64, 32, -1)),
                ("again", lambda count: _fragments(64, 40)(16) * (count // 16)),
                ("new-packets", _fragments(60_000, 32)),
            )
            for run in (_reassemble(Reassembler),)
        ),
        Load("pickaxe-fragments/before-proof", _fragments(64, 32), _reassemble(UnprovedFragments)),
        *(
            Load(
                f"pickaxe-session/{name}",
                _numbered(pickaxe.DATA, lambda _: b"CIDSx", order),
                _pickaxe_server,
                ("pickaxe-session", "pickaxe-session-open"),
                least=1000,
            )
            for name, order in _ORDERS.items()
        ),
        Load(
            "pickaxe-session/echoes",
            _numbered(pickaxe.ECHO, lambda index: pickaxe.encode_echo(1, index.to_bytes(16, "big"), b""), range),
            _pickaxe_server,
        ),
        Load("pickaxe-session/losses", _numbered(pickaxe.ECHO, _progress, range), _pickaxe_server, least=1000),
        Load("pickaxe-session/acknowledged", lambda n: [b"CIDSx"] * n, _acknowledged, (), 32_768),
        Load("pickaxe-login/flood", _logins, _desk, ("pickaxe-login",)),
        Load("pickaxe-packets/small", _one(_packets), _feed(PacketReader), ("pickaxe-packets",), 65_536),
        Load("pickaxe-packets/bytes", _cut(lambda n: b"\xff\xff\0\0" + bytes(n)), _feed(PacketReader), (), 65_536),
        *(
            Load(f"polled-segments/{name}", _segments(order), _receive, ("polled-question",))
            for name, order in _ORDERS.items()
        ),
        Load("polled-acknowledgements", lambda n: [b"\x55" * 127] * n, _acknowledge, ("polled-answer",), 4096),
        Load("polled-server/flood", _questions, _polled_server),
        Load("kcp-arq/gaps", _kcp(PUSH, lambda index: index * 2), _arq, ("kcp-arq", "kcp-segments")),
        Load("kcp-arq/backwards", _kcp(PUSH, lambda index: 1000 - index % 1000), _arq),
        Load("kcp-arq/in-order", _kcp(PUSH, lambda index: index), _arq),
        Load("kcp-arq/acknowledgements", _kcp(ACK, lambda index: index * 7 % 32), _arq_sending, least=1000),
        Load("kcp-arq/window-questions", _kcp(WASK, lambda index: index), _arq_sending, least=1000),
        Load("fec-decoder/data", _shards(lambda _: 0xF1), _fec, ("fec-decoder",), least=2000),
        Load("fec-decoder/mixed", _shards(lambda index: 0xF1 + index % 2), _fec),
        Load("fec-decoder/far", _shards(lambda index: 0xF1 if index % 13 < 10 else 0xF2, 13), _fec),
        Load("smux-session/small", _smux_data, _smux, ("smux-session", "smux-frames")),
        Load("smux-session/streams", _smux_frames(smux.Cmd.SYN, b"", lambda index: index * 2 + 1), _smux),
        Load("smux-session/strays", _smux_frames(smux.Cmd.PSH, b"x", lambda index: index), _smux),
        Load("smux-session/fins", _smux_frames(smux.Cmd.FIN, b"", lambda index: index), _smux),
        Load(
            "smux-frames/bytes",
            _cut(lambda n: smux.HEADER.pack(2, smux.Cmd.PSH, 65535, 1) + bytes(n)),
            _smux,
            ("smux-frames",),
            60_000,
        ),
        Load(
            "websocket/small",
            _one(_websocket),
            _feed(lambda: http_frames.FrameReader(True, 500)),
            ("websocket-frames",),
        ),
        Load("websocket/crumbs", _one(_in_crumbs), _feed(lambda: http_frames.FrameReader(True, 500))),
        Load(
            "websocket/bytes",
            _cut(lambda n: b"\x82\xff" + (1 << 20).to_bytes(8, "big") + bytes(4 + n)),
            _feed(lambda: http_frames.FrameReader(True, 1 << 20)),
        ),
        Load("pickaxe-web-batch/small", _one(lambda n: b"\1\0\0\0x" * n), lambda parts: split(b"".join(parts))),
        Load("mika-chunks/small", _one(_chunks(1)), _feed(lambda: ChunkReader(bytes(16), 1000)), ("mika-chunks",)),
        Load("mika-chunks/bytes", _cut(_chunks(65_535)), _feed(lambda: ChunkReader(bytes(16), 1000)), (), 4),
        Load("mika-datagrams/small", _one(lambda n: b"\0\0" * n), _feed(DatagramReader), ("mika-datagrams",)),
        Load("mika-datagrams/bytes", _cut(lambda n: b"\xff\xff" + bytes(n)), _feed(DatagramReader), (), 60_000),
        Load(
            "dns-message/pointers", _one(_pointers), lambda parts: dns.Message.decode(parts[0]), ("dns-message",), 400
        ),
        Load("dns-message/chains", _one(_pointers_to_pointers), lambda parts: dns.Message.decode(parts[0]), (), 400),
        Load("dns-message/labels", _one(_labels), lambda parts: dns.Message.decode(parts[0]), (), 256),
        *SERVER_LOADS,
        *(
            _streams(name)
            for name, codec in CODECS.items()
            if codec.stream and name not in ("mika-chunks", "mika-chunks-any-mac", "smux-frames")
        ),
        *(_packet(name) for name, codec in CODECS.items() if not codec.stream),
    )
}
