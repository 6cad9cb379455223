"""The smux session: streams, windows, turns and keepalive. No I/O; the clock is passed in.

Contract: :meth:`Session.data_received` takes bytes from the peer and returns events; :meth:`Session.take_output` gives
bytes to send, as many as the owner wants at a time; streams take turns frame by frame.

Source: xtaci/smux ``session.go`` and ``stream.go``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.smux.frame import HEADER, MAX_FRAME, UPDATE, Cmd, FrameError, FrameReader
from mikanet.smux.windows import INITIAL_WINDOW, Window, WindowBank

_MASK = 0xFFFFFFFF
_HALF = 0x80000000
#: Runs of stream ids that were passed over by a higher SYN and may still come, and the ids in one run. A SYN is eight
#: bytes, so what it costs to remember what it passed over must not depend on how far it went.
_MAX_SKIPPED_RUNS, _MAX_SKIPPED = 64, 1024
#: Version 2: how many receive buffers of bytes may be unread before the connection is not read at all. Windows keep a
#: peer within one; only the 256 KiB that each new stream of a peer may send before it hears of us come on top.
_OVERRUN = 4
_LAST_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SmuxSettings:
    """What one end is set to; the version must agree with the peer's.

    :ivar receive_buffer: unread bytes of all streams at which reading the connection stops (version 1); the most that
        the windows of all streams may add up to (version 2).
    :ivar stream_buffer: the largest window that is told to the peer for a stream (version 2).
    :ivar max_streams: streams open at once (Q6).
    :ivar keepalive_interval: seconds between our NOPs.
    :ivar keepalive_timeout: seconds of silence after which, at the next tick, the peer counts as gone.
    :raises ConfigError: if a number is out of range.
    """

    version: int = 2
    max_frame: int = 32768
    receive_buffer: int = 4 << 20
    stream_buffer: int = 2 << 20
    max_streams: int = 1024
    keepalive_interval: float = 10.0
    keepalive_timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ConfigError(f"smux version {self.version} does not exist: give 1 or 2")
        if not 1 <= self.max_frame <= MAX_FRAME:
            raise ConfigError(f"a smux frame of {self.max_frame} bytes is not in 1 to {MAX_FRAME}")
        if not 1 <= self.stream_buffer <= self.receive_buffer:
            raise ConfigError("the smux stream buffer must not be larger than the receive buffer")
        if self.keepalive_timeout < self.keepalive_interval:
            raise ConfigError("the smux keepalive timeout must not be shorter than its interval")


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream."""

    sid: int


@dataclass(frozen=True, slots=True)
class StreamData:
    """One frame's bytes for a stream; counted as unread until :meth:`Session.consumed`."""

    sid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer ended a stream: no more bytes, and ours can no longer reach it."""

    sid: int


Event = StreamOpened | StreamData | StreamEnded


@dataclass(slots=True, eq=False)
class _Stream:
    sid: int
    datagrams: bool = False
    alone: bool = False  # the first write is a frame of its own
    output: deque[bytes] = field(default_factory=deque)
    queued: int = 0
    closing: bool = False  # a FIN follows the output
    over: bool = False  # one end has ended it: it takes no place any more
    waiting_turn: bool = False
    # Ours towards the peer's window (version 2)
    written: int = 0
    peer_consumed: int = 0
    peer_window: int = INITIAL_WINDOW
    # What the peer sent
    window: Window = field(default_factory=Window)

    @property
    def unread(self) -> int:
        """Bytes that were given out and not yet consumed."""
        return self.window.received - self.window.consumed

    @property
    def idle(self) -> bool:
        """Whether the peer has read all that was sent."""
        return self.written == self.peer_consumed

    def room(self) -> int:
        """Bytes that the peer's window lets go."""
        return self.peer_window - ((self.written - self.peer_consumed) & _MASK)


