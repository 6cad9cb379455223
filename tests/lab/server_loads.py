"""The worst inputs for what servers keep of many peers, and for machines that are more than one codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from mikanet.carriers.strangers import Strangers
from mikanet.crypto.replay import ReplaySet
from mikanet.endpoints.kcp import MIKA_SERVER
from mikanet.errors import RemoteProtocolError
from mikanet.guard.admission import Admission, AdmissionLimits
from mikanet.guard.deadlines import Deadlines
from mikanet.kcp.link import LinkSettings, PacketSealer
from mikanet.kcp.segment import HEADER, PUSH
from mikanet.kcp.settings import MODES
from mikanet.nitrosocks import frames
from mikanet.nitrosocks.mux import Mux
from mikanet.smux import frame as smux
from mikanet.smux.connection import SmuxConnection
from mikanet.smux.session import SmuxSettings
from tests.kcp.net import Net
from tests.lab.growth import Load
from tests.support.transports import MemoryTransport

Parts = Sequence[bytes]


def _admission(parts: Parts) -> None:
    admission = Admission(AdmissionLimits(), lambda: 0.99)
    for index, part in enumerate(parts):
        admission.admit(index, part.decode(), index * 0.001)
        if index % 3 == 0:
            admission.leave(index // 2)


def _strangers(parts: Parts) -> None:
    strangers = Strangers[int](1000, 32)
    for index, part in enumerate(parts):
        while (oldest := strangers.in_the_way(part)) is not None:
            strangers.discard(oldest)
        strangers.add(index, part)


def _deadlines(parts: Parts) -> None:
    clock = Clock()
    deadlines = Deadlines(clock, 5.0)
    for _ in parts:
        deadlines.start(lambda: None)
    clock.advance(6.0)


def _replays(parts: Parts) -> None:
    replays = ReplaySet()
    for index, part in enumerate(parts):
        replays.accept(part, 1000, 1000 + index * 0.001)


def _hosts(count: int) -> Parts:
    return [f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}".encode() for index in range(count)]


def _ivs(count: int) -> Parts:
    return [(index + 1).to_bytes(16, "big") for index in range(count)]


# -- sessions


def _kcp_peers(parts: Parts) -> None:
    """A first packet from each of many addresses, to Mika's link."""
    net = Net(MIKA_SERVER, Factory.forProtocol(Protocol))
    for index, part in enumerate(parts):
        net.sessions.packets_received((f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", index & 65535), [part])


def _kcp_firsts(count: int) -> Parts:
    return [
        index.to_bytes(4, "little") + b"\xf1\0\x1b\0" + HEADER.pack(index, PUSH, 0, 128, 0, 0, 0, 1) + b"x"
        for index in range(1, count + 1)
    ]


def _forged(block: str) -> Callable[[Parts], None]:
    """Packets that fail their check."""

    def run(parts: Parts) -> None:
        sealer = PacketSealer(LinkSettings(block, bytes(32), MODES["fast2"], snd_wnd=64, rcv_wnd=64), bytes)
        for part in parts:
            sealer.open([part])

    return run


class _Paused(Protocol):
    """Reads nothing at first."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.pauseProducing()  # type: ignore[attr-defined]  # every stream is a producer


def _smux_paused(parts: Parts) -> None:
    """Small frames for a stream whose reader is paused, and then is not."""
    factory = Factory.forProtocol(_Paused)
    connection = SmuxConnection(SmuxSettings(version=2), False, Clock(), factory)
    connection.makeConnection(MemoryTransport())
    connection.dataReceived(smux.HEADER.pack(2, smux.Cmd.SYN, 0, 1))
    for part in parts:
        connection.dataReceived(part)
    for stream in list(connection.streams.values()):
        stream.resumeProducing()
    connection.connectionLost()


def _small_frames(count: int) -> Parts:
    return [smux.HEADER.pack(2, smux.Cmd.PSH, 1, 1) + b"x"] * count


def _nitrosocks_mux(parts: Parts) -> None:
    """A server's streams whose targets are not reached yet."""
    mux = Mux(Clock(), lambda stream, destination, datagrams: None)
    mux.begin()
    for part in parts:
        try:
            mux.frame_received(part)
        except RemoteProtocolError:
            break
    mux.finish()


def _nitrosocks_opens(count: int) -> Parts:
    return [
        frames.encode(2 * index + 1, frames.Command.OPEN, b"\x01\x01\x02\x03\x04\x00\x50") for index in range(count)
    ]


def _nitrosocks_bytes(count: int) -> Parts:
    return [
        frames.encode(1, frames.Command.OPEN, b"\x01\x01\x02\x03\x04\x00\x50"),
        *([frames.encode(1, frames.Command.BYTES, b"x")] * count),
    ]


SERVER_LOADS = (
    Load("admission/addresses", _hosts, _admission),
    Load("strangers/one-address", lambda count: [bytes(60)] * count, _strangers),
    Load("strangers/addresses", _hosts, _strangers),
    Load("deadlines/all-at-once", lambda count: [bytes(60)] * count, _deadlines),
    Load("replay-set/fresh", _ivs, _replays),
    Load("kcp-server/peers", _kcp_firsts, _kcp_peers, least=4096),
    Load(
        "kcp-sealer/forged-aes", lambda count: [index.to_bytes(8, "big") * 8 for index in range(count)], _forged("aes")
    ),
    Load(
        "kcp-sealer/forged-gcm",
        lambda count: [index.to_bytes(8, "big") * 8 for index in range(count)],
        _forged("aes-128-gcm"),
    ),
    Load("smux-stream/paused", _small_frames, _smux_paused, most=65_536),
    Load("nitrosocks-mux/opens", _nitrosocks_opens, _nitrosocks_mux),
    Load("nitrosocks-mux/small", _nitrosocks_bytes, _nitrosocks_mux),
)
