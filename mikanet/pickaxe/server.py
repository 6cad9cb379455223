"""Pickaxe's server: carriers come in, logins are answered, sessions live on their own, and open what clients ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.egress import Egress
from mikanet.errors import RemoteProtocolError, reason_of
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.failures import FailureLog
from mikanet.interfaces import ICarrier, ICarrierUser
from mikanet.pickaxe import wire
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.link import Link
from mikanet.pickaxe.listening import ListenPolicy, PortTable
from mikanet.pickaxe.login import LoginDesk, Pending, Throttle
from mikanet.pickaxe.mux import MAX_STREAMS, StreamMux
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.session import Received, Role, Session
from mikanet.pickaxe.wire import Status
from mikanet.relay import TARGETS, MemoryBudget, RelayEnd, join

#: How long a session lives without an authentic packet, in seconds (P8).
KEEP_SESSION = 300.0

#: A session of which nothing was heard for so long, in seconds, has no claim on its ports against its own user: clients that
#: are there are heard of every 20 s.
SILENT = 30.0

#: How often that is looked at.
_SWEEP = 10.0

_log = Logger()


@dataclass(frozen=True)
class PickaxeServerConfig:
    """What a server needs besides its reactor and its carriers.

    :ivar users: the secret of each user, by name. :ivar keep_session: seconds.
    """

    users: Callable[[str], Secret | None]
    egress: Egress
    listen: ListenPolicy = field(default_factory=ListenPolicy)
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(512 * 1024 * 1024))
    counters: Counters = field(default_factory=Counters)
    kdf: Kdf = Kdf.MIKANET
    throttle: Throttle = Throttle.NETWORK
    table_response: bool = False
    keep_session: float = KEEP_SESSION
    random_bytes: Callable[[int], bytes] = os.urandom


@implementer(ICarrierUser)
class PickaxeServer:
    """All sessions of one server. Give its :meth:`accept` to every server carrier.

    :ivar sessions: by SID.
    """

    def __init__(self, reactor: Any, config: PickaxeServerConfig) -> None:
        self.reactor = reactor
        self.config = config
        self.sessions: dict[bytes, ServerLink] = {}
        self.busy = BusySessions(self.sessions)
        self.failures = FailureLog(reactor, "pickaxe")
        self._sweep_timer: IDelayedCall | None = None
        self._desk = LoginDesk(
            config.users,
            config.random_bytes(32),
            config.random_bytes,
            self.sessions.__contains__,
            kdf=config.kdf,
            throttle=config.throttle,
            table=config.table_response,
        )

    def accept(self, carrier: ICarrier) -> None:
        """A new carrier; nobody has proved anything on it."""
        carrier.user = self

    # -- ICarrierUser, for carriers that no session has

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Packets of strangers, or of a session whose first packet on this carrier is among them."""
        for packet in packets:
            user = carrier.user
            if user is self:
                self.packet(carrier, packet)
            elif user is not None:
                user.packets_received(carrier, [packet])

    def carrier_writable(self, carrier: ICarrier) -> None:
        """Nothing waits here."""

    def carrier_lost(self, carrier: ICarrier, reason: Failure) -> None:
        """Nothing hangs on it."""

    def packet(self, carrier: ICarrier, packet: bytes) -> None:
        """One packet that belongs to a login, to a session, or to nothing."""
        if not packet:
            return
        kind = packet[0]
        if kind == wire.LOGIN:
            response = self._desk.login(packet, carrier.host, self.reactor.seconds())
            if response is not None:
                self.count("logins")
                carrier.send([response])
            return
        sid = wire.sid_of(packet)
        link = self.sessions.get(sid)
        if link is not None:
            link.packets_received(carrier, [packet])
        elif len(sid) == wire.SID_SIZE and (pending := self._desk.pending(sid, self.reactor.seconds())) is not None:
            self._prove(pending, carrier, packet)

    def _prove(self, pending: Pending, carrier: ICarrier, packet: bytes) -> None:
        """See whether the packet shows that a pending login was an honest one."""
        now = self.reactor.seconds()
        if packet[0] == wire.FRAGMENT:
            try:
                whole = pending.fragments.add(wire.decode_fragment(packet))
            except RemoteProtocolError:
                return
            if whole is None:
                return
            packet = whole
        if not self._desk.may_derive(pending, now):
            self.count("limit.derivations")
            return
        session = Session(Role.SERVER, pending.sid, pending.session_keys(), self.config.random_bytes)
        path = Path(carrier.reliable)
        messages = session.receive(packet, path, now)
        if not session.proven:
            self.count("refused.packet")
            if carrier.shakes_hands and pending.slots:  # else we have made its secret up, as too many have asked
                self.failures.note(carrier.host)
            return
        self._desk.proved(pending)
        if pending.user is None or not self._may_have(pending.user):
            self.count("limit.sessions")
            return
        self.count("sessions")
        link = ServerLink(self, session, pending.user)
        self.sessions[pending.sid] = link
        if self._sweep_timer is None:
            self._sweep_timer = self.reactor.callLater(_SWEEP, self._sweep)
        link.begin(carrier, path, messages)

    def _may_have(self, user: str) -> bool:
        limits = self.config.limits
        mine = sum(link.user == user for link in self.sessions.values())
        return len(self.sessions) < limits.connections and mine < limits.per_user

    # --

    def count(self, what: str) -> None:
        """Count something that happened."""
        self.config.counters.add(f"pickaxe.server.{what}")

    def forget(self, link: ServerLink) -> None:
        """A session is over."""
        self.sessions.pop(link.session.sid, None)

    def free_port(self, link: ServerLink, port: int) -> None:
        """Take a port from a session of the same user that seems to be dead: its client may have been started anew."""
        now = self.reactor.seconds()
        for other in self.sessions.values():
            silent = now - other.heard > SILENT
            if other is not link and other.user == link.user and silent and other.ports.give_up(port):
                self.count("listening.taken_over")

    def _sweep(self) -> None:
        """End the sessions whose clients have not been heard of for too long."""
        self._sweep_timer = None
        now = self.reactor.seconds()
        for link in list(self.sessions.values()):
            if now - link.heard > self.config.keep_session:
                self.count("sessions.forgotten")
                link.end()
        if self.sessions:
            self._sweep_timer = self.reactor.callLater(_SWEEP, self._sweep)

    def stop(self) -> None:
        """End every session, and tell the clients so."""
        for link in list(self.sessions.values()):
            link.farewell()
            link.end()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None


