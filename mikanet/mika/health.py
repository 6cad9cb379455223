"""Whether a Mika server lets its client in: the protocol has no answer that says so, so the client finds out.

A server that does not accept a header is silent for a minute and more, just as one whose target takes its time. So when a
connection has had no byte for some seconds, the client asks for a target that no server opens, its own loopback, on another
connection: a server that accepts our password and clock resets that one at once.

KCP's wire has no reset, so over it there is no such question: what the silence may mean is said, and nobody is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol as TypingProtocol

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.errors import Reason, ServerError
from mikanet.guard.deadlines import Deadlines
from mikanet.mika.session import Profile
from mikanet.net.server_state import ServerState, describe_failure

#: How long a connection may bring no byte until we ask, how long that may take, and the time until we ask again while
#: the server is of no use, in seconds.
SILENCE_TIME = 5.0

#: While nobody wants a connection for this long, in seconds, nothing is asked any more.
DEMAND_TIME = 60.0

#: A target that every server refuses, as its own machine is behind it.
UNREACHABLE = Address("::1", 1)

_SILENT = (
    "accepts connections and answers nothing: check that the password, --method and --profile are the same there, and that "
    "the clocks of both machines agree within 30 s"
)
_CLOSING = (
    "closes connections at once: if none works, check that a mika server listens on that port, and that it is not full "
    "(its --max-unverified-per-address)"
)

#: Where there is nothing to ask, over links without reset and with profile go: least time between two words about silence,
#: and how long a byte speaks for the server.
REMIND_TIME = 60.0
_KEEPS_SILENT = (
    "takes what we send and answers nothing: if all targets are like that, check that the password, --method and --profile "
    "are the same there, and that the clocks of both machines agree within 30 s"
)

_log = Logger()


class Watched(TypingProtocol):
    """A connection to the server."""

    @property
    def acknowledged(self) -> bool | None:
        """On a link without reset: whether its peer has acknowledged anything; None on others."""

    def abortConnection(self) -> None:
        """End at once with a reset."""


class Observer(TypingProtocol):
    """Is told of connections to the server."""

    profile: Profile

    def connected(self, connection: Watched) -> None:
        """One is established."""

    def heard(self, connection: Watched) -> None:
        """It has brought a byte."""

    def ended(self, connection: Watched) -> None:
        """It is over."""


class ServerHealth:
    """What a client knows of its server, and the connections that it has not heard anything on.

    :param state: what doors and the user are told.
    :param connect_probe: connects a protocol to a destination by way of the server.
    """

    def __init__(
        self,
        clock: IReactorTime,
        state: ServerState,
        profile: Profile,
        connect_probe: Callable[[IProtocol, Address], Deferred[IProtocol]],
    ) -> None:
        self.profile = profile
        self.state = state
        self._clock = clock
        self._connect_probe = connect_probe
        self._silences = Deadlines(clock, SILENCE_TIME)
        self._silent: dict[Watched, int] = {}
        self._begun: dict[Watched, float] = {}
        self._known_at = -1.0
        self._probe: _Probe | None = None
        self._again: IDelayedCall | None = None
        self._wanted_at = clock.seconds()
        self._suspect = False
        self._heard_at = self._reminded_at = -REMIND_TIME

    # -- of connections

    def wanted(self) -> None:
        """Somebody wants a connection."""
        self._wanted_at = self._clock.seconds()
        self.state.trying()

    def reached(self) -> None:
        """The server has taken a connection; that it lets us in is not said with that."""
        if self.state.trouble is None:
            self.state.usable()

    def look_soon(self) -> None:
        """Somebody was refused: see to it that the server is asked again, whatever ended the last attempts."""
        self._ask_again()

    def unreachable(self, failure: Failure) -> None:
        """No connection could be made."""
        if not failure.check(CancelledError, error.ConnectingCancelledError):
            self.state.failed(*describe_failure(failure))
            self._ask_again()

    def connected(self, connection: Watched) -> None:
        """A connection is established; from now on it is silent."""
        self._silent[connection] = self._silences.start(partial(self._silence, connection))
        self._begun[connection] = self._clock.seconds()
        if self._suspect:
            self._ask()

    def heard(self, connection: Watched) -> None:
        """It has brought a byte, so the server lets us in."""
        self._heard_at = self._known_at = self._clock.seconds()
        self.ended(connection)

    def ended(self, connection: Watched) -> None:
        """It is over, or silent no more; telling so again is no error."""
        key = self._silent.pop(connection, None)
        if key is not None:
            self._silences.cancel(key)
        self._begun.pop(connection, None)

    # -- asking

    def start(self) -> None:
        """Ask for the first time, before anybody wants a connection, so that the log says how things are."""
        self.wanted()
        self._ask(tell=True)

    def stop(self) -> None:
        """The client ends."""
        self.state.stop()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.cancel()

    def _silence(self, connection: Watched) -> None:
        acknowledged = connection.acknowledged
        if acknowledged is not None:
            if acknowledged:  # else the link has words of its own
                self._remind()
        elif self.profile is Profile.GO:  # whose server ends a refused target and a wrong password alike
            self._remind()
        else:
            self._ask()

    def _remind(self) -> None:
        """Silence that cannot be asked about: say what it may mean, unless the server has let us in lately."""
        now = self._clock.seconds()
        if now - max(self._heard_at, self._reminded_at) >= REMIND_TIME:
            self._reminded_at = now
            self.state.remark(_KEEPS_SILENT)

    def _ask(self, tell: bool = False) -> None:
        if self._probe is None and self._again is None:
            self._probe = _Probe(self._clock, self, tell)
            self._probe.start(self._connect_probe, self.profile is Profile.GO)

    def answered(self, probe: _Probe, seconds: float, tell: bool) -> None:
        """The server knows us."""
        if probe is not self._probe:
            return
        self._probe = None
        self._suspect = False
        self._known_at = self._clock.seconds()
        self.state.usable()
        if tell:
            knows = "connected to" if self.profile is Profile.GO else "password and clock are right at"
            _log.info("{knows} {server}, {ms:.0f} ms", knows=knows, server=self.state.name, ms=seconds * 1000)

    def unanswerable(self, probe: _Probe) -> None:
        """The link has no way to tell."""
        if probe is self._probe:
            self._probe = None
            self._suspect = False
            self.state.usable()

    def closed(self, probe: _Probe) -> None:
        """It closes our question in order. So does a server that is full, or is none; but so does one that lets us in, too,
        when a relay on the way has no reset, as kcptun has none. Nobody waits in vain for either: it is said, no more.
        """
        if probe is self._probe:
            self.unanswerable(probe)
            self.state.remark(_CLOSING)

    def refused(self, probe: _Probe, problem: Failure | None) -> None:
        """It cannot be reached, or is silent."""
        if probe is not self._probe:
            return
        self._probe = None
        self._ask_again()
        if problem is not None:
            self.state.hopeless(*describe_failure(problem))  # what is open may go on: a server that drains does so
            return
        self.state.hopeless(Reason.FAILURE, _SILENT)
        # What has been silent since the server last knew us stays so: nobody need wait for the server's own time.
        for connection in [each for each, begun in self._begun.items() if begun >= self._known_at]:
            connection.abortConnection()

    def _ask_again(self) -> None:
        if self._again is None and self._probe is None:
            self._again = self._clock.callLater(SILENCE_TIME, self._look)

    def _look(self) -> None:
        self._again = None
        if self._clock.seconds() - self._wanted_at < DEMAND_TIME:
            self._ask()
        else:
            self._suspect = True
            self.state.forget()


class _Unwatched:
    """For connections that ask."""

    profile = Profile.SPEC

    def connected(self, connection: Watched) -> None:
        """Nothing."""

    def heard(self, connection: Watched) -> None:
        """Nothing."""

    def ended(self, connection: Watched) -> None:
        """Nothing."""


UNWATCHED: Observer = _Unwatched()


class _Probe(Protocol):
    """One question to the server, and its outcome."""

    def __init__(self, clock: IReactorTime, health: ServerHealth, tell: bool) -> None:
        self._clock = clock
        self._health = health
        self._tell = tell
        self._began = clock.seconds()
        self._only_connect = False
        self._over = False
        self._timer: IDelayedCall | None = None
        self._connecting: Deferred[IProtocol] | None = None

    def start(self, connect: Callable[[IProtocol, Address], Deferred[IProtocol]], only_connect: bool) -> None:
        """Ask."""
        self._only_connect = only_connect
        self._timer = self._clock.callLater(SILENCE_TIME, self._silent)
        self._connecting = connect(self, UNREACHABLE)
        self._connecting.addErrback(lambda failure: self._end(problem=failure))

    def connectionMade(self) -> None:
        """The header leaves now."""
        if self.transport.acknowledged is not None:  # type: ignore[union-attr]  # a filter of ours
            self._over = True
            self._let_go()
            self._health.unanswerable(self)
        elif self._only_connect:
            self._end(good=True)

    def dataReceived(self, data: bytes) -> None:
        """Whoever says something has opened something."""
        self._end(good=True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """A reset is what a target that may not be opened ends in; a server that knows nothing of us would be silent."""
        clean = reason.check(error.ConnectionDone) is not None
        self._end(good=not clean, closed=clean)

    def _silent(self) -> None:
        connected = self.transport is not None
        self._end(problem=None if connected else Failure(error.TimeoutError()))

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self._over = True
        self._let_go()

    def _end(self, good: bool = False, problem: Failure | None = None, closed: bool = False) -> None:
        if self._over:
            return
        self._over = True
        self._let_go()
        if good:
            self._health.answered(self, self._clock.seconds() - self._began, self._tell)
        elif closed:
            self._health.closed(self)
        else:
            self._health.refused(self, problem)

    def _let_go(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.addErrback(lambda _: None)
            self._connecting.cancel()
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # a filter


@implementer(IStreamClientEndpoint)
class CheckedEndpoint:
    """The server's endpoint, with its health kept: while the server is of no use, connecting fails at once."""

    def __init__(self, server: IStreamClientEndpoint, health: ServerHealth) -> None:
        self._server = server
        self._health = health

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect. The Deferred fails with :class:`ServerError` if the server is the obstacle."""
        health = self._health
        health.wanted()
        if health.state.trouble is not None:
            health.look_soon()
            failed: Deferred[IProtocol] = Deferred()
            failed.errback(health.state.trouble)
            return failed
        attempt = self._server.connect(protocolFactory)
        attempt.addCallbacks(self._reached, self._unreachable)
        return health.state.unless_trouble(attempt)

    def _reached(self, protocol: IProtocol) -> IProtocol:
        self._health.reached()
        return protocol

    def _unreachable(self, failure: Failure) -> Failure:
        self._health.unreachable(failure)
        if failure.check(CancelledError, error.ConnectingCancelledError):
            return failure
        reason, text = describe_failure(failure)
        return Failure(ServerError(reason, f"the tunnel's server {text}"))
