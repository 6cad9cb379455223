"""smux over a stream transport: streams as transports with producers.

There is no half-close and no reset on this wire: one FIN ends both directions of a stream. So stream transports have no
``loseWriteConnection``, and an abort differs from a clean end only in what is still sent before it. After the peer's FIN
nothing of ours reaches it. The stream's protocol may still have something to do with what came before, and says so by
:class:`IFinishes`; others are told that the connection is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import cast

from twisted.internet import error
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IProducer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.smux.session import Session, SmuxSettings, StreamData, StreamEnded, StreamOpened

#: Output of a stream at which its producer is paused, and at which it is resumed (X5).
HIGH_WATER, LOW_WATER = 256 * 1024, 64 * 1024
#: Bytes handed down at a time, and handed up of what a paused stream received.
_AT_ONCE = 65536
#: Datagrams that a paused stream keeps; more are lost, as datagrams are.
_MAX_DATAGRAMS = 1024


class IFinishes(Interface):
    """A protocol that ends its stream by itself when it has done with what the peer sent before its FIN."""

    def peer_ended() -> None:
        """The peer's FIN is here, after all that it sent; what is written from now on reaches nobody."""

    def finish_now() -> None:
        """End the stream: its place is wanted."""


@implementer(ITransport, IConsumer, IPushProducer)
class SmuxStream:
    """One stream: a transport for ``protocol``.

    :ivar protocol: above; None until :meth:`connect` and after the end.
    """

    __slots__ = (
        "_boundaries",
        "_closing",
        "_connection",
        "_ended",
        "_held",
        "_paused",
        "_producer",
        "_producer_paused",
        "_streaming",
        "_told",
        "protocol",
        "sid",
    )

    def __init__(self, connection: SmuxConnection, sid: int) -> None:
        self.sid = sid
        self.protocol: IProtocol | None = None
        self._connection = connection
        self._held: deque[bytearray] = deque()
        self._paused = False
        self._boundaries = False
        self._ended = False  # the peer's FIN is here
        self._told = False  # and was told
        self._closing = False
        self._producer: IPushProducer | None = None
        self._producer_paused = False
        self._streaming = True

    def connect(self, protocol: IProtocol) -> None:
        """Put a protocol on the stream."""
        self.protocol = protocol
        protocol.makeConnection(self)

    # -- ITransport

    def write(self, data: bytes) -> None:
        """Send bytes; on a stream that keeps boundaries, one frame. Empty ones do not exist."""
        if self._closing or self._ended or not data:
            return
        self._connection.send(self, data)
        if self._producer is not None and not self._producer_paused and self._queued() >= HIGH_WATER:
            self._producer_paused = True
            self._connection.waiting[self] = None
            if self._streaming:
                self._producer.pauseProducing()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send pieces."""
        for data in iovec:
            self.write(data)

    def loseConnection(self) -> None:
        """End the stream after what was written, or after the producer has let go."""
        if self._closing:
            return
        self._closing = True
        if self._producer is None:
            self._connection.close(self, clean=True)

    def abortConnection(self) -> None:
        """End the stream now; what is queued is lost."""
        self._closing = True
        self._connection.close(self, clean=False)

    def keep_boundaries(self) -> None:
        """From now on each write is one frame, which the peer gets as one ``dataReceived``."""
        self._boundaries = True
        self._connection.session.keep_boundaries(self.sid)

    def keep_first_alone(self) -> None:
        """The first write is a frame of its own, as receivers need that read ahead; to be called before it."""
        self._connection.session.keep_first_alone(self.sid)

    def getPeer(self) -> IAddress:
        """The address of the peer that the session is with."""
        return self._connection.lower().getPeer()

    def getHost(self) -> IAddress:
        """The session's own address."""
        return self._connection.lower().getHost()

    # -- flow control

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Let ``producer`` be paused while much waits to be sent."""
        if self._ended or self._connection.transport is None:
            producer.stopProducing()
            return
        self._producer = cast(IPushProducer, producer)
        self._streaming = streaming
        self._producer_paused = False
        if not streaming:
            self._connection.waiting[self] = None
            producer.resumeProducing()  # type: ignore[attr-defined]  # a pull producer

    def unregisterProducer(self) -> None:
        """Forget the producer; a loseConnection that waited for it goes on."""
        if self._producer is None:
            return
        self._producer = None
        self._connection.waiting.pop(self, None)
        if self._closing:
            self._connection.close(self, clean=True)

    def pauseProducing(self) -> None:
        """Deliver nothing for a while; the stream's window closes."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Deliver again."""
        self._paused = False
        self._deliver()

    def stopProducing(self) -> None:
        """Nothing more is wanted."""
        self.loseConnection()

    # -- from the connection

    def data_received(self, data: bytes) -> None:
        """One frame's bytes."""
        held = self._held
        if not self._paused and not held:
            self._pass_on(data)
        elif self._boundaries:
            if len(held) < _MAX_DATAGRAMS:
                held.append(bytearray(data))
            else:
                self._connection.consumed(self, len(data))
        elif held and len(held[-1]) < _AT_ONCE:
            held[-1] += data  # a frame has eight bytes and more; what it costs to keep must not be a multiple of that
        else:
            held.append(bytearray(data))

    def ended(self) -> None:
        """The peer's FIN."""
        self._ended = True
        self._deliver()

    def drained(self) -> None:
        """Some output has gone down."""
        producer = self._producer
        if producer is not None and self._queued() <= LOW_WATER:
            self._producer_paused = False
            if self._streaming:
                self._connection.waiting.pop(self, None)
            producer.resumeProducing()

    def lost(self, reason: Failure) -> None:
        """The stream is over: tell the producer and the protocol."""
        self._ended = True
        self._connection.waiting.pop(self, None)
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)

    def _queued(self) -> int:
        return self._connection.session.queued(self.sid)

    def _deliver(self) -> None:
        while self._held and not self._paused:
            self._pass_on(bytes(self._held.popleft()))
        if not self._ended or self._held or self._paused or self._told:
            return
        self._told = True
        protocol: object = self.protocol
        if IFinishes.providedBy(protocol):
            self._connection.finishing[self] = None
            protocol.peer_ended()
        else:
            self._connection.close(self, clean=True)

    def _pass_on(self, data: bytes) -> None:
        if self.protocol is not None:
            self.protocol.dataReceived(data)
        self._connection.consumed(self, len(data))


