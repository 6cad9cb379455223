"""One of a client's connections to its server: sessions that follow one another, each tried out before it is used.

A session is KCP under smux. It is *live* when the server has answered a PING in a dialect that we may speak; until then
nothing is opened in it, because neither KCP nor paqet's messages would ever tell that nobody is there, or that nobody
understands. A live session is asked every ten seconds; three answers missed in a row end it, and the next one begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from twisted.internet import error
from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.counters import Counters
from mikanet.errors import LocalProtocolError, Reason, RemoteProtocolError, ServerError
from mikanet.kcp.client import KcpClientSession
from mikanet.kcp.filter import PathSize
from mikanet.kcp.link import LinkSettings, PacketSealer, RandomBytes
from mikanet.paqet.config import AUTO_DIALECTS
from mikanet.paqet.ports import IClientPort, OpenPort
from mikanet.paqet.wire import Dialect, Message, MessageReader, MessageType, encode
from mikanet.smux.connection import SmuxConnection
from mikanet.smux.session import SmuxSettings

#: Seconds between two PINGs, and how many may go unanswered (Q8).
PING_INTERVAL, MAX_MISSED = 10.0, 3
#: Seconds before a session that never became live is followed by the next, doubled each time up to the second.
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0

#: Seconds between looks whether the server acknowledges what it is sent, also if it is heard. After two in a row without
#: progress name and way are looked up again (our choice: a few retransmissions, and well within ten seconds).
WATCH_INTERVAL, MAX_SILENT = 1.5, 2

#: Questions that :meth:`Connection.find_path_size` asks at most, and how long each may take (our choice).
MOST_QUESTIONS, QUESTION_TIME = 40, 1.0

#: Seconds for another answer, when one came that is of no use, or when only one question was asked (our choice).
SECOND_THOUGHTS = 2.0

_ALL_DIALECTS = frozenset(Dialect)
#: How a server is asked: alpha.20 understands the newest dialect's PING, too.
_WAYS = (Dialect.A21, Dialect.GOB)

#: What is wrong with a server that answers no question.
SILENT = "answers nothing"

_log = Logger()


@dataclass(frozen=True)
class PaqetClientConfig:
    """What a client needs besides its reactor and its ports.

    :ivar dialects: of messages: the one to speak, or several to find the server's among.
    :ivar remote_flags: the flag list that the server is asked to use towards us.
    :ivar resident: keep a session at all times; otherwise one is opened when it is wanted, and let go when idle.
    """

    link: LinkSettings
    smux: SmuxSettings
    dialects: tuple[Dialect, ...] = AUTO_DIALECTS
    remote_flags: tuple[int, ...] = ()
    resident: bool = True
    counters: Counters = field(default_factory=Counters)
    random_bytes: RandomBytes = os.urandom
    log_destinations: bool = False


class LiveSession(NamedTuple):
    """A session that streams can be opened in, and the dialect of their messages."""

    smux: SmuxConnection
    dialect: Dialect


class Connection:
    """Sessions over one port.

    :param sealer: shared by all connections, as it remembers packets.
    :param report: told what the user should know: whether the server answers (None), or what is wrong.
    :ivar dialect: that of the live session; None while none is live.
    :ivar found: the dialect that the server was found to speak last.
    """

    def __init__(
        self,
        clock: IReactorTime,
        port: IClientPort,
        config: PaqetClientConfig,
        sealer: PacketSealer,
        report: Callable[[str | None], None],
    ) -> None:
        self.dialect: Dialect | None = None
        self.found: Dialect | None = None
        self._deciding: IDelayedCall | None = None
        self._clock = clock
        self._port = port
        self._config = config
        self._sealer = sealer
        self._report = report
        self._smux: SmuxConnection | None = None
        self._misunderstood = False
        self._opening: Deferred[OpenPort] | None = None
        self._waiting: list[Deferred[LiveSession]] = []
        self._timer: IDelayedCall | None = None
        self._wait = FIRST_WAIT
        self._pings: set[_Ping] = set()
        self._missed = 0
        self._watching: IDelayedCall | None = None
        self._silent = 0
        self._unacknowledged: int | None = None
        self._stopped = False

    # -- for the tunnel

    @property
    def live(self) -> bool:
        """Whether streams can be opened at once."""
        # A session that is just ending tells its streams first and us last.
        return self.dialect is not None and self._smux is not None and self._smux.transport is not None

    def session(self) -> Deferred[LiveSession]:
        """A live session, now or when there is one; fails with :class:`ServerError` when the server is silent."""
        if self.live:
            assert self._smux is not None
            assert self.dialect is not None
            return succeed(LiveSession(self._smux, self.dialect))
        if self._misunderstood:
            return fail(_unreachable())
        waiting: Deferred[LiveSession] = Deferred(self._waiting_cancelled)
        self._waiting.append(waiting)
        self.open()
        return waiting

    def _waiting_cancelled(self, waiting: Deferred[LiveSession]) -> None:
        if waiting in self._waiting:  # else the list is just being worked off
            self._waiting.remove(waiting)

    def ping(self) -> Deferred[Dialect | None]:
        """Ask the live session's server; fires with the dialect of its answer, or never."""
        answered: Deferred[Dialect | None] = Deferred()
        self._send_ping(
            self.dialect or Dialect.A21, lambda dialect: None if answered.called else answered.callback(dialect)
        )
        return answered

    @property
    def path_size(self) -> PathSize | None:
        """What the path to the server carries, as far as the session has found out; None without one."""
        return self._session.kcp.path_size if self._smux is not None else None

    @inlineCallbacks
    def find_path_size(self, most: int = MOST_QUESTIONS) -> Generator[Any, Any, PathSize | None]:
        """Ask until it is known what the path carries, at most so often; fires with what is known then."""
        for _ in range(most):
            found = self.path_size
            if found is None or found.settled:
                return found
            # An answer, or the time in which a lost question is sent again.
            answer: Deferred[Any] = self.ping().addTimeout(QUESTION_TIME, self._clock).addErrback(lambda _: None)
            yield answer
        return self.path_size

    def open(self) -> None:
        """Begin a session, unless there is one."""
        if self._smux is not None or self._opening is not None or self._stopped:
            return
        self._cancel_timer()
        self._opening = self._port.open(self._packets_received)
        self._opening.addCallbacks(self._opened, self._not_opened)

    def network_changed(self) -> None:
        """Find out at once whether a session can go on; begin one if there is none."""
        if self._stopped:
            return
        if self._smux is not None:
            self._look_again(silent=False)
        elif self._timer is not None:  # it would have begun later
            self._wait = FIRST_WAIT
            self.open()

    def stop(self) -> None:
        """End the session; no other follows."""
        self._stopped = True
        self._stop_watching()
        self._cancel_timer()
        if self._opening is not None:
            self._opening.cancel()
        elif self._smux is not None:
            self._smux.abort(Failure(error.ConnectionDone()))
        self._fail_waiting()

    # -- a session's beginning

    def _packets_received(self, packets: list[bytes]) -> None:
        self._session.packets_received(packets)

    def _opened(self, opened: OpenPort) -> None:
        self._opening = None
        config = self._config
        smux = self._smux = SmuxConnection(config.smux, True, self._clock, None, self._lost)
        self._session = KcpClientSession(
            opened.port, opened.peer, smux, config.link, self._sealer, self._clock, config.random_bytes, opened.close
        )
        config.counters.add("paqet.client.sessions")
        self._missed = 0
        self._misunderstood = False
        self._session.start()
        self._probe()
        self._timer = self._clock.callLater(PING_INTERVAL, self._look)
        self._silent = 0
        self._watching = self._clock.callLater(WATCH_INTERVAL, self._watch)

    def _not_opened(self, failure: Failure) -> None:
        self._opening = None
        if not self._stopped:
            self._report(f"cannot be reached: {' '.join(str(failure.value).split())}")
            self._fail_waiting()
            self._open_later()

    def _probe(self, anew: bool = False) -> None:
        """Ask which dialect the server speaks: as it was found last, or in every way at once.

        In every way, because a question in the wrong one may get no answer at all: a Go gob decoder takes our magic for
        the length of a message, and waits for the rest.
        """
        smux = self._smux
        alone = self.found is not None and not anew
        ways = (Dialect.GOB if self.found is Dialect.GOB else Dialect.A21,) if alone else _WAYS
        open_questions = set(ways)
        foreign: Dialect | None = None

        def answered(way: Dialect, dialect: Dialect | None) -> None:
            nonlocal foreign
            if smux is not self._smux or self.dialect is not None:
                return
            open_questions.discard(way)
            foreign = foreign or dialect
            if dialect in self._config.dialects:
                self._lives(dialect)
            elif not open_questions:
                decide()
            elif dialect is not None:
                self._think_again(decide)

        def decide() -> None:
            if smux is not self._smux or self.dialect is not None:
                return
            if foreign is not None:
                self._not_understood(foreign)
            elif alone:
                self._probe(anew=True)
            else:
                self._not_understood(None)

        for way in ways:
            self._send_ping(way, partial(answered, way))
        if alone:
            self._think_again(decide)

    def _think_again(self, decide: Callable[[], None]) -> None:
        self._stop_thinking()
        self._deciding = self._clock.callLater(SECOND_THOUGHTS, decide)

    def _stop_thinking(self) -> None:
        deciding, self._deciding = self._deciding, None
        if deciding is not None and deciding.active():
            deciding.cancel()

    def _lives(self, dialect: Dialect) -> None:
        self._stop_thinking()
        for ping in list(self._pings):
            ping.give_up()  # asked in a way that nobody answers any more
        if dialect is not self.found:
            _log.info("the server speaks dialect {dialect}", dialect=dialect.value)
        self.dialect = self.found = dialect
        self._misunderstood = False
        self._wait = FIRST_WAIT
        self._report(None)
        smux = self._smux
        assert smux is not None
        if self._config.remote_flags:
            smux.open(_Once(encode(Message(MessageType.FLAGS, flags=self._config.remote_flags), dialect)))
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(LiveSession(smux, dialect))

    def _not_understood(self, dialect: Dialect | None) -> None:
        self._stop_thinking()
        self._misunderstood = True
        self.found = None
        self._config.counters.add("paqet.client.misunderstood")
        wanted = " or ".join(each.value for each in self._config.dialects)
        if dialect is None:
            self._report(f"has the same key and does not take messages of dialect {wanted}")
        else:
            self._report(
                f"speaks dialect {dialect.value} and not {wanted}: write dialect: {dialect.value} under mikanet:"
            )
        self._fail_waiting()

    # -- a session's health

    def _send_ping(self, dialect: Dialect, answered: Callable[[Dialect | None], None]) -> None:
        if self._smux is None:
            return
        ping = _Ping(encode(Message(MessageType.PING), dialect), self._pings, answered)
        try:
            self._smux.open(ping)
        except LocalProtocolError:
            pass  # so many streams are open that the session is doubtlessly alive; keepalive watches it

    def _look(self) -> None:
        """Ten seconds are over: what has become of the last PING?"""
        self._timer = None
        smux = self._smux
        if smux is None:
            return
        if self._pings:
            self._missed += 1
            for ping in list(self._pings):
                ping.give_up()
            if self._missed >= MAX_MISSED:
                self._config.counters.add("paqet.client.unhealthy")
                smux.abort(Failure(error.TimeoutError("the server answers no PING")))
                return
        if not self._config.resident and not smux.streams and not self._waiting:
            smux.abort(Failure(error.ConnectionDone()))
            return
        self._timer = self._clock.callLater(PING_INTERVAL, self._look)
        if self.dialect is None:
            self._probe(anew=True)
        else:
            self._send_ping(self.dialect, self._pong_received)

    def _pong_received(self, dialect: Dialect | None) -> None:
        self._missed = 0

    def _watch(self) -> None:
        """A moment has passed: is the server there?"""
        self._watching = self._clock.callLater(WATCH_INTERVAL, self._watch)
        before, self._unacknowledged = self._unacknowledged, self._session.kcp.unacknowledged
        self._silent = self._silent + 1 if before is not None and before == self._unacknowledged else 0
        if self._silent >= MAX_SILENT:
            self._silent = 0
            self._look_again(silent=True)

    def _look_again(self, silent: bool) -> None:
        smux = self._smux

        def looked(moved: bool) -> None:
            if moved and smux is self._smux and smux is not None:
                self._config.counters.add("paqet.client.moved")
                self._wait = FIRST_WAIT
                smux.abort(Failure(error.ConnectionLost("the way to the server has changed")))
            elif smux is self._smux and smux is not None:
                self._session.kcp.hurry()

        self._port.look_again(silent).addCallback(looked)

    def _stop_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None and watching.active():
            watching.cancel()

    # -- a session's end

    def _lost(self, reason: Failure) -> None:
        was_live, self._smux, self.dialect = self.dialect is not None, None, None
        self._misunderstood = False
        self._cancel_timer()
        self._stop_watching()
        self._stop_thinking()
        self._pings.clear()
        if self._stopped:
            return
        self._config.counters.add("paqet.client.lost")
        if was_live and self._waiting:
            self.open()  # for who noticed the end before us
            return
        if not was_live:
            self._report(SILENT)
        self._fail_waiting()
        self._open_later()

    def _open_later(self) -> None:
        if self._config.resident and self._timer is None:
            self._timer = self._clock.callLater(self._wait, self._open_now)
            self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _open_now(self) -> None:
        self._timer = None
        self.open()

    def _fail_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.errback(Failure(_unreachable()))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _unreachable() -> ServerError:
    return ServerError(Reason.HOST_UNREACHABLE, "the tunnel's server does not answer, or not in our dialect")


