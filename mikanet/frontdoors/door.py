"""Front doors: what all of them share. Settings, the factory with its caps, deadlines, dialling and refusing.

A door is the protocol of one local application's connection. It is a :class:`mikanet.relay.RelayEnd` that first does the
handshake of its protocol, then dials through the tunnel, and then is one end of a relay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.errors import MikanetError, Reason, ServerError, reason_of
from mikanet.frontdoors.credentials import Credentials
from mikanet.guard.deadlines import Deadlines
from mikanet.interfaces import ITunnel
from mikanet.relay import MemoryBudget, RelayEnd, join, keep_alive

log = Logger()

#: How long a refused client may be silent until it closes, and how long it may go on sending in all, in seconds (our
#: choice; nginx has 5 and 30): closing over what it still sends would reset the connection, and cost it the answer.
LINGER, LONGEST_LINGER = 2.0, 30.0


@dataclass(frozen=True)
class DoorSettings:
    """What a front door needs besides its tunnel. All the defaults are our choice; times are in seconds.

    :ivar reactor: provides IReactorTime, and IReactorUDP for SOCKS UDP ASSOCIATE.
    :ivar credentials: who may use the door; None lets everyone in.
    :ivar budget: memory shared with other doors; while it is exhausted, new connections are turned away.
    :ivar max_connections: connections of local applications open at the same time.
    :ivar handshake_timeout: for all that a client says before it is served.
    :ivar dial_timeout: for the tunnel to reach a destination.
    :ivar keep_alive_timeout: for the next request on an HTTP proxy connection.
    :ivar udp_idle_timeout: after this, and within one and a half times this, a flow without datagrams is closed.
    :ivar max_udp_associations: associations of one SOCKS door at the same time.
    :ivar max_udp_flows: flows of one association, or of one UDP forward.
    :ivar max_udp_queue: datagrams of one flow that wait while the tunnel dials.
    """

    reactor: Any
    counters: Counters = field(default_factory=Counters)
    credentials: Credentials | None = None
    budget: MemoryBudget | None = None
    max_connections: int = 2000
    handshake_timeout: float = 30.0
    dial_timeout: float = 60.0
    keep_alive_timeout: float = 120.0
    udp_idle_timeout: float = 60.0
    max_udp_associations: int = 200
    max_udp_flows: int = 256
    max_udp_queue: int = 32


class DoorFactory(Factory):
    """Makes the doors of one listening port, and bounds them.

    :ivar connections: the doors that are open now.
    :ivar associations: how many of them have a UDP association.
    """

    noisy = False

    def __init__(self, tunnel: ITunnel, settings: DoorSettings, make_door: Callable[[DoorFactory], Door]) -> None:
        self.tunnel = tunnel
        self.settings = settings
        self.connections: set[Door] = set()
        self.associations = 0
        self._make_door = make_door
        self._deadlines: dict[float, Deadlines] = {}

    def deadlines(self, seconds: float) -> Deadlines:
        """The deadlines of that length; a door has few lengths and thousands of connections."""
        found = self._deadlines.get(seconds)
        if found is None:
            found = self._deadlines[seconds] = Deadlines(self.settings.reactor, seconds)
        return found

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """A door; above a cap, a protocol that closes at once."""
        settings = self.settings
        if len(self.connections) >= settings.max_connections:
            settings.counters.add("frontdoor.refused.connections")
        elif settings.budget is not None and settings.budget.exhausted:
            settings.counters.add("frontdoor.refused.memory")
        else:
            return self._make_door(self)
        return _TurnedAway()

    def abort_all(self) -> None:
        """End every open connection at once."""
        for door in list(self.connections):
            door.abort()


class _TurnedAway(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


class Door(RelayEnd):
    """The connection of one local application.

    Subclasses say what is done with the bytes before the relay, and :meth:`dial` when they know a destination.

    :cvar kind: the door's name in counters.
    """

    kind: ClassVar[str]

    dialling: Dial | None = None
    _deadline: tuple[Deadlines, int] | None = None
    _refused = False
    # Since when a refused client goes on, and whether it has sent anything lately.
    _lingering_since = 0.0
    _still_sending = False

    def __init__(self, factory: DoorFactory) -> None:
        self.factory: DoorFactory = factory
        self.settings = factory.settings
        self.budget = factory.settings.budget

    def connectionMade(self) -> None:
        """Count the connection and give its handshake a deadline."""
        self.factory.connections.add(self)
        self.count("connections")
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            keep_alive(self.transport)
        self.set_deadline(self.settings.handshake_timeout, self.handshake_timed_out)

    def count(self, what: str) -> None:
        """Count an event of this kind of door; ``what`` is from a fixed set."""
        self.settings.counters.add(f"frontdoor.{self.kind}.{what}")

    # -- time

    def set_deadline(self, seconds: float, call: Callable[[], None]) -> None:
        """Have ``call`` called after ``seconds``, in place of any earlier deadline."""
        self.cancel_deadline()
        deadlines = self.factory.deadlines(seconds)
        self._deadline = deadlines, deadlines.start(call)

    def cancel_deadline(self) -> None:
        """There is no deadline any more."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadlines, key = deadline
            deadlines.cancel(key)

    def handshake_timed_out(self) -> None:
        """The client was too slow; subclasses with something to say override this."""
        self.count("refused.timeout")
        self.refuse(b"")

    # -- dialling

    def dial(self, make_endpoint: Callable[[], IStreamClientEndpoint]) -> None:
        """Connect an endpoint of the tunnel; :meth:`reached` or :meth:`not_reached` follows, maybe at once."""
        self.count("dialled")
        self.set_deadline(self.settings.dial_timeout, self._dial_timed_out)
        self.dialling = Dial(self)
        self.dialling.start(make_endpoint)

    def make_far_end(self) -> FarEnd:
        """The protocol for the tunnel's connection."""
        return FarEnd()

    def reached(self, far: FarEnd) -> None:
        """The tunnel carries bytes to the destination now: begin the relay."""
        join(self, far)

    def not_reached(self, reason: Reason, why: str) -> None:
        """The destination cannot be had: tell the client.

        :param why: the obstacle in words for people, which may be the tunnel's server.
        """
        raise NotImplementedError

    def dial_ended(self) -> None:
        """For :class:`Dial`: the attempt is over, well or badly."""
        self.dialling = None
        self.cancel_deadline()

    def dial_failed(self, reason: Reason, why: str = "") -> None:
        """For :class:`Dial`: the attempt failed."""
        self.dial_ended()
        self.count(f"failed.{reason.name.lower()}")
        self.not_reached(reason, why or f"the destination cannot be had: {reason.value}")

    def _dial_timed_out(self) -> None:
        if self.dialling is not None:
            self.dialling.cancel()
            self.dial_failed(Reason.TIMEOUT)

    def give_up(self) -> None:
        """The client is gone before the destination was reached: stop dialling and let go of it."""
        self.count("gone")
        if self.dialling is not None:
            self.dialling.cancel()
            self.dial_ended()
        self.refuse(b"")

    # -- refusing

    def refuse(self, answer: bytes) -> None:
        """Send ``answer`` and close.

        The client's further bytes are read and dropped for a while: closing over unread bytes would reset the
        connection, and the answer could be lost with it.
        """
        transport = self.transport
        self._refused = True
        self.cancel_deadline()
        self.take_early()
        if transport is None or self._lost:
            return
        if answer:
            transport.write(answer)
        RelayEnd.resumeProducing(self)
        if self._read_ended:
            transport.loseConnection()
        else:
            self.end_writing()
            self._lingering_since = self.settings.reactor.seconds()
            self.set_deadline(LINGER, self._linger)

    def dropped(self) -> None:
        """A refused client has sent something more."""
        self._still_sending = True

    def _linger(self) -> None:
        still_sending, self._still_sending = self._still_sending, False
        if still_sending and self.settings.reactor.seconds() - self._lingering_since < LONGEST_LINGER:
            self.set_deadline(LINGER, self._linger)
        elif self.transport is not None and not self._lost:
            self.transport.loseConnection()

    def _hold(self, data: bytes) -> None:
        if self._refused:
            self.dropped()
        else:
            super()._hold(data)

    # -- ends

    def readConnectionLost(self) -> None:
        """The client sends no more; before the relay that may mean that it is gone."""
        super().readConnectionLost()
        if self._refused:
            assert self.transport is not None
            self.transport.loseConnection()
        elif self.peer is None:
            self.ended_early()

    def ended_early(self) -> None:
        """The client sends no more, and the relay has not begun."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone: nothing goes on for it."""
        self.factory.connections.discard(self)
        self.cancel_deadline()
        dialling, self.dialling = self.dialling, None
        super().connectionLost(reason)
        if dialling is not None:
            self.count("gone")
            dialling.cancel()


