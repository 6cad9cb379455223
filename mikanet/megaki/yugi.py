"""Yugi ("game", the one that all pieces stand on): connections, timeouts, admission, and failing with grace.

A Protocol/Factory pair around :class:`~mikanet.megaki.yami.ServerYami`. A connection is unverified until its ACK or its
resumption is good; whatever fails before, and every bad packet after, ends in the one refusal (X2). Requests go to the
pool, one at a time for each connection, and none while the client leaves its answers unread.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet import prompt
from mikanet.address import network_of
from mikanet.counters import Counters
from mikanet.crypto.rsa_oaep import PrivateKey
from mikanet.errors import RemoteProtocolError
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.deadlines import Deadlines
from mikanet.guard.server import Guard, GuardedFactory
from mikanet.megaki.bank import MARK_COST, TokenBank
from mikanet.megaki.exchange import Context
from mikanet.megaki.harness import WorkerError
from mikanet.megaki.limits import RESUME_BURST, RESUME_RATE, SYN_BURST, KnownNetworks, NetworkRates
from mikanet.megaki.wire import MAX_MESSAGE
from mikanet.megaki.yami import (
    Established,
    Event,
    Reply,
    Request,
    ServerYami,
    State,
    SynAnswer,
    SynArrived,
    TooManyResumptionsError,
    answer_syn,
)
from mikanet.relay import MemoryBudget

#: Seconds from SYNACK to ACK, and how many may be in between at once; the oldest is given up first (K2).
HALF_OPEN_TIME, MAX_HALF_OPEN = 10.0, 1024

#: Most bytes that an unverified connection may have waiting, and how many a verified one before reading pauses.
EARLY_BYTES, HIGH_WATER = 2048, 65536

#: How many remembered MACs a key may have when the budget is used up; a request makes two.
FEW_MARKS = 128

_log = Logger()


class RequestPool(Protocol):
    """What Yugi needs of Pegasus."""

    def handle(self, context: bytes, request: bytes, group: str = "") -> Deferred[bytes]:
        """The answer to a request of somebody of this group."""


class Threads(Protocol):
    """Where RSA is done."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None], known: bool = False) -> bool:
        """See :class:`mikanet.megaki.limits.RsaThreads`."""


@dataclass(frozen=True)
class YugiConfig:
    """What a server needs besides its reactor.

    :ivar refusal_time: seconds from accept to the FIN of a refused connection (X2).
    :ivar idle_time: seconds that a session may say nothing, and read nothing of what waits for it; up to a quarter more
        pass before it is noticed.
    :ivar syn_rate: SYNs a second of one network; 0 for no limit. :ivar resume_rate: resumptions, likewise.
    :ivar budget: bytes that requests, unread answers and remembered MACs may take together (X5).
    :ivar max_message: most plaintext bytes of a request. :ivar verbose: whether each session is logged.
    """

    key: PrivateKey = field(repr=False)
    pool: RequestPool
    threads: Threads
    refusal_time: float
    bank: TokenBank = field(default_factory=TokenBank)
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    counters: Counters = field(default_factory=Counters)
    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(512 * 1024 * 1024))
    random_bytes: Callable[[int], bytes] = os.urandom
    idle_time: float = 60.0
    syn_rate: float = 5.0
    syn_burst: float = SYN_BURST
    resume_rate: float = RESUME_RATE
    resume_burst: float = RESUME_BURST
    max_message: int = MAX_MESSAGE
    verbose: bool = False


