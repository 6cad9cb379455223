"""The codecs that the fuzzer knows: one line each in :data:`CODECS`.

An authenticated codec stands here twice: as it is, where nearly every mutation dies at the MAC, and with a MAC that is
always right, so that what lies behind it is reached.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import h11
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport

from mikanet.address import Address
from mikanet.carriers import http_exchange, http_frames, polled_wire
from mikanet.carriers.dns_records import from_answer, to_records
from mikanet.carriers.http_batches import split
from mikanet.cli.dissect import Dissector
from mikanet.crypto.packets import packet_cipher
from mikanet.crypto.replay import ReplaySet
from mikanet.errors import RemoteProtocolError
from mikanet.fec.decoder import FecDecoder
from mikanet.fec.reedsolomon import ReedSolomon
from mikanet.filters.obfs_http import ObfsHttpClient, ObfsHttpServer, make_request_head
from mikanet.filters.packetizer import PacketReader, frame
from mikanet.frontdoors.http_messages import connect_destination, outgoing
from mikanet.kcp.arq import Arq
from mikanet.kcp.segment import decode
from mikanet.kcp.settings import ArqSettings
from mikanet.megaki.bank import TokenBank
from mikanet.megaki.exchange import Exchange
from mikanet.megaki.sealing import SavedSession, SessionKey
from mikanet.megaki.yami import ClientYami, Request, ServerYami, State
from mikanet.mika import wire
from mikanet.mika.http_target import HttpTarget
from mikanet.mika.session import Profile, ServerSession, derive_keys
from mikanet.paqet.wire import Dialect, MessageReader
from mikanet.pickaxe import wire as pickaxe
from mikanet.pickaxe.keys import Mac, SessionKeys
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.session import Role
from mikanet.pickaxe.session import Session as PickaxeSession
from mikanet.rawpackets.frames import open_frame
from mikanet.smux.frame import FrameReader
from mikanet.smux.session import Session, SmuxSettings, StreamData
from mikanet.wire import dns, icmp, socks
from mikanet.wire.base32 import decode as decode_base32
from mikanet.wire.captures import Captured, file_header, packet_block, read_captures
from mikanet.wire.connect_client import ConnectHandshake
from mikanet.wire.socks_client import ClientHandshake
from mikanet.wire.socks_server import ServerHandshake
from tests.lab.fuzzer import Codec, Run
from tests.megaki.golden import HANDSHAKE, packets
from tests.nitrosocks import codecs as nitrosocks
from tests.support.vectors import load

_STREAMS = load("mika/vectors.json")["streams"]
_IV, _KEY = bytes.fromhex(_STREAMS[1]["iv"]), bytes.fromhex(_STREAMS[1]["key"])
_PICKAXE_KEYS = SessionKeys(bytes(32), bytes(range(32)))
_MOMENT = _STREAMS[1]["unix_time"]
_GO_KEYS = derive_keys(_STREAMS[1]["password"].encode(), Profile.GO, _STREAMS[1]["method"])


def _hex(field: str) -> Callable[[], list[bytes]]:
    """A field of every recorded Mika stream."""
    return lambda: [bytes.fromhex(stream[field]) for stream in _STREAMS]


def _chunks() -> list[bytes]:
    """The recorded chunks of each stream in clear."""
    return [
        b"".join(
            struct.pack("!H", len(chunk["payload"]) // 2) + bytes.fromhex(chunk["hmac"] + chunk["payload"])
            for chunk in stream["chunks"]
        )
        for stream in _STREAMS
        if stream["chunks"]
    ] + [bytes(12) * 3]


_DNS = load("dns/vectors.json")
_DNS_ZONE = dns.name_of("t.example")
_DNS_ANSWER = dns.build_answer(
    dns.Query(1, 0, _DNS_ZONE + b"\0\x0f\0\1", [], dns.MX, dns.IN, 1232, True, b""),
    *to_records(dns.MX, b"a message in several names" * 8, _DNS_ZONE, 12),
)
_POLLED = [polled_wire.up(5, 6, 7, 11, 8, True, 9, b"data"), polled_wire.down(0.5, 300, 7, 1 << 100, 4, False, 1, b"x")]
_ECHOES = [bytes.fromhex(packet) for packet in load("icmp/echo.json")["v4"]]


def _dns_messages() -> list[bytes]:
    """dig's queries and dnsmasq's answers."""
    return [bytes.fromhex(query["hex"]) for query in _DNS["dig"].values()] + [
        bytes.fromhex(answer) for answer in _DNS["dnsmasq"]["answers"].values()
    ]


def _whole(parse: Callable[[bytes], Any]) -> Run:
    """A parser of one whole input."""
    return lambda pieces: parse(b"".join(pieces))


def _feeding(make: Callable[[], Any], method: str = "feed") -> Run:
    """A codec that is fed; the answer is all that it gave, joined."""

    def run(pieces: Sequence[bytes]) -> Any:
        feed = getattr(make(), method)
        out: list[Any] = []
        for piece in pieces:
            out += feed(piece)
        return out

    return run


def _any_mac(run: Run) -> Run:
    """The same with a MAC that is always right."""

    def patched(pieces: Sequence[bytes]) -> Any:
        real = wire.compare_digest  # type: ignore[attr-defined]
        wire.compare_digest = _always  # type: ignore[attr-defined]
        try:
            return run(pieces)
        finally:
            wire.compare_digest = real  # type: ignore[attr-defined]

    return patched


def _always(first: object, second: object) -> bool:
    return True


_PICKAXE_PARSERS: tuple[Callable[[bytes], Any], ...] = (
    pickaxe.decode_login,
    pickaxe.decode_login_response,
    pickaxe.decode_connect,
    pickaxe.decode_connect_response,
    pickaxe.decode_listen,
    pickaxe.decode_listen_response,
    pickaxe.decode_stop_listen,
    pickaxe.decode_accept,
    pickaxe.decode_close,
    pickaxe.decode_credit,
    pickaxe.decode_echo,
    pickaxe.decode_fragment,
)
_PID = bytes(range(16))
_PICKAXE_BODIES = [
    pickaxe.encode_login(pickaxe.Login(_PID, (1, 0), "alice")),
    pickaxe.encode_login_response(pickaxe.LoginResponse(_PID, (1, 0), b"SIDS", _PID)),
    pickaxe.encode_connect(_PID, Address("192.0.2.1", 80)),
    pickaxe.encode_connect(_PID, Address("2001:db8::1", 80)),
    pickaxe.encode_connect(_PID, Address("example.com", 80)),
    pickaxe.encode_connect_response(_PID, b"CIDS", 0),
    pickaxe.encode_listen(_PID, 80),
    pickaxe.encode_listen_response(_PID, 0, 80),
    pickaxe.encode_stop_listen(_PID),
    b"CIDS\0",
    pickaxe.encode_credit(b"CIDS", 1 << 20),
    pickaxe.encode_echo(pickaxe.ECHO_REQUEST, _PID, pickaxe.encode_progress(7, b"\5")),
    *pickaxe.fragment(bytes(100), 60),
]


def _packets(pieces: Sequence[bytes]) -> Any:
    """Pickaxe's packets on a stream: those before a wrong length, and whether there was one."""
    reader, packets = PacketReader(), []
    for piece in pieces:
        try:
            packets += reader.feed(piece)
        except RemoteProtocolError:
            break
    if reader.broken and not packets:
        raise RemoteProtocolError("a wrong length at once")
    return packets, reader.broken


