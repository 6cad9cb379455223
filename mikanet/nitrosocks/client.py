"""NitroSocks' client: the tunnel that front doors use, its sessions, and how they outlive their connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.errors import Reason, RemoteProtocolError, ServerError
from mikanet.filters.base import FilterFactory
from mikanet.interfaces import ITunnel
from mikanet.net.server_state import ServerState, describe_failure
from mikanet.nitrosocks.client_protocol import NitroClientConfig, NitroClientProtocol
from mikanet.nitrosocks.datagrams import DatagramFilter
from mikanet.nitrosocks.link import SessionKeys, SilenceError
from mikanet.nitrosocks.mux import Mux, Opening
from mikanet.nitrosocks.race import Race
from mikanet.nitrosocks.tls import TlsError, TlsFilter
from mikanet.wire.socks import encode_address

#: Seconds between attempts to come back: at once, then these, the last one again and again (N10).
BACKOFF = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)

#: Seconds after which a server has surely forgotten a session without a connection (N8), and of the last attempt before.
PARK_TIME = 60.0
LAST_TRY = 58.0

#: How long, in seconds, new streams wait for a session that has just lost its connection before another one is made for
#: them, and the time between two attempts to make one while it is away. Our choice.
GRACE = 2.0
AGAIN_TIME = 0.5

#: Least time, in seconds, between two messages about the same trouble.
REPEAT_TIME = 60.0

#: While the server cannot be used: seconds between an attempt that failed and the next, and for how long after an
#: application last asked there is a next one. Our choice.
ASK_AGAIN, INTERESTED = 5.0, 60.0

#: What is wrong as long as nothing is known.
_LATE = (
    "does not let us in within 3 s: check that it can be reached, that key, token and server name are of one realm, and that"
    " both clocks are right"
)

_log = Logger()


@dataclass(frozen=True)
class Server:
    """One server.

    :ivar name: in the user's words. :ivar endpoint: how to reach it.
    """

    name: str
    endpoint: IStreamClientEndpoint


class ClientSession:
    """A session with one server: its streams, and the connection that carries them now, if one does.

    :ivar lost_at: when its connection was lost last.
    """

    def __init__(self, tunnel: NitroTunnel, server: Server, keys: SessionKeys) -> None:
        self.server = server
        self.mux = Mux(tunnel.reactor)
        self._tunnel = tunnel
        self._keys = keys
        self._protocol: NitroClientProtocol | None = None
        self._attempts = 0
        self._silences = 0
        self.lost_at = 0.0
        self._retry: IDelayedCall | None = None
        self._grace: IDelayedCall | None = None
        self._ended = False
        self._attempt: Deferred[NitroClientProtocol] | None = None
        self._ending: Deferred[None] | None = None

    @property
    def away(self) -> bool:
        """Whether it is between two connections."""
        return not self.mux.attached and not self.mux.over

    @property
    def refused(self) -> bool:
        """Whether it is away, and an attempt to come back has failed."""
        return self.away and self._attempts > (self._attempt is not None)

    def carry(self, protocol: NitroClientProtocol, resumed: bool) -> None:
        """A connection carries the session now."""
        self._stop_grace()
        self._attempts = self._silences = 0
        self._protocol = protocol
        protocol.session = self
        protocol.mux = self.mux
        self._tunnel.usable()
        self.mux.attach(protocol, resumed)

    def connection_lost(self) -> None:
        """The connection is gone without a release: come back."""
        self._protocol = None
        self.mux.detach()
        tunnel = self._tunnel
        tunnel.count("lost")
        self.lost_at = tunnel.reactor.seconds()
        if self._ending is not None:
            self._end("released")
            return
        _log.info("the connection to the server {server} was lost; coming back", server=self.server.name)
        self._grace = tunnel.reactor.callLater(GRACE, self._grace_over)
        self._come_back()
        for opening in self.mux.take_unsent():
            tunnel.reopen(opening)

    def _grace_over(self) -> None:
        self._grace = None
        self._tunnel.look_for_session()

    def _stop_grace(self) -> None:
        grace, self._grace = self._grace, None
        if grace is not None:
            grace.cancel()

    def _come_back(self) -> None:
        reactor = self._tunnel.reactor
        away = reactor.seconds() - self.lost_at
        delay = BACKOFF[min(self._attempts, len(BACKOFF) - 1)]
        if away + delay > PARK_TIME:
            delay = LAST_TRY - away
            if delay <= 0:
                self._give_up("the server could not be reached again in time")
                return
        self._retry = reactor.callLater(delay, self._try)

    def _give_up(self, why: str) -> None:
        _log.info("the session with the server {server} is given up: {why}", server=self.server.name, why=why)
        self._end(why)

    def _try(self) -> None:
        self._retry = None
        chain = self._keys.chain.newest_first()
        key = chain[self._attempts % len(chain)]
        self._attempts += 1
        self._attempt = attempt = self._tunnel.dial(self.server, (self._keys, key))
        attempt.addCallbacks(self._returned, self._failed)

    def _returned(self, protocol: NitroClientProtocol) -> None:
        self._attempt = None
        if self._ended:
            protocol.cut()
            return
        self._tunnel.count("recovered")
        self.carry(protocol, resumed=True)
        self._tunnel.serve_waiting()

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        if self._ended or failure.check(CancelledError, error.ConnectingCancelledError):
            return
        # A server that stands and does not know any of our keys will not know them later.
        if failure.check(SilenceError):
            self._silences += 1
        if self._silences >= len(self._keys.chain.newest_first()):
            self._give_up("the server does not know it any more")
        else:
            self._tunnel.state.failed(*_cause(failure))
            self._come_back()
            self._tunnel.look_for_session()

    def released(self, clean: bool) -> None:
        """The session was released, by us or by the server."""
        self._protocol = None
        self._tunnel.count("released" if clean else "released.forced")
        if self._ending is None:
            _log.info("the server {server} ended the session", server=self.server.name)
        self._end("released")

    def release(self) -> Deferred[None]:
        """Release the session; fires when that is done, or given up."""
        if self._ending is None:
            self._ending = Deferred()
            if self._protocol is not None:
                self.mux.end(Failure(error.ConnectionLost("the client is ending")))
                self._protocol.release()
            else:
                self._end("the client is ending")
        return self._ending

    def _end(self, why: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._stop_grace()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        self._tunnel.sessions.remove(self)
        self.mux.end(Failure(error.ConnectionLost(why)))
        if self._ending is None:
            self._ending = Deferred()
        self._ending.callback(None)
        self._tunnel.look_for_session()


@implementer(ITunnel)
class NitroTunnel:
    """Streams and datagrams to anywhere, many in each session.

    :param servers: in the order of preference; a new session goes to the first that answers.
    :param report: takes one line for the user; the default logs a warning.
    :ivar sessions: those that there are, on a connection or between two. :ivar state: whether a server can be used.
    """

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[Server],
        config: NitroClientConfig,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.reactor = reactor
        self.config = config
        self.sessions: list[ClientSession] = []
        self._servers = list(servers)
        self._waiting: list[Deferred[ClientSession]] = []
        self._login: Deferred[Any] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._stopped = False
        self._report = report or (lambda text: _log.warn("{text}", text=text))
        self._reported: dict[str, float] = {}
        self.state = ServerState(reactor, " or ".join(server.name for server in servers), lambda text: None)  # see _say
        self._asked_at = float("-inf")
        self._again: IDelayedCall | None = None
        self._doubtful = False

    # -- ITunnel

    def stream_endpoint(self, destination: Address, http: bool = False) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.stream_endpoint`."""
        encode_address(destination)  # a host that no frame can carry is refused at once
        return _StreamEndpoint(self, destination)

    def datagram_endpoint(self, destination: Address) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.datagram_endpoint`."""
        encode_address(destination)
        return _DatagramEndpoint(self, destination)

    # -- sessions

    def start(self) -> None:
        """Make the first session, so that the first stream does not wait for it."""
        self.session().addErrback(lambda _: None)

    def stop(self) -> Deferred[None]:
        """Release every session; fires when that is done."""
        self._stopped = True
        self.state.stop()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._login is not None:
            self._login.cancel()
        ends = [session.release() for session in list(self.sessions)]
        self._fail_waiting(Failure(error.ConnectionLost("the client is ending")))
        return DeferredList(ends).addCallback(lambda _: None)

    def session(self) -> Deferred[ClientSession]:
        """A session on a connection, with room for a stream; made if there is none, and soon refused if none can be made."""
        for session in self.sessions:
            if session.mux.attached and not session.mux.full:
                return succeed(session)
        waiting: Deferred[ClientSession] = Deferred(self._forget)
        self._waiting.append(waiting)
        self._asked_at = self.reactor.seconds()
        if not any(session.mux.attached for session in self.sessions) and not self._stopped:
            if not self._doubtful:
                self._doubtful = True
                self.state.failed(Reason.TIMEOUT, _LATE)
            self.state.trying()
        self.look_for_session()
        return self.state.unless_trouble(waiting)

    def reopen(self, opening: Opening) -> None:
        """A stream that no server has heard of yet: open it on whichever session there is next."""
        self.session().addCallbacks(lambda session: session.mux.adopt(opening), opening.fail)

    def look_for_session(self, asked: bool = False) -> None:
        """Log in for the streams that wait, or because it was asked for, if it is time and nobody does already."""
        if not (self._waiting or asked) or self._login is not None or self._stopped:
            return
        servers = self._eligible()
        if not servers:
            return  # the session that may be back at any moment will call again
        delay = self._not_before - self.reactor.seconds()
        if delay > 0:
            self._login = _later(self.reactor, delay)
            self._login.addCallbacks(lambda _: self._pause_over(asked), self._login_failed)
        else:
            self._log_in(servers)

    def _eligible(self) -> list[Server]:
        """Where to log in now. What has just lost a session gets a moment to take it back, others need not wait for that."""
        away = [session for session in self.sessions if session.away]
        lost = [session.server for session in away]
        now = self.reactor.seconds()
        fresh = [session for session in away if now - session.lost_at < GRACE]
        if not fresh:
            return sorted(self._servers, key=lambda server: server in lost)
        if not any(session.refused for session in fresh):
            return []
        return [server for server in self._servers if server not in lost]

    def _pause_over(self, asked: bool) -> None:
        self._login = None
        self.look_for_session(asked)

    def serve_waiting(self) -> None:
        """A session has room: give it to the streams that wait."""
        for session in list(self.sessions):
            while self._waiting and session.mux.attached and not session.mux.full:
                self._waiting.pop(0).callback(session)
        self.look_for_session()

    def usable(self) -> None:
        """A server has let us in."""
        self._doubtful = False
        self.state.usable()

    def _forget(self, waiting: Deferred[ClientSession]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _log_in(self, servers: list[Server]) -> None:
        def failed(server: Server, failure: Failure) -> None:
            self.count("failed")
            self._say(server, _describe(failure))
            self.state.failed(*_cause(failure))

        race = Race(self.reactor, servers, lambda server: self.dial(server, None), failed, NitroClientProtocol.cut)
        # It may be over at once, and what follows looks whether a login goes on.
        self._login = login = race.start()
        login.addCallbacks(self._logged_in, self._login_failed)

    def _logged_in(self, found: tuple[Server, NitroClientProtocol]) -> None:
        server, protocol = found
        self._login = None
        self._failures = 0
        self.count("sessions")
        self._reported.pop(server.name, None)
        _log.info("connected to the server {server}", server=server.name)
        # The one that answered is asked first the next time.
        self._servers.sort(key=lambda each: each is not server)
        assert protocol.keys is not None
        session = ClientSession(self, server, protocol.keys)
        self.sessions.append(session)
        session.carry(protocol, resumed=False)
        self.serve_waiting()

    def _login_failed(self, failure: Failure) -> None:
        self._login = None
        # A server that is not there may be back at any moment; one that answers nothing good is left alone for a while.
        if failure.check(RemoteProtocolError):
            self._failures += 1
            self._not_before = self.reactor.seconds() + BACKOFF[min(self._failures, len(BACKOFF) - 1)]
        if not self._stopped and any(session.away for session in self.sessions):
            # While a session may still come back its servers are asked again and again, and streams wait.
            self._not_before = max(self._not_before, self.reactor.seconds() + AGAIN_TIME)
            self.look_for_session()
            return
        self._fail_waiting(failure if self._stopped else Failure(_server_error(failure)))
        self._keep_asking()

    def _keep_asking(self) -> None:
        """Applications are refused now: find out by ourselves when they need not be any more."""
        if self._stopped or self._again is not None:
            return
        if self.reactor.seconds() - self._asked_at >= INTERESTED:
            self.state.forget()
        else:
            self._again = self.reactor.callLater(ASK_AGAIN, self._ask_again)

    def _ask_again(self) -> None:
        self._again = None
        if not any(session.mux.attached for session in self.sessions):
            self.look_for_session(asked=True)

    def _fail_waiting(self, failure: Failure) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.errback(failure)

    def dial(self, server: Server, resume: tuple[SessionKeys, bytes] | None) -> Deferred[NitroClientProtocol]:
        """Connect to a server; fires when a session stands."""
        self.count("connections")
        config = self.config
        protocol = NitroClientProtocol(self.reactor, config, resume)
        factory = FilterFactory(_Ready(protocol), lambda upper: TlsFilter(upper, config.tls))
        return server.endpoint.connect(factory).addCallback(lambda _: protocol.opened)

    def count(self, what: str) -> None:
        """Count something."""
        self.config.counters.add(f"nitrosocks.client.{what}")

    def _say(self, server: Server, problem: str) -> None:
        now = self.reactor.seconds()
        if now - self._reported.get(server.name, -REPEAT_TIME) >= REPEAT_TIME:
            self._reported[server.name] = now
            self._report(f"no session with the server {server.name}: {problem}; trying at each new connection")


def _later(reactor: Any, delay: float) -> Deferred[None]:
    done: Deferred[None] = Deferred(lambda _: call.cancel())
    call = reactor.callLater(delay, done.callback, None)
    return done


def _describe(failure: Failure) -> str:
    problem = failure.value
    if isinstance(problem, SilenceError):
        return (
            "it answers nothing: check that key, token and server name are of one realm, that the token is still in "
            "the server's file, and that both clocks are right"
        )
    return " ".join((str(problem) or type(problem).__name__).split()).rstrip(".")


def _cause(failure: Failure) -> tuple[Reason, str]:
    """The reason, and words that follow the server's name."""
    if failure.check(SilenceError):
        return Reason.TIMEOUT, _describe(failure).removeprefix("it ")
    if failure.check(RemoteProtocolError, TlsError):
        return Reason.FAILURE, f"does not let us in: {_describe(failure)}"
    return describe_failure(failure)


def _server_error(failure: Failure) -> ServerError:
    """What an application is told."""
    reason, text = _cause(failure)
    return ServerError(reason, f"the tunnel's server {text}")


class _Ready(Factory):
    """The factory of one protocol that is there already."""

    noisy = False

    def __init__(self, protocol: NitroClientProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> NitroClientProtocol:
        return self._protocol


@implementer(IStreamClientEndpoint)
class _StreamEndpoint:
    """A stream to one destination."""

    datagrams = False

    def __init__(self, tunnel: NitroTunnel, destination: Address) -> None:
        self._tunnel = tunnel
        self._destination = destination

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        tunnel = self._tunnel
        tunnel.count("streams")
        if tunnel.config.log_destinations:
            _log.info("to {destination}", destination=str(self._destination))
        return tunnel.session().addCallback(
            lambda session: session.mux.open(self._destination, protocolFactory, self.datagrams)
        )


class _DatagramEndpoint(_StreamEndpoint):
    """A flow of datagrams to one destination."""

    datagrams = True

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        made = super().connect(FilterFactory(protocolFactory, DatagramFilter))
        return made.addCallback(lambda filter_: cast(DatagramFilter, filter_).upper)
