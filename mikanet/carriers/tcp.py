"""Carriers over byte streams, and the plain one over TCP: ``tcp://host:port`` (8865 if no port is given).

Packets stand on the stream as :mod:`mikanet.filters.packetizer` says. A server's connection is a stranger's until
somebody on it has shown to hold a session's key; what it does wrong before ends in the one refusal (X2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet import prompt
from mikanet.address import Address
from mikanet.carriers.base import OPEN_TIMEOUT, BaseCarrier
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.filters.packetizer import LENGTH, PacketReader, frame_pieces
from mikanet.guard.server import Guard, GuardedFactory
from mikanet.interfaces import ICarrier, IClientCarrier, IServerCarrier
from mikanet.net.endpoint import TcpEndpoint

#: Where Pickaxe's packets are taken over TCP if nothing else is said; the port of the author's draft.
DEFAULT_PORT = 8865

#: Bytes of an unfinished packet that a stranger may hold in any case, and that all strangers of a port may hold together
#: (X3): a session that comes with a new connection may begin with a large packet, which is whole in a moment.
STRANGER_BYTES, STRANGERS_BYTES = 2048, 1024 * 1024

#: One packet of less than this many bytes is joined with its length, which costs less than two pieces do.
_SMALL = 4096


@implementer(IHalfCloseableProtocol, IPushProducer)
class StreamCarrier(BaseCarrier, Protocol):
    """Packets on one connected byte stream; the client's end of it."""

    transport: ITCPTransport | None

    def __init__(self, name: str, host: str = "") -> None:
        super().__init__(name, host)
        self._reader = PacketReader()

    def connectionMade(self) -> None:
        """Hear of the transport's back-pressure."""
        transport = cast(ITCPTransport, self.transport)
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        self._made()

    def _made(self) -> None:
        cast(IConsumer, self.transport).registerProducer(self, True)

    # -- ICarrier

    @property
    def waiting(self) -> int:
        """Bytes that the socket did not take yet; 0 where that cannot be known."""
        transport: Any = self.transport
        return len(getattr(transport, "dataBuffer", b"")) + int(getattr(transport, "_tempDataLen", 0))

    def send(self, packets: Sequence[bytes]) -> None:
        """All packets in one write."""
        if self.transport is not None and not self.lost:
            if len(packets) == 1 and len(packets[0]) < _SMALL:
                prompt.send(self.transport, LENGTH.pack(len(packets[0])) + packets[0])
            else:
                prompt.send_all(self.transport, frame_pieces(packets))

    def close(self) -> None:
        """A clean end after what waits."""
        if self.transport is not None and not self.lost:
            cast(IConsumer, self.transport).unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """A reset."""
        if self.transport is not None and not self.lost:
            self.transport.abortConnection()

    # -- IProtocol

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the stream."""
        try:
            packets = self._reader.feed(data)
        except RemoteProtocolError:
            self.refuse()
            return
        if packets and self.user is not None:
            self.user.packets_received(self, packets)
        if self._reader.broken:
            self.refuse()

    def readConnectionLost(self) -> None:
        """The peer sends no more; half a carrier is none."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Our end was sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is gone."""
        self.transport = None
        self.lose(reason)

    # -- IPushProducer: the transport's buffer

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self.room(False)

    def resumeProducing(self) -> None:
        """There is room again."""
        self.room(True)

    def stopProducing(self) -> None:
        """The transport is going; its connectionLost says so."""
        self.writable = False


class ServerStreamCarrier(StreamCarrier):
    """The server's end: a stranger's until it is proven."""

    def __init__(self, factory: StreamServerFactory, host: str) -> None:
        super().__init__(factory.name, host)
        self._factory = factory
        self._guard = Guard(factory, self, host)

    def _made(self) -> None:
        # No producer before the proof: a transport that has one does not send the FIN of a refusal.
        self._guard.start()
        self._factory.accept(self)

    def send(self, packets: Sequence[bytes]) -> None:
        """As StreamCarrier, but nothing to whom is being turned away."""
        if self._guard.refusal is None:
            super().send(packets)

    def proven(self) -> None:
        """From here on the connection is one of ours."""
        if self._guard.verified or self._guard.refusal is not None or self.transport is None:
            return
        self._factory.unfinished.forget(self)
        if self._guard.prove():
            super()._made()
        else:
            self.abort()

    def refuse(self) -> None:
        """A stranger is turned away in the one way; one of ours that sends nonsense is cut."""
        if self._guard.verified:
            self.abort()
        elif self.transport is not None:
            self._guard.refuse()
            self._reader = PacketReader()  # nothing of what it sent is kept

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the stream."""
        if self._guard.refusal is not None:
            self._factory.unfinished.forget(self)  # it may have been refused by its time
            self._guard.refusal.data_received(len(data))
            return
        super().dataReceived(data)
        if not self._guard.verified:
            refused = self._guard.refusal is not None
            self._factory.unfinished.note(self, 0 if refused else self._reader.held)

    def readConnectionLost(self) -> None:
        """The client's FIN; a stranger's changes nothing that can be seen."""
        if self._guard.verified:
            super().readConnectionLost()
        else:
            self._guard.read_ended()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is gone."""
        self._guard.lost()
        self._factory.unfinished.forget(self)
        super().connectionLost(reason)