class Session:
    """One end of a smux session.

    :ivar unread: bytes given out as events and not yet consumed.
    :ivar refused: streams of the peer that were not taken.
    """

    def __init__(self, settings: SmuxSettings, client: bool) -> None:
        self.settings = settings
        self._reader = FrameReader(settings.version)
        self._streams: dict[int, _Stream] = {}
        self._next_id = 3 if client else 2
        self._peer_parity = 0 if client else 1
        self._highest_peer_id = 0 if client else 1  # one step before the peer's first
        self._skipped: deque[range] = deque(maxlen=_MAX_SKIPPED_RUNS)
        self._windows = WindowBank(settings.receive_buffer, settings.stream_buffer, settings.max_streams)
        self._over = 0  # streams that one end has ended, and that wait for the other, or for their FIN to be sent
        self._urgent: list[bytes] = []
        self._turns: deque[_Stream] = deque()
        self._heard = False
        self.unread = 0
        self.refused = 0

    # -- our streams

    def open(self) -> int:
        """Open a stream; the peer is told, and is not asked to answer.

        :raises LocalProtocolError: when there are too many streams, or no ids are left.
        """
        if self.full or self._next_id > _LAST_ID:
            raise LocalProtocolError("no more smux streams in this session")
        sid = self._next_id
        self._next_id += 2
        self._urgent.append(self._frame(Cmd.SYN, sid))
        self._begin(sid)
        return sid

    @property
    def full(self) -> bool:
        """Whether as many streams are open as may be. Those that one end has ended do not count, up to as many again."""
        most = self.settings.max_streams
        return len(self._streams) - self._over >= most or len(self._streams) >= 2 * most

    def _begin(self, sid: int) -> None:
        stream = self._streams[sid] = _Stream(sid)
        window = self._windows.open(stream.window)
        if window is not None and self.settings.version == 2:
            self._urgent.append(self._frame(Cmd.UPD, sid, UPDATE.pack(0, window)))

    def keep_boundaries(self, sid: int) -> None:
        """From now on each write to this stream is one frame, never cut or joined."""
        self._streams[sid].datagrams = True

    def keep_first_alone(self, sid: int) -> None:
        """The first write to this stream, still to come, is a frame of its own; what follows may be joined."""
        self._streams[sid].alone = True

    def send(self, sid: int, data: bytes) -> None:
        """Queue bytes for a stream; none are taken once it is closed or ended.

        :raises LocalProtocolError: if the stream keeps boundaries and ``data`` is longer than a frame.
        """
        stream = self._streams.get(sid)
        if stream is None or stream.closing or not data:
            return
        if stream.datagrams and len(data) > self.settings.max_frame:
            raise LocalProtocolError("a datagram does not fit a smux frame")
        stream.output.append(data)
        stream.queued += len(data)
        self._await_turn(stream)

    def queued(self, sid: int) -> int:
        """Bytes of a stream that wait to be sent."""
        stream = self._streams.get(sid)
        return stream.queued if stream is not None else 0

    def is_open(self, sid: int) -> bool:
        """Whether the stream still has something to send or receive."""
        return sid in self._streams

    def consumed(self, sid: int, count: int) -> None:
        """The application took ``count`` bytes of a stream."""
        stream = self._streams.get(sid)
        if stream is None or stream.closing:
            return  # a close has given back what was unread
        self.unread -= count
        window = self._windows.consumed(stream.window, count)
        if window is not None and self.settings.version == 2:
            self._urgent.append(self._frame(Cmd.UPD, sid, UPDATE.pack(stream.window.consumed & _MASK, window)))

    def close(self, sid: int) -> None:
        """End a stream after what is queued has been sent. What still comes for it is thrown away."""
        stream = self._streams.get(sid)
        if stream is None or stream.closing:
            return
        stream.closing = True
        self._end(stream)
        self.unread -= stream.unread
        self._windows.close(stream.window)
        if stream.output:
            self._await_turn(stream)
        else:
            # Nothing of its own is before it; so it leaves before the SYNs of streams that take its place.
            self._urgent.append(self._frame(Cmd.FIN, sid))
            self._forget(stream)

    def _end(self, stream: _Stream) -> None:
        if not stream.over:
            stream.over = True
            self._over += 1

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.sid]
        self._over -= 1

    def abort(self, sid: int) -> None:
        """End a stream now; what is queued is thrown away."""
        stream = self._streams.get(sid)
        if stream is not None:
            stream.output.clear()
            stream.queued = 0
            if stream.closing:
                self._await_turn(stream)
            else:
                self.close(sid)

    def nop(self) -> None:
        """Send a frame that says nothing."""
        self._urgent.append(self._frame(Cmd.NOP, 0))

    def heard(self) -> bool:
        """Whether anything came since the last call, or nothing can come because we stopped reading."""
        heard, self._heard = self._heard, False
        return heard or self.congested

    @property
    def congested(self) -> bool:
        """Whether the owner should stop reading the connection: with version 2 only what windows cannot prevent."""
        most = self.settings.receive_buffer
        return self.unread >= (most if self.settings.version == 1 else _OVERRUN * most)

    # -- bytes in

    def data_received(self, data: bytes) -> list[Event]:
        """What the peer's bytes mean.

        :raises FrameError: if the session cannot go on.
        """
        self._heard = True
        events: list[Event] = []
        for cmd, sid, body in self._reader.feed(data):
            if cmd is Cmd.PSH:
                self._push_received(sid, body, events)
            elif cmd is Cmd.SYN:
                self._syn_received(sid, events)
            elif cmd is Cmd.FIN:
                self._fin_received(sid, events)
            elif cmd is Cmd.UPD:
                self._update_received(sid, *UPDATE.unpack(body))
        return events

    def _push_received(self, sid: int, body: bytes, events: list[Event]) -> None:
        stream = self._streams.get(sid)
        if stream is None or stream.closing or not body:
            return
        window = stream.window
        window.received += len(body)
        self.unread += len(body)
        if self.settings.version == 2 and window.received > window.limit:
            raise FrameError("the peer does not keep to the window of a stream")
        events.append(StreamData(sid, body))

    def _syn_received(self, sid: int, events: list[Event]) -> None:
        if sid & 1 != self._peer_parity:
            raise FrameError("the peer opened a stream with an id of ours")
        if sid in self._streams or not self._is_fresh(sid):
            return
        if self.full:
            self.refused += 1
            self._urgent.append(self._frame(Cmd.FIN, sid))
            return
        self._begin(sid)
        events.append(StreamOpened(sid))

    def _is_fresh(self, sid: int) -> bool:
        """Whether an id was never used. SYNs of streams opened at the same time may change places."""
        highest = self._highest_peer_id
        if sid > highest:
            passed = range(max(highest + 2, sid - 2 * _MAX_SKIPPED), sid, 2)
            if passed:
                self._skipped.append(passed)
            self._highest_peer_id = sid
            return True
        for at, run in enumerate(self._skipped):
            if sid in run:
                del self._skipped[at]
                # The pieces keep their place; at the bound the older one is forgotten.
                rest = [piece for piece in (range(run.start, sid, 2), range(sid + 2, run.stop, 2)) if piece]
                if len(rest) == 2 and len(self._skipped) > _MAX_SKIPPED_RUNS - 2:
                    rest = rest[1:]
                for piece in reversed(rest):
                    self._skipped.insert(at, piece)
                return True
        return False

    def _fin_received(self, sid: int, events: list[Event]) -> None:
        stream = self._streams.get(sid)
        if stream is None:
            return
        # Nothing of ours can reach the application there any more.
        stream.output.clear()
        stream.queued = 0
        if stream.closing:
            self._await_turn(stream)
        else:
            self._end(stream)
            self._windows.ended(stream.window)
            events.append(StreamEnded(sid))

    def _update_received(self, sid: int, consumed: int, window: int) -> None:
        stream = self._streams.get(sid)
        if stream is None:
            return
        if (stream.written - consumed) & _MASK >= _HALF:
            raise FrameError("the peer says that it read more than was sent")
        stream.peer_consumed, stream.peer_window = consumed, window
        if stream.output:
            self._await_turn(stream)

    # -- bytes out

    def take_output(self, most: int) -> bytes:
        """Frames to send: at least one if there is any, and no more once ``most`` bytes are reached."""
        pieces = self._urgent
        self._urgent = []
        size = sum(map(len, pieces))
        turns = self._turns
        while turns and size < most:
            stream = turns.popleft()
            stream.waiting_turn = False
            if self._streams.get(stream.sid) is not stream:
                continue  # it ended while it waited
            data = self._next_data(stream)
            if data:
                pieces.append(HEADER.pack(self.settings.version, Cmd.PSH, len(data), stream.sid))
                pieces.append(data)
                size += len(data) + 8
            elif stream.closing and not stream.output:
                pieces.append(self._frame(Cmd.FIN, stream.sid))
                self._forget(stream)
                continue
            else:
                continue  # its window is used up: the next UPD gives it a turn
            if stream.output or stream.closing:
                self._await_turn(stream)
        return b"".join(pieces)

    def _next_data(self, stream: _Stream) -> bytes:
        output = stream.output
        if not output:
            return b""
        most = self.settings.max_frame
        if self.settings.version == 2:
            room = stream.room()
            while stream.datagrams and output and room < len(output[0]) and stream.idle:
                stream.queued -= len(output.popleft())  # larger than the whole window: it would wait for ever
            if room <= 0 or not output or (stream.datagrams and room < len(output[0])):
                return b""
            most = min(most, room)
        data = output.popleft()
        if stream.alone:
            stream.alone = len(data) > most
            if stream.alone:
                output.appendleft(data[most:])
                data = data[:most]
        elif not stream.datagrams:
            if len(data) > most:
                output.appendleft(data[most:])
                data = data[:most]
            elif output and len(data) < most:
                data = _joined(data, output, most)
        stream.queued -= len(data)
        stream.written = (stream.written + len(data)) & _MASK
        return data

    def _await_turn(self, stream: _Stream) -> None:
        if not stream.waiting_turn:
            stream.waiting_turn = True
            self._turns.append(stream)

    def _frame(self, cmd: Cmd, sid: int, body: bytes = b"") -> bytes:
        return HEADER.pack(self.settings.version, cmd, len(body), sid) + body


def _joined(data: bytes, output: deque[bytes], most: int) -> bytes:
    """``data`` filled up to ``most`` bytes from the chunks that follow it."""
    parts = [data]
    missing = most - len(data)
    while output and missing:
        chunk = output.popleft()
        if len(chunk) > missing:
            output.appendleft(chunk[missing:])
            chunk = chunk[:missing]
        parts.append(chunk)
        missing -= len(chunk)
    return b"".join(parts)
