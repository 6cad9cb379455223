"""The codecs of NitroSocks for the fuzzer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.task import Clock

from mikanet.nitrosocks import frames
from mikanet.nitrosocks.keys import length_key
from mikanet.nitrosocks.mux import Mux
from mikanet.nitrosocks.server_link import ServerLink
from mikanet.nitrosocks.wire import (
    HEADER,
    SALT,
    Direction,
    EncryptType,
    HeaderMask,
    PacketReader,
    decode_challenge,
)
from tests.lab.fuzzer import Codec
from tests.nitrosocks import golden


def _packets(pieces: Sequence[bytes]) -> Any:
    """NitroSocks' packets under the mask of the vectors' first client."""
    reader, found = PacketReader(), []
    for piece in pieces:
        reader.feed(piece)
        while True:
            packet = reader.next()
            if packet is not None:
                found.append((packet.header, bytes(packet.body)))
            elif reader.salt is not None and reader.mask is None:
                reader.mask = HeaderMask(length_key(golden.K0, reader.salt, Direction.CLIENT))
            else:
                break
    return found


def _recorded() -> Callable[[int], bytes]:
    """The randomness of the first vector's server, then zeros."""
    login = {name: bytes.fromhex(text) for name, text in _FIRST["login"].items()}
    values = [login["server_salt"], golden.number(0), login["r1"], login["token_temp"], golden.number(7), login["pad"]]

    def draw(size: int) -> bytes:
        value = values.pop(0) if values else b""
        return value if len(value) == size else bytes(size)

    return draw


def _server(pieces: Sequence[bytes]) -> Any:
    """A NitroSocks server that meets a client's first bytes; no other flight than the recorded one opens a session."""
    config = golden.server_config(
        _recorded(),
        encrypt=lambda text: bytes.fromhex(_FIRST["login"]["challenge_block"]),
        encrypt_type=EncryptType(_FIRST["encrypt_type"]),
        version=1 if _FIRST["version_field"] else None,
        wait_first=True,
    )
    link = ServerLink(config, 0.0)
    for piece in pieces:
        link.receive(piece, 0.0)
    return link.state, len(link.take_output())


def _first_flight(stream: bytes) -> bytes:
    """Salt, obfuscation packet and response of a client's stream."""
    (_, junk), (_, response), *_ = _packets([stream])
    return stream[: SALT + HEADER + len(junk) + HEADER + len(response)]


def _mux(pieces: Sequence[bytes]) -> Any:
    """A NitroSocks server's streams that get one frame after one that opened a stream."""
    mux = Mux(Clock(), lambda stream, destination, datagrams: None)
    mux.begin()
    mux.frame_received(_FRAMES[0])
    mux.frame_received(b"".join(pieces))
    mux.finish()
    return sorted(mux.streams)


def _datagrams(pieces: Sequence[bytes]) -> Any:
    """Datagrams in a stream."""
    reader = frames.DatagramReader()
    return [datagram for piece in pieces for datagram in reader.feed(piece)]


_FIRST = golden.FILE["vectors"][0]
_VECTORS = [vector[part] for vector in golden.FILE["vectors"] for part in ("login", "reconnection")]
_GOLDEN = {
    name: [bytes.fromhex(vector[field]) for vector in _VECTORS]
    for name, field in (("client", "client"), ("server", "server"), ("text", "challenge_text"))
}
_FRAMES = [
    frames.encode(1, frames.Command.OPEN, b"\x03\x0bexample.com\x01\xbb"),
    frames.encode(1, frames.Command.BYTES, b"hello"),
    frames.encode(1, frames.Command.EOF),
    frames.encode_number(1, frames.Command.CREDIT, 131072),
    frames.encode_number(0, frames.Command.ACK, 0),
    frames.encode(2, frames.Command.OPEN_DATAGRAMS, b"\x01\x01\x02\x03\x04\x00\x35"),
]

#: One line each.
CODECS = (
    Codec("nitrosocks-packets", lambda: _GOLDEN["client"] + _GOLDEN["server"], _packets),
    Codec("nitrosocks-server", lambda: [_first_flight(bytes.fromhex(_FIRST["login"]["client"]))], _server),
    Codec(
        "nitrosocks-challenge", lambda: _GOLDEN["text"], lambda pieces: decode_challenge(b"".join(pieces)), stream=False
    ),
    Codec("nitrosocks-frames", lambda: _FRAMES, lambda pieces: frames.decode(b"".join(pieces)), stream=False),
    Codec("nitrosocks-mux", lambda: _FRAMES, _mux, stream=False),
    Codec("nitrosocks-datagrams", lambda: [b"\0\5hello\0\1!\0\0"], _datagrams),
)
