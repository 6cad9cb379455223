"""The site's connections and requests, on twisted.web: bodies in memory and within limits, upgrades, ordinary heads."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol, cast

from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request

from mikanet.carriers import http_ordinary
from mikanet.carriers.http_exchange import MAX_BODY, MAX_STRANGER_BODY, SID_SIZE, sid_of
from mikanet.carriers.http_held import HeldCarrier

#: A body that goes on beyond so many times the limit is cut off rather than read to its end.
_PATIENCE = 4

#: An idle connection that was closed and does not go is cut after so many seconds.
_FORCE = 15

#: A connection whose peer takes nothing of what waits for so many seconds is cut.
_STALLED = 75

_log = Logger()


class SiteOfRequests(Protocol):
    """What they need of their site."""

    ordinary: http_ordinary.Ordinary

    def left(self, channel: SiteChannel) -> None:
        """A connection is gone."""

    def find(self, sid: bytes | None) -> HeldCarrier | None:
        """The carrier of a client that has proved itself."""

    def serve(self, request: Any) -> None:
        """Answer a request."""


class SiteChannel(http.HTTPChannel):
    """One connection to the site; its bytes go to a WebSocket once it has become one."""

    upgraded: IProtocol | None = None
    verified = False
    counted = True
    site: SiteOfRequests
    group: str
    _arriving = False
    _look: IDelayedCall | None = None

    def resetTimeout(self) -> None:
        """Something came. A stranger's request has its time from its first byte on, so that drips do not prolong it."""
        if self.verified or not self._arriving:
            super().resetTimeout()  # type: ignore[no-untyped-call]  # untyped in Twisted
            self._arriving = True

    def progressed(self) -> None:
        """A part of a request of ours came: the next one has a time of its own."""
        self._arriving = False

    def allContentReceived(self) -> None:
        """The request is whole."""
        self._arriving = False
        super().allContentReceived()  # type: ignore[no-untyped-call]  # untyped in Twisted

    # -- readers that do not read

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        super().pauseProducing()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._watch()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty again."""
        self._stop_watching()
        super().resumeProducing()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def loseConnection(self) -> Any:
        """Close when everything was sent, which a peer that does not read would put off for ever."""
        self._watch()
        return super().loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def _watch(self) -> None:
        if self._look is None and self.upgraded is None:
            before = self._unsent()
            self._look = self.callLater(_STALLED, lambda: self._looked(before))  # type: ignore[no-untyped-call]  # untyped in Twisted

    def _looked(self, before: tuple[int, ...]) -> None:
        self._look = None
        if self._unsent() == before:
            cast(Any, self.transport).abortConnection()
        else:
            self._watch()

    def _unsent(self) -> tuple[int, ...]:
        """What the socket has not taken; the same twice if it took nothing in between."""
        socket = getattr(self.transport, "transport", self.transport)  # below TLS
        buffer = getattr(socket, "dataBuffer", b"")
        return len(buffer), getattr(socket, "offset", 0), getattr(socket, "_tempDataLen", 0)

    def _stop_watching(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            look.cancel()

    def upgrade(self, protocol: IProtocol) -> None:
        """From here on the connection is ``protocol``'s."""
        transport = cast(Any, self.transport)
        self.setTimeout(None)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._stop_watching()
        transport.unregisterProducer()
        self.upgraded = protocol
        protocol.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of requests, or of frames."""
        if self.upgraded is not None:
            self.upgraded.dataReceived(data)
        else:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def rawDataReceived(self, data: bytes) -> None:
        """Bytes behind a request; a client need not wait for the answer to its handshake."""
        if self.upgraded is None:
            super().rawDataReceived(data)
        elif data:
            self.upgraded.dataReceived(data)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """The head of an answer."""
        fields = http_ordinary.order(headers.getAllRawHeaders(), bool(self.persistent))
        super().writeHeaders(version, code, reason, fields)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # untyped in Twisted
        """The connection is gone."""
        self._stop_watching()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.site.left(self)
        if self.upgraded is not None:
            self.upgraded.connectionLost(reason)

    def timeoutConnection(self) -> None:
        """Nothing was asked for long: close, and say nothing about it."""
        self.loseConnection()
        transport = cast(Any, self.transport)
        self.callLater(_FORCE, transport.abortConnection)  # type: ignore[no-untyped-call]  # untyped in Twisted


class SiteRequest(Request):
    """A request whose body stays in memory, within the limits that its sender may have."""

    held: HeldCarrier | None = None
    too_long = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._pieces: list[bytes] = []
        self._size = 0
        self._most = MAX_STRANGER_BODY
        self._sender: HeldCarrier | None = None

    @property
    def body(self) -> bytes | None:
        """The whole body; None if it was longer than its sender may send."""
        return b"".join(self._pieces) if self._size <= self._most else None

    def gotLength(self, length: int | None) -> None:
        """The length that the client announces; None if it does not."""
        self.too_long = length is not None and length > MAX_BODY
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Part of the body."""
        self._size += len(data)
        if self._size > self._most and self._most < MAX_BODY:
            start = b"".join(self._pieces)[: 1 + SID_SIZE] or data
            self._sender = cast(SiteChannel, self.channel).site.find(sid_of(start))
            if self._sender is not None:
                self._most = MAX_BODY
        if self._sender is not None:
            self._sender.touch()
            cast(SiteChannel, self.channel).progressed()
        if self._size <= self._most:
            self._pieces.append(data)
            return
        self._pieces.clear()
        self.too_long = self.too_long or self._size > MAX_BODY
        if self._size > _PATIENCE * MAX_BODY:
            self.loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def process(self) -> None:
        """Answer."""
        site = cast(SiteChannel, self.channel).site
        self.site = cast(Any, site)
        if not self.path.startswith(b"/"):
            self.path = http_ordinary.origin_form(self.uri)
        try:
            site.serve(self)
        except Exception:  # noqa: BLE001  # one request must not end the others
            _log.failure("a request failed")
            if not self.startedWriting:
                http_ordinary.page(self, http.INTERNAL_SERVER_ERROR)

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # untyped in Twisted
        held, self.held = self.held, None
        if held is not None:
            held.gone(self)

    # -- what a carrier does with it

    def answer(self, body: bytes) -> None:
        """The answer of a carrier."""
        self.held = None
        if self._disconnected or self.finished:
            return
        http_ordinary.begin(self)
        headers = self.responseHeaders
        headers.setRawHeaders(b"Content-Type", [b"application/octet-stream"])
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
        headers.setRawHeaders(b"X-Accel-Buffering", [b"no"])
        self.write(body)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.finish()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def refuse(self) -> None:
        """The answer that any path gives."""
        self.held = None
        if not self._disconnected and not self.finished:
            cast(SiteOfRequests, self.site).ordinary.respond(self)

    def drop(self) -> None:
        """Nobody waits for the answer."""
        self.held = None
        if not self._disconnected and not self.finished:
            self.loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted
