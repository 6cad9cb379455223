"""The relay: joins two transports, with back-pressure, half-close and honest ends.

Each transport gets a :class:`RelayEnd` as its protocol (or the end is told of what happens by the protocol that did the
handshake and inherits from it). Before the join an end holds early bytes, bounded; :func:`join` lets both flow.

The rules of ends: a clean end of one direction reaches the other application as a FIN, and everything else (a reset, a
timeout, a failed check, a killed peer) as a reset, so that a cut stream is never taken for a whole one.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, cast

from twisted.internet import error
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet import prompt
from mikanet.errors import LocalProtocolError
from mikanet.guard.targets import Place
from mikanet.half_closed import HalfClosed

#: Most early bytes that an end holds before it stops reading (our choice: one socket read).
MAX_EARLY = 65536

#: Upper bound of what one paused direction keeps in user space: Twisted pauses a producer above 64 KiB, and one more
#: read of 64 KiB may already be on its way. Used as the price of a pause in :class:`MemoryBudget`.
PAUSED_COST = 2 * 65536


class MemoryBudget:
    """How much memory all relays of a process may keep in buffers; beyond it new streams are refused.

    :ivar used: an upper bound of the bytes in relay buffers now.
    :ivar half_closed: ends relays that are half-closed and silent, if there is one.
    :ivar up: bytes that all relays have carried towards targets. :ivar down: the same from targets.
    """

    __slots__ = ("down", "half_closed", "limit", "up", "used")

    def __init__(self, limit: int, half_closed: HalfClosed | None = None) -> None:
        self.limit = limit
        self.used = 0
        self.up = self.down = 0
        self.half_closed = half_closed

    @property
    def exhausted(self) -> bool:
        """Whether new streams should be refused."""
        return self.used >= self.limit


@implementer(IHalfCloseableProtocol, IPushProducer)
class RelayEnd(Protocol):
    """One end of a relay: what arrives here leaves at the other end.

    As a producer it stands between the other end's transport and its own, to know which of them is paused.

    :ivar peer: the other end, None until joined and after the end. :ivar place: room among the open files that it gives
        back when its transport is gone.
    """

    # Kept as class attributes so that the thousands of idle ends of a busy server carry only what differs.
    transport: ITCPTransport | None
    peer: RelayEnd | None = None
    budget: MemoryBudget | None = None
    place: Place | None = None
    _early: bytearray | None = None
    _read_ended = False
    _write_ended = False
    _lost = False
    _paused = False
    #: Whether what arrives here comes from the target's side.
    faces_target = False
    # For HalfClosed; starts as True so that an end which nobody watches sets nothing.
    heard = True

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on, or hold them until there is someone to pass them to."""
        peer, budget = self.peer, self.budget
        if budget is not None:
            if self.faces_target:
                budget.down += len(data)
            else:
                budget.up += len(data)
        if not self.heard:
            self.heard = True
        if peer is not None:
            peer.send(data)
        elif not self._lost:
            self._hold(data)

    def send(self, data: bytes) -> None:
        """Send what came in at the other end; an end whose wire is not the plain stream overrides this."""
        if self.transport is not None:
            prompt.send(self.transport, data)

    def _hold(self, data: bytes) -> None:
        if self._early is None:
            self._early = bytearray()
        self._early += data
        if len(self._early) >= MAX_EARLY:
            self.pauseProducing()

    def take_early(self) -> bytes:
        """The bytes held so far; the caller passes them on."""
        early, self._early = self._early, None
        return bytes(early) if early else b""

    # -- ends

    def keep(self, place: Place) -> None:
        """Give this place back when the transport is gone, which it may be already."""
        self.place = place
        if self._lost:
            place.release()

    def readConnectionLost(self) -> None:
        """Our application said that it sends no more."""
        self._read_ended = True
        if self.peer is not None:
            self.peer.end_writing()

    def writeConnectionLost(self) -> None:
        """Our own FIN has been sent."""

    def end_writing(self) -> None:
        """Send what is buffered, then a FIN; with both directions ended, let go of both transports."""
        if self._write_ended or self._lost:
            return
        peer = self.peer
        if peer is not None and self._read_ended and peer._write_ended:
            self._close()
            peer._close()
            return
        transport = self.transport
        # A transport without half-close (TLS) keeps the other direction alive and ends when that one does.
        if transport is not None and can_half_close(transport):
            _unregister(transport)
            prompt.end_writing(transport)
        self._write_ended = True
        if self.budget is not None and self.budget.half_closed is not None and not self._read_ended:
            self.budget.half_closed.watch(self)

    def _close(self) -> None:
        self._write_ended = True
        self._forget_half_closed()
        if self.transport is not None and not self._lost:
            _end_cleanly(self.transport)

    def abort(self) -> None:
        """End at once with a reset."""
        if self.transport is not None and not self._lost:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Our transport is gone: the other end goes too, cleanly only if this end was clean."""
        self._lost = True
        self._early = None
        if self.place is not None:
            self.place.release()
        self._mark_paused(False)
        self._forget_half_closed()
        peer, self.peer = self.peer, None
        if peer is None:
            return
        peer.peer = None
        if peer.transport is None or peer._lost:
            return
        if isinstance(reason.value, error.ConnectionDone):
            _end_cleanly(peer.transport)
        else:
            _unregister(peer.transport)
            peer.transport.abortConnection()

    def _forget_half_closed(self) -> None:
        if self._write_ended and self.budget is not None and self.budget.half_closed is not None:
            self.budget.half_closed.forget(self)

    # -- flow control: this end is the producer that feeds the peer's transport

    def pauseProducing(self) -> None:
        """The peer's transport is full: stop reading here."""
        if self.transport is not None and not self._lost:
            cast(IPushProducer, self.transport).pauseProducing()
            self._mark_paused(True)

    def resumeProducing(self) -> None:
        """The peer's transport has room: read again."""
        if self.transport is not None and not self._lost:
            self._mark_paused(False)
            cast(IPushProducer, self.transport).resumeProducing()

    def stopProducing(self) -> None:
        """The peer's transport is gone; its connectionLost says how."""

    def _mark_paused(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            if self.budget is not None:
                self.budget.used += PAUSED_COST if paused else -PAUSED_COST


def join(first: RelayEnd, second: RelayEnd) -> None:
    """Let bytes, ends and back-pressure flow between two connected ends.

    Early bytes of each are passed on at once, in order; so is an end that came before the join.

    :raises LocalProtocolError: if one of them is already joined or not connected.
    """
    for end in (first, second):
        if end.peer is not None or end.transport is None or end._lost:
            raise LocalProtocolError("a relay joins two connected ends, once")
    first.peer, second.peer = second, first
    for source, sink in ((first, second), (second, first)):
        assert sink.transport is not None
        set_crash_reset(sink.transport, True)
        early = source.take_early()
        if early:
            sink.send(early)
        if source._paused:
            source.resumeProducing()
        # Registered after the early bytes: a producer that is already paused by them is told so here.
        if not source._read_ended and not sink._write_ended:
            cast(IConsumer, sink.transport).registerProducer(source, True)
        else:
            sink.end_writing()


def _unregister(transport: ITransport) -> None:
    # A transport with a producer never sends its FIN.
    cast(IConsumer, transport).unregisterProducer()


def _is_tls(transport: ITransport) -> bool:
    # Twisted's TLS transports show the methods of the TCP transport below them, which would act under the cipher.
    return not prompt.is_plain(transport) and ISSLTransport.providedBy(transport)


def can_half_close(transport: ITransport) -> bool:
    """Whether one direction of it can be ended alone."""
    if not hasattr(transport, "loseWriteConnection") or _is_tls(transport):
        return False
    return bool(getattr(transport, "can_half_close", True))


def _end_cleanly(transport: ITransport) -> None:
    _unregister(transport)
    set_crash_reset(transport, False)
    if can_half_close(transport):
        prompt.end_writing(transport)
    transport.loseConnection()


def set_crash_reset(transport: ITransport, on: bool) -> None:
    """Make the kernel end a socket with a reset if this process dies, as the stream on it would then be cut.

    A lingering time of zero does that; it is taken back before a clean close, which would otherwise reset as well.
    Transports that are no sockets have ends of their own.
    """
    get_handle = getattr(transport, "getHandle", None)
    handle = get_handle() if get_handle is not None and not _is_tls(transport) else None
    if handle is not None:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ON if on else _LINGER_OFF)


_LINGER_ON, _LINGER_OFF = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


#: When the kernel begins to ask a silent peer whether it is there, how often, and how many times in vain, in seconds: a
#: machine that has gone is found within two minutes, not after Linux' two hours.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


def keep_alive(transport: ITransport) -> None:
    """Find out when a TCP peer is gone without a word: its machine, or the process behind a socket that was half-closed."""
    if not prompt.is_plain(transport):
        return
    handle = cast(Any, transport).getHandle()
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        handle.setsockopt(socket.IPPROTO_TCP, option, value)


class _TargetFactory(Factory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> RelayEnd:
        return _TargetEnd()


class _TargetEnd(RelayEnd):
    """The target's end of a relay."""

    faces_target = True

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.setTcpNoDelay(True)
        keep_alive(self.transport)


#: Makes the ends of relays that face targets, for :meth:`mikanet.egress.Egress.connect`.
TARGETS = _TargetFactory()
