"""NitroSocks' server: a Protocol/Factory pair around :class:`~mikanet.nitrosocks.server_link.ServerLink`.

A connection is a stranger's until its RESPONSE or RECONNECT verifies; whatever fails before, and silence, end in the one
refusal, inside TLS (X2). A session outlives its connection for a while: it is parked, and its streams wait.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.egress import Egress
from mikanet.errors import Reason, RemoteProtocolError
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.deadlines import Deadlines
from mikanet.guard.server import Guard, GuardedFactory
from mikanet.nitrosocks.link import Event, KeysChanged, Released, SessionKeys, SessionOpened, Token
from mikanet.nitrosocks.link_protocol import BINDING_LABEL, BINDING_SIZE, LinkProtocol
from mikanet.nitrosocks.mux import FloodError, Mux, MuxStream
from mikanet.nitrosocks.realm import Realm
from mikanet.nitrosocks.server_link import ServerLink, ServerLinkConfig
from mikanet.nitrosocks.server_streams import DatagramEnd, StreamEnd
from mikanet.nitrosocks.tls import TlsError
from mikanet.nitrosocks.wire import EncryptType
from mikanet.relay import MemoryBudget

#: How long, in seconds, a session waits for its client to come back, and how many may wait (N8).
PARK_TIME = 60.0
MAX_PARKED = 1000

#: Seconds that a client may take to read the end of its session.
CLOSE_TIME = 5.0

_log = Logger()


@dataclass(frozen=True)
class RealmConfig:
    """One key pair and who may use it.

    :ivar encrypt: seals a challenge under the public half. :ivar k0: made of the public half.
    """

    realm: Realm
    k0: bytes = field(repr=False)
    encrypt: Callable[[bytes], bytes] = field(repr=False)


@dataclass(frozen=True)
class NitroServerConfig:
    """What a server needs besides its reactor.

    :ivar realms: by server name in lower case; the one under "" serves everybody else.
    :ivar refusal_time: seconds from accept to the end of a refused connection (X2).
    :ivar wait_first: stay silent until the client has said something (N3).
    :ivar binding: whether the TLS exporter is part of the transcript (N11).
    """

    realms: Mapping[str, RealmConfig]
    egress: Egress
    refusal_time: float
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(512 * 1024 * 1024))
    counters: Counters = field(default_factory=Counters)
    random_bytes: Callable[[int], bytes] = os.urandom
    encrypt_type: EncryptType = EncryptType.AES_256_GCM
    wait_first: bool = False
    binding: bool = False
    refresh_time: float = 120.0
    refresh_bytes: int = 1 << 30
    park_time: float = PARK_TIME


class ServerSession:
    """A client's session: its streams, and the connection that carries them now, if one does.

    :ivar name: of the client's token.
    """

    __slots__ = ("_factory", "keys", "mux", "parked", "protocol", "realm")

    def __init__(self, factory: NitroServerFactory, realm: Realm, keys: SessionKeys) -> None:
        self._factory = factory
        self.keys = keys
        self.realm = realm
        self.parked: int | None = None
        self.protocol: NitroServerProtocol | None = None
        self.mux = Mux(factory.reactor, self._accept)

    def carry(self, protocol: NitroServerProtocol, resumed: bool) -> None:
        """A connection carries the session from now on; an older one is cut."""
        self._factory.unpark(self)
        old, self.protocol = self.protocol, protocol
        if old is not None:
            self.mux.detach()
            old.cut()
        protocol.mux = self.mux
        self.realm.remember(self.keys)
        self.mux.attach(protocol, resumed)

    def lose(self) -> None:
        """The connection is gone without a word of release: wait for another one."""
        self.protocol = None
        self.mux.detach()
        if not self.mux.over:
            self._factory.park(self)

    def end(self, why: str) -> None:
        """The session is over; its streams are reset."""
        self._factory.discard(self)
        self.realm.forget(self.keys)
        self.mux.end(Failure(error.ConnectionLost(why)))

    def release(self, why: str, at_once: bool = False) -> None:
        """End the session from our side; the client is told, if it can be (6.2).

        :param at_once: do not wait for a client that has not read what it was sent before.
        """
        protocol, self.protocol = self.protocol, None
        if protocol is None:
            pass
        elif at_once and not protocol.writable:
            protocol.cut()
        else:
            protocol.say_goodbye()
        self.end(why)

    def _accept(self, stream: MuxStream, destination: Address, datagrams: bool) -> None:
        factory = self._factory
        config = factory.config
        user = self.keys.token.name
        if config.budget.exhausted or factory.draining:
            self.mux.reply(stream, Reason.LIMIT)
        elif datagrams:
            factory.count("accepted.udp")
            stream.connect(DatagramEnd(factory.reactor, config.egress, destination, user))
            self.mux.reply(stream, None)
        else:
            factory.count("accepted.tcp")
            end = StreamEnd(self.mux, stream, destination, config.egress, config.budget, factory.count, user)
            stream.connect(end)


@implementer(IHalfCloseableProtocol)
class NitroServerProtocol(LinkProtocol):
    """One connection from a client."""

    session: ServerSession | None = None
    _realm: RealmConfig
    _closing: int | None = None

    def __init__(self, factory: NitroServerFactory, host: str) -> None:
        super().__init__(factory.reactor)
        self.factory: NitroServerFactory = factory
        self._host = host
        self._guard = Guard(factory, self, host)

    def connectionMade(self) -> None:
        """Start the one clock that every refusal of this connection will run out on."""
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._guard.start()

    def secured(self, connection: SSL.Connection) -> None:
        """TLS stands: the server name says which realm is meant."""
        if self._guard.refusal is not None:
            return
        config = self.factory.config
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower()
        self._realm = realm = config.realms.get(name) or config.realms[""]
        binding = connection.export_keying_material(BINDING_LABEL, BINDING_SIZE) if config.binding else b""
        link_config = ServerLinkConfig(
            k0=realm.k0,
            encrypt=realm.encrypt,
            authority=realm.realm,
            random_bytes=config.random_bytes,
            encrypt_type=config.encrypt_type,
            wait_first=config.wait_first,
            refresh_time=config.refresh_time,
            refresh_bytes=config.refresh_bytes,
        )
        self.start_link(ServerLink(link_config, self.reactor.seconds(), binding))

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._guard.refusal is not None:
            self._guard.refusal.data_received(len(data))
            return
        super().dataReceived(data)
        self._refresh_if_due()

    def _refresh_if_due(self) -> None:
        link = cast(ServerLink | None, self.link)
        if link is not None and link.wants_refresh:
            link.refresh(self.reactor.seconds())
            self._settle(link)

    def send(self, frames: list[bytes]) -> None:
        """See :meth:`LinkPort.send`; a key that was used enough is changed here."""
        super().send(frames)
        self._refresh_if_due()

    def on_event(self, event: Event) -> None:
        """See :meth:`LinkProtocol.on_event`."""
        if isinstance(event, SessionOpened):
            self._opened(event)
        elif self.session is None:
            return
        elif isinstance(event, KeysChanged):
            self._realm.realm.remember(self.session.keys)
        elif isinstance(event, Released):
            session, self.session = self.session, None
            session.protocol = None
            self.factory.count("released" if event.clean else "released.forced")
            session.end("the client released the session")
            self._close()

    def _opened(self, event: SessionOpened) -> None:
        keys = event.session
        if not self._guard.prove(keys.token.name):
            self.cut()
            return
        factory = self.factory
        if event.recovered:
            factory.count("recovered")
            session = cast(ServerSession, keys.owner)
        else:
            factory.count("opened")
            session = keys.owner = ServerSession(factory, self._realm.realm, keys)
            factory.add(session)
        self.session = session
        self.flush()
        session.carry(self, event.recovered)

    def failed(self, problem: RemoteProtocolError) -> None:
        """See :meth:`LinkProtocol.failed`: strangers are turned away, and a session is parked."""
        if self._guard.verified:
            self.factory.count("broken")
            _log.debug("a connection broke: {problem}", problem=str(problem))
            session = self.session
            self.cut()
            if session is not None and isinstance(problem, FloodError):
                self.factory.count("flooded")
                session.protocol = None
                session.end("its client takes no answers")
            elif session is not None:
                session.lose()
        else:
            self.flush()  # a challenge, if it was this one's time
            self.drop_link()
            self._guard.refuse()

    # -- ends

    def _close(self) -> None:
        """The session is over: say what there is to say, and close, for which a client has a few seconds."""
        self.flush()
        self.drop_link()
        self._closing = self.factory.closing.start(self._close_time)
        self.transport.loseConnection()

    def _close_time(self) -> None:
        self._closing = None
        self.transport.abortConnection()

    def cut(self) -> None:
        """End the connection now; its session is another one's."""
        self.session = None
        self.drop_link()
        self.transport.abortConnection()

    def say_goodbye(self) -> None:
        """Tell the client that its session is over, and close."""
        self.session = None
        link = cast(ServerLink | None, self.link)
        if link is not None:
            link.notify_disconnect()
        self._close()

    def abort(self) -> None:
        """End the session and the connection, as at the end of the process."""
        session = self.session
        if session is not None:
            session.release("the server is ending")
        else:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The client sends no more; without a release that is no end of its session."""
        if self._guard.refusal is not None or not self._guard.verified:
            self.drop_link()
            self._guard.read_ended()
        elif self.link is not None:
            self.transport.abortConnection()

    def writeConnectionLost(self) -> None:
        """Our own end has left."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        super().connectionLost(reason)
        if reason.check(TlsError) and not self._guard.verified and self._guard.refusal is None:
            self.factory.count("refused.tls")
        self._guard.lost()
        if self._closing is not None:
            self.factory.closing.cancel(self._closing)
            self._closing = None
        session, self.session = self.session, None
        if session is not None:
            session.lose()