def _pickaxe_packets() -> list[bytes]:
    """What a Pickaxe client sends on a session."""
    client = PickaxeSession(Role.CLIENT, b"SIDS", _PICKAXE_KEYS, lambda size: bytes(size))
    path = Path(True)
    client.use(path, 0.0)
    client.ask(0.0)
    for body in _PICKAXE_BODIES:
        for kind in (pickaxe.CONNECT, pickaxe.DATA, pickaxe.ECHO):
            client.send(kind, body, now=0.0)
    return [packet for _, packets in client.flush(0.0) for packet in packets]


def _pickaxe_session(pieces: Sequence[bytes]) -> Any:
    """A server's session that takes one packet."""
    server = PickaxeSession(Role.SERVER, b"SIDS", _PICKAXE_KEYS, lambda size: bytes(size))
    path = Path(True)
    messages = server.receive(b"".join(pieces), path, 0.0)
    server.flush(0.0)
    return [message[:2] for message in messages], path.proven


def _any_pickaxe_mac(run: Run) -> Run:
    """The same with a MAC that is always right."""

    def patched(pieces: Sequence[bytes]) -> Any:
        real = Mac.matches
        Mac.matches = lambda *_: True  # type: ignore[method-assign]  # put back at once
        try:
            return run(pieces)
        finally:
            Mac.matches = real  # type: ignore[method-assign]

    return patched


