"""Datagrams over a stream: what comes while the stream is full is dropped, as a network does."""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from mikanet.filters.base import Filter, Kind
from mikanet.interfaces import IPacketTransport


@implementer(IPushProducer)
class FullFlag:
    """A producer that only remembers whether it should pause.

    :ivar full: whether what is written now should be dropped.
    """

    __slots__ = ("full",)

    def __init__(self) -> None:
        self.full = False

    def pauseProducing(self) -> None:
        """The stream is full."""
        self.full = True

    def resumeProducing(self) -> None:
        """The stream has room."""
        self.full = False

    def stopProducing(self) -> None:
        """The stream is gone."""
        self.full = True


@implementer(IPacketTransport, IPushProducer)
class DroppingFilter(Filter):
    """Base of filters with datagrams above and a stream below.

    A subclass has a slot for ``_full``, and asks it before it writes.
    Stands before another filter in a list of bases, so it has no slots of its own.
    """

    upper_kind = Kind.PACKETS
    max_packet_size = 65_507  # what UDP over IPv4 carries

    __slots__ = ()
    _full: FullFlag

    def connectionMade(self) -> None:
        """Watch the stream's queue, then begin."""
        self._full = FullFlag()  # type: ignore[misc]  # the subclass has the slot
        cast(IConsumer, self.transport).registerProducer(self._full, True)
        super().connectionMade()

    def loseConnection(self) -> None:
        """End the flow."""
        if self.transport is not None:
            cast(IConsumer, self.transport).unregisterProducer()
        super().loseConnection()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Datagrams know no back-pressure: what does not fit is dropped."""

    def unregisterProducer(self) -> None:
        """As :meth:`registerProducer`."""
