"""NitroSocks: datagrams at the client, as a filter on a stream."""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import IConsumer, IProtocol, IPushProducer
from zope.interface import implementer

from mikanet.errors import RemoteProtocolError
from mikanet.filters.base import Filter, Kind
from mikanet.interfaces import IPacketTransport
from mikanet.nitrosocks.frames import MAX_DATAGRAM, DatagramReader, encode_datagram


@implementer(IPacketTransport, IPushProducer)
class DatagramFilter(Filter):
    """Datagrams in a stream. Lower side: byte stream. Upper side: packets, reliable and in order once accepted.

    A datagram that comes while the stream is full is dropped, as a network does.
    """

    upper_kind = Kind.PACKETS
    max_packet_size = MAX_DATAGRAM

    __slots__ = ("_full", "_reader")

    def __init__(self, upper: IProtocol) -> None:
        super().__init__(upper)
        self._reader = DatagramReader()
        self._full = False

    def connectionMade(self) -> None:
        """Watch the stream's queue, then begin."""
        cast(IConsumer, self.transport).registerProducer(_Full(self), True)
        self.establish()

    def write(self, data: bytes) -> None:
        """One datagram, up to 65507 bytes; empty ones do not exist here."""
        if 0 < len(data) <= MAX_DATAGRAM and not self._full and self.transport is not None:
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

    def loseConnection(self) -> None:
        """End the flow."""
        if self.transport is not None:
            cast(IConsumer, self.transport).unregisterProducer()
        super().loseConnection()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Datagrams know no back-pressure: what does not fit is dropped."""

    def unregisterProducer(self) -> None:
        """As :meth:`registerProducer`."""


@implementer(IPushProducer)
class _Full:
    """Tells a filter whether its stream is full."""

    __slots__ = ("_filter",)

    def __init__(self, filter_: DatagramFilter) -> None:
        self._filter = filter_

    def pauseProducing(self) -> None:
        self._filter._full = True

    def resumeProducing(self) -> None:
        self._filter._full = False

    def stopProducing(self) -> None:
        self._filter._full = True