def _connect_client() -> ConnectHandshake:
    return ConnectHandshake(Address("example.com", 443), "user", "password")


def _handshake(make: Callable[[], Any], result: str) -> Run:
    """A handshake: what comes behind its end is its rest."""

    def run(pieces: Sequence[bytes]) -> Any:
        codec = make()
        answers, rest = b"", b""
        for piece in pieces:
            if getattr(codec, result) is None:
                answers += codec.feed(piece)
                if getattr(codec, result) is not None:
                    rest += codec.rest()
            else:
                rest += piece
        return answers, getattr(codec, result), rest

    return run


def _first_answer(make: Callable[[], Any]) -> Run:
    """A codec that is fed until it answers something."""

    def run(pieces: Sequence[bytes]) -> Any:
        feed = make().feed
        for piece in pieces:
            answer = feed(piece)
            if answer is not None:
                return answer
        return None

    return run


def _client_handshake() -> ClientHandshake:
    handshake = ClientHandshake(_ADDRESS, "user", "password")
    handshake.start()
    return handshake


def _proxy_request(pieces: Sequence[bytes]) -> Any:
    """A proxy's request head: h11 reads it, the front door decides where it goes."""
    connection = h11.Connection(h11.SERVER)
    try:
        connection.receive_data(b"".join(pieces))
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise RemoteProtocolError("not HTTP") from error
    if isinstance(event, h11.Request):
        return connect_destination(event) if event.method == b"CONNECT" else outgoing(event)
    return None


def _filtering(make: Callable[[Protocol], Any]) -> Run:
    """A filter over a transport: what it hands up, and whether it closed."""

    class Upper(Protocol):
        got = b""

        def dataReceived(self, data: bytes) -> None:
            self.got += data

    def run(pieces: Sequence[bytes]) -> Any:
        upper = Upper()
        transport = StringTransport()
        made = make(upper)
        made.makeConnection(transport)
        for piece in pieces:
            if not transport.disconnecting:
                made.dataReceived(piece)
        return upper.got, transport.disconnecting

    return run


def _arq(pieces: Sequence[bytes]) -> Any:
    """A KCP session that gets one datagram, answers, and gives what can be read."""
    arq = Arq(_KCP[0]["conv"], ArqSettings())
    arq.input(b"".join(pieces), 5)
    return arq.flush(20), arq.receive_stream()


def _message(pieces: Sequence[bytes]) -> Any:
    """A paqet stream's first bytes: the message, its dialect, and what comes behind it."""
    reader = MessageReader((Dialect.GOB, Dialect.A21))
    message, rest = None, b""
    for piece in pieces:
        if message is None:
            message, rest = reader.feed(piece), reader.rest
        else:
            rest += piece
    return message, reader.dialect, rest


def _smux_session(pieces: Sequence[bytes]) -> Any:
    """A smux server: how many bytes each stream got, however they were grouped, and what is answered."""
    session = Session(SmuxSettings(version=1), client=False)
    got: dict[int, int] = {}
    for piece in pieces:
        for event in session.data_received(piece):
            got[event.sid] = got.get(event.sid, 0) + (len(event.data) if isinstance(event, StreamData) else 0)
    return got, session.take_output(100_000)


