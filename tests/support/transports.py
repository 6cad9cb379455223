"""A TCP transport in memory that shows everything a protocol does to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

DONE = Failure(error.ConnectionDone())
LOST = Failure(error.ConnectionLost())


@implementer(ITCPTransport, IConsumer, IPushProducer)
class MemoryTransport:
    """Half-closing, with producers, and with ends told apart.

    :ivar written: each write by itself.
    :ivar fin: our direction was ended. :ivar closed: cleanly closed. :ivar aborted: reset.
    :ivar reading: whether the protocol wants input.
    """

    def __init__(self, peer_host: str = "192.0.2.1") -> None:
        self.written: list[bytes] = []
        self.fin = self.closed = self.aborted = False
        self.reading = True
        self.producer: Any = None
        self.no_delay = self.keep_alive = False
        self.peer = IPv4Address("TCP", peer_host, 54321)
        self.protocol: Any = None
        self.gone = False

    def connect(self, protocol: Any) -> Any:
        """Connect a protocol; returns it."""
        self.protocol = protocol
        protocol.makeConnection(self)
        return protocol

    # -- what the network does

    def receive(self, data: bytes) -> None:
        """Bytes arrive."""
        self.protocol.dataReceived(data)

    def receive_fin(self) -> None:
        """The peer ends its direction."""
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self.lose(DONE)

    def lose(self, reason: Failure = LOST) -> None:
        """The connection is lost, once."""
        if not self.gone:
            self.gone = True
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(reason)

    def settle(self) -> None:
        """What a reactor would do next: report our own close or abort back."""
        if self.aborted:
            self.lose(Failure(error.ConnectionAborted()))
        elif self.closed:
            self.lose(DONE)

    @property
    def bytes_written(self) -> bytes:
        """All that was written."""
        return b"".join(self.written)

    # -- ITCPTransport

    def write(self, data: bytes) -> None:
        """Note the bytes."""
        if not (self.closed or self.aborted or self.fin):
            self.written.append(bytes(data))

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Note the bytes as one write."""
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        """Close, unless a producer is still registered: a real transport waits for it."""
        if self.producer is None:
            self.closed = True

    def loseWriteConnection(self) -> None:
        """End our direction, unless a producer is still registered."""
        if self.producer is None:
            self.fin = True

    def abortConnection(self) -> None:
        """Reset."""
        self.aborted = True

    def getPeer(self) -> IPv4Address:
        """The other side."""
        return self.peer

    def getHost(self) -> IPv4Address:
        """Our side."""
        return IPv4Address("TCP", "192.0.2.99", 8388)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Note it."""
        self.no_delay = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Note it."""
        self.keep_alive = enabled

    def getTcpNoDelay(self) -> bool:
        """What was set."""
        return self.no_delay

    def getTcpKeepAlive(self) -> bool:
        """What was set."""
        return self.keep_alive

    # -- IConsumer and IPushProducer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """One producer at a time; a lost transport stops it."""
        if self.producer is not None:
            raise RuntimeError("there is a producer already")
        if self.gone:
            producer.stopProducing()
        else:
            self.producer = producer

    def unregisterProducer(self) -> None:
        """Forget it."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Stop reading."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read on."""
        self.reading = True

    def stopProducing(self) -> None:
        """As loseConnection."""
        self.loseConnection()
