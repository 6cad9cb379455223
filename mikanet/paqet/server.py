"""paqet's server: what happens on a smux stream, from its message to its end.

Below it stand :class:`~mikanet.kcp.sessions.KcpSessions`, which give nothing of a session to anybody before its peer has
proven to be live (Q4), so everything here is asked for by somebody who holds the key and is there now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IConsumer, IProtocol
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.egress import Egress
from mikanet.errors import DestinationError, Reason, RemoteProtocolError, reason_of
from mikanet.guard.admission import address_group
from mikanet.guard.deadlines import Deadlines
from mikanet.paqet.config import AUTO_DIALECTS
from mikanet.paqet.wire import MAX_DATAGRAM, Dialect, Message, MessageReader, MessageType, dialect_of, encode
from mikanet.relay import TARGETS, MemoryBudget, RelayEnd, join
from mikanet.smux.connection import SmuxConnection, SmuxStream
from mikanet.smux.forward import LAST_WORDS_TIME, ServingEnd
from mikanet.smux.session import SmuxSettings
from mikanet.udp_target import UdpTarget

#: How long a stream may stay without its message, in seconds (our choice).
MESSAGE_TIME = 30.0

#: Bytes of a stream that are enough to tell the dialect of its message.
_TELLING = 512

#: Gives the client at an address the flag list that it asked for; an empty one restores ours.
SetFlags = Callable[[IAddress, tuple[int, ...]], None]

_log = Logger()


@dataclass(frozen=True)
class PaqetServerConfig:
    """What a server needs besides its reactor and its port.

    :ivar dialects: of messages that are taken.
    :ivar max_streams: that have a target, in all sessions together.
    """

    egress: Egress
    smux: SmuxSettings
    dialects: Collection[Dialect] = AUTO_DIALECTS
    max_streams: int = 10_000
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(512 * 1024 * 1024))
    counters: Counters = field(default_factory=Counters)


class PaqetServerStream(ServingEnd):
    """One stream that a client opened: an end of a relay, once its message has said to where."""

    transport: SmuxStream  # type: ignore[assignment]  # an end without half-close
    _dialling: Deferred[IProtocol] | None = None
    _udp: UdpTarget | None = None
    _deadline: int | None = None
    _done = False

    def __init__(self, session: _Session) -> None:
        server = session.server
        self._server = server
        self._session = session
        self._reader: MessageReader | None = MessageReader(server.config.dialects)
        self._first = b""  # of what came, for telling a dialect that is not taken
        self.budget = server.config.budget
        self.last_words = server.last_words

    def connectionMade(self) -> None:
        """Wait for the message, not for ever."""
        self._deadline = self._server.deadlines.start(self._time_over)

    def dataReceived(self, data: bytes) -> None:
        """One frame."""
        reader = self._reader
        if reader is None:
            self._deliver(data)
            return
        self._first += data[: _TELLING - len(self._first)]
        try:
            message = reader.feed(data)
        except RemoteProtocolError:
            self._refuse("message")
            return
        if message is not None:
            self._reader = None
            self._forget_deadline()
            self._obey(message, cast(Dialect, reader.dialect))
            if reader.rest:
                self._deliver(reader.rest)

    def _deliver(self, data: bytes) -> None:
        if self._udp is not None:
            self._udp.send(data)
        elif not self._done:
            RelayEnd.dataReceived(self, data)

    # -- messages

    def _obey(self, message: Message, dialect: Dialect) -> None:
        config = self._server.config
        if message.destination is None or message.destination.host:
            self._session.understood = True
        config.counters.add(f"paqet.server.message.{dialect.value}.{message.type.name.lower()}")
        if message.type is MessageType.PING:
            self.transport.write(encode(Message(MessageType.PONG), dialect))
            self._finish()
        elif message.type is MessageType.FLAGS:
            self._session.flags_received(message.flags)
            self._finish()
        elif message.destination is None or not message.destination.host:
            # An empty host would be this machine; a client whose dialect is not the server's may seem to ask for it.
            self._refuse("message")
        elif self._server.draining:
            self._refuse("draining")
        elif config.budget.exhausted or len(self._server.connections) >= config.max_streams:
            self._refuse("limit")
        else:
            self._open(message.type, message.destination)

    def _finish(self) -> None:
        self._done = True
        self.transport.loseConnection()

    def _refuse(self, why: str) -> None:
        self._server.config.counters.add(f"paqet.server.refused.{why}")
        if why in ("message", "silent"):
            self._session.misunderstood(self._first)
        self._done = True
        self._forget_deadline()
        self.transport.abortConnection()

    def _open(self, kind: MessageType, destination: Address) -> None:
        server = self._server
        server.connections.add(self)
        user = address_group(getattr(self._session.client, "host", ""))
        if kind is MessageType.UDP:
            self.transport.keep_boundaries()
            self._udp = UdpTarget(
                server.reactor, server.config.egress, self.transport.write, self._end_flow, MAX_DATAGRAM, user
            )
            cast(IConsumer, self.transport).registerProducer(self._udp, True)
            self._udp.open(destination)
        else:
            self._dialling = server.config.egress.connect(destination, TARGETS, user)
            self._dialling.addCallbacks(self._dialled, self._not_dialled)

    def _end_flow(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _dialled(self, target: IProtocol) -> None:
        self._dialling = None
        end = cast(RelayEnd, target)
        end.budget = self.budget
        join(self, end)

    def _not_dialled(self, failure: Failure) -> None:
        self._dialling = None
        if not failure.check(error.ConnectingCancelledError, error.UserError):
            why = reason_of(failure.value) if failure.check(DestinationError, error.ConnectError) else Reason.FAILURE
            self._server.config.counters.add(f"paqet.server.target.{why.name.lower()}")
            self.transport.abortConnection()  # the wire has no status: the end is all that the client sees

    # -- ends

    def abort(self) -> None:
        """End at once. While the server stops that is left to the end of the session: the wire knows only clean ends."""
        if not self._server.draining:
            super().abort()

    def peer_ended(self) -> None:
        """The client's FIN. Without a target it is a client that looked whether we are there."""
        if self._reader is not None or self._done or self._udp is not None:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        else:
            super().peer_ended()

    def _time_over(self) -> None:
        self._deadline = None
        self._refuse("silent")

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._server.deadlines.cancel(self._deadline)
            self._deadline = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over."""
        self._forget_deadline()
        self._server.connections.discard(self)
        dialling, self._dialling = self._dialling, None
        super().connectionLost(reason)
        if dialling is not None:
            dialling.cancel()
        if self._udp is not None:
            self._udp.close()


class _Session(Factory):
    """One session: makes the protocols of its streams, and has the flag list that its client asked for."""

    noisy = False

    def __init__(self, server: PaqetServerFactory, client: IAddress) -> None:
        self.server = server
        self.client = client
        self.understood = False
        self._foreign: Dialect | None = None
        self._telling: int | None = None

    def buildProtocol(self, addr: IAddress | None) -> PaqetServerStream:
        return PaqetServerStream(self)

    def misunderstood(self, first: bytes) -> None:
        """A message was none, or of a dialect that is not taken. Clients of ours ask in several."""
        dialect = dialect_of(first)
        if dialect is not None and dialect not in self.server.config.dialects and self._foreign is None:
            self._foreign = dialect
            self._telling = self.server.deadlines.start(self._tell_dialect)

    def _tell_dialect(self) -> None:
        self._telling = None
        if self._foreign is not None and not self.understood:
            self.server.tell_dialect(self._foreign)

    def flags_received(self, flags: tuple[int, ...]) -> None:
        server = self.server
        if server.set_flags is not None:
            server.flags_of[self.client] = self
            server.set_flags(self.client, flags)

    def lost(self, _: Failure) -> None:
        if self._telling is not None:
            self.server.deadlines.cancel(self._telling)
            self._tell_dialect()
        # The address may have a newer session by now, which keeps its list.
        server = self.server
        if server.set_flags is not None and server.flags_of.get(self.client) is self:
            del server.flags_of[self.client]
            server.set_flags(self.client, ())


class PaqetServerFactory(Factory):
    """Makes a smux session for each KCP session, and knows the streams of all.

    :ivar connections: the streams that have a target or are getting one.
    :ivar draining: set when no more is to begin.
    :ivar set_flags: set by who has a port with flag lists. :ivar flags_of: the session behind each address's list.
    """

    noisy = False

    def __init__(self, reactor: Any, config: PaqetServerConfig) -> None:
        self.reactor = reactor
        self.config = config
        self.connections: set[PaqetServerStream] = set()
        self.draining = False
        self.deadlines = Deadlines(reactor, MESSAGE_TIME)
        self.last_words = Deadlines(reactor, LAST_WORDS_TIME)
        self.set_flags: SetFlags | None = None
        self.flags_of: dict[IAddress, _Session] = {}
        self._told: set[Dialect] = set()

    def tell_dialect(self, dialect: Dialect) -> None:
        """A client speaks a dialect that is not taken: say so, once."""
        if dialect not in self._told:
            self._told.add(dialect)
            names = ", ".join(each.value for each in (*self.config.dialects, dialect))
            _log.warn(
                "a client speaks dialect {dialect}, which is not taken: to take it write dialect: [{names}] under mikanet:",
                dialect=dialect.value,
                names=names,
            )

    def buildProtocol(self, addr: IAddress | None) -> SmuxConnection | None:
        """A session. It speaks first, so that its peer has something to acknowledge and can prove itself (Q4)."""
        if self.draining:
            return None
        session = _Session(self, cast(IAddress, addr))
        return SmuxConnection(self.config.smux, False, self.reactor, session, session.lost, nop_first=True)


def _text(address: IAddress) -> str:
    return f"{getattr(address, 'host', '?')}:{getattr(address, 'port', '?')}"