class FarEnd(RelayEnd):
    """The tunnel's connection for a door.

    :ivar dial: the attempt that this connection came from.
    """

    faces_target = True
    dial: Dial

    def connectionMade(self) -> None:
        """Hand over to the door right here, so that its early bytes travel with the tunnel's first ones."""
        self.dial.reached(self)


@implementer(IProtocolFactory)
class Dial:
    """One attempt of a door to reach a destination: the factory for its connection, and what can be cancelled."""

    __slots__ = ("_deferred", "_door")

    def __init__(self, door: Door) -> None:
        self._door: Door | None = door
        self._deferred: Deferred[IProtocol] | None = None

    def start(self, make_endpoint: Callable[[], IStreamClientEndpoint]) -> None:
        """Connect; what the tunnel refuses at once counts as a failed attempt like any other."""
        try:
            self._deferred = make_endpoint().connect(self)
        except MikanetError:
            self._failed(Failure())
        else:
            self._deferred.addErrback(self._failed)

    def doStart(self) -> None:
        """As IProtocolFactory."""

    def doStop(self) -> None:
        """As IProtocolFactory."""

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:
        """The door's far end; None when the door wants none any more."""
        door = self._door
        if door is None:
            return None
        far = door.make_far_end()
        far.dial = self
        far.budget = door.budget
        return far

    def reached(self, far: FarEnd) -> None:
        """For the far end: it is connected."""
        door, self._door = self._door, None
        if door is None:
            far.abort()
            return
        door.dial_ended()
        door.reached(far)

    def cancel(self) -> None:
        """Nobody wants the outcome any more."""
        self._door = None
        if self._deferred is not None:
            self._deferred.cancel()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(MikanetError, error.ConnectError, error.ConnectionClosed, CancelledError, OSError):
            log.failure("A tunnel failed in a way that none should", failure)
        door, self._door = self._door, None
        if door is not None:
            why = str(failure.value) if failure.check(ServerError) else ""
            door.dial_failed(reason_of(failure.value), why)
