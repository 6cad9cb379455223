"""A link: a session, the carriers that it has now, and the streams on it.

What a carrier brings goes through the session to the streams; what streams have goes through the session to the carrier
in use, as far as that one, the session and each stream's credit allow. The link lives as long as its session; carriers
come and go (P9).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.errors import RemoteProtocolError
from mikanet.interfaces import ICarrier, ICarrierUser
from mikanet.pickaxe import wire
from mikanet.pickaxe.fragments import Reassembler
from mikanet.pickaxe.mux import StreamMux
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.session import Received, Session

#: Bytes of data in one packet: on streams, and where an unreliable carrier is at hand (P2b).
CHUNK, SMALL_CHUNK = 32 * 1024, 4096

#: How much later than asked for a timer may come, in seconds.
_TIMER_SLACK = 0.005

#: About how long a turn of a busy reactor takes, in seconds: a single application's question and answer take longer.
_TURN = 0.00015

#: Most bytes of streams that are made into packets at a time.
_BATCH = 256 * 1024


@implementer(ICarrierUser)
class Link:
    """One session at work. A subclass says what the messages mean that are not about streams.

    :ivar paths: the carriers of this session, by which packets of its peer came or to which its owner attached them.
    :ivar ended: whether the session is over. :ivar heard: when something new came. :ivar active: when that, last, was more
        than an echo: something of a stream, or about one.
    """

    def __init__(self, reactor: Any, session: Session, mux: StreamMux) -> None:
        self.reactor = reactor
        self.session = session
        self.mux = mux
        self.paths: dict[ICarrier, Path] = {}
        self.ended = False
        self.heard = self.active = reactor.seconds()
        self._carriers: dict[Path, ICarrier] = {}
        self._shown: set[ICarrier] = set()  # those by which the peer has shown itself
        self._fragments = Reassembler()
        self._chunk = CHUNK
        self._busy = self._awake = False
        self._sent_at = float("-inf")
        self._timer: IDelayedCall | None = None
        mux.link = self

    # -- carriers

    def attach(self, carrier: ICarrier, path: Path | None = None) -> Path:
        """Let the session use ``carrier``."""
        found = self.paths.get(carrier)
        if found is None:
            found = self.paths[carrier] = path or Path(carrier.reliable)
            self._carriers[found] = carrier
            carrier.user = self
            if not carrier.reliable:
                self.be_small()
            elif carrier.max_packet_size < wire.MAX_PACKET:
                self.session.sending.measured = True  # P2b, for carriers that mend their own losses
        return found

    def be_small(self) -> None:
        """An unreliable carrier is at hand."""
        self._chunk = SMALL_CHUNK
        self.session.be_small()

    @property
    def carrier(self) -> ICarrier | None:
        """The carrier in use."""
        path = self.session.path
        return None if path is None else self._carriers.get(path)

    def detach(self, carrier: ICarrier) -> None:
        """The carrier is gone, or is given up: what it took is sent again by the next."""
        path = self.paths.pop(carrier, None)
        self._shown.discard(carrier)
        if path is not None:
            del self._carriers[path]
            self.session.path_lost(path)

    # -- ICarrierUser

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Packets came; what they cause leaves in one go."""
        path = self.paths.get(carrier)
        if path is None:
            path = Path(carrier.reliable)
            self._carriers[path] = carrier  # for this once, unless it is proven: a repeated request is answered there
        busy, self._busy = self._busy, True
        try:
            now = self.reactor.seconds()
            receive, deliver, sid = self.session.receive, self.mux.received, self.session.sid
            for packet in packets:
                if packet[1:5] != sid or packet[0] in (wire.LOGIN, wire.LOGIN_RESPONSE):
                    self.foreign(carrier, packet)
                    continue
                if packet[0] == wire.FRAGMENT:
                    whole = self._reassemble(packet)
                    if whole is None:
                        continue
                    packet = whole
                for message in receive(packet, path, now):
                    self.active = now
                    if not deliver(message):
                        self.message(message)
                if self.ended:
                    return
            self.mux.deliver()
            if self.session.sending.overrun:
                self.overrun()
                return
            if path.heard == now:
                self.heard = now
            if path.proven and carrier not in self._shown:
                self._shown.add(carrier)
                self.attach(carrier, path)
                carrier.proven()
                self.carrier_proven(carrier)
        finally:
            self._busy = busy
            if path.lost:
                self._carriers.pop(path, None)
        self.pump(now)
        if carrier not in self.paths:
            self._carriers.pop(path, None)

    def carrier_writable(self, carrier: ICarrier) -> None:
        """There is room again."""
        self.pump()

    def carrier_lost(self, carrier: ICarrier, reason: Failure) -> None:
        """A carrier is gone; the session goes on."""
        self.detach(carrier)
        self.pump()

    def _reassemble(self, packet: bytes) -> bytes | None:
        try:
            return self._fragments.add(wire.decode_fragment(packet))
        except RemoteProtocolError:
            return None

    # -- for subclasses

    def foreign(self, carrier: ICarrier, packet: bytes) -> None:
        """A packet that is none of this session's."""

    def message(self, message: Received) -> None:
        """A message that is not about a stream that is there."""

    def overrun(self) -> None:
        """The peer asks for ever more and acknowledges nothing: the session is over."""
        self.end()

    def carrier_proven(self, carrier: ICarrier) -> None:
        """The peer has shown itself on this carrier for the first time."""

    # -- sending

    def send(self, kind: int, *body: bytes) -> None:
        """A message; it leaves with the next :meth:`pump`."""
        if not self.ended:
            self.active = now = self.reactor.seconds()
            self.session.send(kind, *body, now=now)

    def answer(self, request: Received, kind: int, *body: bytes) -> None:
        """A response; it leaves with the next :meth:`pump`."""
        if not self.ended:
            self.session.answer(request, kind, *body, now=self.reactor.seconds())

    def wake(self) -> None:
        """Something is to be sent: at once, or, if that would be the second time in about one turn of the reactor, at the
        end of the turn, together with what else comes up in it."""
        if self._busy or self._awake:
            return
        now = self.reactor.seconds()
        if now - self._sent_at >= _TURN:
            self.pump(now)
        else:
            self._awake = True
            self.reactor.callLater(0, self._woken)

    def _woken(self) -> None:
        self._awake = False
        self.pump()

    def pump(self, now: float | None = None) -> None:
        """Send what can be sent. Called from inside itself or while packets are being taken in, it waits for the end."""
        if self._busy or self.ended:
            return
        self._busy = True
        if now is None:
            now = self.reactor.seconds()
        try:
            while True:
                more = bool(self.mux.ready) and self._fill(now)
                for path, packets in self.session.flush(now):
                    self._transmit(path, packets)
                    self._sent_at = now
                if not more or self.ended:
                    break
        finally:
            self._busy = False
        self._arm(now)

    def _fill(self, now: float) -> bool:
        """Make packets of what streams have; whether there may be more to do at once."""
        mux = self.mux
        carrier = self.carrier
        if carrier is None or not carrier.writable:
            return False
        room = self.session.room
        if room <= 0:
            return False
        chunk = min(self._chunk, max(64, carrier.max_packet_size - wire.DATA_OVERHEAD))
        self.active = now
        mux.fill(self.session, now, min(room, _BATCH), chunk)
        return bool(mux.ready)

    def _transmit(self, path: Path, packets: Sequence[bytes]) -> None:
        carrier = self._carriers.get(path)
        if carrier is not None:
            transmit(carrier, packets)

    # -- time

    def _arm(self, now: float) -> None:
        deadline = self.session.deadline
        timer = self._timer
        if timer is not None and timer.active():
            # A timer that comes too early costs less than one that is set anew with every packet.
            if deadline is None or timer.getTime() <= deadline + _TIMER_SLACK:
                return
            timer.cancel()
        self._timer = None if deadline is None else self.reactor.callLater(max(0.0, deadline - now), self._time)

    def _time(self) -> None:
        self._timer = None
        if not self.ended:
            self.session.timer_fired(self.reactor.seconds())
            self.pump()

    # -- end

    def end(self) -> None:
        """The session is over: every stream on it is reset."""
        if self.ended:
            return
        self.ended = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.paths.clear()
        self._carriers.clear()
        self.mux.lost(Failure(error.ConnectionLost("the session has ended")))

    def farewell(self) -> None:
        """Tell the peer that the session is over; best effort."""
        if not self.ended and self.carrier is not None:
            self.session.send(wire.DISCONNECT, now=self.reactor.seconds())
            self.pump()


def transmit(carrier: ICarrier, packets: Sequence[bytes]) -> None:
    """Send packets by a carrier, as fragments where they are too large for it."""
    limit = carrier.max_packet_size
    if limit < wire.MAX_PACKET and max(map(len, packets)) > limit:
        pieces: list[bytes] = []
        for packet in packets:
            if len(packet) <= limit or packet[0] in (wire.LOGIN, wire.LOGIN_RESPONSE):
                pieces.append(packet)
            else:
                pieces += wire.fragment(packet, limit)
        packets = pieces
    carrier.send(packets)
