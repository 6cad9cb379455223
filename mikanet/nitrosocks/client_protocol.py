"""NitroSocks' client: one TLS connection to a server as a protocol."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.errors import RemoteProtocolError
from mikanet.nitrosocks.client_link import ClientLink, ClientLinkConfig
from mikanet.nitrosocks.link import Event, Released, SessionKeys, SessionOpened, SilenceError, Token
from mikanet.nitrosocks.link_protocol import BINDING_LABEL, BINDING_SIZE, LinkProtocol
from mikanet.nitrosocks.tls import TlsSide
from mikanet.nitrosocks.wire import EncryptType

#: Seconds for the handshake of TLS.
TLS_TIME = 15.0


@dataclass(frozen=True)
class NitroClientConfig:
    """What a client needs besides its reactor and servers.

    :ivar decrypt: opens a challenge with the private half; :ivar k0: made of the public one.
    :ivar binding: whether the TLS exporter is part of the transcript (N11).
    :ivar log_destinations: whether targets are named in the log.
    """

    tls: TlsSide
    k0: bytes = field(repr=False)
    decrypt: Callable[[bytes], bytes] = field(repr=False)
    token: bytes = field(repr=False)
    counters: Counters = field(default_factory=Counters)
    random_bytes: Callable[[int], bytes] = os.urandom
    wall_clock: Callable[[], float] = time.time
    least_type: EncryptType = EncryptType.AES_256_GCM
    binding: bool = False
    log_destinations: bool = False

    def link_config(self) -> ClientLinkConfig:
        """For the state machine."""
        token = Token("", self.token)
        return ClientLinkConfig(self.k0, self.decrypt, token, self.random_bytes, self.wall_clock, self.least_type)


class ConnectionUser(Protocol):
    """Whose connection it is."""

    def connection_lost(self) -> None:
        """The connection is gone without a release."""

    def released(self, clean: bool) -> None:
        """The session was released, by us or by the server."""


@implementer(IHalfCloseableProtocol)
class NitroClientProtocol(LinkProtocol):
    """One connection to a server.

    :param resume: the session to be resumed and the key to begin with; None for a new one.
    :ivar opened: fires with this protocol when the session stands; fails if it never does.
    :ivar session: whose connection this is.
    """

    session: ConnectionUser | None = None

    def __init__(self, reactor: Any, config: NitroClientConfig, resume: tuple[SessionKeys, bytes] | None) -> None:
        super().__init__(reactor)
        self._config = config
        self._resume = resume
        self._why: Exception | None = None
        self.keys: SessionKeys | None = None
        self.opened: Deferred[NitroClientProtocol] = Deferred(lambda _: self.cut())

    def connectionMade(self) -> None:
        """The handshake of TLS begins."""
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._timer = self.reactor.callLater(TLS_TIME, self._tls_time_over)

    def _tls_time_over(self) -> None:
        self._timer = None
        self._why = error.TimeoutError("no TLS handshake in time")
        self.transport.abortConnection()

    def secured(self, connection: SSL.Connection) -> None:
        """TLS stands."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        config = self._config
        binding = connection.export_keying_material(BINDING_LABEL, BINDING_SIZE) if config.binding else b""
        self.start_link(ClientLink(config.link_config(), self.reactor.seconds(), self._resume, binding))

    def on_event(self, event: Event) -> None:
        """See :meth:`LinkProtocol.on_event`."""
        if isinstance(event, SessionOpened):
            self.keys = event.session
            self.flush()
            self.opened.callback(self)
        elif isinstance(event, Released):
            session, self.session = self.session, None
            self.flush()
            self.drop_link()
            self.transport.loseConnection()
            if session is not None:
                session.released(event.clean)

    def failed(self, problem: RemoteProtocolError) -> None:
        """See :meth:`LinkProtocol.failed`."""
        link = cast(ClientLink | None, self.link)
        if link is not None and link.unread and not isinstance(problem, SilenceError):
            # Nothing of the server's was ever read: lengths are masked with its key.
            problem = RemoteProtocolError(
                "what it sends cannot be read: the private key is not the other half of the server's public key, "
                "or the server name did not reach it and it answers for another realm"
            )
        self._why = problem
        self.drop_link()
        self.transport.abortConnection()
        self._leave()

    def release(self) -> None:
        """Begin the normal release."""
        link = cast(ClientLink | None, self.link)
        if link is not None and self.mux is not None:
            self.mux.detach()
            link.disconnect(self.reactor.seconds())
            self.flush()
            self._arm()

    def cut(self) -> None:
        """End the connection now; it is nobody's any more."""
        self.session = None
        self.drop_link()
        if self.transport is not None:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The server sends no more, with or without a goodbye of TLS; without a release that is no end of a session."""
        if self.link is not None or not self.opened.called:
            if self.transport.said_goodbye and not self.opened.called:
                self._why = SilenceError("an end without an answer")
            self.transport.abortConnection()

    def writeConnectionLost(self) -> None:
        """Our own end has left."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        super().connectionLost(reason)
        if self._why is None:
            self._why = cast(Exception, reason.value)
        self._leave()

    def _leave(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.connection_lost()
        elif not self.opened.called:
            self.opened.errback(Failure(self._why or error.ConnectionLost()))
