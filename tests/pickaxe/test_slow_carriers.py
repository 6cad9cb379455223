"""Sessions whose next carrier is slow to answer, in memory."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.guard.failures import FailureLog
from mikanet.pickaxe.client import PickaxeClient, PickaxeClientConfig
from mikanet.pickaxe.tunnel import PickaxeTunnel
from tests.pickaxe.memory import SECRET, App, MemoryRoad, World


class SlowCarrierTests(SynchronousTestCase):
    """A login beside the session, in case the server has forgotten it, ends as soon as the session has answered."""

    def roam(self, delay: float, silent: bool) -> tuple[World, Any, Any, list[App]]:
        """A session with a connection whose only carrier dies; the next one has so much delay each way."""
        world = World()
        road = world.road("only")
        client = world.start()
        apps: list[App] = []
        endpoint = PickaxeTunnel(client).stream_endpoint(Address("192.0.2.80", 80))
        endpoint.connect(Factory.forProtocol(App)).addCallback(apps.append)
        world.pass_time(1)
        link, make = client.link, road._make

        def slow() -> Any:
            made = make()
            made.delay = delay
            return made

        road._make = slow
        if silent:
            road.freeze()
        else:
            road.kill()
        apps[0].transport.write(b"x")
        for _ in range(200):
            world.pass_time(0.1)
        return world, client, link, apps

    def test_the_session_goes_on(self) -> None:
        """However long the first answer on the new carrier takes, nothing is reset, and the server has one session."""
        for silent in (True, False):
            for delay in (0.1, 0.35, 0.6, 1.2):
                world, client, link, apps = self.roam(delay, silent)
                self.assertIs(client.link, link, (silent, delay))
                self.assertEqual(apps[0].ends, [])
                self.assertEqual(len(world.server.sessions), 1)


class FailureTests(SynchronousTestCase):
    """Who is named as having failed."""

    def test_honest_clients_that_start_together(self) -> None:
        """Eight clients of one user behind one address, with the right password, have failed at nothing."""
        world = World()
        lines: list[str] = []
        world.server.failures = FailureLog(world.clock, "pickaxe", lines.append)
        clients = []
        for number in range(8):
            road = MemoryRoad(world.clock, world.server, f"road{number}", delay=0.02)
            config = PickaxeClientConfig("alice", SECRET, random_bytes=os.urandom)
            client = PickaxeClient(world.clock, config, [road], world.said.append)
            client.start()
            clients.append(client)
        world.pass_time(20)
        self.assertTrue(all(client.link for client in clients))
        self.assertEqual(lines, [])
