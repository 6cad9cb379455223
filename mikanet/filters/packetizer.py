"""The packetizer: packets on a byte stream, each behind its length (``L``, 4 bytes, little-endian). No I/O.

``L`` counts the packet without itself, 1 to 65,535. It is not authenticated: it belongs to the stream and not to the
packet, whose length its own MAC covers.

Source: the Pickaxe document, "Basic packet format", field L.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from mikanet.errors import RemoteProtocolError

#: Largest packet on a stream, in bytes.
MAX_PACKET = 65_535

#: Parts of an unfinished packet that are kept apart.
_MOST_PARTS = 64

#: Field L.
LENGTH = struct.Struct("<I")


def frame(packets: Iterable[bytes]) -> bytes:
    """Packets as bytes of a stream."""
    return b"".join(frame_pieces(packets))


def frame_pieces(packets: Iterable[bytes]) -> list[bytes]:
    """Packets as pieces of a stream, to be sent one after the other."""
    pieces: list[bytes] = []
    pack = LENGTH.pack
    for packet in packets:
        pieces += (pack(len(packet)), packet)
    return pieces


class PacketReader:
    """Takes a byte stream apart into packets; holds at most one unfinished packet.

    :param max_packet: largest packet that is taken.
    """

    __slots__ = ("_broken", "_head", "_max_packet", "_missing", "_parts")

    def __init__(self, max_packet: int = MAX_PACKET) -> None:
        self._max_packet = max_packet
        self._head = b""  # of a length that has not come whole
        self._parts: list[bytes | memoryview] = []
        self._missing = 0
        self._broken = False

    @property
    def broken(self) -> bool:
        """Whether a wrong length was found; there is no way to go on behind it."""
        return self._broken

    @property
    def unfinished(self) -> bool:
        """Whether a packet, or its length, has come in part."""
        return bool(self._missing or self._head)

    @property
    def held(self) -> int:
        """Bytes of memory that the unfinished packet keeps."""
        # A view keeps all of the read that it is a view of.
        return len(self._head) + sum(
            memoryview(part.obj).nbytes if isinstance(part, memoryview) else len(part) for part in self._parts
        )

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are complete now.

        :raises RemoteProtocolError: for a length out of bounds. If packets were complete before it, they are returned,
            :attr:`broken` is set, and the error comes with the next call.
        """
        if self._broken:
            raise RemoteProtocolError("the length of a packet is out of bounds")
        packets: list[bytes] = []
        at = 0
        if self._missing:
            at = self._missing
            if len(data) < at:
                self._parts.append(data)
                self._missing -= len(data)
                if len(self._parts) >= _MOST_PARTS:  # many crumbs cost more than their bytes
                    self._parts = [b"".join(self._parts)]
                return packets
            # What spans several reads is joined once, when it is complete.
            self._parts.append(memoryview(data)[:at])
            packets.append(b"".join(self._parts))
            self._parts.clear()
            self._missing = 0
        elif self._head:
            data = self._head + data
            self._head = b""
        end = len(data)
        while end - at >= 4:
            (size,) = LENGTH.unpack_from(data, at)
            if not 1 <= size <= self._max_packet:
                self._broken = True
                if packets:
                    return packets
                raise RemoteProtocolError("the length of a packet is out of bounds")
            at += 4
            stop = at + size
            if stop > end:
                # A view keeps the read alive, and saves the copy that would be joined later anyway.
                self._parts.append(memoryview(data)[at:])
                self._missing = stop - end
                return packets
            packets.append(data[at:stop])
            at = stop
        self._head = data[at:]
        return packets
