"""The sending side of a session: what was sent stays until it is acknowledged, and is sent again, byte for byte, when
it must be (P3, P4). Plain Python, no I/O: time is passed in.

What a reliable path took is sent again only when that path is gone or is not the one in use any more; what an
unreliable one took, when an acknowledgement is overdue or the peer says that it has what came after.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from mikanet.pickaxe.paths import Path

#: Bounds of the resend timeout, in seconds (P4).
MIN_RTO, MAX_RTO = 0.2, 10.0
_INITIAL_RTO = 1.0

#: Most bytes that may be unacknowledged on paths that are all reliable, and where one is not (P2b).
WINDOW = 4 * 1024 * 1024
SMALL_WINDOW = 256 * 1024

#: With a narrow carrier at hand that repairs its own losses, this many seconds of what is being acknowledged may be
#: unacknowledged, within the two bounds above; and the least time over which that is measured.
BACKLOG_TIME, _RATE_TIME = 1.5, 0.2

#: Most packets on an unreliable path that are not acknowledged: what the peer holds out of order (P3), less a few. And on
#: reliable ones, where only memory counts.
MAX_PACKETS, MAX_RELIABLE_PACKETS = 4000, 16_384

#: Unacknowledged packets, and bytes, that only a peer causes who asks and never acknowledges.
OVERRUN_PACKETS, OVERRUN_BYTES = 32_768, 3 * WINDOW

#: The congestion window of unreliable paths, in bytes: at first, and at least (our choice).
_INITIAL_CWND, _MIN_CWND = 16 * 1024, 4800

#: How many later packets the peer must have before one is taken for lost and not for late.
_REORDERING = 3


#: A reliable path by which something came within this time, in seconds, is at work, though it is not the one in use.
_ALIVE = 2.0


class RoundTrip:
    """The smoothed round trip and the resend timeout made of it (RFC 6298), in seconds.

    :ivar srtt: None before the first sample.
    """

    __slots__ = ("_backoff", "rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.rttvar = 0.0
        self._backoff = 1.0

    def sample(self, rtt: float) -> None:
        """One measured round trip."""
        if self.srtt is None:
            self.srtt, self.rttvar = rtt, rtt / 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8

    @property
    def rto(self) -> float:
        """Seconds after which an acknowledgement is overdue."""
        base = _INITIAL_RTO if self.srtt is None else self.srtt + 4 * self.rttvar
        return min(max(base, MIN_RTO) * self._backoff, MAX_RTO)

    def back_off(self) -> None:
        """An acknowledgement was overdue."""
        self._backoff = min(self._backoff * 2, 64)

    def progress(self) -> None:
        """One came."""
        self._backoff = 1.0


class Sent:
    """A numbered packet that is not acknowledged yet.

    :ivar path: what took it last; None while it waits to be sent. :ivar bare: an answer to an echo, which nobody misses
        for its own sake. :ivar held: the peer has it, and waits for an earlier one.
    """

    __slots__ = ("acknowledged", "bare", "counter", "flying", "held", "packet", "path", "sent_at", "tries")

    def __init__(self, counter: int, packet: bytes, bare: bool) -> None:
        self.counter = counter
        self.packet = packet
        self.bare = bare
        self.path: Path | None = None
        self.sent_at = 0.0
        self.tries = 0
        self.acknowledged = self.held = self.flying = False


class SendWindow:
    """All that is unacknowledged, and which of it is to be sent next.

    :ivar size: unacknowledged bytes. :ivar waiting: bytes of those that wait to be sent, for the first time or again.
    :ivar limit: most unacknowledged bytes. :ivar measured: whether the rate of acknowledgements bounds them, too, so that
        moving onto a slow path, or away from it, is quick. :ivar resent: packets that were sent again.
    """

    def __init__(self) -> None:
        self.round_trip = RoundTrip()
        self.limit = WINDOW
        self.measured = False
        self._path: Path | None = None
        self._rate_from: float | None = None
        self._rate_bytes = 0
        self.size = self.waiting = self.resent = 0
        self._sent: dict[int, Sent] = {}
        self._first = 0  # no lower number is in it
        self._queue: deque[Sent] = deque()  # to be sent for the first time
        self._again: list[tuple[int, Sent]] = []  # to be sent again: a heap, by number
        self._flight = 0
        self._cwnd = _INITIAL_CWND
        self._threshold = SMALL_WINDOW
        self._cut_at = float("-inf")
        self._due: float | None = None

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def overrun(self) -> bool:
        """Whether the peer makes us keep more than any honest one does."""
        return len(self._sent) > OVERRUN_PACKETS or self.size > OVERRUN_BYTES

    @property
    def deadline(self) -> float | None:
        """When :meth:`overdue` is to be called next."""
        return self._due

    def bound(self, path: Path | None) -> int:
        """Most bytes that may be unacknowledged while ``path`` is in use."""
        if not self.measured or path is None:
            return self.limit
        return min(self.limit, max(SMALL_WINDOW, int(path.rate * BACKLOG_TIME)))

    def room(self, path: Path | None) -> int:
        """Bytes that may be numbered now, to be sent by ``path``."""
        room = self.bound(path) - self.size
        if len(self._sent) >= MAX_RELIABLE_PACKETS:
            return 0
        if path is not None and not path.reliable:
            if len(self._sent) >= MAX_PACKETS:
                return 0
            room = min(room, self._cwnd - self._flight - self.waiting)
        return room

    # -- sending

    def add(self, sent: Sent) -> None:
        """A new packet, to be sent by whatever path is in use."""
        self._keep(sent)
        self.size += len(sent.packet)
        self._queue.append(sent)
        self.waiting += len(sent.packet)

    def add_aside(self, sent: Sent, path: Path, now: float) -> None:
        """A new packet that was handed to ``path`` right now."""
        self._keep(sent)
        self.size += len(sent.packet)
        self._mark(sent, path, now)

    def _keep(self, sent: Sent) -> None:
        if not self._sent:
            self._first = sent.counter
        self._sent[sent.counter] = sent

    def take(self, path: Path, now: float) -> list[bytes]:
        """The packets to send by ``path`` now."""
        queue, again, packets = self._queue, self._again, []
        reliable = path.reliable
        while queue or again:
            first = bool(again) and (not queue or again[0][0] < queue[0].counter)
            sent = again[0][1] if first else queue[0]
            obsolete = sent.acknowledged or sent.held
            if not obsolete and not reliable and self._flight and self._flight + len(sent.packet) > self._cwnd:
                break
            if first:
                heappop(again)
            else:
                queue.popleft()
            if obsolete:
                continue
            self.waiting -= len(sent.packet)
            self._mark(sent, path, now)
            packets.append(sent.packet)
        return packets

    def again(self, sent: Sent, path: Path, now: float) -> None:
        """A packet was handed to ``path`` once more, besides the queue."""
        if sent.path is not None:
            self._land(sent)
            self._mark(sent, path, now)

    def _mark(self, sent: Sent, path: Path, now: float) -> None:
        sent.path, sent.sent_at = path, now
        sent.tries += 1
        if sent.tries > 1:
            self.resent += 1
        if not path.reliable:
            sent.flying = True
            self._flight += len(sent.packet)
            if self._due is None:
                self._due = now + self.round_trip.rto

    def _land(self, sent: Sent) -> None:
        if sent.flying:
            sent.flying = False
            self._flight -= len(sent.packet)

    # -- acknowledgements

    def acknowledge(self, counter: int, now: float) -> None:
        """The peer has processed everything up to ``counter``."""
        if self.measured and self._sent:
            before = self.size
            oldest = self._sent.get(self._first)
            self._drop(counter, now)
            if oldest is not None:
                self._measure(before - self.size, oldest.sent_at, now)
        else:
            self._drop(counter, now)

    def _measure(self, gained: int, since: float, now: float) -> None:
        """So many bytes were acknowledged, the first of which were sent at ``since``."""
        path = self._path
        if not gained or path is None:
            return
        if self._rate_from is None:
            self._rate_from = since
        self._rate_bytes += gained
        elapsed = now - self._rate_from
        if elapsed >= _RATE_TIME:
            rate = self._rate_bytes / elapsed
            path.rate = rate if rate > path.rate else path.rate + (rate - path.rate) / 4
            self._rate_from, self._rate_bytes = now, 0
        if not self._sent:
            self._rate_from, self._rate_bytes = None, 0  # what follows is a pause

    def _drop(self, counter: int, now: float) -> None:
        sent, gained = self._sent, 0
        if not sent:
            return
        # By number: a dict finds its first entry by walking over all that were taken from before it.
        first, self._first = self._first, max(self._first, counter + 1)
        for number in range(first, counter + 1):
            packet = sent.pop(number, None)
            if packet is None:
                continue
            if packet.path is None and not packet.held:
                self.waiting -= len(packet.packet)
            packet.acknowledged = True
            if packet.flying:
                gained += len(packet.packet)
                self._land(packet)
            self.size -= len(packet.packet)
        if not sent:
            self._queue.clear()  # nothing but acknowledged ones
            self._again.clear()
            self._due = None
        if gained:
            self._grow(gained)
        if self._due is not None:
            self.round_trip.progress()
            self._due = now + self.round_trip.rto

    def sample(self, counter: int, now: float) -> None:
        """The answer to packet ``counter`` is here; if it was sent once, that measures a round trip."""
        sent = self._sent.get(counter)
        if sent is not None and sent.tries == 1:
            self.round_trip.sample(now - sent.sent_at)

    def holds(self, processed: int, bits: bytes, now: float) -> None:
        """The peer has processed everything up to ``processed``, and of what follows holds what ``bits`` says.

        What it lacks before what it holds is taken for lost if it was sent long enough ago.
        """
        self.acknowledge(processed, now)
        held = [processed + 2 + i for i in range(8 * len(bits)) if bits[i >> 3] >> (i & 7) & 1]
        for counter in held:
            sent = self._sent.get(counter)
            if sent is not None and not sent.held:
                if sent.path is None:
                    self.waiting -= len(sent.packet)
                sent.held = True
                self._land(sent)
        if not held:
            return
        srtt = self.round_trip.srtt or MIN_RTO
        lost = []
        beyond = len(held)
        above = set(held)
        for counter in range(processed + 1, held[-1]):
            if counter in above:
                beyond -= 1
                continue
            sent = self._sent.get(counter)
            if sent is None or sent.path is None or sent.held:
                continue
            age = now - sent.sent_at
            if age >= 1.5 * srtt or (beyond >= _REORDERING and age >= 0.8 * srtt):
                lost.append(sent)
        if lost:
            self._congested(now, srtt)
            self._requeue(lost)

    # -- losses

    def path_lost(self, path: Path) -> None:
        """What ``path`` took is to be sent again."""
        path.lost = True
        self._requeue([sent for sent in self._sent.values() if sent.path is path and not sent.held])

    def path_changed(self, path: Path | None, now: float) -> None:
        """Another path is in use: what others took may not come back from there."""
        self._path = path
        if self._sent and self._due is None:
            self._due = now + self.round_trip.rto

    def overdue(self, now: float, current: Path | None) -> bool:
        """The deadline is here: send again what should have been acknowledged by now. False if there is no such thing."""
        rto = self.round_trip.rto
        due: list[Sent] = []
        oldest: float | None = None
        for sent in self._sent.values():
            path = sent.path
            if path is None or sent.held or _will_bring(path, current, now):
                continue
            if now - sent.sent_at >= rto - 1e-6:
                due.append(sent)
            elif not sent.bare and (oldest is None or sent.sent_at < oldest):
                oldest = sent.sent_at
        if any(not sent.bare for sent in due):
            self.round_trip.back_off()
            self._threshold = max(self._cwnd // 2, _MIN_CWND)
            self._cwnd = _MIN_CWND
            self._requeue(due)
            self._due = now + self.round_trip.rto
            return True
        self._due = None if oldest is None else oldest + rto
        return False

    def _requeue(self, lost: list[Sent]) -> None:
        for sent in lost:
            self._land(sent)
            sent.path = None
            self.waiting += len(sent.packet)
            heappush(self._again, (sent.counter, sent))

    # -- congestion on unreliable paths

    def _grow(self, gained: int) -> None:
        if self._cwnd < self._threshold:
            self._cwnd += gained
        else:
            self._cwnd += max(1, gained * 1200 // self._cwnd)
        self._cwnd = min(self._cwnd, SMALL_WINDOW)

    def _congested(self, now: float, srtt: float) -> None:
        if now - self._cut_at > srtt:  # once for each round trip
            self._cut_at = now
            self._cwnd = self._threshold = max(self._cwnd // 2, _MIN_CWND)


def _will_bring(path: Path, current: Path | None, now: float) -> bool:
    """Whether what the path took will arrive without our help."""
    return path.reliable and not path.lost and (path is current or now - path.heard < _ALIVE)
