"""What a session costs while nothing happens on it: mikanet.pickaxe.client, link and session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.carriers import bosh
from mikanet.carriers import polled_wire as polled
from mikanet.carriers.polled_carrier import PolledClientCarrier, PolledHub
from mikanet.carriers.polled_client import PolledClient
from mikanet.carriers.polled_server import PolledServer
from mikanet.carriers.strangers import Strangers
from mikanet.counters import Counters
from mikanet.interfaces import ICarrier, IClientCarrier
from tests.carriers.polled_path import CountedNumbers
from tests.carriers.webs import Link
from tests.pickaxe.memory import World


@implementer(IClientCarrier)
class AskingRoad:
    """Plain HTTP, or BOSH. :ivar asked: bodies of requests."""

    def __init__(self, world: World, hold: int, wait: int) -> None:
        self.name = "web"
        self.asked: list[bytes] = []
        self._world = world
        self._hold, self._wait = hold, wait

    def open(self) -> Deferred[ICarrier]:
        """One more."""
        link = Link(self._world.clock, self._hold, self._wait)
        link.bodies = self.asked
        self._world.server.accept(link.server)
        return succeed(link.client)


@implementer(IClientCarrier)
class PolledRoad:
    """What DNS and ICMP are, over a path of 10 ms. :ivar asked: questions."""

    def __init__(self, world: World, stock: int, hold: float) -> None:
        self.name = "polled"
        self.asked: list[bytes] = []
        self.clock = world.clock
        self._stock, self._hold = stock, hold
        self._numbers = CountedNumbers()
        self.hub = PolledHub(
            "here", "test", self.clock, Counters(), 75.0, Strangers(5, 3), lambda _: "192.0.2.7", lambda: None
        )
        self.hub.accept = world.server.accept
        self.hub.server = self.server = PolledServer(self._reply, self._numbers, self.hub.started)
        self._carrier: PolledClientCarrier | None = None

    def open(self) -> Deferred[ICarrier]:
        """One more."""
        self._ask(0, polled.hello(b"challeng"))
        self._ask(0, polled.start(self._numbers.last, 0, 1000, self._stock, self._hold, 0))
        link = PolledClient(self._numbers.last, 140, self._stock, self._hold, self.clock.seconds())
        self._carrier = PolledClientCarrier("polled", "host", self.clock, link, self._transmit, lambda: None)
        self._carrier.pump()
        return succeed(self._carrier)

    def _ask(self, number: int, message: bytes) -> None:
        self.hub.batch([lambda now: self.server.question(message, number, 1000, now)])

    def _transmit(self, questions: Sequence[tuple[int, bytes]]) -> None:
        for number, message in questions:
            self.asked.append(message)
            self.clock.callLater(0.01, self._ask, number, message)

    def _reply(self, path: Any, message: bytes | None) -> None:
        carrier = self._carrier
        if carrier is not None:
            self.clock.callLater(0.01, lambda: carrier.heard([(path, message)]))


def asked(world: World, road: Any, streams: int, minutes: int = 10) -> int:
    """Requests of so many idle minutes with so many open streams over one carrier."""
    world.roads.append(road)
    world.start()
    for _ in range(streams):
        world.connect()
    world.pass_time(20.0)
    before = len(road.asked)
    world.pass_time(60.0 * minutes, 0.02)
    return len(road.asked) - before


def counted(streams: int, roads: int, minutes: int = 10) -> tuple[int, int]:
    """Packets and bytes, both ways, of so many idle minutes with so many open streams."""
    world = World()
    for number in range(roads):
        world.road(f"road {number}")
    world.start()
    for _ in range(streams):
        world.connect()
    world.pass_time(20.0)

    def sent() -> list[bytes]:
        found: list[bytes] = []
        for road in world.roads:
            for near in road.made:
                assert near.other is not None
                found += near.sent + near.other.sent
        return found

    before = sent()
    world.pass_time(60.0 * minutes, 0.05)
    after = sent()
    return len(after) - len(before), sum(map(len, after)) - sum(map(len, before))


class IdleTests(SynchronousTestCase):
    """Minutes in which no application says anything."""

    def test_idle_streams_cost_what_an_idle_session_costs(self) -> None:
        """One stream, or fifty, without data: as many packets as without any, and few of them."""
        for roads in (1, 2):
            alone, with_one, with_many = (counted(streams, roads) for streams in (0, 1, 50))
            for streams in (with_one, with_many):
                self.assertLessEqual(streams[0], alone[0] * 1.1 + 2, f"{roads} carriers")
                self.assertLessEqual(streams[1], alone[1] * 1.1 + 200, f"{roads} carriers")

    def test_one_carrier(self) -> None:
        """A question and its answer every 20 s: in ten minutes no more than 4 KiB in all."""
        packets, size = counted(1, 1)
        self.assertLessEqual(packets, 62)
        self.assertLessEqual(size, 4096)

    def test_what_begins_after_a_pause_is_watched_at_once(self) -> None:
        """A carrier that froze while all was idle is left within three seconds of the first thing that is sent."""
        world = World()
        first = world.road("first")
        world.road("second")
        client = world.start(seconds=4.0)
        app, target = world.connect()
        world.pass_time(30.0)
        first.freeze()
        first.up = False
        app.transport.write(b"after a pause")  # type: ignore[union-attr]  # connected
        world.pass_time(3.0)
        self.assertEqual(target.bytes_written, b"after a pause")
        assert client.link is not None
        assert client.link.carrier is not None
        self.assertEqual(client.link.carrier.name, "second")

    def test_an_answer_that_does_not_come(self) -> None:
        """A carrier that freezes between a question of an application and its answer is left within three seconds."""
        world = World()
        first = world.road("first")
        world.road("second")
        world.start(seconds=4.0)
        app, target = world.connect()
        world.pass_time(30.0)
        app.transport.write(b"question")  # type: ignore[union-attr]  # connected
        world.pass_time(0.3)
        self.assertEqual(target.bytes_written, b"question")
        first.freeze()
        first.up = False
        target.receive(b"answer")
        world.pass_time(3.0)
        self.assertEqual(app.received, b"answer")

    def web(self, hold: int, wait: int, streams: int) -> int:
        """Requests of plain HTTP or BOSH in ten minutes."""
        world = World()
        return asked(world, AskingRoad(world, hold, wait), streams)

    def test_plain_http(self) -> None:
        """An idle stream costs plain HTTP no request: a poll every three seconds, more of them after each question."""
        alone, with_one = self.web(0, 0, 0), self.web(0, 0, 1)
        self.assertLessEqual(with_one, alone * 1.1)
        self.assertLessEqual(alone, 10 * 60)

    def test_bosh(self) -> None:
        """BOSH: a request that waits, and one more for each question."""
        alone, with_one = self.web(bosh.HOLD, bosh.WAIT, 0), self.web(bosh.HOLD, bosh.WAIT, 1)
        self.assertLessEqual(with_one, alone * 1.1)
        self.assertLessEqual(alone, 10 * 12)

    def test_polled(self) -> None:
        """DNS and ICMP: the two questions that the server keeps, asked anew after the time for which it does."""
        counts = []
        for streams in (0, 1):
            world = World()
            counts.append(asked(world, PolledRoad(world, 8, 3.0), streams))
        self.assertLessEqual(counts[1], counts[0] * 1.1)
        self.assertLessEqual(counts[0], 10 * 80)
