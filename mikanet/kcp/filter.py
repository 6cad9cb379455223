"""KCP as a filter: packets below, one byte stream above.

The wire has no way to say that a connection ends. :meth:`KcpFilter.loseConnection` therefore sends what was accepted,
for a bounded time, and forgets the session; the peer finds out by whatever runs above, or by silence. Nor can it say
that one direction ends: after :meth:`KcpFilter.loseWriteConnection` the other goes on while bytes come.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall, IProducer, IProtocol, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.filters.base import Filter, Kind
from mikanet.filters.packets import IPacketReceiver
from mikanet.guard.amplification import Allowance
from mikanet.interfaces import IPacketTransport
from mikanet.kcp.arq import UNLIMITED, Arq, Due
from mikanet.kcp.segment import HEADER_LENGTH, ImpossibleAckError, SegmentError
from mikanet.kcp.settings import ArqSettings
from mikanet.relay import MemoryBudget

#: The receive window that a server tells, and keeps, for a peer that is not authenticated yet (Q4).
PROBATION_WINDOW = 31
#: Segments ready to go that end the delay of writes: it is there to join small ones. kcp-go lets a whole send window
#: wait, and so idles for most of each interval (our choice; nobody but us can tell).
DELAY_LIMIT = 32


_log = Logger()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a session waits, in seconds.

    :ivar idle: silence of the peer after which it counts as gone.
    :ivar linger: for what was written before loseConnection to be acknowledged.
    :ivar probation: for a peer to prove that it is live, where that is asked for.
    :ivar dead: silence after which a segment that was sent 20 times means a dead link (Q9). KCP's own count alone
        would end sessions in an outage of seconds.
    :ivar half_closed: for bytes from the peer after our direction has ended, each time anew.
    """

    idle: float = 300.0
    dead: float = 10.0
    linger: float = 30.0
    probation: float = 5.0
    half_closed: float = 2.0


DEFAULT_PATIENCE = Patience()


class PathSize(NamedTuple):
    """Sizes of packets, in bytes: the largest that the path is known to carry, and the largest that is wanted.

    :ivar settled: whether the search is over.
    """

    size: int
    wanted: int
    settled: bool


class Trust(enum.Enum):
    """When a peer counts as authenticated, and gets the whole receive window."""

    AT_ONCE = "we chose it"
    PROVEN = "when it has acknowledged a segment with a time that only it can know"
    TOLD = "when the protocol above says so"


