"""smux frames. No I/O.

Little-endian: ``version 1 | cmd 1 | length 2 | stream id 4 | data``. Source: xtaci/smux ``frame.go``.
"""

from __future__ import annotations

import enum
import struct

from mikanet.errors import RemoteProtocolError

HEADER = struct.Struct("<BBHI")
HEADER_LENGTH = HEADER.size
#: Body of UPD: bytes that the application has read, and the window, both modulo 2**32.
UPDATE = struct.Struct("<II")
MAX_FRAME = 65535


class Cmd(enum.IntEnum):
    """What a frame says."""

    SYN = 0
    FIN = 1
    PSH = 2
    NOP = 3
    UPD = 4


class FrameError(RemoteProtocolError):
    """A frame that ends the session."""


class FrameReader:
    """Cuts a byte stream into whole frames; holds at most one frame.

    :param version: 1 or 2; frames of the other one, and UPD in version 1, are errors.
    """

    __slots__ = ("_body", "_head", "_missing", "_sid", "_version")

    def __init__(self, version: int) -> None:
        self._version = version
        self._head = b""  # part of a header
        self._missing = 0  # bytes of a body that are still to come
        self._body: list[bytes] = []
        self._sid = 0

    def feed(self, data: bytes) -> list[tuple[Cmd, int, bytes]]:
        """The frames that ``data`` completes, as (cmd, stream id, body).

        :raises FrameError: for a wrong version or an unknown command.
        """
        frames: list[tuple[Cmd, int, bytes]] = []
        at = 0
        if self._missing:
            at = self._continue(data, frames)
        elif self._head:
            data = self._head + data
            self._head = b""
        end = len(data)
        unpack = HEADER.unpack_from
        while end - at >= HEADER_LENGTH:
            version, cmd, length, sid = unpack(data, at)
            at += HEADER_LENGTH
            if version != self._version or cmd > Cmd.UPD or (cmd == Cmd.UPD and version == 1):
                raise FrameError(f"not a smux {self._version} frame")
            if cmd == Cmd.UPD:
                length = UPDATE.size
            elif cmd != Cmd.PSH:
                # As the original: what would follow these is read as the next header.
                frames.append((Cmd(cmd), sid, b""))
                continue
            body = data[at : at + length]
            at += len(body)
            if len(body) < length:
                self._body, self._missing = [body], length - len(body)
                # The sign tells the two kinds of body apart: stream ids are not negative.
                self._sid = sid if cmd == Cmd.PSH else ~sid
                return frames
            frames.append((Cmd.PSH if cmd == Cmd.PSH else Cmd.UPD, sid, body))
        self._head = data[at:] if at < end else b""
        return frames

    def _continue(self, data: bytes, frames: list[tuple[Cmd, int, bytes]]) -> int:
        body = data[: self._missing]
        self._body.append(body)
        self._missing -= len(body)
        if not self._missing:
            whole, self._body = b"".join(self._body), []
            sid = self._sid
            frames.append((Cmd.PSH, sid, whole) if sid >= 0 else (Cmd.UPD, ~sid, whole))
        return len(body)