@implementer(IPushProducer)
class SmuxConnection(Protocol):
    """A smux session over the transport that it is connected to.

    :param factory: makes the protocols of streams that the peer opens; without one they are refused.
    :param on_lost: told once when the session is over.
    :param nop_first: send a NOP at once, so that the peer has something to acknowledge (Q4).
    :ivar streams: open streams by id. :ivar finishing: those that the peer has ended and their protocols have not, the
        oldest first. :ivar waiting: those whose producers want to hear when output has gone down.
    """

    transport: ITransport | None

    def __init__(
        self,
        settings: SmuxSettings,
        client: bool,
        clock: IReactorTime,
        factory: IProtocolFactory | None = None,
        on_lost: Callable[[Failure], None] | None = None,
        nop_first: bool = False,
    ) -> None:
        self.session = Session(settings, client)
        self.streams: dict[int, SmuxStream] = {}
        self.finishing: dict[SmuxStream, None] = {}
        self.waiting: dict[SmuxStream, None] = {}
        self._settings = settings
        self._clock = clock
        self._factory = factory
        self._on_lost = on_lost
        self._nop_first = nop_first
        self._paused = False
        self._reading_paused = False
        self._busy = False
        self._timers: list[IDelayedCall] = []

    def lower(self) -> ITransport:
        """The transport below."""
        if self.transport is None:
            raise LocalProtocolError("the session is over")
        return self.transport

    def open(self, protocol: IProtocol) -> SmuxStream:
        """Open a stream with ``protocol`` on it; what that one writes at once travels with the opening frame.

        :raises LocalProtocolError: if the session is over or has no more streams.
        """
        self.lower()
        stream = SmuxStream(self, self.session.open())
        self.streams[stream.sid] = stream
        with _Held(self):
            stream.connect(protocol)
        return stream

    # -- IProtocol

    def connectionMade(self) -> None:
        """Start."""
        cast(IConsumer, self.lower()).registerProducer(self, True)
        self._every(self._settings.keepalive_interval, self._send_nop)
        self._every(self._settings.keepalive_timeout, self._check_heard)
        if self._nop_first:
            self._send_nop()

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the session."""
        try:
            events = self.session.data_received(data)
        except RemoteProtocolError as problem:
            self.abort(Failure(error.ConnectionAborted(str(problem))))
            return
        with _Held(self):
            for event in events:
                if isinstance(event, StreamData):
                    stream = self.streams.get(event.sid)
                    if stream is not None:
                        stream.data_received(event.data)
                elif isinstance(event, StreamEnded):
                    stream = self.streams.get(event.sid)
                    if stream is not None:
                        stream.ended()
                elif isinstance(event, StreamOpened):
                    self._accept(event.sid)

    def _accept(self, sid: int) -> None:
        upper = None if self._factory is None else self._factory.buildProtocol(self.lower().getPeer())
        if upper is None:
            self.session.abort(sid)
            return
        if len(self.streams) >= self._settings.max_streams and self.finishing:
            cast(IFinishes, next(iter(self.finishing)).protocol).finish_now()
        stream = self.streams[sid] = SmuxStream(self, sid)
        stream.connect(upper)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The session is over; so is each stream, and none of them cleanly."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers.clear()
        self.transport = None
        if reason.check(error.ConnectionDone):
            reason = Failure(error.ConnectionLost("the session ended"))
        streams, self.streams = self.streams, {}
        self.finishing.clear()
        for stream in streams.values():
            stream.lost(reason)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(reason)

    def abort(self, reason: Failure) -> None:
        """End the session now."""
        transport = self.transport
        if transport is not None:
            self.connectionLost(reason)
            cast(IConsumer, transport).unregisterProducer()
            transport.abortConnection()  # type: ignore[attr-defined]  # every stream transport has it

    def close(self, stream: SmuxStream, clean: bool) -> None:
        """A stream's own end."""
        if self.streams.pop(stream.sid, None) is None:
            return
        self.finishing.pop(stream, None)
        if clean:
            self.session.close(stream.sid)
        else:
            self.session.abort(stream.sid)
        stream.lost(Failure(error.ConnectionDone() if clean else error.ConnectionAborted()))
        self._pump()

    # -- streams' output

    def send(self, stream: SmuxStream, data: bytes) -> None:
        """Queue bytes of a stream."""
        self.session.send(stream.sid, data)
        self._pump()

    def consumed(self, stream: SmuxStream, count: int) -> None:
        """A stream's protocol took bytes."""
        self.session.consumed(stream.sid, count)
        self._pump()

    def pauseProducing(self) -> None:
        """The transport below is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport below has room."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """The transport below is gone; connectionLost says how."""
        self._paused = True

    def _pump(self) -> None:
        if self._busy or self.transport is None:
            return
        self._busy = True
        session = self.session
        try:
            while not self._paused and self.transport is not None:
                data = session.take_output(_AT_ONCE)
                if not data:
                    break
                self.transport.write(data)
                for stream in list(self.waiting):
                    stream.drained()
        finally:
            self._busy = False
        self._govern_reading()

    def _govern_reading(self) -> None:
        """Read nothing while too much is unread; with version 1 this is the only thing that stops a peer."""
        congested = self.session.congested
        if congested != self._reading_paused and self.transport is not None:
            self._reading_paused = congested
            lower = cast(IPushProducer, self.transport)
            if congested:
                lower.pauseProducing()
            else:
                lower.resumeProducing()

    # -- keepalive

    def _every(self, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.remove(timer)
            self._every(seconds, call)
            call()

        timer = self._clock.callLater(seconds, run)
        self._timers.append(timer)

    def _send_nop(self) -> None:
        self.session.nop()
        self._pump()

    def _check_heard(self) -> None:
        if not self.session.heard():
            self.abort(Failure(error.TimeoutError("the peer has been silent for too long")))


class _Held:
    """Holds output back while many things happen, then sends it together."""

    __slots__ = ("_connection", "_outermost")

    def __init__(self, connection: SmuxConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._outermost = not self._connection._busy
        self._connection._busy = True

    def __exit__(self, *_: object) -> None:
        if self._outermost:
            self._connection._busy = False
            self._connection._pump()