class BusySessions(Collection["ServerLink"]):
    """The sessions that have connections open: what a server waits for when it stops."""

    def __init__(self, sessions: dict[bytes, ServerLink]) -> None:
        self._sessions = sessions

    def __iter__(self) -> Iterator[ServerLink]:
        return (link for link in self._sessions.values() if len(link.mux))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, item: object) -> bool:
        return any(each is item for each in self)


class ServerLink(Link):
    """One client's session at the server.

    :ivar user: whose it is. :ivar ports: those that its client listens on.
    """

    def __init__(self, server: PickaxeServer, session: Session, user: str) -> None:
        super().__init__(server.reactor, session, StreamMux())
        self.user = user
        self._server = server
        self._config = server.config
        self.ports = PortTable(server.reactor, server.config.listen, partial(server.config.egress.take, user))
        self._dialling: set[Deferred[IProtocol]] = set()
        self._next_cid = 1

    def begin(self, carrier: ICarrier, path: Path, messages: Sequence[Received]) -> None:
        """The first packet has come by ``carrier``."""
        self._shown.add(carrier)
        self.attach(carrier, path)
        carrier.proven()
        self.mux.begin()
        for message in messages:
            if not self.mux.received(message):
                self.message(message)
        self.mux.deliver()
        self.pump()

    def overrun(self) -> None:
        """See :meth:`Link.overrun`."""
        self._count("refused.overrun")
        self.end()

    def foreign(self, carrier: ICarrier, packet: bytes) -> None:
        """Another session, or a login, on a carrier of ours."""
        self._server.packet(carrier, packet)

    def message(self, message: Received) -> None:
        """What the client asks for."""
        try:
            if message.kind == wire.CONNECT:
                self._connect(message)
            elif message.kind == wire.LISTEN:
                self._listen(message)
            elif message.kind == wire.STOP_LISTEN:
                self.ports.stop(wire.decode_stop_listen(message.body).pid)
            elif message.kind == wire.DISCONNECT:
                self._count("sessions.ended")
                self.end()
        except RemoteProtocolError:
            self._count("refused.message")

    # -- Connect

    def _connect(self, message: Received) -> None:
        try:
            request = wire.decode_connect(message.body)
        except wire.UnknownProtoError as unknown:
            self._answer_connect(message, unknown.pid, 0, Status.BAD_PROTO)
            return
        if self.mux.taken + len(self._dialling) >= MAX_STREAMS or self._config.budget.exhausted:
            self._count("limit.streams")
            self._answer_connect(message, request.pid, 0, Status.LIMIT)
            return
        dialling = self._config.egress.connect(request.target, TARGETS, self.user)
        self._dialling.add(dialling)
        dialling.addCallbacks(
            partial(self._connected, message, request.pid, dialling),
            partial(self._not_connected, message, request.pid, dialling),
        )

    def _connected(self, message: Received, pid: bytes, dialling: Deferred[IProtocol], target: IProtocol) -> None:
        self._dialling.discard(dialling)
        end = cast(RelayEnd, target)
        if self.ended:
            end.abort()
            return
        self._count("connections")
        cid = self._new_cid()
        self._answer_connect(message, pid, cid, Status.OK)
        self._relay(cid, end)

    def _not_connected(self, message: Received, pid: bytes, dialling: Deferred[IProtocol], failure: Failure) -> None:
        self._dialling.discard(dialling)
        if self.ended or failure.check(error.ConnectingCancelledError):
            return
        reason = reason_of(failure.value)
        self._count(f"target.{reason.name.lower()}")
        self._answer_connect(message, pid, 0, Status.of(reason))

    def _answer_connect(self, message: Received, pid: bytes, cid: int, status: Status) -> None:
        body = wire.encode_connect_response(pid, cid.to_bytes(4, "little"), status)
        self.answer(message, wire.CONNECT_RESPONSE, body)
        self.wake()

    def _relay(self, cid: int, target: RelayEnd) -> None:
        near = RelayEnd()
        target.budget = near.budget = self._config.budget
        self.mux.open(cid, near)
        join(near, target)

    def _new_cid(self) -> int:
        while True:
            cid = self._next_cid
            self._next_cid = cid % 0xFFFFFFFF + 1
            if not self.mux.knows(cid):
                return cid

    # -- Listen

    def _listen(self, message: Received) -> None:
        request = wire.decode_listen(message.body)
        if request.port:
            self._server.free_port(self, request.port)
        status, port = self.ports.listen(request.pid, request.port, partial(self._accepted, request.pid))
        self._count("listening" if status is Status.OK else f"listening.{status.name.lower()}")
        self.answer(message, wire.LISTEN_RESPONSE, wire.encode_listen_response(request.pid, status, port))

    def _accepted(self, pid: bytes, end: RelayEnd) -> None:
        if self.ended or self.mux.taken >= MAX_STREAMS or self._config.budget.exhausted:
            end.abort()
            return
        place = self._config.egress.take(self.user)
        if place is None:
            self._count("limit.files")
            end.abort()
            return
        end.keep(place)
        cid = self._new_cid()
        self.send(wire.ACCEPT, wire.encode_accept(pid, cid.to_bytes(4, "little")))
        self._relay(cid, end)
        self.wake()

    # --

    def abort(self) -> None:
        """Cut what is open; for a server that stops."""
        self.mux.abort_all()

    def end(self) -> None:
        """The session is over."""
        if self.ended:
            return
        self._server.forget(self)
        carriers = list(self.paths)
        super().end()
        for carrier in carriers:
            carrier.user = self._server  # another session may come on it
        self.ports.stop_all()
        for dialling in list(self._dialling):
            dialling.cancel()

    def _count(self, what: str) -> None:
        self._server.count(what)
