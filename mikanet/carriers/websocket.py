"""WebSocket: ``ws://host:port/path`` and ``wss://`` at the client, and the carrier that both ends have.

Packets travel in binary messages, several in one where several are there. The server's handshake is the site's
(:mod:`mikanet.carriers.site`), frames are :mod:`mikanet.carriers.http_frames`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import h11
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import ConnectionDone, ConnectionLost, TimeoutError
from twisted.internet.interfaces import IConsumer, IDelayedCall, IPushProducer, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet import prompt
from mikanet.address import Address
from mikanet.carriers import http_frames
from mikanet.carriers.base import OPEN_TIMEOUT, BaseCarrier
from mikanet.carriers.http_asking import HttpStatusError, TlsAnswerError
from mikanet.carriers.http_batches import PacketQueue, split
from mikanet.carriers.http_client import WebPlace
from mikanet.carriers.http_exchange import MAX_BODY, MAX_STRANGER_BODY
from mikanet.carriers.http_trouble import opening
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import RemoteProtocolError
from mikanet.filters.packetizer import frame
from mikanet.interfaces import ICarrier, IClientCarrier
from mikanet.net.endpoint import TcpEndpoint

#: Largest batch that is sent as one message, and the largest message that is taken.
BATCH, MAX_MESSAGE = 262_144, MAX_BODY

#: Seconds between pings of the client: below the 60 after which proxies cut a silent connection.
PING_TIME = 25.0

#: Seconds without any frame after which the peer counts as lost.
SILENCE = 2.5 * PING_TIME

_MAX_HEAD = 16_384

#: What a TLS server answers to what is none: an alert.
_ALERT = b"\x15\x03"


@implementer(IPushProducer)
class WebSocketCarrier(BaseCarrier, Protocol):
    """One end of an open WebSocket.

    :param random_bytes: for the masking keys, which only clients use; None at servers.
    """

    transport: ITCPTransport | None

    def __init__(self, clock: Any, name: str, host: str, random_bytes: Callable[[int], bytes] | None) -> None:
        super().__init__(name, host)
        self._clock = clock
        self._random_bytes = random_bytes
        # Until it is proven a client may send one packet of any size at a time, and no more (X3). A server that takes a
        # session over answers with all it has, before its first packet could be looked at.
        server = random_bytes is None
        self._reader = http_frames.FrameReader(server, MAX_STRANGER_BODY if server else MAX_MESSAGE)
        self._queue = PacketQueue()
        self._paused = self._closing = False
        self._heard = clock.seconds()
        self._timer: IDelayedCall | None = None
        self._most = MAX_STRANGER_BODY - 1024

    def connectionMade(self) -> None:
        """The WebSocket stands."""
        transport = cast(ITCPTransport, self.transport)
        transport.setTcpNoDelay(True)
        cast(IConsumer, transport).registerProducer(self, True)
        self._tick()

    def _key(self) -> bytes | None:
        return None if self._random_bytes is None else self._random_bytes(4)

    # -- ICarrier

    @property
    def waiting(self) -> int:
        """Bytes that wait for the socket."""
        return self._queue.waiting

    def send(self, packets: Sequence[bytes]) -> None:
        """All packets in one message, or few."""
        if self.transport is None or self.lost or self._closing:
            return
        if not self._paused and not self._queue:
            batch = frame(packets)
            if len(batch) <= self._most:
                prompt.send(self.transport, http_frames.message(batch, self._key()))
                return
        self._queue.push(packets)
        self._flush()

    def _flush(self) -> None:
        while self._queue and not self._paused and self.transport is not None:
            prompt.send(self.transport, http_frames.message(self._queue.take(self._most), self._key()))
        if self._closing and not self._queue:
            self._close(http_frames.NORMAL)

    def proven(self) -> None:
        """The peer is no stranger."""
        self._most = BATCH
        self._reader.max_message = MAX_MESSAGE

    def close(self) -> None:
        """A close frame after what waits."""
        if self.transport is not None and not self._closing and not self.lost:
            self._closing = True
            self.room(False)
            self._flush()

    def _close(self, code: int) -> None:
        if self.transport is not None:
            prompt.send(self.transport, http_frames.close(code, self._key()))
            cast(IConsumer, self.transport).unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """A reset."""
        if self.transport is not None and not self.lost:
            self.transport.abortConnection()

    # -- IProtocol

    def dataReceived(self, data: bytes) -> None:
        """Bytes of frames."""
        self._heard = self._clock.seconds()
        try:
            for event in self._reader.feed(data):
                self._take(event)
        except RemoteProtocolError:
            self.refuse()

    def _take(self, event: http_frames.Event) -> None:
        if isinstance(event, http_frames.Message):
            self.deliver(split(event.data))
        elif self.transport is None:
            pass
        elif isinstance(event, http_frames.Ping):
            prompt.send(self.transport, http_frames.pong(event.data, self._key()))
        elif isinstance(event, http_frames.Close):
            self._close(http_frames.NORMAL if event.code == 1005 else event.code)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.transport = None
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.lose(reason)

    def _tick(self) -> None:
        """Keep proxies from cutting a silent connection, and see that the peer is there."""
        self._timer = None
        transport = self.transport
        if transport is None:
            return
        if self._clock.seconds() - self._heard >= SILENCE:
            self.lose(Failure(TimeoutError()))
            transport.abortConnection()
            return
        if self._random_bytes is not None and not self._closing:
            prompt.send(transport, http_frames.ping(b"", self._key()))
        # The client's pings bring both ends something to hear.
        self._timer = self._clock.callLater(PING_TIME, self._tick)

    # -- IPushProducer: the transport's buffer

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._paused = True
        self.room(False)

    def resumeProducing(self) -> None:
        """There is room again."""
        self._paused = False
        self._flush()
        if not self._paused and not self._closing:
            self.room(True)

    def stopProducing(self) -> None:
        """The transport is going; its connectionLost says so."""
        self.writable = False


class _Handshake(Protocol):
    """The client's handshake; when it is done, the transport is the carrier's."""

    transport: ITCPTransport | None

    def __init__(self, reactor: Any, place: WebPlace, random_bytes: Callable[[int], bytes]) -> None:
        self._reactor = reactor
        self._place = place
        self._random_bytes = random_bytes
        self._key = base64.b64encode(random_bytes(16))
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._carrier: WebSocketCarrier | None = None
        self.done: Deferred[ICarrier] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        """Ask."""
        headers = [
            (b"Host", self._place.netloc.encode()),
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Key", self._key),
            (b"Sec-WebSocket-Version", b"13"),
        ]
        if self._place.knock is not None:
            headers.append((b"Cookie", self._place.knock()))
        request = h11.Request(method=b"GET", target=self._place.path.encode(), headers=headers)
        cast(ITCPTransport, self.transport).write(self._http.send(request) or b"")

    def dataReceived(self, data: bytes) -> None:
        """The answer, and then frames."""
        if self._carrier is not None:
            self._carrier.dataReceived(data)
            return
        if self.done.called:
            return
        try:
            if data.startswith(_ALERT):
                raise TlsAnswerError
            self._http.receive_data(data)
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return
            self._check(event)
        except (HttpStatusError, TlsAnswerError) as problem:
            self._fail(problem)
        except (h11.RemoteProtocolError, RemoteProtocolError) as problem:
            self._fail(RemoteProtocolError(f"not a WebSocket server: {problem}"))
        else:
            self._open(self._http.trailing_data[0])

    def _check(self, event: Any) -> None:
        if isinstance(event, h11.Response):
            raise HttpStatusError(event.status_code)
        if not isinstance(event, h11.InformationalResponse) or event.status_code != 101:
            raise RemoteProtocolError("it does not switch protocols")
        headers = {bytes(name): bytes(value) for name, value in event.headers}
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            raise RemoteProtocolError("it switches to another protocol")
        if headers.get(b"sec-websocket-accept") != http_frames.accept(self._key):
            raise RemoteProtocolError("its answer is to another key")
        if b"sec-websocket-extensions" in headers or b"sec-websocket-protocol" in headers:
            raise RemoteProtocolError("it wants what was not offered")

    def _open(self, rest: bytes) -> None:
        self._carrier = carrier = WebSocketCarrier(self._reactor, self._place.name, "", self._random_bytes)
        carrier.makeConnection(cast(Any, self.transport))  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.done.callback(carrier)
        if rest:
            carrier.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        if self._carrier is not None:
            self._carrier.connectionLost(reason)
        elif not self.done.called:
            closed = reason.check(ConnectionDone, ConnectionLost) is not None
            self.done.errback(RemoteProtocolError("the connection was closed in the handshake") if closed else reason)

    def _fail(self, problem: Exception) -> None:
        self.done.errback(problem)
        self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


@implementer(IClientCarrier)
class WebSocketClientCarrier:
    """Opens WebSockets."""

    def __init__(self, place: WebPlace, context: CarrierContext, random_bytes: Callable[[int], bytes]) -> None:
        self.name = place.name
        self._place = place
        self._reactor = context.reactor
        self._random_bytes = random_bytes

    def open(self) -> Deferred[ICarrier]:
        """See :meth:`~mikanet.interfaces.IClientCarrier.open`."""
        return opening(self._place, self._reactor, self._open())

    async def _open(self) -> ICarrier:
        place = self._place
        endpoint: IStreamClientEndpoint = TcpEndpoint(self._reactor, Address(place.host, place.port), OPEN_TIMEOUT)
        if place.secure:
            endpoint = wrapClientTLS(place.tls(), endpoint)
        factory = Factory.forProtocol(lambda: _Handshake(self._reactor, place, self._random_bytes))
        factory.noisy = False
        handshake = cast(_Handshake, await endpoint.connect(factory))
        return await handshake.done


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """``ws://host:port/path``, ``wss://host:port/path?ca-file=FILE``."""
    return WebSocketClientCarrier(WebPlace.of(url, context), context, os.urandom)