@implementer(IHalfCloseableProtocol, IPushProducer)
class YugiProtocol(TwistedProtocol):
    """One connection from a client. As a producer it knows when the client leaves answers unread."""

    factory: YugiFactory
    transport: Any

    def __init__(self, factory: YugiFactory, host: str) -> None:
        self.factory = factory
        self._guard = Guard(factory, self, host)
        self._yami: ServerYami
        self._network = ""
        self._context = b""
        self._lost = False
        self._read_ended = False
        self._paused = False
        self._unread = 0
        self._handling = 0
        self._asked: Deferred[bytes] | None = None
        self._idle_key: int | None = None
        self._closing = False
        self._active = 0.0
        self._held = 0

    def connectionMade(self) -> None:
        """Start the one clock that every refusal of this connection will run out on."""
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        config = self.factory.config
        self._network = network_of(self.transport.getPeer().host)
        may_resume = partial(self.factory.resume_rates.allow, self._network)
        self._yami = ServerYami(config.bank, self._network, config.random_bytes, config.max_message, may_resume)
        self._guard.start()
        prompt.receive(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._guard.refusal is not None:
            self._guard.refusal.data_received(len(data))
            return
        self._active = self.factory.reactor.seconds()
        self._yami.feed(data)
        self._pump()

    def _pump(self) -> None:
        """Act on everything that has come."""
        yami, guard = self._yami, self._guard
        try:
            while (
                guard.refusal is None
                and not self._lost
                and not self._unread
                and (event := yami.next_event(self._active)) is not None
            ):
                self._act(event)
        except TooManyResumptionsError:
            self._refuse("limit.resume_rate")
            return
        except RemoteProtocolError:
            self._refuse()
            return
        waiting = yami.buffered
        if not guard.verified:
            if yami.state is State.OPENING and waiting > EARLY_BYTES:
                self._refuse()
            return
        self._hold(waiting)
        if waiting > HIGH_WATER and (yami.state is State.HANDLING or self._unread) and not self._paused:
            self._paused = True
            cast(IPushProducer, self.transport).pauseProducing()

    def _hold(self, waiting: int) -> None:
        """Count what this connection keeps; unfinished requests are refused while all together are over the budget."""
        if self._lost:
            return
        budget = self.factory.config.budget
        held = waiting + self._handling + self._unread + self._yami.remembered * MARK_COST
        budget.used += held - self._held
        self._held = held
        if waiting > HIGH_WATER and budget.exhausted:
            self._count("limit.memory")
            self._close()

    def _act(self, event: Event) -> None:
        if isinstance(event, Request):
            self._handling = len(event.plain)
            if not self._context:
                peer = self.transport.getPeer()
                self._context = Context(peer.host, peer.port, self._yami.token).encode()
            self._asked = self.factory.config.pool.handle(self._context, event.plain, self._network)
            self._asked.addCallbacks(self._answered, self._failed)
        elif isinstance(event, Established):
            self._establish(event)
        elif isinstance(event, SynArrived):
            self._open_syn(event)
        elif isinstance(event, Reply):
            prompt.send(self.transport, event.reply)

    # -- the handshake

    def _open_syn(self, event: SynArrived) -> None:
        factory, config, now = self.factory, self.factory.config, self._active
        if not factory.syn_rates.allow(self._network, now):
            self._refuse("limit.syn_rate")
            return
        has_room = config.bank.has_room(self._network)
        work = partial(answer_syn, config.key, event.syn, config.random_bytes, has_room)
        known = factory.known.has(self._network, now)
        if not config.threads.submit(work, self._syn_opened, known):
            self._refuse("limit.syn_queue")

    def _syn_opened(self, result: SynAnswer | Failure) -> None:
        if self._lost or self._guard.refusal is not None:
            return
        if isinstance(result, Failure):
            if not result.check(RemoteProtocolError):
                _log.failure("cannot open a SYN", result)
            self._refuse()
            return
        prompt.send(self.transport, self._yami.syn_answered(result))
        if result.half_open is None:
            self._count("refused.with_error_code")
            self.transport.loseConnection()
            return
        self.factory.half_opened(self)
        self._pump()

    def half_open_over(self) -> None:
        """The ACK did not come in time, or others need the place."""
        if not self._guard.verified and not self._lost and self._guard.refusal is None:
            self._yami.forget_half_open()
            self._refuse("limit.half_open")

    def _establish(self, event: Established) -> None:
        factory = self.factory
        factory.half_closed(self)
        # Everybody may shake hands, so that a network is what stands for a user here.
        if not self._guard.prove(self._network):
            self._leave_bank()
            self._lost = True  # no request that came along is answered
            self.transport.abortConnection()
            return
        factory.known.add(self._network, self._active)
        self._idle_key = factory.idle_deadlines.start(self._look_if_idle)
        self._count("resumed" if event.resumed else "handshakes")
        if factory.config.verbose:
            peer, how = self.transport.getPeer(), "resumed" if event.resumed else "new"
            _log.info("session of {host} port {port}, {how}", host=peer.host, port=peer.port, how=how)
        self.transport.registerProducer(self, True)
        prompt.send(self.transport, event.reply)

    # -- requests

    def _answered(self, answer: bytes) -> None:
        self._handling = 0
        if self._lost or self._guard.refusal is not None:
            return
        yami = self._yami
        self._active = self.factory.reactor.seconds()
        prompt.send(self.transport, yami.respond(answer))
        if self._unread:
            self._unread = len(answer)
        self._hold(yami.buffered)
        if yami.spent or self._read_ended or self.factory.draining or self._over_budget():
            self._close()
        elif yami.buffered or self._paused or self._unread:
            self._go_on()

    def _over_budget(self) -> bool:
        """Whether this key's memory is to be given back: the client resumes with a new one, which has none yet."""
        over = self.factory.config.budget.exhausted and self._yami.remembered >= FEW_MARKS
        if over:
            self._count("limit.memory")
        return over

    def _go_on(self) -> None:
        """Take up what has waited, unless the answers before it are still unread."""
        if self._paused and not self._unread:
            self._paused = False
            cast(IPushProducer, self.transport).resumeProducing()
        self._pump()

    def pauseProducing(self) -> None:
        """The client leaves answers unread: no further request is taken up."""
        self._unread = 1

    def resumeProducing(self) -> None:
        """It has read them."""
        self._unread = 0
        self._active = self.factory.reactor.seconds()
        if not self._lost and self._guard.refusal is None:
            self._go_on()

    def stopProducing(self) -> None:
        """The connection is gone, which connectionLost says."""

    def _failed(self, failure: Failure) -> None:
        """No answer: the document has no packet for that, so the connection is closed at once."""
        self._handling = 0
        if self._lost:
            return
        failure.trap(WorkerError)
        self._count(f"unanswered.{cast(WorkerError, failure.value).failure.name.lower()}")
        if self._guard.refusal is None:
            self._close()

    def _close(self) -> None:
        """End the connection when everything is sent; a client that reads nothing is cut when it has been idle."""
        self._closing = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _look_if_idle(self) -> None:
        factory = self.factory
        self._idle_key = None
        if self._lost:
            return
        quiet = factory.reactor.seconds() - self._active
        if quiet < factory.config.idle_time or (self._yami.state is State.HANDLING and not self._closing):
            pass
        elif self._closing or self._unread:
            self._count("limit.unread")
            self.transport.abortConnection()
            return
        elif self._guard.refusal is None:
            self._count("idle")
            self._close()
        elif self._guard.refusal.ended:
            self.transport.abortConnection()  # a FIN that cannot leave: what is before it is not read
            return
        self._idle_key = factory.idle_deadlines.start(self._look_if_idle)

    def _refuse(self, why: str = "") -> None:
        """Turn the client away."""
        self.factory.half_closed(self)
        self._guard.refuse(why)
        if self._guard.verified:
            self._leave_bank()
            self.transport.unregisterProducer()
        if self._paused:
            self._paused = False
            cast(IPushProducer, self.transport).resumeProducing()

    # -- ends

    def readConnectionLost(self) -> None:
        """The client's FIN: it still gets the answer that it waits for."""
        self._read_ended = True
        self._guard.read_ended()
        if self._guard.refusal is None and self._guard.verified and self._yami.state is not State.HANDLING:
            self._closing = True
            self.transport.unregisterProducer()
            prompt.close(self.transport)

    def writeConnectionLost(self) -> None:
        """Our own FIN is out."""

    def drain(self) -> None:
        """The server stops: end now, or after the answer that is on its way."""
        if self._yami.state is not State.HANDLING or self._guard.refusal is not None:
            self._close()

    def abort(self) -> None:
        """End at once with a reset."""
        self.transport.abortConnection()

    def _leave_bank(self) -> None:
        self._yami.close(self.factory.reactor.seconds())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; the session stays in the bank."""
        factory = self.factory
        self._guard.lost()
        if self._idle_key is not None:
            factory.idle_deadlines.cancel(self._idle_key)
        if self._lost:
            return
        self._lost = True
        factory.config.budget.used -= self._held
        factory.half_closed(self)
        self._leave_bank()
        if self._handling and self._asked is not None:
            self._asked.cancel()

    def _count(self, what: str) -> None:
        self.factory.count(what)


class YugiFactory(GuardedFactory[YugiProtocol]):
    """Makes and knows the connections of one Megaki server.

    :ivar draining: whether the server is about to end. :ivar known: where sessions came from lately.
    """

    prefix = "megaki.server"

    def __init__(self, reactor: Any, config: YugiConfig) -> None:
        super().__init__(reactor, config.limits, config.refusal_time, config.counters)
        self.config = config
        self.budget = config.budget
        self.idle_deadlines = Deadlines(reactor, max(0.05, config.idle_time / 4))
        self.syn_rates = NetworkRates(config.syn_rate, config.syn_burst)
        self.resume_rates = NetworkRates(config.resume_rate, config.resume_burst)
        config.bank.use_budget(config.budget)
        self.known = KnownNetworks()
        self.draining = False
        self._half_open_deadlines = Deadlines(reactor, HALF_OPEN_TIME)
        self._half_open: OrderedDict[YugiProtocol, int] = OrderedDict()

    def make(self, host: str) -> YugiProtocol:
        """A protocol for a new connection."""
        return YugiProtocol(self, host)

    def half_opened(self, protocol: YugiProtocol) -> None:
        """A SYNACK is out; its ACK may take so long, and no longer when others need the place."""
        if len(self._half_open) >= MAX_HALF_OPEN:
            oldest = next(iter(self._half_open))
            oldest.half_open_over()
        self._half_open[protocol] = self._half_open_deadlines.start(protocol.half_open_over)

    def half_closed(self, protocol: YugiProtocol) -> None:
        """The handshake is at an end, this way or that."""
        key = self._half_open.pop(protocol, None)
        if key is not None:
            self._half_open_deadlines.cancel(key)

    def drain(self) -> None:
        """End every connection that waits for nothing; the others after their answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()