@implementer(IPacketReceiver)
class KcpFilter(Filter):
    """One end of a KCP session.

    Lower side: packets; its ``max_packet_size`` bounds the segments. Upper side: a byte stream, connected at once: KCP
    has no handshake. It has no half-close either: after ``loseWriteConnection`` a silence of the peer is the end.

    :param ts_offset: added to the time stamps on the wire; random, so that only who hears us can answer them.
    :param require_proof: keep what arrives from the upper protocol until the peer has acknowledged a segment (Q4).
    :param trust: when the peer counts as authenticated.
    :param weight: bytes that leave below for each of a datagram here, as with parity.
    :param headers: bytes that what is below adds to a datagram; for messages to the user.
    :param budget: that what is kept for the peer, and for sending to it, counts in.
    :ivar authenticated: whether it does.
    :cvar silent_half_close: an end of one direction is seen by nobody on the wire.
    :ivar refused: datagrams that were not of this conversation or not KCP.
    """

    lower_kind = Kind.PACKETS
    upper_kind = Kind.STREAM
    silent_half_close = True

    __slots__ = (
        "_allowance",
        "_budget",
        "_charged",
        "_clock",
        "_closing",
        "_end_at",
        "_headers",
        "_held",
        "_last_heard",
        "_make_arq",
        "_now_ms",
        "_patience",
        "_producer",
        "_producer_paused",
        "_pumping",
        "_reading_paused",
        "_said_size",
        "_streaming",
        "_timer",
        "_timer_at",
        "_trust",
        "_write_ended",
        "_wrote",
        "arq",
        "authenticated",
        "refused",
    )

    def __init__(
        self,
        upper: IProtocol,
        conv: int,
        settings: ArqSettings,
        clock: IReactorTime,
        patience: Patience = DEFAULT_PATIENCE,
        ts_offset: int = 0,
        require_proof: bool = False,
        trust: Trust = Trust.AT_ONCE,
        budget: MemoryBudget | None = None,
        weight: float = 1.0,
        headers: int = 0,
    ) -> None:
        super().__init__(upper)
        self._make_arq: Callable[[int], Arq] = lambda mtu: Arq(
            conv, replace(settings, mtu=min(settings.mtu, mtu)), ts_offset
        )
        self.arq: Arq | None = None
        self._clock = clock
        self._patience = patience
        self._held = require_proof
        self._trust = Trust.PROVEN if require_proof else trust
        self.authenticated = self._trust is Trust.AT_ONCE
        self._budget = budget
        self._charged = 0
        self._write_ended: float | None = None  # when our direction ended, or a byte came after that
        # A peer that speaks first may have forged its address; one that we chose has not.
        self._allowance = Allowance(weight)
        self._allowance.shown = self.authenticated
        if not settings.stream:
            self._allowance.received(settings.mtu)  # a message's fragments cannot be made smaller
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0
        self._last_heard = 0.0
        self._end_at: float | None = None  # when probation or linger is over
        self._headers = headers
        self._said_size = 0
        self._pumping = False
        self._wrote = False
        self._closing = False
        self._reading_paused = False
        self._producer: IPushProducer | None = None
        self._producer_paused = False
        self._streaming = True
        self.refused = 0

    @property
    def proven(self) -> bool:
        """Whether the peer has acknowledged something of ours."""
        return self.arq is not None and self.arq.proven

    @property
    def unacknowledged(self) -> int | None:
        """The number, from the session's start, of the first segment that waits for its acknowledgement; None if none does."""
        return self.arq.acknowledged if self.arq is not None and self.arq.waiting else None

    def hurry(self) -> None:
        """Send again at once the first of what is not acknowledged: the way to the peer may be another one now."""
        if self.arq is not None and not self._pumping:
            self.arq.hurry(int(self._clock.seconds() * 1000))
            self._pump(Due.FLUSH)

    # -- from below

    def connectionMade(self) -> None:
        """Make the session, and connect the upper protocol."""
        self.arq = self._make_arq(cast(int, cast(IPacketTransport, self._lower()).max_packet_size))
        self._last_heard = self._clock.seconds()
        if not self.authenticated:
            self.arq.receive_limit = PROBATION_WINDOW
        if self._held:
            self.arq.must_prove = True
            self._end_at = self._last_heard + self._patience.probation
        self._pumping = True  # what the upper protocol writes at once goes out together
        try:
            self.establish()
        finally:
            self._pumping = False
        self._pump(Due.NOTHING)
        if self.arq is not None:
            self._arm()

    def dataReceived(self, data: bytes) -> None:
        """One packet from below."""
        self.packets_received((data,))

    def packets_received(self, packets: Sequence[bytes]) -> None:
        """A batch of KCP datagrams; answered by one flush."""
        self._take(packets, regular=True)

    def recovered_received(self, packets: Sequence[bytes]) -> None:
        """Datagrams that FEC rebuilt."""
        self._take(packets, regular=False)

    def _take(self, packets: Sequence[bytes], regular: bool) -> None:
        arq = self.arq
        if arq is None:
            return
        self._last_heard = seconds = self._clock.seconds()
        now = int(seconds * 1000)
        due = Due.NOTHING
        take = arq.input
        for packet in packets:
            try:
                its_due = take(packet, now, regular)
            except SegmentError:
                self.refused += 1
                continue
            except ImpossibleAckError:
                self._end(Failure(error.ConnectionAborted("the peer acknowledged what was never sent")))
                return
            if its_due > due:
                due = its_due
        if not self._allowance.shown:
            self._allowance.received(sum(map(len, packets)))
            self._allowance.shown = arq.proven
        if arq.proven and self._trust is Trust.PROVEN and not self.authenticated:
            self._release()
        self._pump(due)

    def _release(self) -> None:
        """The peer is authenticated."""
        self.authenticated = True
        if self._held:
            self._held = False
            self._end_at = None
        if self.arq is not None:
            self.arq.receive_limit = UNLIMITED
        super().peer_authenticated()

    def connectionLost(self, reason: Failure) -> None:
        """The lower transport is gone."""
        self._stop()
        super().connectionLost(reason)

    # -- from above

    def write(self, data: bytes) -> None:
        """Send bytes."""
        arq = self.arq
        if arq is None or self._closing or self._write_ended is not None or not data:
            return
        arq.send(data)
        self._wrote = True
        if self._producer is not None and not self._producer_paused and arq.waiting >= self._high_water(arq):
            self._producer_paused = True
            if self._streaming:
                self._producer.pauseProducing()
        if not self._pumping:
            self._pump(Due.NOTHING)

    @staticmethod
    def _high_water(arq: Arq) -> int:
        # A window in flight, and half of one ready to follow it.
        return arq.settings.snd_wnd + (arq.settings.snd_wnd >> 1)

    def loseConnection(self) -> None:
        """Send what was accepted, for a bounded time; then forget the session."""
        if self.arq is not None and not self._closing:
            self._closing = self._producer is None
            if self._closing:
                self._begin_end()
            else:
                self._end_at = self._end_at or 0.0  # once the producer is gone

    def _begin_end(self) -> None:
        self._closing = True
        self._end_at = self._clock.seconds() + self._patience.linger
        if not self._pumping:
            self._pump(Due.FLUSH)

    def abortConnection(self) -> None:
        """Forget the session now."""
        self._end(Failure(error.ConnectionAborted()))

    @property
    def can_half_close(self) -> bool:
        """In our own way."""
        return True

    def loseWriteConnection(self) -> None:
        """Our direction has ended. The wire cannot say it: once all is acknowledged, a silence of the peer is the end."""
        if self.arq is not None and not self._closing and self._write_ended is None:
            self._write_ended = self._clock.seconds()
            if not self._pumping:
                self._pump(Due.FLUSH)

    def peer_authenticated(self) -> None:
        """As :class:`IGuardedTransport`. Where a proof is asked for, it is the proof that counts."""
        if self._trust is Trust.TOLD and not self.authenticated:
            self._release()

    # -- flow control

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Let ``producer`` be paused while more waits than the send window takes."""
        if self.arq is None:
            producer.stopProducing()
            return
        self._producer = cast(IPushProducer, producer)
        self._streaming = streaming
        self._producer_paused = streaming and self.arq.waiting >= self._high_water(self.arq)
        if self._producer_paused:
            self._producer.pauseProducing()
        elif not streaming:
            self._producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """Forget the producer; a loseConnection that waited for it goes on."""
        self._producer = None
        self._producer_paused = False
        if self._end_at == 0.0 and not self._closing:
            self._begin_end()

    def pauseProducing(self) -> None:
        """Deliver nothing for a while; the receive window closes when it is full."""
        self._reading_paused = True

    def resumeProducing(self) -> None:
        """Deliver again."""
        self._reading_paused = False
        if not self._pumping:
            self._pump(Due.NOTHING)

    # -- the one place where both sides meet

    def _pump(self, due: Due) -> None:
        arq = self.arq
        if arq is None or self._pumping:
            return
        if self._held and not self._allowance.left:
            return  # nothing may be sent yet: the packet that opened the session is still to come
        self._pumping = True
        try:
            while True:
                if arq.readable and not self._reading_paused and not self._held:
                    if self._write_ended is not None:
                        self._write_ended = self._clock.seconds()
                    self.upper.dataReceived(arq.receive_stream())
                    if self.arq is None:
                        return
                self._flush(arq, due)
                due = Due.NOTHING
                if not self._resume_producer(arq):
                    break
        finally:
            self._pumping = False
        if self.arq is None:
            return
        if self._budget is not None:
            self._charge(arq.buffered * arq.settings.mtu)
        if arq.path is not None and self._lost_path(arq):
            return
        if arq.dead and self._clock.seconds() >= self._last_heard + self._patience.dead:
            self._end(Failure(error.ConnectionLost("the peer does not answer")))
        elif self._closing and not arq.waiting:
            self._end(Failure(error.ConnectionDone()))
        else:
            self._arm()

    def _lost_path(self, arq: Arq) -> bool:
        """Say what the path does not carry, once for each size; give up, and say so, what can never arrive."""
        path = arq.path
        assert path is not None
        if arq.stuck:
            _log.warn(
                "packets to {peer} do not pass any more above {size} bytes: beginning anew with smaller ones",
                peer=self._peer_text(),
                size=self._on_the_wire(path.base),
            )
            self._end(Failure(error.ConnectionLost("the path carries large packets no more")))
            return True
        if path.refused and path.settled and self._said_size != path.size:
            self._said_size = path.size
            _log.warn(
                "packets to {peer} pass up to {size} bytes, not {full}: using smaller ones; set the MTU to that to save the search",
                peer=self._peer_text(),
                size=self._on_the_wire(path.size),
                full=self._on_the_wire(path.full),
            )
        return False

    def _on_the_wire(self, size: int) -> int:
        return size + self._headers

    def _peer_text(self) -> str:
        peer: Any = self.getPeer() if self.transport is not None else None
        return str(getattr(peer, "host", "the peer"))

    @property
    def path_size(self) -> PathSize | None:
        """What the path carries, with the cipher's and FEC's headers; None when the session is over."""
        arq = self.arq
        if arq is None:
            return None
        path = arq.path
        if path is None:
            size = self._on_the_wire(arq.settings.mtu)
            return PathSize(size, size, settled=True)
        return PathSize(self._on_the_wire(path.size), self._on_the_wire(path.full), path.settled)

    def _charge(self, size: int) -> None:
        """Count what this session keeps."""
        if self._budget is not None and size != self._charged:
            self._budget.used += size - self._charged
            self._charged = size

    def _flush(self, arq: Arq, due: Due) -> None:
        if self._wrote:
            self._wrote = False
            mode = arq.settings.mode
            if not mode.write_delay or arq.sendable >= DELAY_LIMIT or arq.waiting >= arq.settings.snd_wnd:
                due = Due.FLUSH
        if not due:
            return
        if due is Due.ACKS and arq.sendable > 0:
            due = (
                Due.FLUSH
            )  # a delayed write goes with whatever leaves first: it may be the credit that a peer waits for
        allowance = self._allowance
        if not allowance.shown:
            # With an acknowledgement and its own header the first segment fits into what may go. If not even a byte does,
            # the acknowledgement is lost with it, and the peer sends again, which makes room.
            arq.first_size = max(1, allowance.left - 2 * HEADER_LENGTH)
        datagrams = arq.flush(int(self._clock.seconds() * 1000), due)
        if not allowance.shown:
            datagrams = [datagram for datagram in datagrams if allowance.take(len(datagram))]
        if datagrams and self.transport is not None:
            self.transport.writeSequence(datagrams)

    def _resume_producer(self, arq: Arq) -> bool:
        """Let the producer go on if there is room; true if something is to be pumped again."""
        producer = self._producer
        wanted = producer is not None and (self._producer_paused or not self._streaming)
        if wanted and arq.waiting < arq.settings.snd_wnd:
            self._producer_paused = False
            cast(IPushProducer, producer).resumeProducing()
        return self._wrote or (arq.readable and not self._reading_paused and not self._held)

    # -- time

    def _arm(self) -> None:
        """One timer per session, at the earliest thing that is due. One that is early is left to fire."""
        at = self._last_heard + self._patience.idle
        assert self.arq is not None
        deadline = self.arq.deadline()
        if deadline is not None:
            at = min(at, deadline / 1000)
        if self._end_at:
            at = min(at, self._end_at)
        silence = self._silence_ends()
        if silence is not None:
            at = min(at, silence)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        # One millisecond is the grain of KCP's clock: never wake before the tick that is waited for.
        self._timer = self._clock.callLater(max(at - self._clock.seconds(), 0.0) + 0.0005, self._timer_fired)

    def _silence_ends(self) -> float | None:
        """When the silence after the end of our direction has lasted long enough; None while it may not be one."""
        arq = self.arq
        if self._write_ended is None or self._closing or arq is None or arq.waiting or arq.readable:
            return None
        return self._write_ended + self._patience.half_closed

    def _timer_fired(self) -> None:
        self._timer = None
        arq = self.arq
        assert arq is not None
        now = self._clock.seconds()
        silence = self._silence_ends()
        if self._end_at and now >= self._end_at:
            self._end(Failure(error.TimeoutError("what was sent last was not acknowledged in time")))
        elif now >= self._last_heard + self._patience.idle:
            self._end(Failure(error.TimeoutError("the peer has been silent for too long")))
        elif silence is not None and now >= silence:
            self._end(Failure(error.ConnectionDone()))
        else:
            deadline = arq.deadline()
            self._pump(Due.FLUSH if deadline is not None and int(now * 1000) >= deadline else Due.NOTHING)

    # -- the end

    def _stop(self) -> None:
        self.arq = None
        self._charge(0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    def _end(self, reason: Failure) -> None:
        """Let the lower transport go and tell the upper protocol why."""
        if self.arq is None:
            return
        if reason.check(error.ConnectionDone):
            self._flush(self.arq, Due.FLUSH)  # the acknowledgements that are still owed
        transport, self.transport = self.transport, None
        self._stop()
        super().connectionLost(reason)
        if transport is None:
            return
        if reason.check(error.ConnectionDone):
            transport.loseConnection()
        else:
            transport.abortConnection()
