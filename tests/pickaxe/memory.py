"""A Pickaxe server and client in one process: carriers in memory, targets in memory, and a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.carriers.base import BaseCarrier
from mikanet.errors import DestinationError, Reason
from mikanet.guard.targets import Place, TargetLimits, Targets
from mikanet.interfaces import ICarrier, IClientCarrier
from mikanet.pickaxe.client import PickaxeClient, PickaxeClientConfig
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.server import PickaxeServer, PickaxeServerConfig
from tests.support.transports import MemoryTransport

SECRET = Secret(Kdf.MIKANET, bytes(range(32)))


class MemoryCarrier(BaseCarrier):
    """One end of a carrier whose packets arrive after a delay; an unreliable one loses some.

    :ivar sent: all packets, for the test to look at. :ivar frozen: whether nothing arrives any more, without a word.
    """

    def __init__(self, clock: Clock, name: str, delay: float, reliable: bool, mtu: int, loss: float) -> None:
        super().__init__(name, "192.0.2.7")
        self.clock = clock
        self.delay = delay
        self.reliable = reliable
        self.max_packet_size = mtu
        self.loss = loss
        self.rng = random.Random(1)
        self.other: MemoryCarrier | None = None
        self.sent: list[bytes] = []
        self.frozen = False
        self.is_proven = False

    def send(self, packets: Sequence[bytes]) -> None:
        for packet in packets:
            assert len(packet) <= self.max_packet_size, "a packet too large for its carrier"
            self.sent.append(packet)
        if not self.lost and not self.frozen:
            kept = [packet for packet in packets if self.rng.random() >= self.loss]
            self.clock.callLater(self.delay, self._arrive, kept)

    def _arrive(self, packets: list[bytes]) -> None:
        if self.other is not None and not self.other.lost and not self.frozen:
            self.other.deliver(packets)

    def proven(self) -> None:
        self.is_proven = True

    def close(self) -> None:
        self.clock.callLater(2 * self.delay, self.abort)

    def abort(self) -> None:
        for end in (self, self.other):
            if end is not None:
                end.lose(Failure(ConnectionLost()))


@implementer(IClientCarrier)
class MemoryRoad:
    """A way to a server: opens carriers, while it is there.

    :ivar up: whether it can be opened. :ivar made: the client's ends of the carriers so far.
    """

    def __init__(
        self,
        clock: Clock,
        server: PickaxeServer,
        name: str,
        *,
        delay: float = 0.01,
        reliable: bool = True,
        mtu: int = 65_535,
        loss: float = 0.0,
    ) -> None:
        self.name = name
        self.up = True
        self.made: list[MemoryCarrier] = []
        self.server = server
        self._make = lambda: MemoryCarrier(clock, name, delay, reliable, mtu, loss)

    def open(self) -> Deferred[ICarrier]:
        if not self.up:
            return fail(ConnectionRefusedError())
        near, far = self._make(), self._make()
        near.other, far.other = far, near
        self.made.append(near)
        self.server.accept(far)
        return succeed(near)

    def kill(self) -> None:
        """Every carrier of this road is lost."""
        for carrier in self.made:
            carrier.abort()

    def freeze(self, frozen: bool = True) -> None:
        """Nothing arrives any more, and nobody is told."""
        for carrier in self.made:
            carrier.frozen = frozen
            assert carrier.other is not None
            carrier.other.frozen = frozen


class MemoryEgress:
    """Connects to whatever is asked for, in memory; port 1 is refused, port 2 forbidden, port 3 never answers.

    :ivar targets: the transports of the targets, in order. :ivar asked: where to.
    """

    def __init__(self) -> None:
        self.targets: list[MemoryTransport] = []
        self.asked: list[Address] = []

    def take(self, user: object, files: int = 1) -> Place | None:
        """There is always room."""
        return Targets(TargetLimits(files, files)).take(None, files)

    def connect(self, destination: Address, factory: IProtocolFactory, user: Any = None) -> Deferred[IProtocol]:
        self.asked.append(destination)
        if destination.port == 1:
            return fail(ConnectionRefusedError())
        if destination.port == 2:
            return fail(DestinationError(Reason.POLICY))
        if destination.port == 3:
            return Deferred()
        transport = MemoryTransport()
        self.targets.append(transport)
        protocol = factory.buildProtocol(transport.getPeer())
        assert protocol is not None
        transport.connect(protocol)
        return succeed(protocol)


class App(Protocol):
    """What an application sees of a connection."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ends.append(reason.type)


class World:
    """A server, a client and the roads between them."""

    def __init__(self, **client_options: Any) -> None:
        self.clock: Any = Clock()
        self.rng = random.Random(5)
        self.egress = MemoryEgress()
        self.clock.nameResolver = None
        self.server_config = PickaxeServerConfig(
            users={"alice": SECRET}.get,
            egress=self.egress,  # type: ignore[arg-type]  # it has what the server uses
            random_bytes=self.rng.randbytes,
        )
        self.server = PickaxeServer(self.clock, self.server_config)
        self.client_options = client_options
        self.roads: list[MemoryRoad] = []
        self.said: list[str] = []

    def road(self, name: str, **options: Any) -> MemoryRoad:
        """One more carrier for the client's list."""
        made = MemoryRoad(self.clock, self.server, name, **options)
        self.roads.append(made)
        return made

    def start(self, user: str = "alice", secret: Secret = SECRET, seconds: float = 3.0) -> PickaxeClient:
        """Start the client and let it log in."""
        config = PickaxeClientConfig(user, secret, random_bytes=self.rng.randbytes, **self.client_options)
        self.client = PickaxeClient(self.clock, config, self.roads, self.said.append)
        self.client.start()
        self.pass_time(seconds)
        return self.client

    def restart_server(self) -> None:
        """A server that knows nothing of any session."""
        for road in self.roads:
            road.kill()
        self.server = PickaxeServer(self.clock, self.server_config)
        for road in self.roads:
            road.server = self.server

    def pass_time(self, seconds: float, step: float = 0.005) -> None:
        """Time goes on in small steps."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def connect(self, port: int = 80) -> tuple[App, MemoryTransport]:
        """A connection through the tunnel: the application's end, and the target's transport."""
        assert self.client.link is not None
        made = self.client.link.connect(Address("192.0.2.80", port), Factory.forProtocol(App))
        self.pass_time(0.1)
        app = _result(made)
        return app, self.egress.targets[-1]


def _result(made: Deferred[Any]) -> Any:
    found: list[Any] = []
    made.addBoth(found.append)
    if not found:
        raise AssertionError("not connected yet")
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]