def _fec(pieces: Sequence[bytes]) -> Any:
    """A FEC decoder in the middle of a group."""
    decoder = FecDecoder(_REED_SOLOMON)
    recovered: list[bytes] = []
    for packet in (*_SHARDS[:9], b"".join(pieces), *_SHARDS[9:]):
        decoder.receive(packet, recovered)
    return len(recovered)


def _capture_file(pieces: Sequence[bytes]) -> Any:
    """A file of captured packets, to where it is damaged."""
    return [len(packet.data) for packet in read_captures(BytesIO(b"".join(pieces)).read)]


def _dissect(pieces: Sequence[bytes]) -> Any:
    """A packet looked at by ``mikanet dump``, after another one of the same conversation."""
    dissector = Dissector(packet_cipher("null", b"", bytes), 9999)
    dissector.packet(_FRAMES[0][14:])
    return dissector.packet(b"".join(pieces))


def _megaki_server(pieces: Sequence[bytes]) -> Any:
    """A Megaki server that knows one session and answers requests with themselves."""
    bank = TokenBank()
    known = bank.add(bytes(16), SessionKey(bytes(32)), "")
    assert known is not None
    bank.detach(known, 0.0)
    yami = ServerYami(bank, "", bytes)
    out: list[Any] = []
    for piece in pieces:
        yami.feed(piece)
        while (event := yami.next_event(0.0)) is not None:
            out.append(event)
            if isinstance(event, Request):
                yami.respond(event.plain)
    return out


def _megaki_client() -> list[bytes]:
    """What a Megaki client sends: a handshake's SYN, and a resumption with two requests."""
    client = ClientYami(bytes)
    sent = client.resume(SavedSession(bytes(16), bytes(32)))
    (established,) = _megaki_server([sent])
    client.feed(established.reply)
    client.next_event()
    for request in (b"first", bytes(range(64))):
        sent += client.send_message(request)
        client.state = State.READY  # without waiting for the answer
    return [sent, packets(HANDSHAKE)[0]]


def _said(*kinds: str) -> bytes:
    """What a shell says: types of answers, each with the number of request 1; one that has content says hello."""
    content = struct.pack("=I", 5) + b"hello"
    return b"".join(
        kind.encode("latin-1") + struct.pack("=Q", 1) + (content if kind == "\x84" else b"") for kind in kinds
    )


def _megaki_worker(pieces: Sequence[bytes]) -> Any:
    """A worker's answers to one exchange."""
    exchange = Exchange(1, bytes(32), b"request", at_once=True)
    for piece in pieces:
        exchange.feed(piece)
    return exchange.done, exchange.answer


_ADDRESS = Address("example.com", 443)
_HEADER = _whole(lambda data: wire.decode_header(data, _IV, _KEY, True))
_CHUNKS = _feeding(lambda: wire.ChunkReader(_IV, _MOMENT))
_SESSION = _feeding(lambda: ServerSession(_GO_KEYS, ReplaySet(), lambda: float(_MOMENT)), "receive")