class _Unfinished:
    """What strangers hold of packets that have not come whole; beyond the bound, the first that began is turned away."""

    def __init__(self) -> None:
        self._held: dict[ServerStreamCarrier, int] = {}
        self.size = 0

    def note(self, carrier: ServerStreamCarrier, held: int) -> None:
        """So much is held for ``carrier`` now."""
        if held <= STRANGER_BYTES:
            self.forget(carrier)
            return
        self.size += held - self._held.get(carrier, 0)
        self._held[carrier] = held
        while self.size > STRANGERS_BYTES:
            oldest = next(iter(self._held))
            self.forget(oldest)
            oldest.refuse()

    def forget(self, carrier: ServerStreamCarrier) -> None:
        """Nothing worth counting is held for ``carrier``."""
        self.size -= self._held.pop(carrier, 0)


class StreamServerFactory(GuardedFactory[ServerStreamCarrier]):
    """Makes the server's carriers of one listening port."""

    prefix = "pickaxe.server"

    def __init__(self, name: str, context: CarrierContext, accept: Callable[[ICarrier], None]) -> None:
        super().__init__(context.reactor, context.limits, context.refusal_time, context.counters)
        self.name = name
        self.accept = accept
        self.unfinished = _Unfinished()

    def make(self, host: str) -> ServerStreamCarrier:
        """A carrier for a connection from ``host``."""
        return ServerStreamCarrier(self, host)


class _ClientFactory(Factory):
    noisy = False

    def __init__(self, name: str) -> None:
        self._name = name

    def buildProtocol(self, addr: IAddress | None) -> StreamCarrier:
        return StreamCarrier(self._name)


@implementer(IClientCarrier)
class StreamClientCarrier:
    """Packets on a stream to wherever an endpoint leads."""

    def __init__(self, name: str, endpoint: IStreamClientEndpoint) -> None:
        self.name = name
        self._endpoint = endpoint

    def open(self) -> Deferred[ICarrier]:
        """See :meth:`~mikanet.interfaces.IClientCarrier.open`."""
        return cast("Deferred[ICarrier]", self._endpoint.connect(_ClientFactory(self.name)))


@implementer(IServerCarrier)
class StreamServerCarrier:
    """Takes carriers on a listening stream endpoint."""

    def __init__(self, name: str, endpoint: IStreamServerEndpoint, context: CarrierContext) -> None:
        self.name = name
        self._endpoint = endpoint
        self._context = context
        self._port: IListeningPort | None = None

    def listen(self, accept: Callable[[ICarrier], None]) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.listen`."""

        def listening(port: IListeningPort) -> None:
            self._port = port

        factory = StreamServerFactory(self.name, self._context, accept)
        return self._endpoint.listen(factory).addCallback(listening)

    def stop(self) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.stop`."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return maybeDeferred(port.stopListening).addCallback(lambda _: None)


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """``tcp://host:port``."""
    check_plain(url, "tcp://host:8865")
    address = Address(url.host, url.port or DEFAULT_PORT)
    return StreamClientCarrier(url.text, TcpEndpoint(context.reactor, address, OPEN_TIMEOUT))


def server(url: CarrierUrl, context: CarrierContext) -> IServerCarrier:
    """``tcp://address:port``; every address of this machine if that is ``0.0.0.0`` or ``::``."""
    check_plain(url, "tcp://0.0.0.0:8865")
    address = Address(url.host, url.port or DEFAULT_PORT)
    if address.ip is None:
        raise ConfigError(f"carrier {url.text!r}: a server listens on an IP address, such as 0.0.0.0 or [::]")
    kind = TCP4ServerEndpoint if address.ip.version == 4 else TCP6ServerEndpoint
    endpoint = kind(context.reactor, address.port, backlog=1024, interface=address.host)
    return StreamServerCarrier(url.text, endpoint, context)


def check_plain(url: CarrierUrl, example: str) -> None:
    """Refuse what such a URL cannot have.

    :raises ConfigError: if it has a path, a user, an option, or no host.
    """
    url.reject_unknown()
    if not url.host or url.path.strip("/") or url.user is not None:
        raise ConfigError(f"carrier {url.text!r}: write it as {example}")
