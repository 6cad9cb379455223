"""The streams of a session: connections by their CID, with credit for each, on top of a link (P10)."""

from __future__ import annotations

import struct
from collections import deque
from typing import Protocol

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.errors import RemoteProtocolError
from mikanet.filters.streams import CreditStream, IStreamOwner
from mikanet.pickaxe import wire
from mikanet.pickaxe.session import Received, Session
from mikanet.pickaxe.wire import Status

#: Bytes that may be sent on a new connection before the peer has said anything about it.
INITIAL_CREDIT = 64 * 1024

#: What all connections of a session together may have on the way, and the least and most of one (P10).
SESSION_CREDIT, MIN_WINDOW, MAX_WINDOW = 4 * 1024 * 1024, 16 * 1024, 1024 * 1024

#: Connections of one session at the same time.
MAX_STREAMS = 4096

#: Most bytes of one stream's turn: a read of Twisted's.
_TAKE = 64 * 1024

_CID = struct.Struct("<I")
_UNBOUNDED = 1 << 62
_NOBODY = IPv4Address("TCP", "0.0.0.0", 0)


class Sender(Protocol):
    """What a mux needs of its link."""

    def send(self, kind: int, *body: bytes) -> None:
        """Queue a message."""

    def wake(self) -> None:
        """There is something to send, now or soon."""


