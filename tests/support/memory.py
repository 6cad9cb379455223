"""A TCP-like transport in memory, which shows what its protocol did to it."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(ITCPTransport, IConsumer, IPushProducer)
class MemoryTransport:
    """A connection whose far side is the test.

    What the protocol writes is in :attr:`written`. As with a socket, a registered producer is paused while more than
    ``high_water`` bytes are unread (:meth:`read` takes them), nothing can be delivered while reading is paused, and a
    clean close waits until the producer is gone and everything is read.

    :ivar outcome: "open", "closed" (clean) or "aborted", by the protocol's wish; "lost" by the test's.
    :ivar half_closed: whether the protocol has ended its direction.
    """

    def __init__(
        self,
        protocol: IProtocol | None = None,
        *,
        high_water: int = 65536,
        peer: IAddress | None = None,
        host: IAddress | None = None,
    ) -> None:
        self.protocol = protocol
        self.high_water = high_water
        self.peer = peer or IPv4Address("TCP", "127.0.0.1", 40000)
        self.host = host or IPv4Address("TCP", "127.0.0.1", 1080)
        self.written = bytearray()
        self.read_so_far = 0
        self.producer: Any = None
        self.producer_paused = False
        self.reading = True
        self.half_closed = False
        self.closing = False
        self.outcome = "open"
        if protocol is not None:
            protocol.makeConnection(self)

    # -- what the test does

    def deliver(self, data: bytes) -> None:
        """Bytes from the far side."""
        assert self.reading, "bytes for a transport that does not read"
        assert self.outcome == "open", "bytes for a transport that is gone"
        assert self.protocol is not None
        self.protocol.dataReceived(data)

    def deliver_end(self) -> None:
        """A FIN from the far side."""
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()  # type: ignore[union-attr]  # just looked
        else:
            self.lose(error.ConnectionDone())

    def lose(self, reason: Exception, outcome: str = "lost") -> None:
        """The connection ends."""
        if self.outcome != "open":
            return
        self.outcome = outcome
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        assert self.protocol is not None
        self.protocol.connectionLost(Failure(reason))

    def read(self) -> bytes:
        """Take what the protocol wrote, as the far side."""
        data = bytes(self.written[self.read_so_far :])
        self.read_so_far = len(self.written)
        if self.producer_paused and self.producer is not None:
            self.producer_paused = False
            self.producer.resumeProducing()
        self._maybe_close()
        return data

    # -- what the protocol does

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.outcome != "open" or self.half_closed or self.closing:
            return
        self.written += data
        if self.producer is not None and len(self.written) - self.read_so_far > self.high_water:
            self.producer_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, iovec: Any) -> None:
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        self.closing = True
        self._maybe_close()

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.lose(error.ConnectionAborted(), "aborted")

    def _maybe_close(self) -> None:
        if self.closing and self.producer is None:
            self.lose(error.ConnectionDone(), "closed")

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        if self.producer is not None:
            raise RuntimeError("there is a producer already")
        if self.outcome == "open":
            self.producer = producer
        else:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        self._maybe_close()

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> IAddress:
        return self.peer

    def getHost(self) -> IAddress:
        return self.host

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getTcpKeepAlive(self) -> bool:
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass
