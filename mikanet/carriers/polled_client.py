"""The client's end of a polled link. No I/O, no clock.

The server answers questions in the order in which they come, and keeps a few (the stock) to answer when it has
something to say. So an answer says that every question that was sent well before it and is not answered is lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.polled_arq import MIN_REORDER, Receiver, Rtt, Sender
from mikanet.carriers.polled_pace import Pace, Stamp

#: Seconds without data after which a link asks no more than it must.
IDLE_AFTER = 5.0
IDLE_STOCK = 2
#: Bytes of selective acknowledgements in a question with a segment, and in one without: what fits into one label.
_SACK_BESIDE_DATA, _SACK_ALONE = 8, 28
#: Questions that may be unanswered, lost ones included, before the oldest are forgotten.
_MAX_LATE = 512
#: Bytes that should wait here at most, for paths of any speed; more if the path takes more in the meantime.
LOW_WATER, HIGH_WATER = 8 << 10, 256 << 10


class PolledClient:
    """One link.

    :param room: bytes of a question. :param stock: questions that the server keeps. :param hold: seconds for which it
        keeps them.
    :ivar heard_at: when the last answer came. :ivar closed: the server has ended the link.
    :ivar asked: questions, :ivar lost: of them without an answer.
    """

    def __init__(self, connection: int, room: int, stock: int, hold: float, now: float) -> None:
        self.connection = connection
        self._room = room - wire.UP_OVERHEAD
        self._stock = stock
        self._hold = hold
        self._number = 0
        self._flying: dict[int, Stamp] = {}
        self._late: dict[int, Stamp] = {}
        self._demand = 0
        self._owe_ack = False
        self._over_window = False
        self._reorder = 1.0
        self._active_at = now
        self._paced_until: float | None = None
        self._sender = Sender()
        self._receiver = Receiver()
        self._rtt = Rtt()
        self.pace = Pace()
        self.heard_at = now
        self.closed = False
        self.asked = 0
        self.lost = 0

    # -- the upper side

    def push(self, packets: Iterable[bytes], now: float) -> None:
        """Packets to send."""
        self._sender.push(packets)
        self._active_at = now

    @property
    def waiting(self) -> int:
        """Bytes that the server does not have yet."""
        return self._sender.waiting

    @property
    def writable(self) -> bool:
        """Whether more should be pushed: what waits is little against what is on the way."""
        return self._sender.unsent <= min(HIGH_WATER, max(LOW_WATER, 2 * self._sender.flying_bytes))

    @property
    def on_way(self) -> int:
        """Questions without an answer."""
        return len(self._flying)

    # -- asking

    def questions(self, now: float) -> list[tuple[int, bytes]]:
        """What to ask now, as pairs of number (of 16 bits) and message."""
        paced, self._paced_until = self._paced_until is not None, None
        made: list[tuple[int, bytes]] = []
        sender, pace, flying = self._sender, self.pace, self._flying
        stock = self._stock if now - self._active_at < IDLE_AFTER else IDLE_STOCK
        most = pace.window + stock
        wanted = stock + min(self._demand, pace.window)
        while True:
            count = len(flying)
            if not (sender.ready or count < wanted or self._owe_ack):
                break
            if count >= most and not self._over_window:
                break
            if (ready_at := pace.ready_at(now)) > now:
                self._paced_until = ready_at
                break
            self._over_window = False
            made.append(self._question(now, count - stock, paced))
        return made

    def _question(self, now: float, on_way: int, paced: bool) -> tuple[int, bytes]:
        receiver = self._receiver
        sack = receiver.sack
        room = self._room
        if sack:
            room -= min((sack.bit_length() + 7) >> 3, _SACK_BESIDE_DATA)
        segment = self._sender.take(room, now, self._room)
        most_sack = _SACK_ALONE if segment is None else min(_SACK_BESIDE_DATA, self._room - len(segment[1]))
        number = self._number = (self._number + 1) & 0xFFFF
        self._flying[number] = self.pace.sent(number, now, on_way, paced)
        self._owe_ack = False
        self.asked += 1
        twice, receiver.twice = receiver.twice, False
        return number, wire.up(self.connection, number, receiver.ack, sack, most_sack, twice, *(segment or (None, b"")))

    # -- hearing

    def answered(self, number: int, message: bytes, now: float) -> list[bytes]:
        """An answer to question ``number``; the packets that are whole now.

        :raises RemoteProtocolError: if it is no answer on a link; the question is as good as lost.
        """
        stamp = self._flying.pop(number, None)
        if stamp is None:
            stamp = self._late.pop(number, None)
            if stamp is None:
                return []  # a second copy
            self.lost -= 1
            self.pace.lost(-1)
            self._reorder = min(8.0, self._reorder * 1.5)
        self.heard_at = now
        if message == wire.CLOSED:
            self.closed = True
            return []
        down = wire.read_down(message)
        at_once = down.held < wire.HELD_UNIT
        self.pace.answered(stamp, at_once, now)
        if at_once:
            self._rtt.sample(now - stamp.sent_at)
        self._give_up_before(stamp)
        self._sender.acknowledged(down.ack, down.sack, down.told, now)
        if down.twice:
            self._sender.came_twice()
        self._demand = down.backlog
        if down.sequence is None:
            return []
        self._active_at = now
        self._owe_ack = True
        return self._receiver.take(down.sequence, down.data)

    def _give_up_before(self, stamp: Stamp) -> None:
        limit = stamp.sent_at - max(MIN_REORDER, (self._rtt.smoothed or 0.0) / 4 * self._reorder)
        lost = []
        for other in self._flying.values():
            if other.sent_at > limit:
                break
            lost.append(other)
        self._lose(lost)

    def _lose(self, lost: list[Stamp]) -> None:
        for stamp in lost:
            del self._flying[stamp.number]
            self._late[stamp.number] = stamp
        self.lost += len(lost)
        self.pace.lost(len(lost))
        while len(self._late) > _MAX_LATE:
            del self._late[next(iter(self._late))]

    def refused(self, number: int, now: float) -> None:
        """A question came back with an error instead of an answer."""
        stamp = self._flying.pop(number, None)
        if stamp is not None:
            self.lost += 1
            self.pace.lost(1)
            self.pace.refused(now)

    # -- time

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due; None if nothing is."""
        times = [time for time in (self._paced_until, self._sender.deadline) if time is not None]
        if self._flying:
            times.append(self._expires(next(iter(self._flying.values()))))
        return min(times, default=None)

    def _expires(self, stamp: Stamp) -> float:
        """When a question is as good as lost: later if the server may hold it than if it has something to say."""
        if self._demand:
            return max(stamp.sent_at, self.heard_at) + self._rtt.timeout
        return stamp.sent_at + self._hold + 2 * self._rtt.timeout

    def tick(self, now: float) -> None:
        """Time has passed: what was not answered long after it could have been is lost."""
        lost = []
        for stamp in self._flying.values():
            if self._expires(stamp) > now:
                break
            lost.append(stamp)
        if lost and len(lost) == len(self._flying):
            self.pace.silence()
        self._lose(lost)
        deadline = self._sender.deadline
        if deadline is not None and deadline <= now:
            self._sender.time_out(now)
            self._over_window = True

    @property
    def resent(self) -> int:
        """Segments that were sent again."""
        return self._sender.resent

    @property
    def rtt(self) -> float | None:
        """Seconds from a question to an answer that was not held."""
        return self._rtt.smoothed
