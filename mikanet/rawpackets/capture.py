"""Capturing what passes an interface in both directions, to be looked at; ports have :mod:`mikanet.rawpackets.device`.

A kernel hands runs of datagrams to its devices in one piece, and captures see that piece. It is cut here as the device, or
the receiving kernel, cuts it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from mikanet.rawpackets.bpf import Instruction
from mikanet.rawpackets.device import READ_AT_ONCE, SOL_PACKET, PacketSocket
from mikanet.wire import ethernet, ip
from mikanet.wire.checksum import checksum

_PACKET_VNET_HDR = 15
#: flags | kind of offload | header length | segment size | where a checksum begins | where it stands; machine order.
_VNET_HEADER = struct.Struct("=BBHHHH")
_NO_OFFLOAD, _UDP_SEGMENTS = 0, 5
_MAX_PIECE = 1 << 17
_UDP_HEADER = 8


class CaptureSocket(PacketSocket):
    """Frames in both directions."""

    sees_outgoing = True

    def __init__(self, interface: str, program: Sequence[Instruction], sockbuf: int) -> None:
        self._has_header = False
        super().__init__(interface, program, sockbuf)
        try:
            self.socket.setsockopt(SOL_PACKET, _PACKET_VNET_HDR, 1)
            self._has_header = True
        except OSError:
            pass  # pieces are then seen whole

    def receive(self) -> list[bytes]:
        """Frames that wait, about as many as :data:`READ_AT_ONCE`.

        :raises OSError: if the interface is away.
        """
        frames: list[bytes] = []
        while len(frames) < READ_AT_ONCE:
            try:
                data = self.socket.recv(_MAX_PIECE)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                if not frames:
                    raise
                break
            frames += split_piece(data) if self._has_header else [data]
        return frames


def split_piece(data: bytes) -> Iterator[bytes]:
    """The frames of what a socket with PACKET_VNET_HDR gives: one, or a run of UDP datagrams.

    Datagrams that are cut out have no UDP checksum.
    """
    if len(data) < _VNET_HEADER.size:
        return
    _, kind, _, size, _, _ = _VNET_HEADER.unpack_from(data)
    frame = data[_VNET_HEADER.size :]
    if kind != _UDP_SEGMENTS or not size or len(frame) < ethernet.HEADER_LENGTH + ip.V4_LENGTH + _UDP_HEADER:
        yield frame
        return
    is_v4 = frame[ethernet.HEADER_LENGTH] >> 4 == 4
    transport = ethernet.HEADER_LENGTH + ((frame[ethernet.HEADER_LENGTH] & 15) * 4 if is_v4 else ip.V6_LENGTH)
    payload = frame[transport + _UDP_HEADER :]
    for at in range(0, len(payload), size):
        piece = payload[at : at + size]
        header = bytearray(frame[: transport + _UDP_HEADER])
        struct.pack_into("!HH", header, transport + 4, _UDP_HEADER + len(piece), 0)
        if is_v4:
            length = len(header) - ethernet.HEADER_LENGTH + len(piece)
            struct.pack_into("!H", header, ethernet.HEADER_LENGTH + 2, length)
            header[24:26] = b"\0\0"
            struct.pack_into("!H", header, 24, checksum(bytes(header[ethernet.HEADER_LENGTH : transport])))
        else:
            struct.pack_into("!H", header, ethernet.HEADER_LENGTH + 4, _UDP_HEADER + len(piece))
        yield bytes(header) + piece
