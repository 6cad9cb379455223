"""Polled links as carriers: timers, batches, and what a session sees of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.base import BaseCarrier
from mikanet.carriers.polled_arq import MAX_HELD_BYTES
from mikanet.carriers.polled_client import PolledClient
from mikanet.carriers.polled_server import SILENCE, PolledLink, PolledServer
from mikanet.carriers.strangers import Strangers
from mikanet.counters import Counters
from mikanet.errors import RemoteProtocolError
from mikanet.guard.admission import address_group
from mikanet.interfaces import ICarrier

#: Seconds without any answer after which a client's carrier is lost: resolvers and outages take long.
CLIENT_SILENCE = 30.0
#: Seconds that an orderly end may take for what waits.
CLOSE_TIME = 3.0
#: What fits into fragments of no session: its packets are at most this long while such a carrier is configured.
MAX_PACKET = 4608
#: How often a link's end is told, since nobody confirms it.
_FAREWELLS = 3
#: Bytes behind missing segments that are kept for a stranger: logins are small.
_STRANGERS_HELD = 1 << 16


def random_bits(count: int) -> int:
    """So many random bits."""
    return int.from_bytes(os.urandom((count + 7) // 8), "big") >> (-count % 8)


Questions = Sequence[tuple[int, bytes]]


class Alarm:
    """One timer that is set anew with every packet; setting it later than it stands costs nothing."""

    def __init__(self, clock: IReactorTime, fired: Callable[[], None]) -> None:
        self._clock = clock
        self._fired = fired
        self._call: IDelayedCall | None = None
        self._at = 0.0
        self._wanted: float | None = None

    def set(self, at: float | None) -> None:
        """Fire at ``at``, or never."""
        self._wanted = at
        if at is None or (self._call is not None and self._at <= at):
            return
        if self._call is not None:
            self._call.cancel()
        self._arm(at)

    def _arm(self, at: float) -> None:
        self._at = at
        self._call = self._clock.callLater(max(0.0, at - self._clock.seconds()), self._ring)

    def _ring(self) -> None:
        self._call = None
        if self._wanted is None:
            return
        if self._wanted > self._clock.seconds() + 0.0005:
            self._arm(self._wanted)
            return
        self._wanted = None
        self._fired()

    def cancel(self) -> None:
        """Never fire."""
        self._wanted = None
        if self._call is not None:
            self._call.cancel()
            self._call = None


class _PolledCarrier(BaseCarrier):
    """What both ends share."""

    max_packet_size = MAX_PACKET
    shakes_hands = False

    def __init__(self, name: str, host: str, clock: IReactorTime) -> None:
        super().__init__(name, host)
        self._clock = clock
        self._alarm = Alarm(clock, self._rang)
        self._close_at: float | None = None

    def _rang(self) -> None:
        raise NotImplementedError


class PolledClientCarrier(_PolledCarrier):
    """The client's end.

    :param transmit: sends questions. :param released: called when the carrier is gone.
    :ivar link: the link, for its figures. :ivar found: what the handshake found, for people to read.
    """

    found = ""

    def __init__(
        self,
        name: str,
        host: str,
        clock: IReactorTime,
        link: PolledClient,
        transmit: Callable[[Questions], None],
        released: Callable[[], None],
    ) -> None:
        super().__init__(name, host, clock)
        self.link = link
        self._transmit = transmit
        self._released = released
        self._hearing = False

    @property
    def waiting(self) -> int:
        """See :class:`~mikanet.interfaces.ICarrier`."""
        return self.link.waiting

    def send(self, packets: Sequence[bytes]) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.send`."""
        if not self.lost and self._close_at is None:
            self.link.push([packet for packet in packets if len(packet) <= self.max_packet_size], self._clock.seconds())
            self.writable = self.writable and self.link.writable
            self.pump()

    def heard(self, answers: Iterable[tuple[int, bytes | None]]) -> None:
        """Answers of one read: each with its number; None says that it came without a message."""
        now = self._clock.seconds()
        packets: list[bytes] = []
        for number, message in answers:
            if message is None:
                self.link.refused(number, now)
                continue
            try:
                packets += self.link.answered(number, message, now)
            except RemoteProtocolError:
                continue
        self._hearing = True
        try:
            self.deliver(packets)
        finally:
            self._hearing = False
        if self.link.closed:
            self._end(Failure(ConnectionDone()))
        self.pump()

    def pump(self) -> None:
        """Ask what is to be asked, and set the timer."""
        if self.lost or self._hearing:
            return
        now = self._clock.seconds()
        questions = self.link.questions(now)
        if questions:
            self._transmit(questions)
        if self._close_at is not None and (not self.link.waiting or now >= self._close_at):
            self._say_goodbye()
            return
        times = [self.link.heard_at + CLIENT_SILENCE]
        if self._close_at is not None:
            times.append(self._close_at)
        if (deadline := self.link.deadline) is not None:
            times.append(deadline)
        self._alarm.set(min(times))
        if self._close_at is None:
            self.room(self.link.writable)

    def _rang(self) -> None:
        now = self._clock.seconds()
        if now - self.link.heard_at >= CLIENT_SILENCE:
            self._end(Failure(ConnectionLost("no answer for too long")))
            return
        self.link.tick(now)
        self.pump()

    def line_lost(self) -> None:
        """What carries the questions is gone."""
        self._end(Failure(ConnectionLost("the connection to the resolver is gone")))

    def close(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.close`."""
        if not self.lost and self._close_at is None:
            self._close_at = self._clock.seconds() + CLOSE_TIME
            self.writable = False
            self.pump()

    def abort(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.abort`."""
        if not self.lost:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        # Nobody confirms this; each copy has a number of its own so that none is taken for a repetition.
        message = wire.close(self.link.connection)
        self._transmit([(number, message) for number in range(_FAREWELLS)])
        self._end(Failure(ConnectionDone()))

    def _end(self, reason: Failure) -> None:
        if not self.lost:
            self._alarm.cancel()
            self._released()
            self.lose(reason)


class PolledServerCarrier(_PolledCarrier):
    """The server's end, made by a :class:`PolledHub`."""

    def __init__(self, hub: PolledHub, link: PolledLink, host: str, clock: IReactorTime) -> None:
        super().__init__(hub.name, host, clock)
        self.link = link
        self._hub = hub
        self.is_proven = False
        self._refused = False
        link.hold_at_most(_STRANGERS_HELD)
        self._stranger_until = clock.seconds() + hub.refusal_time

    @property
    def waiting(self) -> int:
        """See :class:`~mikanet.interfaces.ICarrier`."""
        return self.link.waiting

    def send(self, packets: Sequence[bytes]) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.send`."""
        if not self.lost and not self._refused and self._close_at is None:
            self.link.push(packet for packet in packets if len(packet) <= self.max_packet_size)
            self.writable = self.writable and self.link.writable
            self._hub.touched(self)

    def took(self, packets: list[bytes]) -> None:
        """Packets came; whoever was refused is heard no more."""
        if not self._refused:
            self.deliver(packets)

    def proven(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.proven`."""
        if not self.is_proven:
            self.is_proven = True
            self._hub.strangers.discard(self)
            self.link.hold_at_most(MAX_HELD_BYTES)

    def refuse(self) -> None:
        """Answer as before, listen to nothing more, and be gone when a stranger's time is over."""
        if self.is_proven:
            self.abort()
        else:
            self._refused = True
            self._hub.counters.add(f"{self._hub.prefix}.refused")

    def pump(self) -> None:
        """Answer what is to be answered, and set the timer."""
        if self.lost:
            return
        now = self._clock.seconds()
        link = self.link
        if self._close_at is not None and not link.closing and (not link.waiting or now >= self._close_at):
            link.closing = True
            self._close_at = now + CLOSE_TIME
        while link.answer_with_data(now) and self._close_at is None:
            self.room(link.writable)  # there may be more to say before questions are answered with nothing
        link.flush(now)
        times = [link.deadline]
        if not self.is_proven:
            times.append(self._stranger_until)
        if self._close_at is not None:
            times.append(self._close_at)
        self._alarm.set(min(times))
        if self._close_at is None:
            self.room(link.writable)

    def _rang(self) -> None:
        now = self._clock.seconds()
        stranger = not self.is_proven and now >= self._stranger_until
        closed = self.link.closing and self._close_at is not None and now >= self._close_at
        if stranger or closed or now - self.link.heard_at >= SILENCE:
            self.end(Failure(ConnectionDone() if closed else ConnectionLost("silent for too long")))
        else:
            self.link.tick(now)
            self._hub.touched(self)

    def close(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.close`."""
        if not self.lost and self._close_at is None:
            self._close_at = self._clock.seconds() + CLOSE_TIME
            self.writable = False
            self._hub.touched(self)

    def abort(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.abort`."""
        if not self.lost:
            self.link.closing = True
            self.link.flush(self._clock.seconds())
            self.end(Failure(ConnectionAborted()))

    def end(self, reason: Failure) -> None:
        """The link is gone."""
        if not self.lost:
            self._alarm.cancel()
            self._hub.strangers.discard(self)
            self._hub.forget(self)
            self.lose(reason)


class PolledHub:
    """A server's links as carriers.

    :param server: made by the caller with :meth:`started`, set before the first question.
    :param host_of: what a way's other end is called. :param flushed: called when all of a batch is answered.
    :param strangers: for the links without a proof; the oldest one goes where there are too many.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        clock: IReactorTime,
        counters: Counters,
        refusal_time: float,
        strangers: Strangers[PolledServerCarrier],
        host_of: Callable[[Any], str],
        flushed: Callable[[], None],
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.counters = counters
        self.refusal_time = refusal_time
        self.strangers = strangers
        self.server: PolledServer | None = None
        self.accept: Callable[[ICarrier], None] | None = None
        self._clock = clock
        self._host_of = host_of
        self._flushed = flushed
        self._carriers: dict[int, PolledServerCarrier] = {}
        self._touched: dict[PolledServerCarrier, None] = {}
        self._busy = False

    def started(self, link: PolledLink, path: Any) -> bool:
        """A link begins; False refuses it."""
        if self.accept is None:
            self.counters.add(f"{self.prefix}.refused")
            return False
        host = self._host_of(path)
        group = address_group(host)
        while (oldest := self.strangers.in_the_way(group)) is not None:
            self.counters.add(f"{self.prefix}.limit.unverified")
            oldest.abort()
        self.counters.add(f"{self.prefix}.links")
        carrier = PolledServerCarrier(self, link, host, self._clock)
        self.strangers.add(carrier, group)
        self._carriers[link.connection] = carrier
        self.accept(carrier)
        self._touched[carrier] = None
        return True

    def batch(self, questions: Iterable[Callable[[float], tuple[PolledLink, list[bytes]] | None]]) -> None:
        """Questions of one read, each as a call that takes the time."""
        now = self._clock.seconds()
        self._busy = True
        try:
            for question in questions:
                try:
                    found = question(now)
                except RemoteProtocolError:
                    self.counters.add(f"{self.prefix}.dropped")
                    continue
                if found is not None:
                    self._took(*found)
        finally:
            self._busy = False
        self._flush()

    def _took(self, link: PolledLink, packets: list[bytes]) -> None:
        carrier = self._carriers.get(link.connection)
        if carrier is None:
            return
        if link.closing and carrier._close_at is None:
            carrier.end(Failure(ConnectionDone()))
            return
        self._touched[carrier] = None
        if packets:
            carrier.took(packets)

    def is_proven(self, link: PolledLink) -> bool:
        """Whether a link's client is no stranger."""
        carrier = self._carriers.get(link.connection)
        return carrier is not None and carrier.is_proven

    def touched(self, carrier: PolledServerCarrier) -> None:
        """A carrier has something to do."""
        self._touched[carrier] = None
        if not self._busy:
            self._flush()

    def _flush(self) -> None:
        self._busy = True
        try:
            while self._touched:
                carrier, _ = self._touched.popitem()
                carrier.pump()
        finally:
            self._busy = False
        self._flushed()

    def forget(self, carrier: PolledServerCarrier) -> None:
        """A carrier is gone."""
        self._carriers.pop(carrier.link.connection, None)
        self._touched.pop(carrier, None)
        if self.server is not None:
            self.server.forget(carrier.link)

    def abort_all(self) -> None:
        """Every link ends now."""
        for carrier in list(self._carriers.values()):
            carrier.abort()
        self._flushed()
