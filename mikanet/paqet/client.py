"""paqet's client: the tunnel that front doors use, over several connections to one server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.errors import DestinationError, LocalProtocolError, Reason
from mikanet.filters.base import Filter, Kind
from mikanet.guard.deadlines import Deadlines
from mikanet.interfaces import IPacketTransport, ITunnel
from mikanet.kcp.link import shared_sealer
from mikanet.net.server_state import ServerState
from mikanet.paqet.connection import SILENT, Connection, LiveSession, PaqetClientConfig
from mikanet.paqet.ports import IClientPort
from mikanet.paqet.wire import MAX_DATAGRAM, MAX_HOST, Message, MessageType, encode
from mikanet.smux.connection import SmuxConnection, SmuxStream

#: Seconds of silence of the destination after which a stream is ended whose application sends no more. The wire cannot
#: say that; the original ends the stream at once and cuts late responses, and most applications that send no more are
#: gone altogether.
HALF_CLOSED_TIME = 2.0
#: Least time, in seconds, between two messages about the same trouble.
REPEAT_TIME = 60.0

_log = Logger()


class PaqetStream(Filter):
    """A stream to a destination. Lower side: a smux stream. Upper side: byte stream.

    There is no half-close on the wire. When our direction ends, the other goes on until the server ends it, or nothing
    comes for a while.
    """

    __slots__ = ("_half_closed", "_heard", "_lingering", "_message", "_silence")

    def __init__(
        self, upper: IProtocol, message: bytes, half_closed: Deadlines, lingering: dict[PaqetStream, None]
    ) -> None:
        super().__init__(upper)
        self._message = message
        self._half_closed = half_closed
        self._lingering = lingering
        self._silence: int | None = None
        self._heard = False

    def connectionMade(self) -> None:
        """The message in a frame of its own, as Go's gob decoder reads ahead; then what the upper protocol has."""
        stream: SmuxStream = self.transport  # type: ignore[assignment]
        stream.keep_first_alone()
        stream.write(self._message)
        self.establish()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the destination."""
        self._heard = True
        self.upper.dataReceived(data)

    @property
    def can_half_close(self) -> bool:
        """In our own way."""
        return True

    def loseWriteConnection(self) -> None:
        """Our direction has ended; wait for the other."""
        if self.transport is not None and self._silence is None:
            self._heard = False
            self._silence = self._half_closed.start(self._look)
            self._lingering[self] = None

    def _look(self) -> None:
        self._silence = None
        if self._heard:
            self.loseWriteConnection()
        else:
            self.loseConnection()

    def connectionLost(self, reason: Failure) -> None:
        """The stream is over."""
        if self._silence is not None:
            self._half_closed.cancel(self._silence)
        self._lingering.pop(self, None)
        super().connectionLost(reason)

    def belongs_to(self, session: SmuxConnection) -> bool:
        """Whether this is a stream of that session."""
        stream: object = self.transport
        return isinstance(stream, SmuxStream) and session.streams.get(stream.sid) is stream


@implementer(IPacketTransport)
class PaqetDatagrams(Filter):
    """Datagrams to a destination. Lower side: a smux stream, one frame a datagram. Upper side: packets, in order."""

    upper_kind = Kind.PACKETS
    max_packet_size = MAX_DATAGRAM

    __slots__ = ("_message",)

    def __init__(self, upper: IProtocol, message: bytes) -> None:
        super().__init__(upper)
        self._message = message

    def connectionMade(self) -> None:
        """The message, then datagrams."""
        stream: SmuxStream = self.transport  # type: ignore[assignment]
        stream.keep_boundaries()
        stream.write(self._message)
        self.establish()

    def write(self, data: bytes) -> None:
        """One datagram; empty ones do not exist here, and longer ones are lost."""
        if 0 < len(data) <= MAX_DATAGRAM and self.transport is not None:
            self.transport.write(data)


class _Voice:
    """The few words that a client says about its server."""

    def __init__(self, clock: IReactorTime, server: str, say: Callable[[str], None]) -> None:
        self._clock = clock
        self._server = server
        self._say = say
        self._said: str | None = None
        self._said_at = 0.0

    def report(self, problem: str | None) -> None:
        """What is wrong with the server, or None: it answers."""
        if problem is None:
            if self._said is not None:
                self._said = None
                self._say(f"the server {self._server} answers")
            return
        now = self._clock.seconds()
        if problem != self._said or now - self._said_at >= REPEAT_TIME:
            self._said, self._said_at = problem, now
            self._say(f"the server {self._server} {_advised(problem)}")


def _advised(problem: str) -> str:
    """What is wrong with a server, and what to do where the problem does not say it."""
    if problem != SILENT:
        return problem
    return (
        f"{problem}; trying again: check that it runs, that key and block are its own, and that its port can be reached"
    )


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Opens a stream in a live session of the tunnel."""

    def __init__(self, tunnel: PaqetTunnel, message: Message, make: Callable[[IProtocol, bytes], Filter]) -> None:
        self._tunnel = tunnel
        self._message = message
        self._make = make

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def open_stream(live: LiveSession) -> IProtocol:
            upper = protocolFactory.buildProtocol(live.smux.lower().getPeer())
            if upper is None:
                raise DestinationError(Reason.FAILURE, "nobody wants the connection any more")
            if live.smux.session.full:
                self._tunnel.make_room(live.smux)
            try:
                live.smux.open(self._make(upper, encode(self._message, live.dialect)))
            except LocalProtocolError as problem:
                raise DestinationError(Reason.LIMIT, str(problem)) from None
            return upper

        return self._tunnel.session().addCallback(open_stream)


