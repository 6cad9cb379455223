"""Raw TCP ports between two network namespaces joined by a veth pair, over both backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any, cast

from twisted.internet import defer, reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.rawpackets import device
from mikanet.rawpackets.bpf import of_port
from mikanet.rawpackets.capture import CaptureSocket
from mikanet.rawpackets.frames import parse_frame
from mikanet.rawpackets.port import RawTcpPort
from mikanet.rawpackets.settings import FamilyPath, RawPeer, RawSettings
from mikanet.wire.ethernet import parse_mac
from mikanet.wire.tcp import PSH, RST, SYN, parse_flags
from tests.lab.veth import VethNamespace, VethPair
from tests.support.peers import missing

PORT = 9999


class End:
    """A raw port with what it got."""

    def __init__(self, case: TestCase, space: VethNamespace, other: VethNamespace | None, **changes: Any) -> None:
        mac = None if other is None else parse_mac(other.mac)
        settings: dict[str, Any] = {
            "interface": space.interface,
            "port": PORT,
            "ipv4": FamilyPath(ip_address(space.address), mac),
            "ipv6": FamilyPath(ip_address(space.address6), mac),
        } | changes
        self.counters = Counters()
        self.got: dict[RawPeer, list[bytes]] = {}
        self.port = RawTcpPort(reactor, RawSettings(**settings), self.received, self.counters)
        with space.entered():
            self.port.startListening()
        case.addCleanup(self.port.stopListening)

    def received(self, peer: RawPeer, payloads: list[bytes]) -> None:
        """Keep what came."""
        self.got.setdefault(peer, []).extend(payloads)

    @property
    def packets(self) -> list[bytes]:
        """All that came."""
        return [packet for packets in self.got.values() for packet in packets]

    async def lose_interface(self) -> None:
        """Wait until the port knows."""
        await until(lambda: self.counters["rawpackets.interface.lost"] > 0, "the loss of the interface")

    async def get(self, count: int) -> None:
        """Wait until so many packets are here."""
        await until(lambda: len(self.packets) >= count, f"{count} packets")


async def until(true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait for something."""
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await pause(0.01)
    raise AssertionError(f"waited {seconds:g} s for {what}")


async def pause(seconds: float) -> None:
    """Let the reactor run."""
    await deferLater(cast(Any, reactor), seconds, lambda: None)


def run(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[Any], Any]:
    """A test that is a coroutine."""

    def wrapped(self: Any) -> Any:
        return defer.ensureDeferred(test(self))

    wrapped.__doc__ = test.__doc__
    return wrapped


