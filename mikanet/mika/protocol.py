"""Mika's server: a Protocol/Factory pair around :class:`~mikanet.mika.session.ServerSession`.

A connection is unverified until its header is accepted; whatever fails before, and every bad chunk after, ends in the
one refusal (X2). An accepted request opens its target through egress and becomes a relay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet import prompt
from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.crypto.replay import ReplaySet
from mikanet.egress import Egress
from mikanet.errors import DestinationError, Reason, RemoteProtocolError, reason_of
from mikanet.guard.admission import AdmissionLimits, address_group
from mikanet.guard.deadlines import Deadlines
from mikanet.guard.server import Guard, GuardedFactory
from mikanet.mika.http_target import HttpTarget
from mikanet.mika.session import Keys, Profile, ServerSession
from mikanet.mika.wire import Header, Kind
from mikanet.relay import TARGETS, MemoryBudget, RelayEnd, can_half_close, join, set_crash_reset
from mikanet.udp_target import UdpTarget

#: How long, in seconds, a chunk may stay unfinished (M4).
CHUNK_TIME = 30.0

_log = Logger()


@dataclass(frozen=True)
class MikaServerConfig:
    """What a server needs besides its reactor.

    :ivar refusal_time: seconds from accept to the FIN of a refused connection (X2).
    :ivar wall_clock: Unix time, as the protocol sends it.
    """

    keys: Keys
    egress: Egress
    replays: ReplaySet
    refusal_time: float
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(512 * 1024 * 1024))
    counters: Counters = field(default_factory=Counters)
    wall_clock: Callable[[], float] = time.time


class MikaServerProtocol(RelayEnd):
    """One connection from a client: an end of a relay whose wire is Mika's."""

    factory: MikaServerFactory
    _session: ServerSession
    _chunk_key: int | None = None
    _chunk_id: int | None = None
    _dialling: Deferred[IProtocol] | None = None
    _http: HttpTarget | None = None
    _udp: UdpTarget | None = None

    def __init__(self, factory: MikaServerFactory, host: str) -> None:
        self.factory = factory
        self._host = host
        self._guard = Guard(factory, self, host)
        self.budget = factory.config.budget
        self._session = ServerSession(factory.config.keys, factory.config.replays, factory.config.wall_clock)

    def connectionMade(self) -> None:
        """Start the one clock that every refusal of this connection will run out on."""
        assert self.transport is not None
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._guard.start()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        guard = self._guard
        if guard.refusal is not None:
            guard.refusal.data_received(len(data))
            return
        session = self._session
        try:
            payloads = session.receive(data)
        except RemoteProtocolError as refused:
            # A header and a bad chunk in one piece are no other case than in two.
            if session.header is None or guard.verified or self._prove():
                self._refuse(refused)
            return
        if not guard.verified:
            if session.header is None:
                return
            if not self._prove() or not self._accept(session.header):
                return
        if payloads:
            self._deliver(payloads)
        if session.ended and not self._read_ended:
            self._client_ended()
        elif self._chunk_key is None and session.unfinished_chunk is not None:
            self._watch_chunk()

    # -- a verified request

    def _prove(self) -> bool:
        """The client has shown that it knows the password: count it among those."""
        if not self._guard.prove():
            self.abort()
            return False
        # From here on the client takes our end for the end of a response, so our death must be a reset, even before a
        # target is joined, which does the same.
        assert self.transport is not None
        set_crash_reset(self.transport, True)
        return True

    def _accept(self, header: Header) -> bool:
        factory = self.factory
        if factory.config.budget.exhausted:
            self._fail_target(Failure(DestinationError(Reason.LIMIT)))
            return False
        if header.kind is Kind.UDP:
            assert header.destination is not None
            egress, user = factory.config.egress, address_group(self._host)
            self._udp = UdpTarget(factory.reactor, egress, self._send_datagram, self.abort, user=user)
            cast(IConsumer, self.transport).registerProducer(self._udp, True)
            self._udp.open(header.destination)
        elif header.destination is not None:
            self._dial(header.destination)
        else:
            self._http = HttpTarget()
            factory.chunk_deadlines.start(self._http_time_over)
        self._count(f"accepted.{header.kind.name.lower()}")
        return True

    def _deliver(self, payloads: list[bytes]) -> None:
        if self._udp is not None:
            for datagram in payloads:
                self._udp.send(datagram)
            return
        data = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        if self._http is not None:
            try:
                destination = self._http.feed(data)
            except RemoteProtocolError as refused:
                self._fail_target(Failure(refused))
                return
            if destination is not None:
                self._http = None
                self._dial(destination)
        RelayEnd.dataReceived(self, data)

    def _dial(self, destination: Address) -> None:
        self._dialling = self.factory.config.egress.connect(destination, TARGETS, address_group(self._host))
        self._dialling.addCallbacks(self._dialled, self._fail_target)

    def _dialled(self, target: IProtocol) -> None:
        self._dialling = None
        end = cast(RelayEnd, target)
        end.budget = self.budget
        join(self, end)

    def _fail_target(self, failure: Failure) -> None:
        self._dialling = None
        if self._guard.refusal is not None:
            return  # given up because the client is being turned away, which must not show
        # The document has no status: the client learns of it by the reset.
        if not failure.check(error.ConnectingCancelledError, error.UserError):
            self._count(f"target.{reason_of(failure.value).name.lower()}")
        self.abort()

    def _http_time_over(self) -> None:
        if self._http is not None and self._guard.refusal is None:
            self.abort()

    def _client_ended(self) -> None:
        if self._udp is not None:
            self._udp.close()
            self._close()
        elif self._http is not None:
            self.abort()  # ended before it said where to
        else:
            RelayEnd.readConnectionLost(self)

    def send(self, data: bytes) -> None:
        """Bytes from the target."""
        if self.transport is not None and self._guard.refusal is None:
            prompt.send(self.transport, self._session.send(data))

    def end_writing(self) -> None:
        """The target sends no more. Over a link that cannot say so alone (TLS), the whole connection ends."""
        if self.transport is not None and not can_half_close(self.transport) and self.peer is not None:
            peer = self.peer
            self._close()
            peer._close()
        else:
            RelayEnd.end_writing(self)

    def _send_datagram(self, data: bytes) -> None:
        # An empty chunk is the end of a direction, so an empty datagram cannot be carried.
        if data and self.transport is not None and not self._lost and self._guard.refusal is None:
            self.transport.write(self._session.send_datagram(data))

    def _watch_chunk(self) -> None:
        self._chunk_id = self._session.unfinished_chunk
        self._chunk_key = self.factory.chunk_deadlines.start(self._chunk_time_over)

    def _chunk_time_over(self) -> None:
        self._chunk_key = None
        current = self._session.unfinished_chunk
        if current is None or self._guard.refusal is not None or self._read_ended:
            return
        if current == self._chunk_id:
            self._refuse(RemoteProtocolError("a chunk was never finished"))
        else:
            self._watch_chunk()  # busy, not stuck: look again later

    # -- refusal

    def _refuse(self, cause: RemoteProtocolError) -> None:
        """Turn the client away; after proof the target is reset first."""
        self._guard.refuse()
        if self._guard.verified:
            self._leave_target()
            cast(IConsumer, self.transport).unregisterProducer()
            assert self.transport is not None
            set_crash_reset(self.transport, False)
        if self._paused:
            self.resumeProducing()

    def _leave_target(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        if self._udp is not None:
            self._udp.close()
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer.abort()

    # -- ends

    def readConnectionLost(self) -> None:
        """The client's FIN."""
        if self._guard.refusal is not None or not self._guard.verified:
            self._read_ended = True
            self._guard.read_ended()
        elif self._session.ended:
            pass  # the end mark said so before
        elif self.factory.config.keys.profile is Profile.GO:
            self._client_ended()
        else:
            self._count("truncated")
            self._leave_target()
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection to the client is gone."""
        if self._chunk_key is not None:
            self.factory.chunk_deadlines.cancel(self._chunk_key)
        self._guard.lost()
        RelayEnd.connectionLost(self, reason)
        if self._dialling is not None:
            self._dialling.cancel()
        if self._udp is not None:
            self._udp.close()

    def _count(self, what: str) -> None:
        self.factory.count(what)


class MikaServerFactory(GuardedFactory[MikaServerProtocol]):
    """Makes and knows the connections of one Mika server."""

    prefix = "mika.server"

    def __init__(self, reactor: Any, config: MikaServerConfig) -> None:
        super().__init__(reactor, config.limits, config.refusal_time, config.counters)
        self.config = config
        self.budget = config.budget
        self.chunk_deadlines = Deadlines(reactor, CHUNK_TIME)

    def make(self, host: str) -> MikaServerProtocol:
        """A protocol for a new connection."""
        return MikaServerProtocol(self, host)
