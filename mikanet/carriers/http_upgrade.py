"""The server's WebSockets: the handshake's answer, and a carrier that turns strangers away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.interfaces import IConsumer, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mikanet.carriers import http_frames
from mikanet.carriers.websocket import WebSocketCarrier
from mikanet.guard.refusal import Refusal, Refusals


def handshake(request: Any) -> bytes | None:
    """The answer to an opening handshake, its empty line included; None if the request is none."""
    fields = request.requestHeaders
    key = fields.getRawHeaders(b"Sec-WebSocket-Key", [b""])
    tokens = b",".join(fields.getRawHeaders(b"Connection", [])).lower().replace(b" ", b"").split(b",")
    if (
        request.method != b"GET"
        or request.clientproto != b"HTTP/1.1"
        or b"upgrade" not in tokens
        or fields.getRawHeaders(b"Upgrade", [b""])[0].lower() != b"websocket"
        or fields.getRawHeaders(b"Sec-WebSocket-Version") != [b"13"]
        or len(key) != 1
        or not http_frames.is_key(key[0])
    ):
        return None
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + http_frames.accept(key[0])
        + b"\r\n\r\n"
    )


class ServerWebSocket(WebSocketCarrier):
    """A WebSocket that is a stranger's until it is proven; refused, it is read from and left alone until its time.

    :param on_proven: says whether one more may come in.
    """

    def __init__(
        self, clock: Any, name: str, host: str, refusals: Refusals, on_proven: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(clock, name, host, None)
        self._refusals = refusals
        self._refusal: Refusal | None = None
        self._on_proven = on_proven
        self._deadline: int | None = refusals.deadlines.start(self._time_over)

    def send(self, packets: Sequence[bytes]) -> None:
        """As WebSocketCarrier, but nothing to whom is being turned away."""
        if self._refusal is None:
            super().send(packets)

    def proven(self) -> None:
        """The client is no stranger."""
        if self._deadline is None or self._refusal is not None:
            return
        self._stop_clock()
        if self._on_proven():
            super().proven()
        else:
            self.abort()

    def refuse(self) -> None:
        """A stranger is turned away in the one way; one of ours that sends nonsense is cut."""
        if self._deadline is None:
            self.abort()
        elif self._refusal is None and self.transport is not None:
            self._begin()

    def _begin(self) -> Refusal:
        transport = cast(ITCPTransport, self.transport)
        cast(IConsumer, transport).unregisterProducer()
        self._refusal = Refusal(self._refusals, transport)
        return self._refusal

    def _time_over(self) -> None:
        if self.transport is not None:
            (self._refusal or self._begin()).end()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._refusals.deadlines.cancel(self._deadline)
            self._deadline = None

    def dataReceived(self, data: bytes) -> None:
        """Bytes of frames."""
        if self._refusal is not None:
            self._refusal.data_received(len(data))
        else:
            super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._stop_clock()
        if self._refusal is not None:
            self._refusal.lost()
        super().connectionLost(reason)
