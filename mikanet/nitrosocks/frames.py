"""NitroSocks' DATA packets inside: frames of streams, and of the session itself. Plain Python.

A frame is ``sid`` (u32, big-endian), ``cmd`` (u8) and a payload. RESUME and ACK belong to the connection: they have sid 0
and are not counted; every other frame is counted, kept until the peer has it, and delivered once.
"""

from __future__ import annotations

import enum
from typing import Final

from mikanet.address import Address
from mikanet.errors import RemoteProtocolError
from mikanet.nitrosocks.link import MAX_DATA
from mikanet.wire import socks

PREFIX: Final = 5

#: Most bytes of a stream in one frame of ours.
MAX_PAYLOAD: Final = MAX_DATA - PREFIX

#: Bytes that the peer may send on a stream beyond what was taken, at its begin (N9).
WINDOW: Final = 256 * 1024

#: Streams of a session at the same time (N9).
MAX_STREAMS: Final = 1024


class Command(enum.IntEnum):
    """What a frame says."""

    #: C to S: connect a stream to a SOCKS5 address.
    OPEN = 0
    #: S to C: a SOCKS5 reply code; 0 is success.
    REPLY = 1
    BYTES = 2
    #: The end of the sender's direction.
    EOF = 3
    #: The end of both, now.
    RESET = 4
    #: So many bytes more may be sent on the stream (u32).
    CREDIT = 5
    #: How many counted frames came, at the begin of a resumed connection (u64).
    RESUME = 6
    #: The same, at any time.
    ACK = 7
    #: C to S: as OPEN, for datagrams; each is u16 length and content, in BYTES.
    OPEN_DATAGRAMS = 8


#: Exact sizes of payloads.
_SIZES: Final = {
    Command.REPLY: 1,
    Command.EOF: 0,
    Command.RESET: 0,
    Command.CREDIT: 4,
    Command.RESUME: 8,
    Command.ACK: 8,
}
_COMMANDS: Final = {int(command): command for command in Command}
_UNCOUNTED: Final = frozenset({Command.RESUME, Command.ACK})


def encode(sid: int, command: Command, payload: bytes = b"") -> bytes:
    """A frame."""
    return (sid << 8 | command).to_bytes(PREFIX, "big") + payload


def encode_number(sid: int, command: Command, number: int) -> bytes:
    """A CREDIT, RESUME or ACK frame."""
    return encode(sid, command, number.to_bytes(_SIZES[command], "big"))


def decode(frame: bytes) -> tuple[int, Command, bytes]:
    """sid, command and payload; sizes and sids are checked.

    :raises RemoteProtocolError: if it is no frame.
    """
    if len(frame) < PREFIX:
        raise RemoteProtocolError("a DATA packet without a whole frame")
    sid = int.from_bytes(frame[:4], "big")
    command = _COMMANDS.get(frame[4])
    if command is None:
        raise RemoteProtocolError(f"a frame of unknown command {frame[4]}")
    size = _SIZES.get(command)
    if size is not None and len(frame) != PREFIX + size:
        raise RemoteProtocolError(f"a frame of {command.name} with {len(frame) - PREFIX} bytes")
    if (sid == 0) != (command in _UNCOUNTED):
        raise RemoteProtocolError(f"{command.name} for stream {sid}")
    return sid, command, frame[PREFIX:]


def decode_destination(payload: bytes) -> Address:
    """Where an OPEN frame wants to go.

    :raises RemoteProtocolError: if the payload is not exactly one address.
    """
    found = socks.decode_address(payload)
    if found is None or found[1] != len(payload):
        raise RemoteProtocolError("an OPEN frame without exactly one address")
    return found[0]


# -- datagrams in a stream of bytes

#: Largest datagram.
MAX_DATAGRAM: Final = 65507


def encode_datagram(data: bytes) -> bytes:
    """One datagram, 0 to 65507 bytes, as bytes of its stream."""
    return len(data).to_bytes(2, "big") + data


class DatagramReader:
    """Cuts a stream of bytes into datagrams."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The datagrams that ``data`` completes.

        :raises RemoteProtocolError: for one that is longer than any can be.
        """
        buffer = self._buffer
        buffer += data
        found = []
        at = 0
        while len(buffer) - at >= 2:
            size = buffer[at] << 8 | buffer[at + 1]
            if size > MAX_DATAGRAM:
                raise RemoteProtocolError("a datagram of an impossible length")
            if len(buffer) - at - 2 < size:
                break
            found.append(bytes(buffer[at + 2 : at + 2 + size]))
            at += 2 + size
        del buffer[:at]
        return found
