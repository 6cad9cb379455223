"""Forwarding TCP connections through a smux session, one stream each, as kcptun does.

When either direction of a connection ends, both do: the wire has no half-close. What was read before the end is still
delivered.
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
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.errors import LocalProtocolError
from mikanet.relay import RelayEnd, join
from mikanet.smux.connection import SmuxConnection
from mikanet.smux.session import SmuxSettings

_log = Logger()


class StreamEnd(RelayEnd):
    """The stream's end of a relay: with its output ended, the whole stream ends."""

    def end_writing(self) -> None:
        """The other end sends no more."""
        self._close()


@implementer(IProtocolFactory)
class ForwardingFactory(Factory):
    """Server: each stream that the peer opens becomes a connection to ``target``."""

    noisy = False

    def __init__(self, target: IStreamClientEndpoint) -> None:
        self._target = target

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:  # type: ignore[override]  # any IProtocol
        """The stream's end; it is joined when the target has answered."""
        return _Dialling(self._target)


class _Dialling(StreamEnd):
    def __init__(self, target: IStreamClientEndpoint) -> None:
        self._target = target

    def connectionMade(self) -> None:
        """Connect to the target."""
        connecting = self._target.connect(Factory.forProtocol(RelayEnd))
        connecting.addCallbacks(lambda made: _join_or_abort(self, cast(RelayEnd, made)), lambda why: _refuse(self, why))


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
        self._streams = ForwardingFactory(target)

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
