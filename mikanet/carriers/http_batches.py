"""Packets in batches: how many of them travel as one HTTP body or one WebSocket message, and wait for their turn.

A batch is whole packets one after the other, each as on a byte stream (:mod:`mikanet.filters.packetizer`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mikanet.errors import RemoteProtocolError
from mikanet.filters.packetizer import PacketReader, frame

#: Bytes that each packet costs besides its own.
OVERHEAD = 4


def split(data: bytes) -> list[bytes]:
    """The packets of a batch.

    :raises RemoteProtocolError: if it is none.
    """
    reader = PacketReader()
    packets = reader.feed(data)
    if reader.broken or reader.unfinished:
        raise RemoteProtocolError("a batch that does not end with a packet")
    return packets


class PacketQueue:
    """Packets that wait to be sent.

    :ivar waiting: what they cost in a batch, in bytes.
    """

    __slots__ = ("_packets", "waiting")

    def __init__(self) -> None:
        self._packets: deque[bytes] = deque()
        self.waiting = 0

    def __bool__(self) -> bool:
        return bool(self._packets)

    def push(self, packets: Iterable[bytes]) -> None:
        """Put packets at the end."""
        for packet in packets:
            self._packets.append(packet)
            self.waiting += len(packet) + OVERHEAD

    def take(self, most: int) -> bytes:
        """The next batch: as many packets as fit in ``most`` bytes, but at least one if there is any."""
        packets = self._packets
        if self.waiting <= most:
            self._packets = deque()
            self.waiting = 0
            return frame(packets)
        first = packets.popleft()
        size = len(first) + OVERHEAD
        some = [first]
        while packets and size + len(packets[0]) + OVERHEAD <= most:
            packet = packets.popleft()
            size += len(packet) + OVERHEAD
            some.append(packet)
        self.waiting -= size
        return frame(some)

    def clear(self) -> None:
        """Forget all of them."""
        self._packets.clear()
        self.waiting = 0
