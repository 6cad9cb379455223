"""Mika's client: filters around :class:`~mikanet.mika.session.ClientSession`, and the tunnel that front doors use."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet import prompt
from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.errors import DestinationError, Reason
from mikanet.filters.base import Filter, FilterClientEndpoint
from mikanet.filters.dropping import DroppingFilter
from mikanet.interfaces import ITunnel
from mikanet.mika.health import UNWATCHED, CheckedEndpoint, Observer, ServerHealth
from mikanet.mika.session import ClientSession, Keys, Profile
from mikanet.mika.wire import IV_SIZE, MAX_DATAGRAM, Header, Kind
from mikanet.net.server_state import ServerState
from mikanet.wire.socks import encode_address

_log = Logger()


@dataclass(frozen=True)
class MikaClientConfig:
    """What a client needs besides its reactor.

    :ivar wall_clock: Unix time, as the protocol sends it.
    :ivar printable_iv: begin each connection with six printable bytes (M6).
    :ivar log_destinations: whether targets are named in the log.
    """

    keys: Keys
    counters: Counters = field(default_factory=Counters)
    wall_clock: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = os.urandom
    random_below: Callable[[int], int] = secrets.randbelow
    printable_iv: bool = False
    log_destinations: bool = False

    def new_session(self, kind: Kind, destination: Address | None) -> ClientSession:
        """A session for one connection that is made now."""
        header = Header(kind, destination, int(self.wall_clock()))
        return ClientSession(self.keys, header, self._new_iv(), self.random_below)

    def _new_iv(self) -> bytes:
        iv = self.random_bytes(IV_SIZE)
        if self.printable_iv:
            iv = bytes(0x21 + self.random_below(0x7F - 0x21) for _ in range(6)) + iv[6:]
        return iv


class _MikaClient(Filter):
    """What stream and datagram clients share: the first flight in one write, and both kinds of end."""

    __slots__ = ("_health", "_heard", "_held", "_session")

    def __init__(self, upper: IProtocol, session: ClientSession, health: Observer) -> None:
        super().__init__(upper)
        self._session = session
        self._health = health
        self._held: list[bytes] | None = None
        self._heard = False

    def connectionMade(self) -> None:
        """Send IV, header and whatever the upper protocol writes while it is being connected as one write."""
        assert self.transport is not None
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._health.connected(self)
        held = self._held = [self._session.open()]
        self.establish()
        self._held = None
        if self.transport is not None:
            prompt.send(self.transport, b"".join(held))

    def _send(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif self.transport is not None:
            prompt.send(self.transport, data)

    @property
    def acknowledged(self) -> bool | None:
        """On a link that has no reset, as KCP's: whether its peer has acknowledged anything. None on others."""
        lower = self.transport
        return bool(getattr(lower, "proven", False)) if getattr(lower, "silent_half_close", False) else None

    def _hear(self) -> None:
        self._heard = True
        self._health.heard(self)

    def _end(self) -> None:
        """Send the end mark, and with it everything that still waits for the first flight."""
        data = self._session.end()
        if data:
            self._send(data)

    def loseConnection(self) -> None:
        """End cleanly: the server learns by the end mark that nothing was cut."""
        if self.transport is not None:
            self._end()
            self._flush_held()
            self.transport.loseConnection()

    def _flush_held(self) -> None:
        # An upper protocol may end the connection while it is being connected.
        if self._held is not None and self.transport is not None:
            self.transport.write(b"".join(self._held))
            self._held.clear()

    def connectionLost(self, reason: Failure) -> None:
        """The server is gone."""
        self._health.ended(self)
        super().connectionLost(reason)


class MikaClientFilter(_MikaClient):
    """A stream through Mika. Lower side: byte stream. Upper side: byte stream."""

    __slots__ = ()

    @property
    def can_half_close(self) -> bool:
        """Our direction has an end mark of its own."""
        return True

    def write(self, data: bytes) -> None:
        """Stream data from above."""
        if data:
            self._send(self._session.send(data))

    def dataReceived(self, data: bytes) -> None:
        """Response bytes from the server."""
        if not self._heard:
            self._hear()
        self.upper.dataReceived(self._session.receive(data))

    def loseWriteConnection(self) -> None:
        """End our direction. The original server cuts the response at a FIN, so ``go`` sends the mark alone (M5)."""
        if self.transport is None:
            return
        self._end()
        shows = not getattr(self.transport, "silent_half_close", False)
        if self.lower_can_half_close and (self._health.profile is not Profile.GO or not shows):
            self._flush_held()
            prompt.end_writing(self.transport)


class MikaDatagramFilter(DroppingFilter, _MikaClient):
    """Datagrams through Mika. Lower side: byte stream. Upper side: packets, reliable and in order once accepted."""

    max_packet_size = MAX_DATAGRAM

    __slots__ = ("_full",)

    def write(self, data: bytes) -> None:
        """One datagram, up to 65507 bytes; empty ones do not exist here."""
        if 0 < len(data) <= MAX_DATAGRAM and not self._full.full:
            self._send(self._session.send_datagram(data))

    def dataReceived(self, data: bytes) -> None:
        """Datagrams from the server."""
        if not self._heard:
            self._hear()
        for datagram in self._session.receive_datagrams(data):
            self.upper.dataReceived(datagram)


@implementer(ITunnel)
class MikaTunnel:
    """Streams and datagrams to anywhere, through one Mika server; one connection each.

    :param server: how to reach the server.
    :param name: the server in the user's words, for messages.
    """

    def __init__(
        self,
        clock: IReactorTime,
        server: IStreamClientEndpoint,
        config: MikaClientConfig,
        name: str,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self.health = ServerHealth(clock, ServerState(clock, name, report), config.keys.profile, self._connect_probe)
        self._direct = server
        self._server = CheckedEndpoint(server, self.health)

    def _connect_probe(self, upper: IProtocol, destination: Address) -> Deferred[IProtocol]:
        session = self._config.new_session(Kind.TCP, destination)
        endpoint = FilterClientEndpoint(self._direct, lambda upper: MikaClientFilter(upper, session, UNWATCHED))
        return endpoint.connect(_One(upper))

    def stream_endpoint(self, destination: Address, http: bool = False) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.stream_endpoint`."""
        if not http:
            return self._endpoint(MikaClientFilter, Kind.TCP, destination)
        carried = destination if self._config.keys.http_address else None
        return self._endpoint(MikaClientFilter, Kind.HTTP, carried)

    def datagram_endpoint(self, destination: Address) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.datagram_endpoint`; the original program carries none."""
        if self._config.keys.profile is Profile.GO:
            raise DestinationError(Reason.UNSUPPORTED, "profile go carries no datagrams")
        return self._endpoint(MikaDatagramFilter, Kind.UDP, destination)

    def _endpoint(self, make: type[_MikaClient], kind: Kind, destination: Address | None) -> IStreamClientEndpoint:
        config, health = self._config, self.health
        if destination is not None:
            encode_address(destination)  # a host that no header can carry is refused before a connection is made

        if config.log_destinations:
            _log.info("{kind} to {destination}", kind=kind.name, destination=str(destination or "the request's host"))

        def make_filter(upper: IProtocol) -> Filter:
            config.counters.add("mika.client.connections")
            return make(upper, config.new_session(kind, destination), health)

        return FilterClientEndpoint(self._server, make_filter)


class _One(Factory):
    """Has one protocol to give."""

    noisy = False

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:  # type: ignore[override]  # any protocol
        """The one."""
        return self._protocol
