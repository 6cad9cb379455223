"""Filters: an IProtocol to the layer below and an ITransport to the layer above.

This module holds the base class with its contract (``tests/filters/contract.py`` states it as tests), the factory that
puts a filter between a transport and a protocol, and the endpoints that do the same for endpoints. It holds no
protocol of its own.

Delegation is by hand: every way in which bytes, ends and flow control can travel is visible here and passes through the
filter.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IListeningPort,
    IProducer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    ISSLTransport,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from mikanet.errors import LocalProtocolError
from mikanet.interfaces import IAuthenticatingFactory, IGuardedTransport, IPacketTransport, tell_authenticated


class Kind(enum.Enum):
    """What one side of a filter carries."""

    STREAM = "byte stream"
    PACKETS = "packets"


@implementer(IProtocol, IHalfCloseableProtocol, ITransport, IConsumer, IPushProducer, IGuardedTransport)
class Filter:
    """Passes everything on unchanged; subclasses change :meth:`dataReceived` and :meth:`write`.

    Lower side: ``lower_kind``. Upper side: ``upper_kind``. A lower transport of the wrong kind is refused.

    A subclass whose upper protocol must wait for a handshake overrides :meth:`connectionMade` and calls
    :meth:`establish` when the handshake is done; :attr:`established` fires then, or fails if the lower transport is
    lost before.

    :ivar transport: the lower transport, None before and after the connection.
    :ivar upper: the protocol above.
    """

    lower_kind = Kind.STREAM
    upper_kind = Kind.STREAM

    __slots__ = ("__weakref__", "_connected", "_lost", "_waiting", "transport", "upper")

    def __init__(self, upper: IProtocol) -> None:
        self.upper = upper
        self.transport: ITCPTransport | None = None
        self._connected = False
        self._waiting: Deferred[IProtocol] | None = None
        self._lost: Failure | None = None

    # -- IProtocol: towards the layer below

    def makeConnection(self, transport: ITransport) -> None:
        """Take the lower transport, once."""
        if IPacketTransport.providedBy(transport) != (self.lower_kind is Kind.PACKETS):
            raise LocalProtocolError(f"{type(self).__name__} needs a lower side of {self.lower_kind.value}")
        # Half-close and abort exist on every transport that this project puts below a filter.
        self.transport = cast(ITCPTransport, transport)
        self.connectionMade()

    def connectionMade(self) -> None:
        """The lower transport is there. Without a handshake, so is the upper connection."""
        self.establish()

    def establish(self) -> None:
        """Connect the upper protocol to this filter."""
        self._connected = True
        self.upper.makeConnection(self)
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self.upper)

    @property
    def connected(self) -> bool:
        """Whether the upper protocol is connected now."""
        return self._connected

    def when_established(self) -> Deferred[IProtocol]:
        """Fires with the upper protocol once it is connected; fails if that can no longer happen."""
        waiting: Deferred[IProtocol] = Deferred(self._stop_waiting)
        if self._connected:
            waiting.callback(self.upper)
        elif self._lost is not None:
            waiting.errback(self._lost)
        else:
            self._waiting = waiting
        return waiting

    def _stop_waiting(self, _: object) -> None:
        # Cancelling fires the Deferred itself; the end of the connection must not do so again.
        self._waiting = None
        self.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Bytes or one packet from below."""
        self.upper.dataReceived(data)

    def readConnectionLost(self) -> None:
        """The lower side will bring no more bytes; the upper protocol decides what that means for it."""
        if self._connected and IHalfCloseableProtocol.providedBy(self.upper):
            cast(IHalfCloseableProtocol, self.upper).readConnectionLost()
        else:
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """The lower side has sent its end."""
        if self._connected and IHalfCloseableProtocol.providedBy(self.upper):
            cast(IHalfCloseableProtocol, self.upper).writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """The lower transport is gone. Runs once."""
        self.transport = None
        self._lost = reason
        if self._connected:
            self._connected = False
            self.upper.connectionLost(reason)
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(reason)

    # -- ITransport: towards the layer above. After the connection is lost, all of these do nothing.

    def write(self, data: bytes) -> None:
        """Send bytes, or one packet."""
        if self.transport is not None:
            self.transport.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send pieces: one run of bytes on a stream side, a packet each on a packet side."""
        if self.upper_kind is Kind.STREAM:
            self.write(b"".join(iovec))
        else:
            for packet in iovec:
                self.write(packet)

    def loseConnection(self) -> None:
        """End cleanly after what was written has been sent."""
        if self.transport is not None:
            self.transport.loseConnection()

    def abortConnection(self) -> None:
        """End at once, so that the peer sees no clean end."""
        if self.transport is not None:
            self.transport.abortConnection()

    def loseWriteConnection(self) -> None:
        """End our direction only."""
        if self.transport is not None and self.lower_can_half_close:
            self.transport.loseWriteConnection()

    @property
    def can_half_close(self) -> bool:
        """Whether our direction can be ended alone; a filter with an end of its own on the wire always can."""
        return self.lower_can_half_close

    @property
    def lower_can_half_close(self) -> bool:
        """Whether the lower side can end our direction alone. TLS cannot, though its transports have the method."""
        lower = self.transport
        if lower is None or ISSLTransport.providedBy(lower):
            return False
        return bool(getattr(lower, "can_half_close", True)) and hasattr(lower, "loseWriteConnection")

    def getHandle(self) -> Any:
        """The socket below, None where there is none that could be used without what stands on it."""
        lower = self.transport
        if lower is None or ISSLTransport.providedBy(lower) or not hasattr(lower, "getHandle"):
            return None
        return lower.getHandle()

    def getPeer(self) -> IAddress:
        """The lower transport's peer."""
        return self._lower().getPeer()

    def getHost(self) -> IAddress:
        """The lower transport's own address."""
        return self._lower().getHost()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """As ITCPTransport; nothing where there is no TCP below."""
        if self.transport is not None and hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(enabled)

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """As ITCPTransport; nothing where there is no TCP below."""
        if self.transport is not None and hasattr(self.transport, "setTcpKeepAlive"):
            self.transport.setTcpKeepAlive(enabled)

    def peer_authenticated(self) -> None:
        """What is above has authenticated the peer; the lower side is told, if it cares."""
        tell_authenticated(self.transport)

    # -- flow control: the upper producer is paused by the lower transport, and the other way round

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Let ``producer`` be paused when the lower transport's buffer is full."""
        if self.transport is None:
            producer.stopProducing()
        else:
            cast(IConsumer, self.transport).registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        if self.transport is not None:
            cast(IConsumer, self.transport).unregisterProducer()

    def pauseProducing(self) -> None:
        """Stop reading from below."""
        if self.transport is not None:
            cast(IPushProducer, self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        """Read from below again."""
        if self.transport is not None:
            cast(IPushProducer, self.transport).resumeProducing()

    def stopProducing(self) -> None:
        """Nothing more is wanted from below."""
        self.loseConnection()

    def _lower(self) -> ITransport:
        if self.transport is None:
            raise LocalProtocolError("the connection is gone")
        return self.transport


@implementer(IProtocolFactory)
class FilterFactory(Factory):
    """Puts a filter around each protocol of another factory."""

    noisy = False

    def __init__(self, wrapped: IProtocolFactory, make_filter: Callable[[IProtocol], Filter]) -> None:
        self._wrapped = wrapped
        self._make_filter = make_filter
        if IAuthenticatingFactory.providedBy(wrapped):
            self.budget = cast(IAuthenticatingFactory, wrapped).budget
            alsoProvides(self, IAuthenticatingFactory)

    def doStart(self) -> None:
        """As Factory, for the wrapped one too."""
        super().doStart()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._wrapped.doStart()

    def doStop(self) -> None:
        """As Factory, for the wrapped one too."""
        super().doStop()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._wrapped.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Filter | None:  # type: ignore[override]  # None refuses a connection
        """A filter around the inner factory's protocol; None if that one refuses."""
        upper = self._wrapped.buildProtocol(cast(IAddress, addr))
        return None if upper is None else self._make_filter(upper)


@implementer(IStreamClientEndpoint)
class FilterClientEndpoint:
    """A client endpoint with a filter on top of another client endpoint."""

    def __init__(self, lower: IStreamClientEndpoint, make_filter: Callable[[IProtocol], Filter]) -> None:
        self._lower = lower
        self._make_filter = make_filter

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect the lower endpoint; fires with the upper protocol once the filter is established."""
        factory = FilterFactory(protocolFactory, self._make_filter)
        return self._lower.connect(factory).addCallback(_established)


def _established(made: IProtocol) -> IProtocol | Deferred[IProtocol]:
    filter_ = cast(Filter, made)
    return filter_.upper if filter_.connected else filter_.when_established()


@implementer(IStreamServerEndpoint)
class FilterServerEndpoint:
    """A server endpoint with a filter on top of another server endpoint."""

    def __init__(self, lower: IStreamServerEndpoint, make_filter: Callable[[IProtocol], Filter]) -> None:
        self._lower = lower
        self._make_filter = make_filter

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen on the lower endpoint."""
        return self._lower.listen(FilterFactory(protocolFactory, self._make_filter))
