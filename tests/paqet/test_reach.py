"""How far paqet reaches in memory: a whole download and upload over KCP's bad wire, seeded, on a clock that jumps."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from tests.kcp.test_reach import BAD, MEGABYTES
from tests.paqet.world import CLIENT_LINK, SERVER_LINK, World


class ReachTests(SynchronousTestCase):
    """Bit-exact, or it counts for nothing."""

    def carry(self, **link: object) -> None:
        """So many megabytes each way, through one stream."""
        wide = {"snd_wnd": 1024, "rcv_wnd": 1024, **link}
        world = World(BAD, link=replace(SERVER_LINK, **wide))  # type: ignore[arg-type]
        tunnel = world.live(link=replace(CLIENT_LINK, **wide))  # type: ignore[arg-type]
        application = world.connect(tunnel)
        world.run(lambda: world.egress.waiting)
        target = world.egress.let_through()
        size = MEGABYTES * 1_000_000
        data = world.net.random.randbytes(size)
        target.receive(data)
        got = hashlib.sha256()
        count = 0

        def taken() -> bool:
            nonlocal count
            for piece in application.received:
                got.update(piece)
                count += len(piece)
            application.received.clear()
            return count >= size

        world.run(taken, 3600)
        self.assertEqual((count, got.digest()), (size, hashlib.sha256(data).digest()))
        self.assertGreater(world.net.link.counts["down", "loss"], 0)
        self.assertEqual(world.ports[0].opened, 1)

    def test_aes(self) -> None:
        """RTT 40 ms, 10 % loss, 5 % reordered, 1 % repeated, 0.1 % corrupted: aes without FEC, one session all along."""
        self.carry()

    def test_gcm_fec(self) -> None:
        """The same with aes-128-gcm and FEC 10/3."""
        self.carry(block="aes-128-gcm", data_shards=10, parity_shards=3)
