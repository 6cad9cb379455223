"""KCP links in memory: a clock, packet ports over the lab's link, one server and many clients."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.kcp.client import KcpClientSession
from mikanet.kcp.link import LinkSettings, PacketSealer
from mikanet.kcp.ports import IPacketPort
from mikanet.kcp.sessions import KcpSessions
from tests.lab.link import Link
from tests.lab.scenario import Direction, Scenario


@implementer(IDelayedCall)
class _Call:
    def __init__(self, clock: FastClock, at: float, call: Callable[[], object]) -> None:
        self._clock = clock
        self.at = at
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None

    def active(self) -> bool:
        return self.call is not None

    def getTime(self) -> float:
        return self.at

    def delay(self, secondsLater: float) -> None:
        self.reset(self.at - self._clock.now + secondsLater)

    def reset(self, secondsFromNow: float) -> None:
        call, self.call = self.call, None
        assert call is not None
        self._clock.callLater(secondsFromNow, call)


class FastClock:
    """IReactorTime as task.Clock is, with a heap: a thousand sessions have a thousand timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._heap: list[tuple[float, int, _Call]] = []
        self._count = 0

    def seconds(self) -> float:
        """The time."""
        return self.now

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> _Call:
        """Call in so many seconds."""
        call = _Call(self, self.now + delay, lambda: callable(*args, **kw))
        self._count += 1
        heapq.heappush(self._heap, (call.at, self._count, call))
        return call

    def pending(self) -> int:
        """Calls that are still to come."""
        return sum(call.active() for _, _, call in self._heap)

    def run(self, until: Callable[[], bool], most: float = 3600.0) -> None:
        """Let time pass from one call to the next until the condition holds, for ``most`` seconds at most."""
        end = self.now + most
        while self._heap and not until():
            at, _, call = heapq.heappop(self._heap)
            if call.call is None:
                continue
            if at > end:
                raise AssertionError(f"nothing came of it in {most} s")
            self.now = max(self.now, at)
            function, call.call = call.call, None
            function()
        if not until():
            raise AssertionError("nothing more is going to happen")

    def sleep(self, seconds: float) -> None:
        """Let some time pass."""
        done: list[bool] = []
        self.callLater(seconds, done.append, True)
        self.run(lambda: bool(done), seconds + 1)


@implementer(IPacketPort)
class MemoryPort:
    """One end's port; what it sends goes over the link."""

    def __init__(self, net: Net, direction: Direction, host: str) -> None:
        self._net = net
        self._direction = direction
        self._host = host
        self.sent: list[bytes] = []
        self.keep = False

    def send_packets(self, peer: Any, packets: Sequence[bytes]) -> None:
        """Over the link."""
        if self.keep:
            self.sent += packets
        self._net.send(self._direction, peer, packets)

    def address_of(self, peer: Any) -> IPv4Address:
        """The peer's address."""
        return IPv4Address("UDP", f"10.0.{peer[1] >> 8}.{peer[1] & 255}", peer[1])

    def host_address(self) -> IPv4Address:
        """Our own."""
        return IPv4Address("UDP", self._host, 4000)

    @staticmethod
    def source_of(peer: Any) -> Any:
        """The host."""
        return peer[0]


class Net:
    """A server and clients on one link. A client's peer name is ("client", number)."""

    def __init__(
        self,
        server: LinkSettings,
        factory: IProtocolFactory,
        scenario: str = "delay=20ms",
        seed: int = 1,
    ) -> None:
        self.clock = FastClock()
        self.link = Link(Scenario.parse(scenario), seed)
        self.random = random.Random(seed)
        self.server_port = MemoryPort(self, Direction.DOWN, "10.9.9.9")
        self.counters = Counters()
        clock: Any = self.clock
        self.sessions = KcpSessions(
            self.server_port, server, factory, clock, random.Random(seed + 1).randbytes, self.counters
        )
        self.clients: dict[Any, KcpClientSession] = {}
        self.client_port = MemoryPort(self, Direction.UP, "10.0.0.1")
        self._sealers: dict[LinkSettings, PacketSealer] = {}
        self._wake: _Call | None = None

    def client(self, upper: IProtocol, settings: LinkSettings, name: Any = None) -> KcpClientSession:
        """A started client."""
        name = ("client", len(self.clients) + 1) if name is None else name
        clock: Any = self.clock
        session = KcpClientSession(
            self.client_port, name, upper, settings, self._sealer(settings), clock, self.random.randbytes, lambda: None
        )
        self.clients[name] = session
        session.start()
        return session

    def _sealer(self, settings: LinkSettings) -> PacketSealer:
        if settings not in self._sealers:
            self._sealers[settings] = PacketSealer(settings, self.random.randbytes)
        return self._sealers[settings]

    def send(self, direction: Direction, peer: Any, packets: Sequence[bytes]) -> None:
        """Packets enter the link."""
        for packet in packets:
            self.link.send(direction, packet, self.clock.now, peer)
        self._arm()

    def _arm(self) -> None:
        at = self.link.next_deadline()
        if at is None or (self._wake is not None and self._wake.active() and self._wake.at <= at):
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self.clock.callLater(max(at - self.clock.now, 0.0), self._deliver)

    def _deliver(self) -> None:
        # What arrives together is read together, as from a socket: a run per peer and direction.
        run: list[bytes] = []
        current: Any = None
        for delivery in self.link.due(self.clock.now + 1e-9):
            to = (delivery.direction, delivery.envelope)
            if to != current:
                self._hand_over(current, run)
                current, run = to, []
            run.append(delivery.packet)
        self._hand_over(current, run)
        self._arm()

    def _hand_over(self, to: Any, packets: list[bytes]) -> None:
        if not packets:
            return
        direction, peer = to
        if direction is Direction.UP:
            self.sessions.packets_received(peer, packets)
        elif peer in self.clients:
            self.clients[peer].packets_received(packets)