@implementer(IStreamOwner)
class StreamMux:
    """All connections of one session.

    :ivar link: set by the link that this belongs to.
    :ivar ready: streams that have something to send and may, in the order in which they take turns.
    """

    link: Sender

    def __init__(self) -> None:
        self.ready: deque[CreditStream] = deque()
        self.speaks_credit = False
        self._in_turn: set[CreditStream] = set()
        self._streams: dict[int, CreditStream] = {}
        self._closing: set[int] = set()
        self._gathering = 0
        self._gathered: list[memoryview] = []

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def taken(self) -> int:
        """CIDs that are in use: of streams, and of those whose Close the peer has not answered."""
        return len(self._streams) + len(self._closing)

    def begin(self) -> None:
        """Tell the peer that we speak credit, before the first connection: a credit for nothing, which others skip."""
        self.link.send(wire.ECHO, wire.encode_credit(bytes(4), 0))

    def knows(self, cid: int) -> bool:
        """Whether a CID is taken: it is not used again before both ends have closed it."""
        return cid in self._streams or cid in self._closing

    def open(self, cid: int, protocol: IProtocol) -> CreditStream:
        """A new stream with ``protocol`` on it."""
        stream = CreditStream(self, cid, INITIAL_CREDIT if self.speaks_credit else _UNBOUNDED, INITIAL_CREDIT)
        if not self.speaks_credit:
            stream.granted = SESSION_CREDIT  # such a peer waits for no credit: what it cannot have is cut, not slowed
        self._streams[cid] = stream
        stream.connect(protocol)
        return stream

    def refuse(self, cid: int, status: Status) -> None:
        """The peer opened a connection that we do not want."""
        self._closing.add(cid)
        self._send_close(cid, status)

    # -- what comes

    def received(self, message: Received) -> bool:
        """Take a message about a stream; False if it is about something else. :meth:`deliver` follows the last one."""
        kind = message.kind
        if kind == wire.DATA:
            packet = message.packet
            if len(packet) > wire.DATA_OVERHEAD:
                cid = _CID.unpack_from(packet, wire.HEADER_SIZE)[0]
                if cid != self._gathering:
                    self.deliver()
                    self._gathering = cid
                self._gathered.append(memoryview(packet)[wire.DATA_OVERHEAD :])
                return True
            self.deliver()
            if len(packet) == wire.DATA_OVERHEAD:
                self._end(_CID.unpack_from(packet, wire.HEADER_SIZE)[0])
            return True
        if self._gathered:
            self.deliver()
        if kind == wire.ECHO:
            self._credit(message.body)
        elif kind == wire.CLOSE:
            self._close(message.body)
        else:
            return False
        return True

    def deliver(self) -> None:
        """Pass on the data of the last messages: what came for one stream in a row goes on in one piece."""
        gathered = self._gathered
        if not gathered:
            return
        self._gathered = []
        stream = self._streams.get(self._gathering)
        if stream is None:
            return
        try:
            stream.data_received(b"".join(gathered))
        except RemoteProtocolError:
            self._drop(stream, Status.STALLED)
            stream.lost(Failure(error.ConnectionLost("more bytes than there was credit for")))

    def _end(self, cid: int) -> None:
        stream = self._streams.get(cid)
        if stream is not None:
            stream.read_ended()
            self._close_if_over(stream)

    def _credit(self, body: bytes) -> None:
        try:
            cid, total = wire.decode_credit(body)
        except RemoteProtocolError:
            return
        self.speaks_credit = True
        stream = self._streams.get(_CID.unpack(cid)[0])
        if stream is not None:
            stream.allow(total)

    def _close(self, body: bytes) -> None:
        try:
            cid_bytes, status = wire.decode_close(body)
        except RemoteProtocolError:
            return
        cid: int = _CID.unpack(cid_bytes)[0]
        if cid in self._closing:
            self._closing.discard(cid)
            return
        stream = self._streams.pop(cid, None)
        if stream is None:
            return
        self._send_close(cid, Status.OK)
        if status == Status.OK and stream.write_over:
            stream.read_ended()
        else:
            stream.lost(Failure(error.ConnectionLost("the peer gave the connection up")))

    # -- IStreamOwner

    def stream_ready(self, stream: CreditStream) -> None:
        """See :class:`~mikanet.filters.streams.IStreamOwner`."""
        if stream not in self._in_turn:
            self._in_turn.add(stream)
            self.ready.append(stream)
        self.link.wake()

    def stream_credit(self, stream: CreditStream, total: int) -> None:
        """See :class:`~mikanet.filters.streams.IStreamOwner`: the window follows how many streams share the session."""
        stream.window = max(MIN_WINDOW, min(MAX_WINDOW, SESSION_CREDIT // max(1, len(self._streams))))
        stream.granted = max(stream.granted, stream.consumed + stream.window)
        if stream.sid in self._streams:
            self.link.send(wire.ECHO, wire.encode_credit(_CID.pack(stream.sid), stream.granted))
            self.link.wake()

    def stream_aborted(self, stream: CreditStream) -> None:
        """See :class:`~mikanet.filters.streams.IStreamOwner`."""
        self._drop(stream, Status.FAILURE)
        self.link.wake()

    def stream_closed(self, stream: CreditStream) -> None:
        """See :class:`~mikanet.filters.streams.IStreamOwner`."""
        if not stream.read_over:
            self._drop(stream, Status.FAILURE)
            self.link.wake()

    def stream_peer(self) -> IAddress:
        """See :class:`~mikanet.filters.streams.IStreamOwner`: a session has no address."""
        return _NOBODY

    def stream_host(self) -> IAddress:
        """See :class:`~mikanet.filters.streams.IStreamOwner`."""
        return _NOBODY

    # -- what goes

    def fill(self, session: Session, now: float, room: int, chunk: int) -> None:
        """Let streams take turns until about ``room`` bytes were sent, in packets of at most ``chunk`` bytes of data."""
        ready, send = self.ready, session.send
        most = max(chunk, min(room, _TAKE))
        while ready and room > 0:
            stream = ready.popleft()
            data = stream.take(most)
            if data:
                size = len(data)
                room -= size
                cid = _CID.pack(stream.sid)
                if size <= chunk:
                    send(wire.DATA, cid, data, now=now)
                else:
                    view = memoryview(data)  # cut without a copy
                    for at in range(0, size, chunk):
                        send(wire.DATA, cid, view[at : at + chunk], now=now)
            if stream.take_end():
                room -= wire.DATA_OVERHEAD
                if stream.sid not in self._streams:
                    pass
                elif stream.read_over:
                    self._drop(stream, Status.OK)  # which is the end of our direction, too
                else:
                    send(wire.DATA, _CID.pack(stream.sid), now=now)
            if stream.ready:
                ready.append(stream)
            else:
                self._in_turn.discard(stream)

    def _close_if_over(self, stream: CreditStream) -> None:
        if stream.read_over and stream.write_over and stream.sid in self._streams:
            self._drop(stream, Status.OK)

    def _drop(self, stream: CreditStream, status: Status) -> None:
        """Forget a stream and tell the peer so; its CID stays taken until the peer has told the same."""
        if self._streams.pop(stream.sid, None) is not None:
            self._closing.add(stream.sid)
            self._send_close(stream.sid, status)

    def _send_close(self, cid: int, status: Status) -> None:
        self.link.send(wire.CLOSE, _CID.pack(cid), bytes([status]))

    # -- end

    def abort_all(self) -> None:
        """Reset every stream."""
        for stream in list(self._streams.values()):
            stream.abortConnection()

    def lost(self, reason: Failure) -> None:
        """The session is over."""
        streams = list(self._streams.values())
        self._gathered = []
        self._streams.clear()
        self.ready.clear()
        self._in_turn.clear()
        for stream in streams:
            stream.lost(reason)
