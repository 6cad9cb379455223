"""NitroSocks: the streams of one session, over whichever connection carries it now.

A :class:`Mux` outlives connections. While it is attached to one it turns streams into frames and frames into streams;
between two it waits, and streams wait with it. Both ends use it: a client opens streams, a server accepts them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IProducer, IProtocol, IProtocolFactory, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet import prompt
from mikanet.address import Address
from mikanet.errors import DestinationError, LocalProtocolError, Reason, RemoteProtocolError
from mikanet.filters.streams import CreditStream, IStreamOwner
from mikanet.nitrosocks.frames import (
    MAX_PAYLOAD,
    MAX_STREAMS,
    PREFIX,
    WINDOW,
    Command,
    decode,
    decode_destination,
    encode,
    encode_number,
)
from mikanet.nitrosocks.resend import ACK_TIME, Ledger
from mikanet.wire.socks import Rep, encode_address, reason_of_rep, rep_of_reason

#: A stream that has brought so many bytes gets this larger window from then on, while a session has few streams: at a
#: round trip of 100 ms the first window allows 2.6 MB/s. All three are our choice.
BUSY, BUSY_WINDOW, MAX_BUSY = 1024 * 1024, 1024 * 1024, 64

#: Content that is handed down at a time, in bytes, about.
BATCH = 4 * MAX_PAYLOAD

#: Frames of control that a server keeps for a client that does not read them, or does not acknowledge. Our choice: with
#: 1,024 streams an honest one comes to a few for each.
MAX_CONTROL = 8192

_LAST_SID = 0xFFFFFFFF
_BYTES, _CREDIT = Command.BYTES, Command.CREDIT
_BYTES_BYTE = bytes((_BYTES,))


class FloodError(RemoteProtocolError):
    """The peer asks for more than it takes; the session is not worth keeping."""


class LinkPort(Protocol):
    """The connection that carries a session now.

    :ivar writable: whether more should be sent. :ivar address: of the peer, and of ourselves.
    """

    writable: bool
    addresses: tuple[IAddress, IAddress]

    def send(self, frames: list[bytes]) -> None:
        """Seal and send."""


class MuxStream(CreditStream):
    """One stream.

    :ivar scheduled: whether it stands in the queue of those with something to send.
    :ivar announced: what the peer was told that it may send, in all.
    :ivar opening: at a client, what waits for the reply.
    """

    __slots__ = ("announced", "opening", "scheduled")

    def __init__(self, mux: Mux, sid: int) -> None:
        super().__init__(cast(IStreamOwner, mux), sid, WINDOW, WINDOW)
        self.announced = self.granted
        self.scheduled = False
        self.opening: Opening | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See :meth:`CreditStream.registerProducer`; a socket behind the producer is read in whole packets from now on.

        Reads of 65536 bytes would be four packets and a crumb, and the crumb costs as much work as a packet.
        """
        transport: Any = getattr(producer, "transport", None)
        if prompt.is_plain(transport):
            transport.bufferSize = BATCH
        super().registerProducer(producer, streaming)


class Opening:
    """A stream that waits for its reply.

    :ivar command: OPEN or OPEN_DATAGRAMS. :ivar payload: where to. :ivar done: fires with the connected protocol.
    :ivar stream: None while it has none.
    """

    __slots__ = ("command", "done", "factory", "payload", "stream")

    def __init__(self, command: Command, payload: bytes, factory: IProtocolFactory) -> None:
        self.command = command
        self.payload = payload
        self.factory = factory
        self.stream: MuxStream | None = None
        self.done: Deferred[IProtocol] = Deferred(lambda _: self._cancel())

    def _cancel(self) -> None:
        stream = self.stream
        if stream is not None and stream.opening is self:
            stream.opening = None
            stream.abortConnection()

    def fail(self, reason: Failure) -> None:
        """It cannot be had."""
        if not self.done.called:
            self.done.errback(reason)


