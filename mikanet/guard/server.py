"""The gate that every server has: who may come in, what a stranger is told, and who is inside (X2, X3).

:class:`GuardedFactory` is the server's side of it, :class:`Guard` one connection's. A connection is a stranger's until
its protocol calls :meth:`Guard.prove`; a stranger that says nothing, or something wrong, is turned away at the one time.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar, cast

from twisted.internet.interfaces import IAddress, ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.guard.admission import Admission, AdmissionLimits
from mikanet.guard.failures import FailureLog
from mikanet.guard.refusal import Refusal, Refusals
from mikanet.interfaces import IAuthenticatingFactory, tell_authenticated
from mikanet.relay import MemoryBudget

P = TypeVar("P", bound=Protocol)


class Guard:
    """One connection's standing: a stranger's, a verified one, or one that is being turned away.

    The protocol calls :meth:`start` when the connection is made and :meth:`lost` when it is gone; while
    :attr:`refusal` is set it hands everything that still comes to that one and does nothing else.

    :ivar verified: whether :meth:`prove` said yes. :ivar refusal: the refusal that goes on, if one does.
    """

    __slots__ = ("_factory", "_host", "_key", "_protocol", "_read_ended", "_user", "refusal", "verified")

    def __init__(self, factory: GuardedFactory[Any], protocol: Protocol, host: str) -> None:
        self._factory = factory
        self._protocol = protocol
        self._host = host
        self._key: int | None = None
        self._user: Hashable = None
        self._read_ended = False
        self.verified = False
        self.refusal: Refusal | None = None

    def start(self) -> None:
        """The connection stands: from now on the clock runs that every refusal of it will run out on."""
        self._key = self._factory.refusals.deadlines.start(self._time_over)

    def prove(self, user: Hashable = None) -> bool:
        """The peer has shown that it knows the secret.

        :param user: whose secret, for the cap per user.
        :return: False if the caps are reached; the protocol must then abort the connection.
        """
        self.stop_clock()
        factory = self._factory
        if not factory.admission.verify(self._protocol, self._host, factory.reactor.seconds(), user):
            factory.count("limit.verified")
            return False
        self.verified = True
        self._user = user
        factory.verified.add(self._protocol)
        tell_authenticated(self._protocol.transport)
        return True

    def refuse(self, why: str = "") -> None:
        """Turn the peer away; if it has proved itself before, the time counts from now.

        :param why: the counter, if the usual two say too little.
        """
        if self.refusal is not None:
            return
        factory = self._factory
        if not self.verified and not why.startswith("limit."):
            self._note_failure()
        factory.count(why or ("refused.after_proof" if self.verified else "refused.before_proof"))
        self._begin()
        if self.verified:
            self._key = factory.refusals.deadlines.start(self._time_over)

    def _note_failure(self) -> None:
        """Name the peer in the log, unless its packets are datagrams, in which anybody writes any address."""
        transport = self._protocol.transport
        peer = transport.getPeer() if transport is not None else None
        if getattr(peer, "type", "") == "TCP":
            self._factory.failures.note(self._host)

    def read_ended(self) -> None:
        """The peer's FIN. It changes nothing that a stranger can see: the refusal has its own time."""
        self._read_ended = True
        if self.refusal is not None:
            self.refusal.read_ended()

    def stop_clock(self) -> None:
        """No refusal by silence any more. For what is accepted without a proof of its own."""
        if self._key is not None:
            self._factory.refusals.deadlines.cancel(self._key)
            self._key = None

    def lost(self) -> None:
        """The connection is gone. May be told twice."""
        factory = self._factory
        self.stop_clock()
        if self.refusal is not None:
            self.refusal.lost()
        if self._protocol not in factory.connections:
            return
        factory.connections.discard(self._protocol)
        if self.verified:
            factory.verified.discard(self._protocol)
            factory.admission.leave_verified(self._user)
        else:
            factory.admission.leave(self._protocol)

    def _begin(self) -> Refusal:
        self.refusal = Refusal(self._factory.refusals, cast(ITCPTransport, self._protocol.transport))
        return self.refusal

    def _time_over(self) -> None:
        self._key = None
        refusal = self.refusal
        if refusal is None:
            self._factory.count("refused.silence")
            refusal = self._begin()
            if self._read_ended:
                refusal.read_ended()
        refusal.end()


@implementer(IAuthenticatingFactory)
class GuardedFactory(Factory, Generic[P]):
    """Makes and knows the connections of one server.

    :ivar budget: of the memory that is kept for peers, where the server has one.
    :cvar prefix: what the names of this server's counters begin with.
    :param refusal_time: seconds from accept to the FIN of a refused connection (X2).
    :ivar failures: the log of failed authentications. :ivar connections: those that are there now. :ivar verified: those of them that have proved themselves.
    """

    noisy = False
    prefix = ""
    budget: MemoryBudget | None = None

    def __init__(self, reactor: Any, limits: AdmissionLimits, refusal_time: float, counters: Counters) -> None:
        self.reactor = reactor
        self.admission = Admission(limits)
        self.refusals = Refusals(reactor, refusal_time)
        self.failures = FailureLog(reactor, self.prefix.partition(".")[0])
        self.counters = counters
        self.connections: set[P] = set()
        self.verified: set[P] = set()

    def make(self, host: str) -> P:
        """A protocol for a connection from ``host``, with a :class:`Guard` of its own."""
        raise NotImplementedError

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A protocol for a new connection; one that ends it at once when admission says so (X3)."""
        host = getattr(addr, "host", "")
        protocol = self.make(host)
        if not self.admission.admit(protocol, host, self.reactor.seconds()):
            self.count("limit.unverified")
            return self.refusals.turn_away()
        self.connections.add(protocol)
        return protocol

    def count(self, what: str) -> None:
        """Count something that happened at this server."""
        self.counters.add(f"{self.prefix}.{what}")
