"""The bytes of a polled link, each way: packets in, segments out, losses repaired. No I/O, no clock.

A polled link repairs what it loses: questions and answers are lost in ways that only their two ends can tell apart from
waiting, and soonest. What a segment is sent in (a question, an answer) is the caller's affair, and may differ each time.
"""

from __future__ import annotations

from collections.abc import Iterable

from mikanet.errors import RemoteProtocolError

#: Segments that may be on the way or out of order; far below half of what sequence numbers tell apart.
MAX_SEGMENTS = 1024
#: Bytes out of order that a receiver keeps.
MAX_HELD_BYTES = 4 << 20
#: Seconds after which a segment without an acknowledgement is sent again if nothing is known of the path.
FIRST_TIMEOUT = 1.0
MIN_TIMEOUT, MAX_TIMEOUT = 0.15, 8.0
#: What reordering is taken for loss at least, in seconds.
MIN_REORDER = 0.002
#: Quarters of a round-trip time by which segments may be overtaken at most before they count as lost.
_MAX_REORDER = 12.0
#: Largest packet.
MAX_PACKET = 65_535


class Rtt:
    """The smoothed round-trip time (RFC 6298).

    :ivar smoothed: seconds, None before the first sample. :ivar least: of all samples, 0 before the first.
    """

    __slots__ = ("least", "smoothed", "variation")

    def __init__(self) -> None:
        self.least = 0.0
        self.smoothed: float | None = None
        self.variation = 0.0

    def sample(self, seconds: float) -> None:
        """One measurement."""
        if self.smoothed is None:
            self.smoothed, self.variation, self.least = seconds, seconds / 2, seconds
        else:
            self.variation += (abs(self.smoothed - seconds) - self.variation) / 4
            self.smoothed += (seconds - self.smoothed) / 8
            self.least = min(self.least, seconds)

    @property
    def timeout(self) -> float:
        """Seconds without an answer that mean a loss."""
        if self.smoothed is None:
            return FIRST_TIMEOUT
        return min(MAX_TIMEOUT, max(MIN_TIMEOUT, self.smoothed + max(0.05, 4 * self.variation)))


class _Segment:
    __slots__ = ("data", "first", "order", "sent_at", "sequence")

    def __init__(self, sequence: int, data: bytes, now: float, order: int) -> None:
        self.sequence = sequence
        self.data = data
        self.sent_at = now
        self.order = order
        self.first = True


