"""NitroSocks: datagrams at the client, as a filter on a stream."""

from __future__ import annotations

from twisted.internet.interfaces import IProtocol

from mikanet.errors import RemoteProtocolError
from mikanet.filters.dropping import DroppingFilter
from mikanet.nitrosocks.frames import MAX_DATAGRAM, DatagramReader, encode_datagram


class DatagramFilter(DroppingFilter):
    """Datagrams in a stream. Lower side: byte stream. Upper side: packets, reliable and in order once accepted."""

    max_packet_size = MAX_DATAGRAM

    __slots__ = ("_full", "_reader")

    def __init__(self, upper: IProtocol) -> None:
        super().__init__(upper)
        self._reader = DatagramReader()

    def write(self, data: bytes) -> None:
        """One datagram, up to 65507 bytes; older peers pass empty ones over."""
        if len(data) <= MAX_DATAGRAM and not self._full.full and self.transport is not None:
            self.transport.write(encode_datagram(data))

    def dataReceived(self, data: bytes) -> None:
        """Datagrams from the server."""
        try:
            datagrams = self._reader.feed(data)
        except RemoteProtocolError:
            self.abortConnection()
            return
        for datagram in datagrams:
            self.upper.dataReceived(datagram)