class RawPortTests(TestCase):
    """Over AF_PACKET."""

    timeout = 60.0
    backend = "packet"

    def setUp(self) -> None:
        """Two machines."""
        self.pair = VethPair()
        self.pair.__enter__()
        self.addCleanup(self.pair.close)

    def end(self, space: VethNamespace, other: VethNamespace | None, **changes: Any) -> End:
        """A port of this backend."""
        return End(self, space, other, backend=self.backend, **changes)

    @run
    async def test_both_families(self) -> None:
        """Packets of every size go both ways, over IPv4 and over IPv6, in order, once and unchanged."""
        server = self.end(self.pair.second, self.pair.first)
        for address in (self.pair.second.address, self.pair.second.address6):
            peer = (address, PORT)
            client = self.end(self.pair.first, self.pair.second, port=0, only=peer)
            self.assertGreaterEqual(client.port.port, 32768)
            packets = [
                os.urandom(length) for length in (1, 2, 11, 20, 63, 500, 1349, 1350, client.port.max_packet_size)
            ]
            client.port.send_packets(peer, packets)
            await server.get(len(packets))
            ((source, got),) = server.got.items()
            self.assertEqual(source[1], client.port.port)
            self.assertEqual(got, packets)
            server.port.send_packets(source, packets[::-1])
            await client.get(len(packets))
            self.assertEqual(client.got, {peer: packets[::-1]})
            server.got.clear()
        self.assertEqual({}, {k: v for k, v in server.counters.snapshot().items() if v})

    @run
    async def test_flag_lists(self) -> None:
        """A peer's list is used for that peer only, from its first entry on, and an empty one restores ours."""
        server = self.end(self.pair.second, self.pair.first)
        client = self.end(
            self.pair.first, self.pair.second, port=40000, flags=tuple(map(parse_flags, ("S", "PA", "A")))
        )
        peer = (self.pair.second.address, PORT)
        source = (self.pair.first.address, 40000)
        client.port.send_packets(peer, [b"a", b"b", b"c", b"d"])
        await server.get(4)
        self.assertEqual(server.got, {source: [b"a", b"b", b"c", b"d"]})
        server.port.set_flags(source, [SYN, PSH])
        server.port.send_packets(source, [b"e", b"f"])
        server.port.set_flags(source, [])
        server.port.send_packets(source, [b"g"])
        await client.get(3)
        self.assertEqual(client.got, {peer: [b"e", b"f", b"g"]})

    @run
    async def test_learned_station(self) -> None:
        """A server without a router answers to the station that a peer's packets came from."""
        server = self.end(self.pair.second, None)
        client = self.end(self.pair.first, self.pair.second, port=40000)
        source = (self.pair.first.address, 40000)
        server.port.send_packets(source, [b"nobody knows you"])
        self.assertEqual(server.counters["rawpackets.dropped.no-way"], 1)
        client.port.send_packets((self.pair.second.address, PORT), [b"hello"])
        await server.get(1)
        server.port.send_packets(source, [b"answer"])
        await client.get(1)

    @run
    async def test_wrong_station(self) -> None:
        """Packets to a station that nobody is are lost, and nothing else happens."""
        server = self.end(self.pair.second, self.pair.first)
        wrong = FamilyPath(ip_address(self.pair.first.address), parse_mac("02:00:00:00:00:99"))
        client = self.end(self.pair.first, self.pair.second, port=0, ipv4=wrong)
        client.port.send_packets((self.pair.second.address, PORT), [b"lost"])
        client.port.send_packets((self.pair.second.address6, PORT), [b"found"])
        await server.get(1)
        self.assertEqual(list(server.got.values()), [[b"found"]])

    @run
    async def test_only_the_server(self) -> None:
        """A client takes packets of its server alone."""
        server = self.end(self.pair.second, self.pair.first)
        client = self.end(self.pair.first, self.pair.second, port=40000, only=(self.pair.second.address, PORT + 1))
        server.port.send_packets((self.pair.first.address, 40000), [b"no"] * 3)
        await until(lambda: client.counters["rawpackets.dropped.stranger"] == 3, "the refusal")
        self.assertEqual(client.got, {})

    @run
    async def test_too_long(self) -> None:
        """A packet that does not fit the interface is dropped and counted; those beside it are sent."""
        server = self.end(self.pair.second, self.pair.first)
        client = self.end(self.pair.first, self.pair.second, port=0)
        client.port.send_packets((self.pair.second.address, PORT), [b"a", bytes(1460), b"b"])
        await server.get(2)
        self.assertEqual(list(server.got.values()), [[b"a", b"b"]])
        self.assertEqual(client.counters["rawpackets.dropped.too-long"], 1)

    @run
    async def test_interface_down_and_up(self) -> None:
        """Packets go again after either end's interface was down, and nothing ends."""
        server = self.end(self.pair.second, self.pair.first)
        client = self.end(self.pair.first, self.pair.second, port=0)
        peer = (self.pair.second.address, PORT)
        for space, lost in ((self.pair.second, server), (self.pair.first, client)):
            self.pair.second.run(["ip", "link", "set", "dev", "lo", "up"])
            with space.entered():
                space.run(["ip", "link", "set", space.interface, "down"])
                client.port.send_packets(peer, [b"into the dark"])
                await lost.lose_interface()
                space.run(["ip", "link", "set", space.interface, "up"])
                server.got.clear()
                for _ in range(100):
                    client.port.send_packets(peer, [b"again"])
                    await pause(0.05)
                    if server.packets:
                        break
            self.assertIn(b"again", server.packets)

    @run
    async def test_interface_removed_and_made_again(self) -> None:
        """A device that is gone is opened again when there is one of its name."""
        server = self.end(self.pair.second, self.pair.first)
        peer = (self.pair.second.address, PORT)
        self.pair.second.run(["ip", "link", "del", self.pair.second.interface])
        await server.lose_interface()
        self.pair.connect()
        client = self.end(self.pair.first, self.pair.second, port=0)
        with self.pair.second.entered():
            for _ in range(100):
                client.port.send_packets(peer, [b"again"])
                await pause(0.05)
                if server.packets:
                    break
        self.assertIn(b"again", server.packets)

    @run
    async def test_kernels_keep_silent(self) -> None:
        """Neither machine's kernel sends anything of its own, without any firewall rule: the ports are held."""
        with self.pair.first.entered():
            wire = CaptureSocket(self.pair.first.interface, of_port(6, PORT), 1 << 20)
        self.addCleanup(wire.close)
        server = self.end(self.pair.second, self.pair.first)
        client = self.end(self.pair.first, self.pair.second, port=0)
        for number, address in enumerate((self.pair.second.address, self.pair.second.address6), 1):
            client.port.send_packets((address, PORT), [b"up"] * 20)
            await server.get(20 * number)
            for source in list(server.got):
                server.port.send_packets(source, [b"down"] * 20)
        await client.get(60)
        await pause(0.1)
        segments = [parse_frame(frame)[1] for frame in wire.receive()]
        self.assertEqual(len(segments), 100)
        self.assertEqual([segment for segment in segments if segment.flags & RST], [])

    @run
    async def test_port_in_use(self) -> None:
        """A port that a program listens on is refused in one line, by its number."""
        self.end(self.pair.second, self.pair.first)
        with self.assertRaises(ConfigError) as caught:
            self.end(self.pair.second, self.pair.first)
        self.assertIn(f"TCP port {PORT} is in use", str(caught.exception))
        self.end(self.pair.second, self.pair.first, port=PORT + 1)

    @run
    async def test_no_such_interface(self) -> None:
        """One line that names it."""
        with self.assertRaises(ConfigError) as caught:
            self.end(self.pair.second, self.pair.first, interface="nonesuch0")
        self.assertIn("nonesuch0", str(caught.exception))


class PlainPortTests(RawPortTests):
    """The same without the C extension."""

    def setUp(self) -> None:
        """Take it away."""
        self.patch(device, "_send_frames", None)
        self.patch(device, "_receive_frames", None)
        super().setUp()


class PcapPortTests(RawPortTests):
    """The same over libpcap."""

    backend = "pcap"

    def setUp(self) -> None:
        """Only with the library."""
        try:
            import pcap  # noqa: F401
        except (ImportError, OSError):
            raise missing("pcap-ct and libpcap") from None
        super().setUp()