class Sender:
    """Cuts packets into segments and sends again what is lost.

    :ivar unsent: bytes that no segment holds yet. :ivar rtt: of segments. :ivar resent: segments sent again.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._next = 0
        self._base = 0
        self._order = 0
        self._flying: dict[int, _Segment] = {}  # in the order in which they were sent last
        self._lost: dict[int, _Segment] = {}
        self._flying_bytes = 0
        self._backoff = 0
        self._alarm_from = 0.0
        self._reorder = 1.0
        self.rtt = Rtt()
        self.resent = 0
        self.acked_bytes = 0

    @property
    def unsent(self) -> int:
        """See the class."""
        return len(self._buffer) - self._at

    @property
    def waiting(self) -> int:
        """Bytes that were not acknowledged."""
        return self.unsent + self._flying_bytes

    @property
    def flying_bytes(self) -> int:
        """Bytes in segments that were sent and not acknowledged."""
        return self._flying_bytes

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` would give a segment, given room."""
        return bool(self._lost) or (self._at < len(self._buffer) and self._next - self._base < MAX_SEGMENTS)

    def ready_for(self, room: int) -> bool:
        """Whether it would give one to an answer with so much room."""
        if self._at < len(self._buffer) and self._next - self._base < MAX_SEGMENTS:
            return True
        return bool(self._lost) and any(len(segment.data) <= room for segment in self._lost.values())

    def backlog(self, room: int) -> int:
        """Segments of ``room`` bytes that wait."""
        return len(self._lost) + -(-self.unsent // room)

    def push(self, packets: Iterable[bytes]) -> None:
        """Packets to send."""
        buffer = self._buffer
        for packet in packets:
            buffer += len(packet).to_bytes(2, "big")
            buffer += packet

    def take(self, room: int, now: float, most: int = 0) -> tuple[int, bytes] | None:
        """A segment of at most ``room`` bytes to send now, as number and data; of ``most`` if it was cut before."""
        if self._lost:
            most = max(room, most)
            for segment in self._lost.values():
                if len(segment.data) <= most:
                    del self._lost[segment.sequence]
                    self.resent += 1
                    segment.first = False
                    return self._fly(segment, now)
        at = self._at
        if at >= len(self._buffer) or room <= 0 or self._next - self._base >= MAX_SEGMENTS:
            return None
        data = bytes(self._buffer[at : at + room])
        at += len(data)
        if at == len(self._buffer):
            self._buffer.clear()
            at = 0
        elif at > 1 << 16:
            del self._buffer[:at]
            at = 0
        self._at = at
        segment = _Segment(self._next, data, now, 0)
        self._next += 1
        self._flying_bytes += len(data)
        return self._fly(segment, now)

    def _fly(self, segment: _Segment, now: float) -> tuple[int, bytes]:
        self._order += 1
        segment.order = self._order
        segment.sent_at = now
        if not self._flying:
            self._alarm_from = now
        self._flying[segment.sequence] = segment
        return segment.sequence & 0xFFFF, segment.data

    def acknowledged(self, ack: int, sack: int, told: int | None, now: float) -> None:
        """The peer has everything before ``ack``, and what the bits of ``sack`` say of the ``told`` (None: all) behind it.

        :raises RemoteProtocolError: if it has what was never sent.
        """
        base = self._base
        count = (ack - base) & 0xFFFF
        if count > self._next - base:
            if count >= 0x8000:
                return  # an old message that was overtaken
            raise RemoteProtocolError("an acknowledgement of what was never sent")
        if not count and not sack:
            return
        newest: _Segment | None = None
        for sequence in range(base, base + count):
            newest = self._landed(sequence, newest)
        self._base = base = base + count
        sequence = base + 1
        end = self._next if told is None else sequence + told
        while sack:
            if sack & 1:
                newest = self._landed(sequence, newest)
            sack >>= 1
            sequence += 1
        if newest is None:
            return
        self._backoff = 0
        self._alarm_from = now
        if newest.first:
            self.rtt.sample(now - newest.sent_at)
        self._give_up_before(newest, end)

    def came_twice(self) -> None:
        """The peer got a segment again that had not been lost: wait longer for what is overtaken."""
        self._reorder = min(_MAX_REORDER, self._reorder * 1.5)

    def _landed(self, sequence: int, newest: _Segment | None) -> _Segment | None:
        segment = self._flying.pop(sequence, None) or self._lost.pop(sequence, None)
        if segment is None:
            return newest
        size = len(segment.data)
        self._flying_bytes -= size
        self.acked_bytes += size
        return segment if newest is None or segment.order > newest.order else newest

    def _give_up_before(self, newest: _Segment, end: int) -> None:
        """What was sent well before something that has landed is lost, as far as the peer has told of it."""
        limit = newest.sent_at - max(MIN_REORDER, (self.rtt.smoothed or 0.0) / 4 * self._reorder)
        lost = []
        for segment in self._flying.values():
            if segment.order >= newest.order:
                break
            if segment.sent_at <= limit and segment.sequence < end:
                lost.append(segment)
        for segment in lost:
            del self._flying[segment.sequence]
            self._lost[segment.sequence] = segment

    @property
    def deadline(self) -> float | None:
        """When :meth:`time_out` is due."""
        if not self._flying or self._lost:
            return None
        return self._alarm_from + min(MAX_TIMEOUT, self.rtt.timeout * (1 << min(self._backoff, 6)))

    def time_out(self, now: float) -> None:
        """Nothing was heard of for long: send the first again, that the peer needs most. What is heard then tells of others."""
        first = min(self._flying)
        self._lost[first] = self._flying.pop(first)
        self._backoff += 1
        self._alarm_from = now


class Receiver:
    """Puts segments in order and packets together.

    :ivar sack: bit n from the lowest: segment ``ack + 1 + n`` is here. :ivar twice: one came again since this was reset.
    :ivar most_held: bytes that are kept behind gaps; more are dropped, to be sent again.
    """

    def __init__(self) -> None:
        self._next = 0
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self.most_held = MAX_HELD_BYTES
        self._stream = bytearray()
        self.sack = 0
        self.twice = False

    @property
    def ack(self) -> int:
        """The next segment expected."""
        return self._next & 0xFFFF

    def take(self, number: int, data: bytes) -> list[bytes]:
        """A segment came; the packets that are whole now."""
        distance = (number - self._next) & 0xFFFF
        if distance:
            sequence = self._next + distance
            if distance >= MAX_SEGMENTS or sequence in self._held:
                self.twice = True
            elif self._held_bytes + len(data) <= self.most_held:
                self._held[sequence] = data
                self._held_bytes += len(data)
                self.sack |= 1 << (distance - 1)
            return []
        stream = self._stream
        stream += data
        self._next += 1
        if self._held:
            self._close_gap()
        return self._packets(stream)

    def _close_gap(self) -> None:
        # The lowest bit is the segment that is next now; the picture moves on by one more than what was taken from it.
        sack = self.sack
        while sack & 1:
            data = self._held.pop(self._next)
            self._held_bytes -= len(data)
            self._stream += data
            self._next += 1
            sack >>= 1
        self.sack = sack >> 1

    @staticmethod
    def _packets(stream: bytearray) -> list[bytes]:
        packets = []
        at, end = 0, len(stream)
        while at + 2 <= end:
            stop = at + 2 + (stream[at] << 8 | stream[at + 1])
            if stop > end:
                break
            packets.append(bytes(stream[at + 2 : stop]))
            at = stop
        if at:
            del stream[:at]
        return packets
