"""Proxies that answer 413 to large bodies: mikanet.carriers.http_asking and http_pacing, under a session."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.carriers.http_asking import AskingCarrier, HttpStatusError
from mikanet.carriers.http_exchange import MAX_BODY, Opened
from mikanet.carriers.http_pacing import LEAST_BODY, BodyLimit, Sizer
from mikanet.interfaces import ICarrier, IClientCarrier
from tests.carriers.webs import FIRST_RID, Link
from tests.pickaxe.memory import World


@implementer(IClientCarrier)
class ProxiedRoad:
    """BOSH through a proxy that takes bodies of so many bytes. :ivar refused: sizes of those that it did not take."""

    def __init__(self, world: World, takes: int) -> None:
        self.name = "web"
        self.said: list[str] = []
        self.refused: list[int] = []
        self.opened = 0
        self._limit = BodyLimit(MAX_BODY, self.said.append)
        self._world = world
        self._takes = takes

    def open(self) -> Deferred[ICarrier]:
        """One more."""
        self.opened += 1
        link = Link(self._world.clock)

        def post(body: bytes, progress: Callable[[], None]) -> Deferred[bytes]:
            if len(body) > self._takes:
                self.refused.append(len(body))
                return fail(HttpStatusError(413))
            return link.post(body, progress)

        self._world.server.accept(link.server)
        opened = Opened(2, 25, bytes(16))
        link.client.abort()
        link.client = AskingCarrier(self._world.clock, "asking", post, opened, FIRST_RID, lambda: None, self._limit)
        return succeed(link.client)


class BodyLimitTests(SynchronousTestCase):
    """What the client does."""

    def carry(self, takes: int) -> ProxiedRoad:
        """A megabyte goes up through such a proxy, whole and in order."""
        world = World()
        road = ProxiedRoad(world, takes)
        world.roads.append(road)  # type: ignore[arg-type]  # it has what the client uses
        client = world.start()
        session = client.link
        app, target = world.connect()
        piece = world.rng.randbytes(1_000_000)
        app.transport.write(piece)  # type: ignore[union-attr]  # connected
        world.pass_time(20.0)
        self.assertEqual(len(target.bytes_written), len(piece), takes)
        self.assertEqual(target.bytes_written, piece)
        self.assertIs(client.link, session)
        app.transport.write(piece)  # type: ignore[union-attr]  # connected
        world.pass_time(20.0)
        self.assertEqual(target.bytes_written, piece * 2)
        self.assertEqual(road.refused, sorted(set(road.refused), reverse=True), "each time by half")
        return road

    def test_smaller_bodies(self) -> None:
        """Bodies become smaller until the proxy takes them, and the session goes on over it."""
        for takes, known in ((200_000, 131_072), (100_000, 65_536), (20_000, 16_384), (LEAST_BODY, 16_384)):
            road = self.carry(takes)
            self.assertIn(f"{known} at most from now on", road.said[-1])
            self.assertLessEqual(road.opened, 7)

    def test_one_that_takes_all(self) -> None:
        """Nothing is refused, nothing said."""
        road = self.carry(MAX_BODY)
        self.assertEqual((road.refused, road.said, road.opened), ([], [], 1))

    def test_line(self) -> None:
        """The user reads what the proxy takes; it never becomes more, nor less than 16 KiB."""
        said: list[str] = []
        limit = BodyLimit(MAX_BODY, said.append)
        limit.refused(262_144)
        self.assertEqual(
            said, ["a proxy on the way takes no bodies of 262144 bytes (it answered 413): 131072 at most from now on"]
        )
        limit.refused(1_000_000)
        self.assertEqual((limit.most, len(said)), (131_072, 1))
        for size in (131_072, 65_536, 32_768, 16_384, 100):
            limit.refused(size)
        self.assertEqual((limit.most, len(said)), (LEAST_BODY, 4))

    def test_slow_paths_stay_below_the_limit(self) -> None:
        """A batch that took long is no reason for larger ones than the proxy takes."""
        sizer = Sizer(16_000)
        sizer.arrived(16_000, 9.0)
        self.assertEqual(sizer.most, 16_000)
