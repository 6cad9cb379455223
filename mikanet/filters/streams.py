"""Streams of a multiplexer with credit: each a half-closing transport for one protocol.

A tunnel that carries many connections inside one session has one :class:`CreditStream` for each. The stream keeps what
its protocol writes until its owner takes it, never more than the peer's credit allows, and gives the peer credit as its
own protocol takes bytes; so a slow reader stops its own stream and no other. The owner, an :class:`IStreamOwner`, knows
the wire: it turns bytes, ends, credit and aborts into packets and back, and says who goes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet import error
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProducer,
    IProtocol,
    IPushProducer,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from mikanet.errors import RemoteProtocolError

#: Output of a stream at which its producer is paused, and at which it is resumed (X5).
HIGH_WATER, LOW_WATER = 128 * 1024, 32 * 1024


class IStreamOwner(Interface):
    """Who multiplexes streams."""

    def stream_ready(stream: CreditStream) -> None:  # noqa: N805  # interfaces have no self
        """The stream has something to send and may: take it with ``take`` and ``take_end``, now or later.

        May be told while the owner is in the middle of ``take``.
        """

    def stream_credit(stream: CreditStream, total: int) -> None:  # noqa: N805
        """The peer may send ``total`` bytes in all; told when about half of the window was used."""

    def stream_aborted(stream: CreditStream) -> None:  # noqa: N805
        """Our side gave the stream up, both directions; nothing more comes from it."""

    def stream_closed(stream: CreditStream) -> None:  # noqa: N805
        """Our side wants no more of the stream; its end was taken, and the protocol above is gone.

        If the peer's end was not read yet (``read_over`` is false) more may come: the owner aborts the stream then.
        """

    def stream_peer() -> IAddress:
        """For ``getPeer``."""

    def stream_host() -> IAddress:
        """For ``getHost``."""


@implementer(ITCPTransport, IConsumer, IPushProducer)
class CreditStream:
    """One stream: a transport for ``protocol``.

    :param sid: how the owner calls it.
    :param credit: bytes that may be sent before the peer has given more.
    :param window: bytes that the peer may have sent beyond what was taken. May be changed at any time: the next credit
        follows it.
    :ivar protocol: above; None until :meth:`connect` and after the end.
    :ivar sent: bytes taken so far. :ivar received: bytes that came so far. :ivar granted: bytes that the peer may send in
        all.
    :ivar read_over: whether the peer's end was here. :ivar write_over: whether our own end was taken.
    :ivar closing: whether our side wants no more of it.
    """

    __slots__ = (
        "__weakref__",
        "_allowed",
        "_ending",
        "_held",
        "_offset",
        "_owner",
        "_paused",
        "_producer",
        "_producer_paused",
        "_queue",
        "_read_told",
        "_streaming",
        "closing",
        "consumed",
        "granted",
        "protocol",
        "queued",
        "read_over",
        "received",
        "sent",
        "sid",
        "window",
        "write_over",
    )

    def __init__(self, owner: IStreamOwner, sid: int, credit: int, window: int) -> None:
        self.sid = sid
        self.protocol: IProtocol | None = None
        self.window = window
        self.sent = self.received = self.consumed = self.queued = 0
        self.granted = window
        self.read_over = self.write_over = self.closing = False
        self._allowed = credit
        self._owner = owner
        self._queue: deque[bytes] = deque()
        self._offset = 0  # into the first piece of the queue
        self._held: deque[bytes] | None = None
        self._ending = False
        self._paused = True  # until there is a protocol
        self._read_told = False
        self._producer: IPushProducer | None = None
        self._producer_paused = False
        self._streaming = True

    def connect(self, protocol: IProtocol) -> None:
        """Put a protocol on the stream; what has come before is delivered to it then."""
        self.protocol = protocol
        self._paused = False
        protocol.makeConnection(self)
        self._deliver()

    # -- for the owner: output

    @property
    def ready(self) -> bool:
        """Whether there is something that may be sent now."""
        if self.queued:
            return self._allowed > self.sent
        return self._ending and not self.write_over

    def allow(self, total: int) -> None:
        """The peer lets us send ``total`` bytes in all; less than before changes nothing."""
        if total <= self._allowed:
            return
        blocked = self._allowed <= self.sent
        self._allowed = total
        if blocked and self.queued:
            self._owner.stream_ready(self)

    @property
    def allowed(self) -> int:
        """Bytes that may be sent in all."""
        return self._allowed

    def take(self, limit: int) -> bytes:
        """The next bytes to send, at most ``limit``; empty when nothing may be sent."""
        limit = min(limit, self._allowed - self.sent)
        queue = self._queue
        if limit <= 0 or not queue:
            return b""
        head, offset = queue[0], self._offset
        size = len(head) - offset
        if size > limit:
            data = head[offset : offset + limit]
            self._offset = offset + limit
        elif len(queue) == 1 or size == limit:
            queue.popleft()
            self._offset = 0
            data = head[offset:] if offset else head
        else:
            data = self._gather(limit)
        size = len(data)
        self.sent += size
        self.queued -= size
        if self._producer is not None and self.queued <= LOW_WATER and (self._producer_paused or not self._streaming):
            self._producer_paused = False
            self._producer.resumeProducing()
        return data

    def _gather(self, limit: int) -> bytes:
        """Several pieces of the queue as one."""
        queue = self._queue
        first = queue.popleft()
        pieces = [first[self._offset :] if self._offset else first]
        self._offset = 0
        limit -= len(pieces[0])
        while queue and limit:
            piece = queue[0]
            if len(piece) > limit:
                pieces.append(piece[:limit])
                self._offset = limit
                break
            pieces.append(queue.popleft())
            limit -= len(piece)
        return b"".join(pieces)

    def take_end(self) -> bool:
        """Whether the end of our direction is to be sent now; true once, when everything before it was taken."""
        if not self._ending or self.queued or self.write_over:
            return False
        self.write_over = True
        if self.closing:
            self._let_go(Failure(error.ConnectionDone()))
            self._owner.stream_closed(self)
        return True

    # -- for the owner: input

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer.

        :raises RemoteProtocolError: if the peer had no credit for them, or had ended before.
        """
        self.received += len(data)
        if self.received > self.granted or self.read_over:
            raise RemoteProtocolError("more bytes on a stream than it had credit for")
        if self._paused or self._held:
            if self._held is None:
                self._held = deque()
            self._held.append(data)
        else:
            self._pass_on(data)

    def read_ended(self) -> None:
        """The peer's end of its direction."""
        if not self.read_over:
            self.read_over = True
            self._deliver()

    def lost(self, reason: Failure) -> None:
        """The stream is over for a reason that is not ours: nothing more is sent or delivered."""
        self.write_over = self.read_over = True
        self._clear()
        self._let_go(reason)

    # -- ITransport

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._ending or self.write_over or not data:
            return
        was_empty = not self.queued
        self._queue.append(data)
        self.queued += len(data)
        if was_empty and self._allowed > self.sent:
            self._owner.stream_ready(self)
        if self._producer is not None and not self._producer_paused and self.queued >= HIGH_WATER:
            self._producer_paused = True
            if self._streaming:
                self._producer.pauseProducing()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send pieces."""
        for data in iovec:
            self.write(data)

    def loseWriteConnection(self) -> None:
        """End our direction after what was written."""
        if not self._ending and not self.write_over:
            self._ending = True
            if not self.queued:
                self._owner.stream_ready(self)

    def loseConnection(self) -> None:
        """End our direction after what was written, and want no more of the other; waits for a producer to let go."""
        if self.closing:
            return
        self.closing = True
        if self._producer is None:
            self._close()

    def _close(self) -> None:
        if self.write_over:
            if self.protocol is not None:
                self._let_go(Failure(error.ConnectionDone()))
                self._owner.stream_closed(self)
        else:
            self.loseWriteConnection()

    def abortConnection(self) -> None:
        """Give the stream up, both directions; what waits is lost."""
        if self.protocol is None and self.write_over:
            return
        self.closing = self.write_over = True
        self._clear()
        self._owner.stream_aborted(self)
        self._let_go(Failure(error.ConnectionAborted()))

    def getPeer(self) -> Any:
        """The address of the peer that the session is with."""
        return self._owner.stream_peer()

    def getHost(self) -> Any:
        """The session's own address."""
        return self._owner.stream_host()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing: what is written is sent when it may be."""

    def getTcpNoDelay(self) -> bool:
        """True."""
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing: the session looks after itself."""

    def getTcpKeepAlive(self) -> bool:
        """True."""
        return True

    # -- IConsumer

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Let ``producer`` be paused while much waits to be sent."""
        if self.write_over:
            producer.stopProducing()
            return
        self._producer = cast(IPushProducer, producer)
        self._streaming = streaming
        self._producer_paused = False
        if not streaming:
            self._producer.resumeProducing()
        elif self.queued >= HIGH_WATER:
            self._producer_paused = True
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """Forget the producer; a loseConnection that waited for it goes on."""
        if self._producer is not None:
            self._producer = None
            if self.closing:
                self._close()

    # -- IPushProducer

    def pauseProducing(self) -> None:
        """Deliver nothing for a while; the peer runs out of credit."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Deliver again."""
        self._paused = False
        self._deliver()

    def stopProducing(self) -> None:
        """Nothing more is wanted."""
        self.loseConnection()

    # --

    def _deliver(self) -> None:
        while self._held and not self._paused:
            self._pass_on(self._held.popleft())
        if self.read_over and not self._held and not self._paused and not self._read_told:
            self._read_told = True
            protocol = self.protocol
            if protocol is None:
                return
            if IHalfCloseableProtocol.providedBy(protocol):
                protocol.readConnectionLost()
            else:
                self.loseConnection()

    def _pass_on(self, data: bytes) -> None:
        if self.protocol is not None and not self.closing:
            self.protocol.dataReceived(data)
        self.consumed += len(data)
        if not self.read_over and self.granted - self.consumed <= self.window // 2:
            self.granted = self.consumed + self.window
            self._owner.stream_credit(self, self.granted)

    def _clear(self) -> None:
        self._queue.clear()
        self._held = None
        self._offset = self.queued = 0

    def _let_go(self, reason: Failure) -> None:
        """Tell the producer and the protocol, once, that it is over."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)