class NitroServerFactory(GuardedFactory[NitroServerProtocol]):
    """Makes and knows the connections and sessions of one server.

    :ivar sessions: all of them, parked ones too. :ivar closing: the clock of connections that have said goodbye.
    :ivar draining: whether new streams are refused because the end is near.
    """

    prefix = "nitrosocks.server"

    def __init__(self, reactor: Any, config: NitroServerConfig) -> None:
        super().__init__(reactor, config.limits, config.refusal_time, config.counters)
        self.config = config
        self.budget = config.budget
        self.sessions: set[ServerSession] = set()
        self.draining = False
        self._of_user: Counter[str] = Counter()
        self._parked: dict[str, dict[ServerSession, None]] = {}  # by user, the oldest first
        self._park_times = Deadlines(reactor, config.park_time)
        self.closing = Deadlines(reactor, CLOSE_TIME)

    def make(self, host: str) -> NitroServerProtocol:
        """See :meth:`GuardedFactory.make`."""
        return NitroServerProtocol(self, host)

    def add(self, session: ServerSession) -> None:
        """A new session. A client's parked ones make room for it when it has as many as it may have."""
        self.sessions.add(session)
        name = session.keys.token.name
        self._of_user[name] += 1
        if self._of_user[name] > self.config.limits.per_user and name in self._parked:
            self._evict(name)

    def discard(self, session: ServerSession) -> None:
        """A session is over; an unknown one is no error."""
        self.unpark(session)
        if session in self.sessions:
            self.sessions.discard(session)
            name = session.keys.token.name
            self._of_user[name] -= 1
            if not self._of_user[name]:
                del self._of_user[name]

    def park(self, session: ServerSession) -> None:
        """The session has no connection: end it after a while, or when too many wait."""
        if session not in self.sessions:
            return
        self.count("parked")
        session.parked = self._park_times.start(lambda: self._expire(session))
        self._parked.setdefault(session.keys.token.name, {})[session] = None
        if sum(map(len, self._parked.values())) > MAX_PARKED:
            # Whoever has most makes room, so that nobody can push others out.
            self._evict(max(self._parked, key=lambda name: len(self._parked[name])))

    def _evict(self, name: str) -> None:
        self.count("parked.evicted")
        next(iter(self._parked[name])).end("too many sessions wait")

    def _expire(self, session: ServerSession) -> None:
        self.count("expired")
        session.end("the client did not come back")

    def unpark(self, session: ServerSession) -> None:
        """The session waits no longer."""
        name = session.keys.token.name
        of_user = self._parked.get(name)
        if of_user is not None:
            of_user.pop(session, None)
            if not of_user:
                del self._parked[name]
        key, session.parked = session.parked, None
        if key is not None:
            self._park_times.cancel(key)

    def replace_tokens(self, realm: Realm, tokens: list[Token]) -> int:
        """New tokens for a realm; sessions of those that are gone are ended. How many that were."""
        gone = realm.replace(tokens)
        for keys in gone:
            cast(ServerSession, keys.owner).release("its token was removed", at_once=True)
        return len(gone)

    def end_parked(self) -> None:
        """End the sessions that wait for a client."""
        for session in [each for of_user in self._parked.values() for each in of_user]:
            session.end("the server is ending")


class OpenStreams(Collection[NitroServerProtocol]):
    """For the end of the process: as many as there are open streams, though what can be cut are connections.

    A session without streams keeps nobody waiting, and is told of the end all the same.
    """

    def __init__(self, factory: NitroServerFactory) -> None:
        self._factory = factory

    def __len__(self) -> int:
        return sum(len(session.mux.streams) for session in self._factory.sessions)

    def __iter__(self) -> Iterator[NitroServerProtocol]:
        return iter(list(self._factory.connections))

    def __contains__(self, item: object) -> bool:
        return item in self._factory.connections