@implementer(ITunnel)
class PaqetTunnel:
    """Streams and datagrams to anywhere, through one paqet server.

    :param ports: one for each connection; new streams take the connections in turn.
    :param name: the server in the user's words, for messages.
    :param report: takes one line for the user; the default logs a warning.
    """

    def __init__(
        self,
        clock: IReactorTime,
        ports: Sequence[IClientPort],
        config: PaqetClientConfig,
        name: str,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self._ports = ports
        self._half_closed = Deadlines(clock, HALF_CLOSED_TIME)
        self._lingering: dict[PaqetStream, None] = {}  # streams whose application sends no more, the oldest first
        self.sealer = shared_sealer(config.link, config.random_bytes, server=False)
        self._voice = _Voice(clock, name, report or (lambda text: _log.warn("{text}", text=text)))
        self.state = ServerState(clock, name, lambda text: None)  # the voice has said it
        self.connections = [Connection(clock, port, config, self.sealer, self._report) for port in ports]
        self._next = 0
        self._started = self._doubtful = False

    # -- life

    def start_ports(self) -> None:
        """Take what needs privileges.

        :raises ConfigError: if that cannot be done.
        """
        self._started = True
        for port in self._ports:
            port.start()

    def start(self) -> None:
        """Begin the sessions."""
        self._doubt()
        for connection in self.connections:
            connection.open()

    def network_changed(self) -> None:
        """Addresses, interfaces, routes or neighbours of this machine are others than before."""
        for connection in self.connections:
            connection.network_changed()

    def stop(self) -> Deferred[None]:
        """End everything; fires when the ports are closed."""
        self.state.stop()
        for connection in self.connections:
            connection.stop()
        return gatherResults([port.stop() for port in self._ports]).addCallback(lambda _: None)

    # -- whether the server can be used

    def _report(self, problem: str | None) -> None:
        self._voice.report(problem)
        if problem is None:
            self._doubtful = False
            self.state.usable()
        else:
            reason = Reason.TIMEOUT if problem == SILENT else Reason.FAILURE
            self.state.failed(reason, _advised(problem))

    def _doubt(self) -> None:
        """No session is live. A wrong key is silence, and told from a dead server by nobody, until three PINGs are missed."""
        if not self._doubtful:
            self._doubtful = True
            self.state.failed(Reason.TIMEOUT, _advised(SILENT))
        self.state.trying()

    # -- use

    def session(self) -> Deferred[LiveSession]:
        """A live session, those of all connections in turn; none while the server cannot be used."""
        if not self._started:
            self.start_ports()
        count = len(self.connections)
        turns = [(self._next + step) % count for step in range(count)]
        chosen = next((turn for turn in turns if self.connections[turn].live), turns[0])
        self._next = (chosen + 1) % count
        if not self.connections[chosen].live:
            self._doubt()
        return self.state.unless_trouble(self.connections[chosen].session())

    def make_room(self, session: SmuxConnection) -> None:
        """End the stream of a session that has waited longest for late bytes after its application's end, if there is one."""
        oldest = next((stream for stream in self._lingering if stream.belongs_to(session)), None)
        if oldest is not None:
            oldest.loseConnection()

    def stream_endpoint(self, destination: Address, http: bool = False) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.stream_endpoint`."""

        def make(upper: IProtocol, message: bytes) -> Filter:
            return PaqetStream(upper, message, self._half_closed, self._lingering)

        return self._endpoint(MessageType.TCP, destination, make)

    def datagram_endpoint(self, destination: Address) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.datagram_endpoint`."""
        return self._endpoint(MessageType.UDP, destination, PaqetDatagrams)

    def _endpoint(
        self, kind: MessageType, destination: Address, make: Callable[[IProtocol, bytes], Filter]
    ) -> IStreamClientEndpoint:
        if not 0 < len(destination.host.encode()) <= MAX_HOST:
            raise DestinationError(Reason.HOST_UNREACHABLE, "the host is longer than a message can carry")
        if self._config.log_destinations:
            _log.info("{kind} to {destination}", kind=kind.name, destination=str(destination))
        self._config.counters.add(f"paqet.client.{kind.name.lower()}")
        return _Endpoint(self, Message(kind, destination), make)