_KCP = load("paqet/kcp.json")["kcp_segments"]
_SEGMENTS = [bytes.fromhex(segment["wire"]) for segment in _KCP] + [
    b"".join(bytes.fromhex(segment["wire"]) for segment in _KCP)
]
_SMUX = b"".join(
    bytes.fromhex(event.get("client_to_server", "")) for event in load("paqet/smux.json")["smux"][0]["events"]
)
_FEC = load("paqet/fec.json")["fec"][0]
_SHARDS = [bytes.fromhex(packet) for packet in _FEC["groups"][0]["data_packets"]]
_REED_SOLOMON = ReedSolomon(_FEC["data_shards"], _FEC["parity_shards"])
_FRAMES = [
    bytes.fromhex(entry["frame"]) for entries in load("paqet/captures.json")["captures"].values() for entry in entries
]
_CAPTURE_FILES = [
    file_header() + b"".join(packet_block(Captured(1.0, frame, 1), "text") for frame in _FRAMES[:3]),
    bytes.fromhex("d4c3b2a1020004000000000000000000000004000100000000ca9a3b90d003000500000005000000") + b"abcde",
]
_SOCKS_REQUESTS = [
    bytes.fromhex("0501000501000102030405060708"),
    bytes.fromhex("05020002050100030b6578616d706c652e636f6d01bb"),
    bytes.fromhex("0503000102050300041111222233334444555566667777888800350505"),
    bytes.fromhex("040100507f0000017573657200"),
    bytes.fromhex("0401005000000001757365720068" + "6f737400"),
    b"\x05\x01\x02\x01\x04user\x08password\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50GET / HTTP/1.1\r\n",
]
_SOCKS_REPLIES = [
    bytes.fromhex("05000500000101020304005061"),
    bytes.fromhex("0502010005000003046e616d650050"),
    bytes.fromhex("05020100050000040102030405060708090a0b0c0d0e0f100050"),
    bytes.fromhex("05ff"),
]
_SOCKS_DATAGRAMS = [
    bytes.fromhex("00000001010203040050") + b"data",
    bytes.fromhex("000000030b6578616d706c652e636f6d0035") + b"data",
    bytes.fromhex("0000000400000000000000000000000000000001003561"),
]
_REQUESTS = [
    b"GET http://example.com/path?query HTTP/1.1\r\nHost: example.com\r\nConnection: close, x\r\nX: y\r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    b"POST http://[::1]:8080/ HTTP/1.1\r\nHost: [::1]:8080\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: example.com:81\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"OPTIONS http://user@h HTTP/1.0\r\nHost: h\r\n\r\n",
]
_RESPONSE = b"HTTP/1.1 200 OK\r\nServer: bfe/1.0.8.18\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nAccept: */*\r\n\r\nbody"
_OBFUSCATED = make_request_head("http://www.example.com/path") + b"\x01\x02rest"

_MASKED = (
    http_frames.message(b"\3\0\0\0abc", b"\1\2\3\4") + http_frames.ping(b"x", bytes(4)),
    b"\x02\x83\1\2\3\4abc\x80\x80\1\2\3\4" + http_frames.close(1000, b"\1\2\3\4"),
    http_frames.message(bytes(300), b"\1\2\3\4"),
)
_WEB_BODIES = (
    http_exchange.Open(2, 25, 77).encode(b"padding"),
    http_exchange.Exchange(bytes(range(16)), 77, 76).encode(b"\3\0\0\0abc"),
    http_exchange.Answer(77, 2).encode(b"\3\0\0\0abc"),
    http_exchange.Opened(2, 25, bytes(range(16))).encode(b"padding"),
)

_PAQET = load("paqet/messages.json")
_MESSAGES = [bytes.fromhex(vector["wire"]) + b"then data" for dialect in ("gob", "a21") for vector in _PAQET[dialect]]