@implementer(IStreamOwner)
class Mux:
    """The streams of one session.

    :param accept: at a server, takes each stream that the client opens: with its destination, and whether it is one of
        datagrams; it answers with :meth:`reply`.
    """

    def __init__(self, clock: IReactorTime, accept: Callable[[MuxStream, Address, bool], None] | None = None) -> None:
        self.streams: dict[int, MuxStream] = {}
        self.ledger = Ledger()
        self.over = False
        self._clock = clock
        self._accept = accept
        self._next_sid = 1
        self._link: LinkPort | None = None
        self._addresses: tuple[IAddress, IAddress] | None = None
        self._resuming = False
        self._held = False
        self._run: list[memoryview] = []  # what came in a row for the stream _run_sid
        self._run_sid = 0
        self._control: deque[bytes] = deque()
        self._ready: deque[MuxStream] = deque()
        self._timer: IDelayedCall | None = None

    # -- the connection below

    @property
    def attached(self) -> bool:
        """Whether a connection carries the session now."""
        return self._link is not None

    def attach(self, link: LinkPort, resumed: bool) -> None:
        """From now on ``link`` carries the session. On a resumed one both ends first say what they have."""
        self._link = link
        self._addresses = link.addresses
        self._held = False
        self._resuming = resumed
        if resumed:
            link.send([encode_number(0, Command.RESUME, self.ledger.tell())])
        self.pump()

    def detach(self) -> None:
        """The connection is gone; the session may be resumed on another one."""
        self._link = None
        self._stop_timer()

    def end(self, reason: Failure) -> None:
        """The session is over, and each of its streams."""
        if self.over:
            return
        self.over = True
        self.detach()
        streams, self.streams = self.streams, {}
        self._control.clear()
        self._ready.clear()
        for stream in streams.values():
            self._lose(stream, reason)

    # -- frames in

    def begin(self) -> None:
        """Frames follow: nothing is sent before :meth:`finish`."""
        self._held = True

    def finish(self) -> None:
        """All frames that came are here: deliver them, and send what they brought about.

        :raises RemoteProtocolError: as :meth:`frame_received`.
        :raises FloodError: at a server, if too many answers wait.
        """
        try:
            self.deliver()
        finally:
            self._held = False
        self.pump()
        if len(self._control) > MAX_CONTROL and self._accept is not None:
            raise FloodError("too many answers that nobody takes")

    def frame_received(self, frame: bytes) -> None:
        """One frame, in order.

        :raises RemoteProtocolError: for one that is none, or may not come now.
        """
        if frame[4:5] == _BYTES_BYTE:
            sid = int.from_bytes(frame[:4], "big")
            if not sid:
                raise RemoteProtocolError("BYTES for stream 0")
            self._count(frame)
            if sid != self._run_sid:
                self.deliver()
                self._run_sid = sid
            self._run.append(memoryview(frame)[PREFIX:])
            return
        self.deliver()
        sid, command, payload = decode(frame)
        if command is Command.RESUME:
            if not self._resuming:
                raise RemoteProtocolError("RESUME in the middle of a connection")
            self._resuming = False
            self.ledger.resume(int.from_bytes(payload, "big"))
        elif command is Command.ACK:
            if self._resuming:
                raise RemoteProtocolError("ACK before RESUME")
            self.ledger.acknowledged(int.from_bytes(payload, "big"))
        else:
            self._count(frame)
            self._control_received(sid, command, payload)

    def deliver(self) -> None:
        """Hand over what came in a row for one stream, as one piece.

        :raises RemoteProtocolError: if that stream cannot have it.
        """
        run = self._run
        if not run:
            return
        data = b"".join(run)
        run.clear()
        stream = self.streams.get(self._run_sid)
        if stream is not None:
            if stream.window < BUSY_WINDOW and stream.consumed >= BUSY and len(self.streams) <= MAX_BUSY:
                stream.window = BUSY_WINDOW
            stream.data_received(data)
        elif self._run_sid >= self._next_sid:
            raise RemoteProtocolError("bytes for a stream that was never opened")

    def _count(self, frame: bytes) -> None:
        if self._resuming:
            raise RemoteProtocolError("a frame before RESUME")
        self.ledger.count(len(frame))
        if self._timer is None:
            self._timer = self._clock.callLater(ACK_TIME, self._ack_time)

    def _control_received(self, sid: int, command: Command, payload: bytes) -> None:
        if command is Command.OPEN or command is Command.OPEN_DATAGRAMS:
            self._open_received(sid, payload, command is Command.OPEN_DATAGRAMS)
            return
        if sid >= self._next_sid:
            raise RemoteProtocolError(f"{command.name} for a stream that was never opened")
        stream = self.streams.get(sid)
        if stream is None:
            return  # we have ended it, and the peer did not know yet
        if command is _CREDIT:
            stream.allow(stream.allowed + int.from_bytes(payload, "big"))
        elif command is Command.EOF:
            stream.read_ended()
        elif command is Command.RESET:
            del self.streams[sid]
            self._lose(stream, Failure(error.ConnectionLost("the other end reset the stream")))
        elif self._accept is not None or stream.opening is None:
            raise RemoteProtocolError("REPLY to nothing")
        else:
            self._replied(stream, stream.opening, payload[0])

    def _lose(self, stream: MuxStream, reason: Failure) -> None:
        opening, stream.opening = stream.opening, None
        stream.lost(reason)
        if opening is not None:
            opening.done.errback(reason)

    # -- opening: the client

    @property
    def full(self) -> bool:
        """Whether no more streams can be opened."""
        return self.over or len(self.streams) >= MAX_STREAMS or self._next_sid > _LAST_SID

    def open(self, destination: Address, factory: IProtocolFactory, datagrams: bool = False) -> Deferred[IProtocol]:
        """Open a stream; fires with the connected protocol, or fails with why the server could not.

        :raises LocalProtocolError: if no more streams can be opened.
        """
        if self.full:
            raise LocalProtocolError("a session with as many streams as it may have")
        command = Command.OPEN_DATAGRAMS if datagrams else Command.OPEN
        opening = Opening(command, encode_address(destination), factory)
        self.adopt(opening)
        return opening.done

    def adopt(self, opening: Opening) -> None:
        """Open a stream for what :meth:`take_unsent` of another session gave, unless nobody wants it any more."""
        if opening.done.called:
            return
        sid = self._next_sid
        self._next_sid = sid + 1
        stream = self.streams[sid] = MuxStream(self, sid)
        stream.opening = opening
        opening.stream = stream
        self._control.append(encode(sid, opening.command, opening.payload))
        self.pump()

    def take_unsent(self) -> list[Opening]:
        """The streams of which nothing was ever sent; they are this session's no more."""
        found = []
        for frame in list(self._control):
            sid, command, _ = decode(frame)
            if command is Command.OPEN or command is Command.OPEN_DATAGRAMS:
                stream = self.streams.get(sid)
                if stream is not None and stream.opening is not None:
                    self._control.remove(frame)
                    del self.streams[sid]
                    opening, stream.opening = stream.opening, None
                    opening.stream = None
                    found.append(opening)
        return found

    def _replied(self, stream: MuxStream, opening: Opening, code: int) -> None:
        stream.opening = None
        if code:
            del self.streams[stream.sid]
            stream.lost(Failure(error.ConnectionLost("refused")))
            opening.done.errback(Failure(DestinationError(reason_of_rep(code))))
            return
        assert self._addresses is not None
        protocol = opening.factory.buildProtocol(self._addresses[0])
        if protocol is None:
            stream.abortConnection()
            opening.done.errback(Failure(error.NoProtocol()))
            return
        stream.connect(protocol)
        if not opening.done.called:
            opening.done.callback(protocol)

    # -- opening: the server

    def _open_received(self, sid: int, payload: bytes, datagrams: bool) -> None:
        destination = decode_destination(payload)
        if self._accept is None or sid < self._next_sid:
            raise RemoteProtocolError("OPEN of a stream that cannot be")
        self._next_sid = sid + 1
        if len(self.streams) >= MAX_STREAMS:
            self._control.append(_reply(sid, Reason.LIMIT))
            return
        stream = self.streams[sid] = MuxStream(self, sid)
        self._accept(stream, destination, datagrams)

    def reply(self, stream: MuxStream, reason: Reason | None) -> None:
        """Tell the client that its stream is connected, or why not; the stream is over then."""
        if self.streams.get(stream.sid) is not stream:
            return
        self._control.append(_reply(stream.sid, reason))
        if reason is not None:
            del self.streams[stream.sid]
            stream.lost(Failure(error.ConnectionLost(reason.value)))
        self.pump()

    # -- what streams say

    def stream_ready(self, stream: CreditStream) -> None:
        """See :meth:`IStreamOwner.stream_ready`."""
        ours = cast(MuxStream, stream)
        if not ours.scheduled:
            ours.scheduled = True
            self._ready.append(ours)
        self.pump()

    def stream_credit(self, stream: CreditStream, total: int) -> None:
        """See :meth:`IStreamOwner.stream_credit`."""
        ours = cast(MuxStream, stream)
        self._control.append(encode_number(ours.sid, _CREDIT, total - ours.announced))
        ours.announced = total
        self.pump()

    def stream_aborted(self, stream: CreditStream) -> None:
        """See :meth:`IStreamOwner.stream_aborted`."""
        if self.streams.pop(stream.sid, None) is not None:
            self._control.append(encode(stream.sid, Command.RESET))
            self.pump()

    def stream_closed(self, stream: CreditStream) -> None:
        """See :meth:`IStreamOwner.stream_closed`."""
        if self.streams.pop(stream.sid, None) is not None and not stream.read_over:
            self._control.append(encode(stream.sid, Command.RESET))
            self.pump()

    def stream_peer(self) -> IAddress:
        """See :meth:`IStreamOwner.stream_peer`."""
        assert self._addresses is not None
        return self._addresses[0]

    def stream_host(self) -> IAddress:
        """See :meth:`IStreamOwner.stream_host`."""
        assert self._addresses is not None
        return self._addresses[1]

    # -- frames out

    def pump(self) -> None:
        """Send what may be sent."""
        link = self._link
        if self._held or link is None or self._resuming:
            return
        self._held = True
        try:
            while link.writable and self._link is link:
                frames = self._batch()
                if not frames:
                    break
                link.send(frames)
        finally:
            self._held = False

    def _batch(self) -> list[bytes]:
        """The next frames: those to be sent again, then those of control, then streams in turn."""
        ledger, control, ready = self.ledger, self._control, self._ready
        frames: list[bytes] = []
        size = 0
        while size < BATCH and (again := ledger.next_again()) is not None:
            frames.append(again)
            size += len(again)
        while control and size < BATCH and not ledger.is_full:
            frame = control.popleft()
            ledger.keep(frame)
            frames.append(frame)
            size += len(frame)
        while ready and size < BATCH and ledger.has_room:
            stream = ready.popleft()
            payload = stream.take(MAX_PAYLOAD)
            if payload:
                frame = (stream.sid << 8 | _BYTES).to_bytes(PREFIX, "big") + payload
                ledger.keep(frame)
                frames.append(frame)
                size += len(frame)
            if stream.take_end():
                frame = encode(stream.sid, Command.EOF)
                ledger.keep(frame)
                frames.append(frame)
            if stream.ready:
                ready.append(stream)
            else:
                stream.scheduled = False
        if ledger.ack_due(alone=not frames):
            frames.append(encode_number(0, Command.ACK, ledger.tell()))
        return frames

    def _ack_time(self) -> None:
        self._timer = None
        link = self._link
        if link is not None and not self._resuming and self.ledger.wants_ack:
            link.send([encode_number(0, Command.ACK, self.ledger.tell())])

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def _reply(sid: int, reason: Reason | None) -> bytes:
    code = Rep.SUCCEEDED if reason is None else rep_of_reason(reason)
    return encode(sid, Command.REPLY, bytes((code,)))
