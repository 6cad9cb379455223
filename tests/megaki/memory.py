"""A Megaki server and client in memory: two transports that carry bytes to each other when the test says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mikanet.megaki.sazukari import KeyStock, Sazukari, Session
from mikanet.megaki.yugi import YugiConfig, YugiFactory
from tests.megaki.golden import CLIENT_KEY, SERVER_KEY
from tests.support.transports import DONE, LOST, MemoryTransport

REFUSAL_TIME = 75.0


class ThreadsAtOnce:
    """RSA without threads: at once, or when the test says so.

    :ivar full: whether to refuse work.
    """

    def __init__(self) -> None:
        self.full = False
        self.hold = False
        self.known: list[bool] = []
        self.held: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def submit(self, work: Callable[[], Any], done: Callable[[Any], None], known: bool = False) -> bool:
        """Do it."""
        self.known.append(known)
        if self.full:
            return False
        self.held.append((work, done))
        if not self.hold:
            self.release()
        return True

    def release(self) -> None:
        """Do what was held."""
        while self.held:
            work, done = self.held.pop(0)
            try:
                result = work()
            except Exception:  # noqa: BLE001 - as a thread pool does
                result = Failure()
            done(result)


class FakePool:
    """Requests that the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes, Deferred[bytes]]] = []
        self.groups: list[str] = []

    def handle(self, context: bytes, request: bytes, group: str = "") -> Deferred[bytes]:
        """Note it."""
        done: Deferred[bytes] = Deferred()
        self.asked.append((context, request, done))
        self.groups.append(group)
        return done


class Wire:
    """A connection: bytes written at one end arrive at the other, and so do ends."""

    def __init__(self, client: Any, server: Any) -> None:
        self.near, self.far = MemoryTransport("192.0.2.99"), MemoryTransport("192.0.2.1")
        self.near.connect(client)
        self.far.connect(server)
        self._sent = [0, 0]
        self._ended = [False, False]

    def pump(self) -> None:
        """Carry until nothing moves."""
        moved = True
        while moved:
            moved = self._carry(0, self.near, self.far) or self._carry(1, self.far, self.near)

    def _carry(self, way: int, source: MemoryTransport, target: MemoryTransport) -> bool:
        fresh = source.written[self._sent[way] :]
        self._sent[way] += len(fresh)
        for data in fresh:
            if not target.gone:
                target.receive(data)
        ended = source.closed or source.aborted or source.fin
        if ended and not self._ended[way] and not fresh:
            self._ended[way] = True
            if source.fin and not (source.closed or source.aborted):
                if not target.gone:
                    target.receive_fin()
            else:
                source.settle()
                target.lose(LOST if source.aborted else DONE)
            return True
        return bool(fresh)


class MemoryServer:
    """A server, and clients of it."""

    def __init__(self, clock: Clock, **changes: Any) -> None:
        self.clock = clock
        self.pool = FakePool()
        self.threads = ThreadsAtOnce()
        self.wires: list[Wire] = []
        self.reachable = True
        self.config = YugiConfig(
            **{
                "key": SERVER_KEY,
                "pool": self.pool,
                "threads": self.threads,
                "refusal_time": REFUSAL_TIME,
                "random_bytes": os.urandom,
                **changes,
            }
        )
        self.factory = YugiFactory(clock, self.config)

    def connect(self, factory: Any) -> Deferred[Any]:
        """As an endpoint: connect a client's protocol."""
        if not self.reachable:
            return Deferred()
        client = factory.buildProtocol(None)
        self.wires.append(Wire(client, self.factory.buildProtocol(MemoryTransport("192.0.2.1").peer)))
        return succeed(client)

    def client(self, **changes: Any) -> Sazukari:
        """A client with a ready key."""
        keys = KeyStock(65537, run=lambda call, *_: succeed(CLIENT_KEY))
        return Sazukari(self.clock, self, SERVER_KEY.public_key(), keys=keys, **changes)

    def raw(self, host: str = "192.0.2.1") -> MemoryTransport:
        """A connection whose client is the test."""
        transport = MemoryTransport(host)
        protocol = self.factory.buildProtocol(transport.peer)
        if protocol is None:
            transport.closed = True
            return transport
        transport.connect(protocol)
        return transport

    def pump(self) -> None:
        """Carry all bytes."""
        for wire in self.wires:
            wire.pump()

    def session(self, client: Sazukari | None = None) -> Session:
        """A session that stands."""
        opening = (client or self.client()).connect()
        self.pump()
        found: list[Session] = []
        opening.addCallback(found.append)
        return found[0]
