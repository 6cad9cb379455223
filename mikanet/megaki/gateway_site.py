"""The gateway's connections: refusals that arrive, clients that end their half, and no line for each request."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request, Site
from zope.interface import implementer

from mikanet.megaki.gateway import TOO_LONG, Gateway
from mikanet.megaki.wire import MAX_MESSAGE

#: After our end of a connection, what still comes is read and dropped, or a reset would overtake the response: for so many
#: seconds, and so many bytes of it.
LINGER, LINGER_BYTES = 5.0, 256 * 1024 * 1024


class GatewayRequest(Request):
    """A request whose body is bounded.

    :ivar received: whether all of it is here.
    """

    channel: Any
    received = False
    _size = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Part of the body."""
        self._size += len(data)
        if self._size > MAX_MESSAGE:
            self.channel.refuse(*TOO_LONG)
        else:
            super().handleContentChunk(data)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it is here."""
        self.received = True
        super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def finish(self) -> None:
        """The response is complete; for a client that has ended its half it may have been the last one."""
        channel = self.channel
        super().finish()  # type: ignore[no-untyped-call]  # untyped in Twisted
        channel.answered()


@implementer(IHalfCloseableProtocol)
class GatewayChannel(http.HTTPChannel):
    """One connection. What is refused is refused at its head, not after its body."""

    site: Any
    transport: Any
    requests: list[GatewayRequest]
    _networkProducer: Any
    _refused = False
    _read_ended = False
    _leaving = False
    _dropped = 0
    _linger: IDelayedCall | None = None

    def allHeadersReceived(self) -> None:
        """The head is here: refuse it now, before a client is asked to go on with a body that nobody wants."""
        request = self.requests[-1]
        refusal = self.site.resource.refusal(self._command, request.requestHeaders, self.length)
        if refusal is None:
            super().allHeadersReceived()  # type: ignore[no-untyped-call]  # untyped in Twisted
        else:
            self.refuse(*refusal)

    def refuse(self, status: int, why: str) -> None:
        """Answer the request that comes, and read no more of it."""
        if self._refused:
            return
        self._refused = True
        request: Any = self.requests[-1]
        request.method, request.uri, request.clientproto = self._command, self._path, self._version
        self.persistent = False
        request.setHeader(b"Connection", b"close")
        body = Gateway.refuse(request, status, why)
        request.setHeader(b"Content-Length", str(len(body)).encode())
        request.write(body)
        request.finish()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._leaving or self._refused:
            self._drop(len(data))
        else:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def rawDataReceived(self, data: bytes) -> None:
        """Part of a body."""
        if not self._refused:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        """The end of a body."""
        if not self._refused:
            super().allContentReceived()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BYTES:
            self.transport.loseConnection()

    # -- ends

    def readConnectionLost(self) -> None:
        """The client sends no more: it still gets what it waits for."""
        self._read_ended = True
        if self._leaving:
            self.transport.loseConnection()
        elif not any(request.received for request in self.requests):
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our own end has left."""

    def answered(self) -> None:
        """A response is complete."""
        if self._read_ended and not self.requests:
            self.loseConnection()

    def loseConnection(self) -> None:
        """End our half after what was written, and the other when the client has ended its own, or after a while."""
        if self._leaving:
            return
        self._leaving = True
        if self._read_ended:
            super().loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted
            return
        self._networkProducer.unregisterProducer()
        self._networkProducer.resumeProducing()
        self.transport.loseWriteConnection()
        self._linger = self.callLater(LINGER, self.transport.loseConnection)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        linger, self._linger = self._linger, None
        if linger is not None and linger.active():
            linger.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # untyped in Twisted


class GatewaySite(Site):
    """The site of a gateway."""

    noisy = False
    protocol = GatewayChannel  # type: ignore[assignment]  # Twisted's own speaks HTTP/2 as well

    def __init__(self, reactor: Any, resource: Gateway) -> None:
        super().__init__(resource, reactor=reactor, requestFactory=GatewayRequest)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.displayTracebacks = False

    def log(self, request: Any) -> None:
        """No line for each request."""
