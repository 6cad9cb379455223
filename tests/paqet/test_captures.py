"""What real clients sent, at our server: alpha.21 and alpha.19, with block null, so that nothing is hidden."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.kcp.segment import PUSH, decode
from mikanet.paqet.wire import Dialect
from mikanet.rawpackets.frames import open_frame
from tests.paqet.world import World
from tests.support.transports import MemoryTransport
from tests.support.vectors import load

CAPTURES = load("paqet/captures.json")["captures"]
TARGET = Address("10.77.0.1", 8000)


class CaptureTests(SynchronousTestCase):
    """Frames, KCP segments, smux and messages of each client; its acknowledgements answer another server's segments."""

    def replay(self, name: str) -> World:
        """Let a session of the server have what the client sent."""
        world = World()
        session = world.factory.buildProtocol(IPv4Address("TCP", "10.77.0.2", 1))
        assert session is not None
        session.makeConnection(MemoryTransport())
        frames = [bytes.fromhex(entry["frame"]) for entry in CAPTURES[name]]
        client = frames[0][26:30]  # who spoke first
        for frame in frames:
            opened = open_frame(frame)
            if opened is None or frame[26:30] != client:
                continue  # the server's, or a RST of the client machine's kernel
            for segment in decode(opened[1]):
                if segment.cmd == PUSH:
                    session.dataReceived(segment.data)
            while world.egress.waiting:
                self.targets.append(world.egress.let_through())
        return world

    def setUp(self) -> None:
        """Nobody was dialled yet."""
        self.targets: list[Any] = []

    def assert_http(self, world: World, dialect: Dialect) -> None:
        """The target was dialled once and got the whole request."""
        self.assertEqual(world.egress.dialled, [TARGET])
        self.assertRegex(self.targets[0].bytes_written, rb"^GET /hello.txt HTTP/1.1\r\nHost: 10.77.0.1:8000\r\n")
        self.assertEqual(world.counters[f"paqet.server.message.{dialect.value}.tcp"], 1)
        self.assertGreaterEqual(world.counters[f"paqet.server.message.{dialect.value}.flags"], 2)
        self.assertEqual([name for name in world.counters.snapshot() if "refused" in name], [])

    def test_alpha_21(self) -> None:
        """An HTTP request of alpha.21."""
        self.assert_http(self.replay("paqet_alpha21_null_block_http_get"), Dialect.A21)

    def test_alpha_19(self) -> None:
        """The same of alpha.19, in gob."""
        self.assert_http(self.replay("paqet_alpha19_gob_null_block_http_get"), Dialect.GOB)

    def test_flag_lists(self) -> None:
        """A client's flag list reaches the port."""
        world = self.replay("paqet_alpha21_null_block_flag_lists_client_S_PA_A_all_server_SA_PA_U")
        self.assertEqual({flags for _, flags in world.flags if flags}, {(0x12, 0x18, 0x20)})
        self.assertEqual(world.egress.dialled, [TARGET])

    def test_udp(self) -> None:
        """A datagram through SOCKS5 and PUDP."""
        world = self.replay("paqet_alpha21_null_block_socks_udp")
        self.assertEqual(len(world.sockets), 1)
        self.assertEqual(len(world.sockets[0].sent), 1)
        self.assertEqual(world.egress.resolved[0].host, "10.77.0.1")
