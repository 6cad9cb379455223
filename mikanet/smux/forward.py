"""Forwarding TCP connections through a smux session, one stream each, as kcptun does.

When either direction of a connection ends, both do: the wire has no half-close. What was read before the end is still
delivered, also to a target that has not answered yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.errors import LocalProtocolError
from mikanet.guard.deadlines import Deadlines
from mikanet.relay import RelayEnd, join
from mikanet.smux.connection import IFinishes, SmuxConnection
from mikanet.smux.session import SmuxSettings

_log = Logger()


#: How long, in seconds, a target may go on after its client has ended the stream: nobody hears it any more, but closing at
#: once would reset it while it reads what came last (our choice).
LAST_WORDS_TIME = 5.0


class StreamEnd(RelayEnd):
    """The stream's end of a relay: with its output ended, the whole stream ends."""

    def end_writing(self) -> None:
        """The other end sends no more."""
        self._close()


@implementer(IFinishes)
class ServingEnd(StreamEnd):
    """The same at a server: what the client sent before it ended the stream reaches the target, however late that answers.

    :ivar last_words: the clock of :data:`LAST_WORDS_TIME`.
    """

    last_words: Deadlines
    _last_key: int | None = None

    def peer_ended(self) -> None:
        """The client's FIN: to a target, the end of our direction; without a word for one, the end of all."""
        if self.peer is None and not self._early:
            self._close()
            return
        self._last_key = self.last_words.start(self._last_words_over)
        self.readConnectionLost()

    def finish_now(self) -> None:
        """Another stream wants our place."""
        if self._last_key is not None:
            self.last_words.cancel(self._last_key)
        self._last_words_over()

    def _last_words_over(self) -> None:
        self._last_key = None
        peer = self.peer
        self._close()
        if peer is not None:
            peer._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over."""
        if self._last_key is not None:
            self.last_words.cancel(self._last_key)
        super().connectionLost(reason)


@implementer(IProtocolFactory)
class ForwardingFactory(Factory):
    """Server: each stream that the peer opens becomes a connection to ``target``."""

    noisy = False

    def __init__(self, target: IStreamClientEndpoint, clock: IReactorTime) -> None:
        self._target = target
        self._last_words = Deadlines(clock, LAST_WORDS_TIME)

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:  # type: ignore[override]  # any IProtocol
        """The stream's end; it is joined when the target has answered."""
        return _Dialling(self._target, self._last_words)


class _Dialling(ServingEnd):
    def __init__(self, target: IStreamClientEndpoint, last_words: Deadlines) -> None:
        self._target = target
        self.last_words = last_words
        self._dial: Deferred[IProtocol] | None = None

    def connectionMade(self) -> None:
        """Connect to the target."""
        connecting = self._dial = self._target.connect(Factory.forProtocol(RelayEnd))
        connecting.addBoth(self._dialled)

    def _dialled(self, made: IProtocol | Failure) -> None:
        self._dial = None
        if isinstance(made, Failure):
            _refuse(self, made)
        else:
            _join_or_abort(self, cast(RelayEnd, made))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over, and with it the dial."""
        super().connectionLost(reason)
        dial, self._dial = self._dial, None
        if dial is not None:
            dial.cancel()


def _join_or_abort(end: RelayEnd, other: RelayEnd) -> None:
    try:
        join(end, other)
    except LocalProtocolError:
        other.abort()  # the stream ended while the target was dialled
        end.abort()


def _refuse(end: RelayEnd, why: Failure) -> None:
    _log.info("target not reached: {reason}", reason=why.getErrorMessage())
    if end.transport is not None:
        end.transport.abortConnection()


class SmuxServerFactory(Factory):
    """Server: a smux session on each connection, its streams forwarded to ``target``."""

    noisy = False

    def __init__(self, settings: SmuxSettings, clock: IReactorTime, target: IStreamClientEndpoint) -> None:
        self._settings = settings
        self._clock = clock
        self._streams = ForwardingFactory(target, clock)

    def buildProtocol(self, addr: IAddress | None) -> SmuxConnection:
        """A session; it speaks first, so that a peer can prove that it is live (Q4)."""
        return SmuxConnection(self._settings, False, self._clock, self._streams, nop_first=True)


class SmuxDialer:
    """Client: streams in one session to ``server``, which is opened when first wanted and again after its end."""

    def __init__(self, settings: SmuxSettings, clock: IReactorTime, server: IStreamClientEndpoint) -> None:
        self._settings = settings
        self._clock = clock
        self._server = server
        self._session: SmuxConnection | None = None
        self._waiting: list[tuple[Callable[[], IProtocol], Deferred[IProtocol]]] = []
        self._connecting = False

    def open(self, make: Callable[[], IProtocol]) -> Deferred[IProtocol]:
        """Open a stream with the protocol that ``make`` gives; fires with it."""
        done: Deferred[IProtocol] = Deferred()
        self._waiting.append((make, done))
        if self._session is not None:
            self._serve()
        elif not self._connecting:
            self._connecting = True
            factory = Factory.forProtocol(lambda: SmuxConnection(self._settings, True, self._clock, None, self._lost))
            self._server.connect(factory).addCallbacks(self._connected, self._failed)
        return done

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            self._session.abort(Failure(ConnectionDone()))

    def _connected(self, session: IProtocol) -> None:
        self._connecting = False
        self._session = cast(SmuxConnection, session)
        self._serve()

    def _failed(self, why: Failure) -> None:
        self._connecting = False
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done.errback(why)

    def _lost(self, why: Failure) -> None:
        _log.info("session ended: {reason}", reason=why.getErrorMessage())
        self._session = None

    def _serve(self) -> None:
        waiting, self._waiting = self._waiting, []
        for make, done in waiting:
            protocol = make()
            try:
                assert self._session is not None
                self._session.open(protocol)
            except (LocalProtocolError, AssertionError):
                done.errback(Failure(LocalProtocolError("the session takes no more streams")))
            else:
                done.callback(protocol)


class ForwardListenFactory(Factory):
    """Client: each connection that is accepted becomes a stream."""

    noisy = False

    def __init__(self, dialer: SmuxDialer) -> None:
        self._dialer = dialer

    def buildProtocol(self, addr: IAddress | None) -> RelayEnd:
        """The connection's end; bytes that come early are held until it is joined."""
        return _Accepted(self._dialer)


class _Accepted(RelayEnd):
    def __init__(self, dialer: SmuxDialer) -> None:
        self._dialer = dialer

    def connectionMade(self) -> None:
        """Open a stream for this connection."""
        cast(ITCPTransport, self.transport).setTcpNoDelay(True)
        opening = self._dialer.open(StreamEnd)
        opening.addCallbacks(lambda made: _join_or_abort(cast(RelayEnd, made), self), lambda why: _refuse(self, why))