#: Every codec, by name.
CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("mika-header", _hex("header_plain"), _HEADER, stream=False),
        Codec("mika-header-any-mac", _hex("header_plain"), _any_mac(_HEADER), stream=False),
        Codec("mika-chunks", _chunks, _CHUNKS),
        Codec("mika-chunks-any-mac", _chunks, _any_mac(_CHUNKS)),
        Codec("mika-session", _hex("client_stream"), _SESSION),
        Codec("mika-session-any-mac", _hex("client_stream"), _any_mac(_SESSION)),
        Codec("mika-datagrams", lambda: [b"\0\5hello\0\1!\0\0", b"\1\0" + bytes(256)], _feeding(wire.DatagramReader)),
        Codec("mika-http-target", lambda: _REQUESTS, _first_answer(HttpTarget)),
        Codec("kcp-segments", lambda: _SEGMENTS, _whole(lambda data: list(decode(data))), stream=False),
        Codec("kcp-arq", lambda: _SEGMENTS, _arq, stream=False),
        Codec("smux-frames", lambda: [_SMUX], _feeding(lambda: FrameReader(1))),
        Codec("smux-session", lambda: [_SMUX], _smux_session),
        Codec("fec-decoder", lambda: _SHARDS, _fec, stream=False),
        Codec("paqet-messages", lambda: _MESSAGES, _message),
        Codec("raw-frames", lambda: _FRAMES, _whole(open_frame), stream=False),
        Codec("capture-files", lambda: _CAPTURE_FILES, _capture_file, stream=False),
        Codec("paqet-dissector", lambda: [frame[14:] for frame in _FRAMES], _dissect, stream=False),
        *nitrosocks.CODECS,
        Codec("socks-server", lambda: _SOCKS_REQUESTS, _handshake(lambda: ServerHandshake(lambda *_: True), "request")),
        Codec("socks-server-open", lambda: _SOCKS_REQUESTS, _handshake(ServerHandshake, "request")),
        Codec("socks-client", lambda: _SOCKS_REPLIES, _handshake(_client_handshake, "reply")),
        Codec("socks-datagram", lambda: _SOCKS_DATAGRAMS, _whole(socks.split_udp), stream=False),
        Codec("http-proxy-request", lambda: _REQUESTS, _proxy_request, stream=False),
        Codec("websocket-frames", lambda: list(_MASKED), _feeding(lambda: http_frames.FrameReader(True, 500))),
        Codec("pickaxe-web-request", lambda: list(_WEB_BODIES), _whole(http_exchange.decode_request), stream=False),
        Codec("pickaxe-web-answer", lambda: list(_WEB_BODIES), _whole(http_exchange.Answer.decode), stream=False),
        Codec("pickaxe-web-batch", lambda: [b"\3\0\0\0abc\1\0\0\0d"], _whole(split), stream=False),
        Codec("pickaxe-packets", lambda: [frame([b"a", bytes(300), b"bc"])], _packets),
        *(
            Codec(
                f"pickaxe-{parse.__name__.removeprefix('decode_')}",
                lambda: _PICKAXE_BODIES,
                _whole(parse),
                stream=False,
            )
            for parse in _PICKAXE_PARSERS
        ),
        Codec("pickaxe-session", _pickaxe_packets, _pickaxe_session, stream=False),
        Codec("pickaxe-session-open", _pickaxe_packets, _any_pickaxe_mac(_pickaxe_session), stream=False),
        Codec(
            "http-connect-client",
            lambda: [b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nrest"],
            _handshake(_connect_client, "reply"),
        ),
        Codec("megaki-server", _megaki_client, _megaki_server),
        Codec(
            "megaki-worker",
            lambda: [_said("\x81", "\x84", "\x83"), _said("\x81", "\x85", "\x83"), _said("\x82", "\x85", "\x83")],
            _megaki_worker,
        ),
        Codec("obfs-http-server", lambda: [_OBFUSCATED], _filtering(lambda up: ObfsHttpServer(up, lambda: 0.0))),
        Codec("base32", lambda: [b"cpnmuoj1e8"], _whole(decode_base32), stream=False),
        Codec("dns-message", _dns_messages, _whole(dns.Message.decode), stream=False),
        Codec("dns-query", lambda: _dns_messages()[: len(_DNS["dig"])], _whole(dns.read_query), stream=False),
        Codec(
            "dns-answer",
            lambda: [_DNS_ANSWER],
            _whole(lambda data: from_answer(data, dns.MX, 15, _DNS_ZONE)),
            stream=False,
        ),
        Codec("polled-question", lambda: _POLLED[:1], _whole(polled_wire.read_question), stream=False),
        Codec("polled-answer", lambda: _POLLED[1:], _whole(polled_wire.read_down), stream=False),
        Codec(
            "icmp-echo", lambda: _ECHOES, _whole(lambda data: icmp.decode(icmp.without_ip_header(data))), stream=False
        ),
        Codec(
            "obfs-http-client",
            lambda: [_RESPONSE],
            _filtering(lambda up: ObfsHttpClient(up, b"POST / HTTP/1.1\r\n\r\n")),
        ),
    )
}
