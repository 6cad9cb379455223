"""The KCP session: what is sent, acknowledged, sent again and delivered. No I/O; the clock is passed in.

Contract: :meth:`Arq.input` takes one datagram and says what should follow (:class:`Due`); the owner calls
:meth:`Arq.flush` with that, once for a whole batch of datagrams if it likes, and sends the datagrams that come back.
:meth:`Arq.deadline` says when the next flush is due by itself. ``now`` is a whole number of milliseconds on a clock
that never goes back; what goes on the wire is its low 32 bits plus ``ts_offset``.

Only what is due is looked at: kcp-go walks its whole window in each flush, this keeps the few segments that later
acknowledgements have passed (``_gaps``) and a lower bound of the next timeout.

Source: kcp-go 5.6.72 ``kcp.go``. Terms are KCP's.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from dataclasses import dataclass

from mikanet.kcp.congestion import CongestionWindow
from mikanet.kcp.pathmtu import STUCK_AFTER, UNANSWERED, PathMtu
from mikanet.kcp.rtt import RttEstimator
from mikanet.kcp.segment import (
    ACK,
    HALF,
    HEADER,
    HEADER_LENGTH,
    MASK,
    PUSH,
    WASK,
    WINS,
    ImpossibleAckError,
    SegmentError,
)
from mikanet.kcp.sendqueue import MessageQueue, StreamQueue
from mikanet.kcp.settings import ArqSettings

#: The peer's window until its first packet tells.
INITIAL_REMOTE_WINDOW = 32
#: First wait before a closed window is probed, and the longest.
PROBE_FIRST_MS = 500
PROBE_LIMIT_MS = 120_000
#: Transmissions of one segment after which the link counts as dead. kcp-go sets a mark there and never reads it; we
#: do (Q9).
DEAD_LINK = 20
#: Segments that :meth:`Arq.hurry` sends again: enough to set everything going.
HURRIED = 32
#: No limit of the receive window but that of the settings.
UNLIMITED = 65535
_NEVER = 1 << 62
#: Most (sn, ts) remembered while the peer has not proven itself.
_MAX_CHALLENGES = 4096


class Due(enum.IntEnum):
    """What should follow a datagram; the larger includes the smaller."""

    NOTHING = 0
    ACKS = 1
    FLUSH = 2


@dataclass(slots=True, eq=False)
class _Sent:
    """A segment in flight. ``index`` counts segments from the session's start and does not wrap.

    ``unanswered`` counts transmissions after which the peer was heard and this was not acknowledged; ``heard`` is how much
    had been heard at the last one.
    """

    index: int
    sn: int
    frg: int
    data: bytes
    ts: int = 0
    resend_at: int = 0
    rto: int = 0
    fastack: int = 0
    xmit: int = 0
    acked: bool = False
    counted: bool = False
    heard: int = 0
    unanswered: int = 0


class Arq:
    """One end of a KCP session.

    :ivar conv: the conversation number that both ends use.
    :ivar dead: a segment was sent :data:`DEAD_LINK` times, and none was acknowledged since.
    :ivar proven: the peer acknowledged a segment with a time stamp that it was sent with, so it is live (Q4).
    :ivar must_prove: nothing leaves the send window before the proof, so that the proof cannot be lost.
    :ivar first_size: most bytes of the first segment, and no other leaves before the proof; None for no such bound.
    :ivar receive_limit: largest receive window told to the peer, and kept for it, while that is smaller than the
        settings'; see :data:`UNLIMITED`.
    :ivar path: what is known of the sizes that the path carries; None where no more is wanted than all paths carry.
    :ivar retransmissions: segments sent more than once, counted each time.
    """

    __slots__ = (
        "_acks",
        "_ask_window",
        "_challenges",
        "_congestion",
        "_frontier",
        "_gaps",
        "_heard",
        "_in_flight",
        "_large_arrived",
        "_last_flush",
        "_mtu",
        "_next_timeout",
        "_out_of_order",
        "_probe",
        "_probe_at",
        "_probe_wait",
        "_queue",
        "_received",
        "_resend",
        "_rmt_wnd",
        "_snd_una",
        "_snd_una_index",
        "_tell_window",
        "_ts_offset",
        "_unsent",
        "_watched",
        "_watched_passes",
        "conv",
        "dead",
        "first_size",
        "must_prove",
        "path",
        "proven",
        "rcv_nxt",
        "receive_limit",
        "retransmissions",
        "rtt",
        "settings",
    )

    def __init__(self, conv: int, settings: ArqSettings, ts_offset: int = 0, first_sn: int = 0) -> None:
        self.conv = conv
        self.settings = settings
        self.rtt = RttEstimator(settings.interval_ms, settings.mode.nodelay)
        self._congestion = None if settings.mode.nc else CongestionWindow(settings.mss)
        self._resend = settings.mode.resend
        self.path = PathMtu(settings.base_mtu, settings.mtu) if 0 < settings.base_mtu < settings.mtu else None
        self._mtu = settings.mtu if self.path is None else self.path.size
        self._probe: tuple[_Sent, int] | None = None  # the segment of a datagram that was filled up, and its size
        self._heard = 0  # datagrams from the peer
        self._large_arrived = -1  # index of the highest segment that needed more than the least size
        self._ts_offset = ts_offset
        self.dead = False
        self.proven = False
        self.must_prove = False
        self.first_size: int | None = None
        self.receive_limit = UNLIMITED
        self.retransmissions = 0
        # Sending
        self._queue: StreamQueue | MessageQueue = (StreamQueue if settings.stream else MessageQueue)(
            self._mtu - HEADER_LENGTH
        )
        self._in_flight: deque[_Sent] = deque()
        self._unsent: list[_Sent] = []  # in the window, but moved there by a flush that sends no data
        self._snd_una = first_sn
        self._snd_una_index = 0
        self._frontier = 0  # index after the highest acknowledged segment
        self._gaps: list[_Sent] = []  # unacknowledged below the frontier, still counting
        self._watched = -1  # index of the lowest acknowledged segment above the first missing one
        self._watched_passes = 0
        self._next_timeout = _NEVER  # nothing in flight times out before this
        self._rmt_wnd = INITIAL_REMOTE_WINDOW
        self._probe_wait = 0
        self._probe_at = 0
        # Every (sn, ts) sent, until one of them comes back.
        self._challenges: set[tuple[int, int]] | None = set()
        # Receiving
        self.rcv_nxt = first_sn
        self._received: deque[tuple[int, bytes]] = deque()
        self._out_of_order: dict[int, tuple[int, bytes]] = {}
        self._acks: list[tuple[int, int]] = []
        self._ask_window = False
        self._tell_window = False
        self._last_flush = 0

    # -- the application's side

    def send(self, data: bytes) -> None:
        """Queue bytes (stream mode) or one message."""
        self._queue.put(data)

    @property
    def waiting(self) -> int:
        """Segments queued or in flight; a writer should pause at ``snd_wnd``."""
        return self._queue.segments() + len(self._in_flight)

    @property
    def acknowledged(self) -> int:
        """Segments from the session's start up to the first that is not acknowledged."""
        return self._snd_una_index

    def hurry(self, now: int) -> None:
        """Let the first segments in flight time out now, and have their patience anew."""
        for segment in itertools.islice(self._in_flight, HURRIED):
            if segment.xmit and not segment.acked:
                segment.resend_at, segment.rto = now, self.rtt.rto
                self._next_timeout = now

    @property
    def sendable(self) -> int:
        """Full and partial segments that wait and that the windows would let go now."""
        return min(self._queue.segments(), self._window() - len(self._in_flight))

    @property
    def buffered(self) -> int:
        """Segments in memory, of both directions; each is a packet at most."""
        return self.waiting + len(self._received) + len(self._out_of_order)

    @property
    def readable(self) -> bool:
        """Whether something was received."""
        return bool(self._received)

    def receive_stream(self) -> bytes:
        """Everything that has arrived in order, as bytes."""
        received = self._received
        if not received:
            return b""
        was_full = len(received) >= self.settings.rcv_wnd
        pieces = [data for _, data in received]
        received.clear()
        while self._out_of_order and self._move_in_order():
            pieces += [data for _, data in received]
            received.clear()
        if was_full:
            self._tell_window = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def receive_message(self) -> bytes | None:
        """The next whole message, or None."""
        received = self._received
        if not received or len(received) < received[0][0] + 1:
            return None
        was_full = len(received) >= self.settings.rcv_wnd
        pieces = []
        while True:
            frg, data = received.popleft()
            pieces.append(data)
            if frg == 0:
                break
        self._move_in_order()
        if was_full and len(received) < self.settings.rcv_wnd:
            self._tell_window = True
        return b"".join(pieces)

    # -- datagrams in

    def input(self, datagram: bytes, now: int, regular: bool = True) -> Due:
        """Take one datagram.

        :param regular: False if FEC rebuilt it: then neither its window nor its times count.
        :raises SegmentError: at the first bad segment; what came before it in the datagram stays done.
        :raises ImpossibleAckError: if it acknowledges what was never sent.
        """
        unpack, conv, rcv_wnd = HEADER.unpack_from, self.conv, self._receive_window()
        at, end = 0, len(datagram)
        if end < HEADER_LENGTH:
            raise SegmentError("shorter than a segment")
        self._heard += 1
        una_before = self._snd_una
        acked_ts = -1
        resend_due = False
        while end - at >= HEADER_LENGTH:
            its_conv, cmd, frg, wnd, ts, sn, una, length = unpack(datagram, at)
            at += HEADER_LENGTH
            if its_conv != conv or length > end - at or not PUSH <= cmd <= WINS:
                raise SegmentError("not a segment of this conversation")
            if regular:
                self._rmt_wnd = wnd
            if una != self._snd_una:
                self._acknowledge_below(una)
            if cmd == PUSH:
                ahead = (sn - self.rcv_nxt) & MASK
                if ahead < rcv_wnd:
                    self._acks.append((sn, ts))
                    if ahead == 0 and not self._out_of_order and len(self._received) < rcv_wnd:
                        self._received.append((frg, datagram[at : at + length]))
                        self.rcv_nxt = (sn + 1) & MASK
                    elif sn not in self._out_of_order:
                        self._out_of_order[sn] = (frg, datagram[at : at + length])
                        if ahead == 0:
                            self._move_in_order()
                elif ahead >= HALF:
                    self._acks.append((sn, ts))  # an old duplicate: the peer missed our acknowledgement
            elif cmd == ACK:
                acked_ts = ts
                if self._acknowledge(sn, ts):
                    resend_due = True
            elif cmd == WASK:
                self._tell_window = True
            at += length
        return self._after_input(now, acked_ts if regular else -1, una_before != self._snd_una, resend_due)

    def _after_input(self, now: int, acked_ts: int, una_moved: bool, resend_due: bool) -> Due:
        if acked_ts >= 0:
            rtt = (now + self._ts_offset - acked_ts) & MASK
            if rtt < HALF:
                self.rtt.sample(rtt)
        if una_moved and self._congestion is not None:
            self._congestion.acknowledged(self._rmt_wnd)
        if una_moved or resend_due:
            return Due.FLUSH
        acks = len(self._acks)
        if acks and (self.settings.mode.ack_no_delay or acks >= self._mtu // HEADER_LENGTH):
            return Due.ACKS
        return Due.NOTHING

    def _acknowledge_below(self, una: int) -> None:
        """Every segment before ``una`` has arrived."""
        count = (una - self._snd_una) & MASK
        if count >= HALF:
            return
        in_flight = self._in_flight
        if count > len(in_flight):
            raise ImpossibleAckError("una is beyond what was sent")
        if self.must_prove and not self.proven:
            # Anyone can guess una. What it covers is sent again until an acknowledgement with its time comes.
            return
        for _ in range(count):
            # Marked for those that still stand in _gaps or _unsent.
            segment = in_flight.popleft()
            segment.acked = True
        if count:
            self._note_arrival(segment)
        self._snd_una = una
        self._snd_una_index += count
        self.dead = False

    def _acknowledge(self, sn: int, ts: int) -> bool:
        """One segment has arrived; true if that makes the resending of an earlier one due."""
        # Before anything else: the datagram's own una may have taken the segment along already.
        if self._challenges is not None and (sn, ts) in self._challenges:
            self._challenges = None
            self.proven = True
        offset = (sn - self._snd_una) & MASK
        in_flight = self._in_flight
        if offset >= len(in_flight):
            if offset < HALF:
                raise ImpossibleAckError("acknowledges what was not sent")
            return False
        segment = in_flight[offset]
        if not segment.xmit:
            raise ImpossibleAckError("acknowledges what was not sent")
        passed = self._pass_acked(segment)
        segment.acked = True
        self._note_arrival(segment)
        index = segment.index
        una_index = self._snd_una_index
        first = max(self._frontier, una_index)
        if index >= first:
            for position in range(first - una_index, offset):
                self._count(in_flight[position])
            self._frontier = index + 1
        return (bool(self._gaps) and self._pass_gaps(index, ts)) or passed

    def _pass_acked(self, segment: _Sent) -> bool:
        """kcp-go counts passes over acknowledged segments too, as long as they stand in its buffer, and flushes.

        That matters for early resends. The lowest of them has the highest count, so it is the one that is watched.
        """
        index = segment.index
        if self._watched < self._snd_una_index or index < self._watched:
            self._watched = index
            self._watched_passes = segment.fastack
            return False
        if index > self._watched:
            self._watched_passes += 1
        return self._watched_passes >= self._resend

    def _count(self, segment: _Sent) -> None:
        if not segment.acked and not segment.counted:
            segment.counted = True
            self._gaps.append(segment)

    def _pass_gaps(self, index: int, ts: int) -> bool:
        """The segment ``index``, sent at ``ts``, arrived: count that for those sent before and still missing."""
        resend = self._resend
        due = False
        for segment in self._gaps:
            if not segment.acked and segment.index < index and (ts - segment.ts) & MASK < HALF:
                segment.fastack += 1
                if segment.fastack >= resend:
                    due = True
        return due

    def _move_in_order(self) -> bool:
        waiting, received, rcv_wnd = self._out_of_order, self._received, self._receive_window()
        moved = False
        while waiting and len(received) < rcv_wnd:
            item = waiting.pop(self.rcv_nxt, None)
            if item is None:
                break
            received.append(item)
            self.rcv_nxt = (self.rcv_nxt + 1) & MASK
            moved = True
        return moved

    # -- sizes

    def _note_arrival(self, segment: _Sent) -> None:
        """A segment has arrived: that tells of its size, as far as nothing larger than the least is lost for good."""
        if self.path is not None and len(segment.data) + HEADER_LENGTH > self.path.base:
            self._large_arrived = max(self._large_arrived, segment.index)

    @property
    def stuck(self) -> bool:
        """The path carries the first segment's size no more: it was sent often, and smaller ones arrive, and no large one.

        That is not so while nothing at all comes from the peer: then the path carries nothing, and may be back any time.
        """
        if self.path is None or not self._in_flight:
            return False
        first = self._in_flight[0]
        return (
            first.xmit >= STUCK_AFTER
            and first.unanswered >= UNANSWERED
            and len(first.data) + HEADER_LENGTH > self.path.base
            and first.index < self._frontier
            and self._large_arrived < first.index
        )

    def _judge_probe(self, now: int) -> None:
        """Whether the filled datagram arrived, if that can be told."""
        if self._probe is None or self.path is None:
            return
        segment, size = self._probe
        if segment.xmit > 1:
            self._probe = None
            self.path.failed(size, now)
        elif segment.acked:
            self._probe = None
            self.path.passed(size)
            self._mtu = self.path.size
            self._queue.mss = self._mtu - HEADER_LENGTH

    def _fill_up(self, parts: list[bytes], now: int, last: _Sent) -> None:
        """Make the open datagram, which ends with a segment that was never sent before, as large as is to be tried."""
        if self.path is None or self._probe is not None or not self.proven or not self._snd_una_index:
            return
        wanted = self.path.wanted(now)
        room = wanted - sum(map(len, parts)) - HEADER_LENGTH
        if not wanted or room < 0:
            return
        ts, sn = (now + self._ts_offset) & MASK, (self._snd_una - 1) & MASK
        parts.append(HEADER.pack(self.conv, PUSH, 0, self._unused_window(), ts, sn, self.rcv_nxt, room))
        parts.append(bytes(room))
        self._probe = last, wanted

    # -- datagrams out

    def flush(self, now: int, due: Due = Due.FLUSH) -> list[bytes]:
        """The datagrams to send now, each at most ``mtu`` bytes; with :attr:`Due.ACKS` no data goes along."""
        datagrams: list[bytes] = []
        if self._probe is not None:
            self._judge_probe(now)
        parts = self._control_segments(now, datagrams)
        window = self._window()
        moved = self._fill_window(window)
        self._last_flush = now
        if due is Due.FLUSH:
            again, resent, timed_out = self._to_send_again(now, moved)
            unsent = self._unsent
            if again or unsent:
                parts = self._transmit(again + unsent if again else unsent, now, parts, datagrams)
                if unsent:
                    self._fill_up(parts, now, unsent[-1])
                self._unsent = []
            if self._congestion is not None:
                self._congestion.flushed(resent, timed_out, len(self._in_flight), window, self._resend)
        if parts:
            datagrams.append(b"".join(parts))
        return datagrams

    def deadline(self) -> int | None:
        """When :meth:`flush` is next due if nothing else happens; None if nothing waits for time to pass."""
        soon = self._last_flush + self.settings.interval_ms
        if self._acks or self._tell_window or self._unsent or self._gaps:
            return min(soon, self._next_timeout)
        at = self._next_timeout if self._in_flight else _NEVER
        if self._queue.segments():
            if self._rmt_wnd == 0:
                at = min(at, self._probe_at if self._probe_wait else soon)
            elif self.first_size is not None and not self.proven and self._in_flight:
                pass  # nothing more leaves before the proof
            elif self._congestion is not None or len(self._in_flight) < self._window():
                at = min(at, soon)
        return None if at == _NEVER else at

    def next_interval(self, now: int) -> int:
        """Milliseconds until kcp-go would flush again: the interval, or the nearest timeout if that is sooner."""
        return min(self.settings.interval_ms, self._next_timeout - now)

    def _window(self) -> int:
        window = min(self.settings.snd_wnd, self._rmt_wnd)
        return window if self._congestion is None else min(window, self._congestion.cwnd)

    def _receive_window(self) -> int:
        """Segments that are taken from the next expected one on, and kept for the application.

        Whoever heard of a limit sends no more than that, and who has not heard of us yet one more.
        """
        return min(self.settings.rcv_wnd, self.receive_limit + 1)

    def _unused_window(self) -> int:
        return max(min(self.settings.rcv_wnd, self.receive_limit) - len(self._received), 0)

    def _control_segments(self, now: int, datagrams: list[bytes]) -> list[bytes]:
        """Acknowledgements and window segments; returns those of the last, still open, datagram."""
        self._probe_remote_window(now)
        headers: list[bytes] = []
        pack, conv, wnd, una = HEADER.pack, self.conv, self._unused_window(), self.rcv_nxt
        sn = ts = 0
        if self._acks:
            last = self._acks[-1]
            for ack in self._acks:
                # una covers those below it; the last one goes in any case, for the peer's measure of time.
                if (ack[0] - una) & MASK < HALF or ack is last:
                    sn, ts = ack
                    headers.append(pack(conv, ACK, 0, wnd, ts, sn, una, 0))
            self._acks = []
        if self._ask_window:
            headers.append(pack(conv, WASK, 0, wnd, ts, sn, una, 0))
            self._ask_window = False
        if self._tell_window:
            headers.append(pack(conv, WINS, 0, wnd, ts, sn, una, 0))
            self._tell_window = False
        per_datagram = self._mtu // HEADER_LENGTH
        while len(headers) > per_datagram:
            datagrams.append(b"".join(headers[:per_datagram]))
            del headers[:per_datagram]
        return headers

    def _probe_remote_window(self, now: int) -> None:
        if self._rmt_wnd:
            self._probe_wait = 0
        elif not self._probe_wait:
            self._probe_wait = PROBE_FIRST_MS
            self._probe_at = now + self._probe_wait
        elif now >= self._probe_at:
            self._probe_wait = min(self._probe_wait + self._probe_wait // 2, PROBE_LIMIT_MS)
            self._probe_at = now + self._probe_wait
            self._ask_window = True

    def _fill_window(self, window: int) -> bool:
        """Give waiting segments their numbers; true if there were any."""
        room = window - len(self._in_flight)
        most = None if self.proven else self.first_size
        if most is not None:
            room = min(room, 1 - len(self._in_flight))
        taken = self._queue.take(room, most) if room > 0 else None
        if not taken:
            return False
        index = self._snd_una_index + len(self._in_flight)
        sn = (self._snd_una + len(self._in_flight)) & MASK
        for frg, data in taken:
            segment = _Sent(index, sn, frg, data)
            self._in_flight.append(segment)
            self._unsent.append(segment)
            index += 1
            sn = (sn + 1) & MASK
        return True

    def _to_send_again(self, now: int, moved: bool) -> tuple[list[_Sent], int, int]:
        """The segments to send again, in order; how many of them early, and how many after their timeout."""
        again: list[_Sent] = []
        if self._gaps:
            rto, resend = self.rtt.rto, self._resend
            keep = []
            for segment in self._gaps:
                if segment.acked:
                    continue
                fastack = segment.fastack
                if fastack and ((resend and fastack >= resend) or not moved):
                    # Once sent early it is left to its timeout, and counts no more until then.
                    segment.counted = False
                    segment.rto = rto
                    segment.resend_at = now + rto
                    again.append(segment)
                else:
                    keep.append(segment)
            self._gaps = keep
        early = len(again)
        if self._next_timeout - now < self.settings.interval_ms:
            again += self._timed_out(now)
        if early and len(again) > early:
            again.sort(key=_index)
        self.retransmissions += len(again)
        return again, early, len(again) - early

    def _timed_out(self, now: int) -> list[_Sent]:
        """Segments past their timeout, which are given a longer one; finds the next timeout anew."""
        growth = self.rtt.rto >> (1 if self.settings.mode.nodelay else 0)
        late: list[_Sent] = []
        nearest = _NEVER
        for segment in self._in_flight:
            if segment.acked or not segment.xmit:
                continue
            if segment.resend_at <= now:
                segment.rto += growth
                segment.resend_at = now + segment.rto
                segment.fastack = 0
                if not segment.counted and segment.index < self._frontier:
                    self._gaps.append(segment)
                    segment.counted = True
                late.append(segment)
            nearest = min(nearest, segment.resend_at)
        self._next_timeout = nearest
        return late

    def _transmit(self, segments: list[_Sent], now: int, parts: list[bytes], datagrams: list[bytes]) -> list[bytes]:
        """Cut segments into datagrams; ``parts`` is the open one, and so is what comes back."""
        pack, conv, wnd, una, mtu = HEADER.pack, self.conv, self._unused_window(), self.rcv_nxt, self._mtu
        ts = (now + self._ts_offset) & MASK
        rto = self.rtt.rto
        size = HEADER_LENGTH * len(parts)
        nearest = self._next_timeout
        for segment in segments:
            if not segment.xmit:
                segment.rto = rto
                segment.resend_at = now + rto
            if segment.resend_at < nearest:
                nearest = segment.resend_at
            if segment.xmit and segment.heard != self._heard:
                segment.unanswered += 1
            segment.heard = self._heard
            segment.xmit += 1
            if segment.xmit >= DEAD_LINK:
                self.dead = True
            segment.ts = ts
            data = segment.data
            length = len(data)
            if size and size + HEADER_LENGTH + length > mtu:
                datagrams.append(b"".join(parts))
                parts = []
                size = 0
            parts.append(pack(conv, PUSH, segment.frg, wnd, ts, segment.sn, una, length))
            parts.append(data)
            size += HEADER_LENGTH + length
        self._next_timeout = nearest
        if self._challenges is not None and len(self._challenges) < _MAX_CHALLENGES:
            self._challenges.update((segment.sn, ts) for segment in segments)
        return parts


def _index(segment: _Sent) -> int:
    return segment.index