class _Once(Protocol):
    """Sends one message and closes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._data)
        self.transport.loseConnection()


class _Ping(Protocol):
    """One PING. It tells the dialect of the PONG, or None when the server closed the stream without one."""

    def __init__(self, data: bytes, open_pings: set[_Ping], answered: Callable[[Dialect | None], None]) -> None:
        self._data = data
        self._open_pings = open_pings
        self._answered: Callable[[Dialect | None], None] | None = answered
        self._reader = MessageReader(_ALL_DIALECTS)

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self._open_pings.add(self)
        self.transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        """The answer, or nonsense."""
        try:
            message = self._reader.feed(data)
        except RemoteProtocolError:
            self._tell(None)
            return
        if message is not None:
            self._tell(self._reader.dialect if message.type is MessageType.PONG else None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The server closed the stream, or the session ended, which is no answer."""
        if reason.check(error.ConnectionDone):
            self._tell(None)
        self._open_pings.discard(self)

    def give_up(self) -> None:
        """Wait no longer."""
        self._answered = None
        self._open_pings.discard(self)
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]  # a smux stream

    def _tell(self, dialect: Dialect | None) -> None:
        answered, self._answered = self._answered, None
        self._open_pings.discard(self)
        if answered is None:
            return
        if self.transport is not None:
            self.transport.loseConnection()
        answered(dialect)
