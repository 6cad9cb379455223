"""What the tests of the HTTP carriers share: users that remember, and HTTP as a link that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.carriers.http_asking import AskingCarrier, HttpStatusError
from mikanet.carriers.http_exchange import Exchange, Opened, decode_request
from mikanet.carriers.http_held import HeldCarrier
from mikanet.carriers.urls import CarrierContext
from mikanet.counters import Counters
from mikanet.guard.admission import AdmissionLimits
from mikanet.interfaces import ICarrier, ICarrierUser
from tests.support.transports import MemoryTransport

FIRST_RID = 77


def context(reactor: Any, decoy: str | None = None, **limits: int) -> CarrierContext:
    """A context for carriers."""
    return CarrierContext(reactor, Counters(), AdmissionLimits(**limits), decoy=decoy)


class WebTransport(MemoryTransport):
    """With what twisted.web asks of a transport besides."""

    @property
    def disconnecting(self) -> bool:
        """Whether it is being closed."""
        return self.closed


@implementer(ICarrierUser)
class Remembering:
    """Remembers everything; answers each packet with itself when it echoes."""

    def __init__(self, carrier: ICarrier, echo: bool = False, prove: bool = True) -> None:
        self.carrier = carrier
        self.got: list[bytes] = []
        self.lost: list[Failure] = []
        self.writable = 0
        self._echo = echo
        self._prove = prove
        carrier.user = self

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Remember, prove, echo."""
        assert carrier is self.carrier
        assert packets
        self.got += packets
        if self._prove:
            carrier.proven()
        if self._echo:
            carrier.send(packets)

    def carrier_writable(self, carrier: ICarrier) -> None:
        """Count."""
        self.writable += 1

    def carrier_lost(self, carrier: ICarrier, reason: Failure) -> None:
        """Remember."""
        self.lost.append(reason)


class _Request:
    """A request at the server's end of the link."""

    def __init__(self, link: Link, done: Deferred[bytes]) -> None:
        self.link = link
        self.done = done
        self.closed = False

    def answer(self, body: bytes) -> None:
        """Send the answer back."""
        self.link.back(self, body)

    def refuse(self) -> None:
        """An ordinary 404."""
        self.link.back(self, None)

    def drop(self) -> None:
        """Cut."""
        self.link.cut(self)


class Link:
    """HTTP between one client and one server, with a delay and, at random, losses at every stage.

    :ivar under_way: requests that have no answer yet. :ivar bodies: of every request that was made.
    :ivar forged: what the client gets instead of every answer.
    """

    def __init__(self, clock: Clock, hold: int = 2, wait: int = 25, seed: int = 0, loss: float = 0.0) -> None:
        self.clock = clock
        self.random = random.Random(seed)
        self.loss = loss
        self.delay = (0.01, 0.01)
        self.bodies: list[bytes] = []
        self.refused = 0
        self.under_way: set[_Request] = set()
        self.down = False
        self.forged = b""
        self.forgotten = False
        self.server = HeldCarrier(clock, "held", "192.0.2.1", hold, wait, FIRST_RID, self._forget)
        self.client = AskingCarrier(clock, "asking", self.post, Opened(hold, wait, bytes(16)), FIRST_RID, lambda: None)

    def _forget(self, carrier: HeldCarrier) -> None:
        self.forgotten = True

    def _later(self, call: Any, *args: Any) -> None:
        self.clock.callLater(self.random.uniform(*self.delay), call, *args)

    def _lost(self) -> bool:
        return self.down or self.random.random() < self.loss

    def post(self, body: bytes, progress: Callable[[], None] = lambda: None) -> Deferred[bytes]:
        """What a client posts with."""
        self.bodies.append(body)
        request: _Request
        done: Deferred[bytes] = Deferred(lambda _: self._cancelled(request))
        request = _Request(self, done)
        self.under_way.add(request)
        if self._lost():
            self._later(self.cut, request)
        else:
            self._later(self._arrive, request, body)
        return done

    def _cancelled(self, request: _Request) -> None:
        self.under_way.discard(request)
        request.closed = True
        self._later(self.server.gone, request)

    def _arrive(self, request: _Request, body: bytes) -> None:
        if request.closed:
            return
        exchange = decode_request(body)
        assert isinstance(exchange, Exchange)
        if self.forgotten:
            request.refuse()
        else:
            self.server.request(request, exchange, body)
            if self.loss and self.random.random() < self.loss / 2:
                self._later(self.cut, request)  # while it is held

    def back(self, request: _Request, body: bytes | None) -> None:
        """An answer leaves the server."""
        if request.closed:
            return
        request.closed = True
        if self._lost():
            self._later(self._fail, request, ConnectionLost())
        elif body is None:
            self.refused += 1
            self._later(self._fail, request, HttpStatusError(404))
        else:
            self._later(self._give, request, self.forged or body)

    def _give(self, request: _Request, body: bytes) -> None:
        if request in self.under_way:
            self.under_way.discard(request)
            request.done.callback(body)

    def _fail(self, request: _Request, why: Exception) -> None:
        if request in self.under_way:
            self.under_way.discard(request)
            request.done.errback(why)

    def cut(self, request: _Request) -> None:
        """The request's connection is lost, for both ends."""
        if not request.closed:
            request.closed = True
            self.server.gone(request)
        self._fail(request, ConnectionLost())

    def cut_all(self) -> None:
        """Every connection is lost."""
        for request in list(self.under_way):
            self.cut(request)

    def run(self, seconds: float, step: float = 0.002) -> None:
        """Let time pass."""
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until:
            self.clock.advance(step)
