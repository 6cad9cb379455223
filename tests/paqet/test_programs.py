"""What command lines and files become before anything is opened."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.cli import ping
from mikanet.counters import Counters
from mikanet.crypto.packet_keys import Kdf, derive_key
from mikanet.errors import ConfigError
from mikanet.paqet import options, service, tap_client, tap_server
from mikanet.paqet.config import parse_config
from mikanet.paqet.ports import UdpClientPort
from mikanet.paqet.tap_common import wants_firewall
from mikanet.rawpackets.routes import Route
from mikanet.rawpackets.settings import FamilyPath
from tests.interop.paqet_ends import KEY, file_text, write_file

MAC = bytes.fromhex("020000000001")
ROUTE = Route("eth9", MAC, 1500, ip_address("192.0.2.7"), ip_address("192.0.2.1"), MAC)


class FileTestCase(SynchronousTestCase):
    """Files in a folder of the test's own."""

    def file(self, role: str, network: str = "", kcp: str = "", ours: str = "carrier: raw", more: str = "") -> str:
        """Write one."""
        folder = Path(self.mktemp())
        folder.mkdir()
        where = ":9999" if role == "server" else "192.0.2.99:9999"
        return write_file(folder, f"{role}.yaml", file_text(role, where, network, kcp, ours) + more)


class SetupTests(FileTestCase):
    """From a file to links."""

    def test_link_and_smux(self) -> None:
        """Key, block, windows, FEC and keepalive are those of the file; servers ask for proof (Q4), clients do not."""
        kcp = "block: aes-128\nmtu: 1200\ndshard: 10\npshard: 3\nsmuxkalive: 3\nsmuxktimeout: 9\nsmuxbuf: 8388608"
        setup = options.load_setup(self.file("server", kcp=kcp), insecure_ok=False)
        link = setup.link
        self.assertEqual((link.block, link.mtu, link.data_shards, link.parity_shards), ("aes-128", 1200, 10, 3))
        self.assertEqual((link.key, link.require_proof), (derive_key(KEY.encode(), Kdf.PAQET), True))
        self.assertEqual((setup.smux.version, setup.smux.max_frame, setup.smux.receive_buffer), (2, 65535, 8 << 20))
        self.assertEqual((setup.smux.keepalive_interval, setup.smux.keepalive_timeout), (3, 9))
        self.assertFalse(options.load_setup(self.file("client"), insecure_ok=False).link.require_proof)

    def test_secrets(self) -> None:
        """Weak secrets and blocks that do not protect need to be wanted (X7, X11)."""
        for kcp in ('key: "0123456789abcdef"', f'key: "{KEY}"\nblock: salsa20', f'key: "{KEY}"\nblock: "null"'):
            path = self.file("client", kcp=kcp)
            self.assertRaises(ConfigError, options.load_setup, path, insecure_ok=False)
            options.load_setup(path, insecure_ok=True)

    def test_not_text(self) -> None:
        """A file that is no text is one line."""
        path = self.file("client")
        Path(path).write_bytes(b"\xff\xfe")
        self.assertIn("not UTF-8", str(self.assertRaises(ConfigError, options.load_setup, path, insecure_ok=False)))


class RawSettingsTests(FileTestCase):
    """What a file leaves out is found."""

    def setUp(self) -> None:
        """A machine with one way out."""
        self.asked: list[Any] = []
        self.route = ROUTE

        def find_route(destination: Any, interface: str = "", family: int = 4, fresh: bool = False) -> Route:
            self.asked.append((destination, interface, family))
            return self.route

        self.patch(options, "find_route", find_route)

    def config(self, role: str, network: str = "") -> Any:
        """A configuration."""
        where = ":9999" if role == "server" else "192.0.2.99:9999"
        return parse_config(file_text(role, where, network), "f")

    def test_client(self) -> None:
        """A client's interface, address and router are those of the way to its server; its flags and buffer the file's."""
        settings, server = options.client_raw_settings(
            self.config("client", "tcp: {local_flag: [S, PA]}"), firewall=True
        )
        self.assertEqual(self.asked, [(ip_address("192.0.2.99"), "", 4)])
        self.assertEqual((settings.interface, settings.port, settings.flags), ("eth9", 0, (2, 0x18)))
        self.assertEqual((settings.ipv4, settings.ipv6), (FamilyPath(ip_address("192.0.2.7"), MAC), None))
        self.assertEqual((settings.firewall, settings.sockbuf, server), (True, 4 << 20, Address("192.0.2.99", 9999)))

    def test_all_said(self) -> None:
        """Nobody is asked about what the file says."""
        network = "interface: eth0\nipv4: {addr: '10.0.0.2:0', router_mac: 'aa:bb:cc:dd:ee:ff'}"
        settings, _ = options.client_raw_settings(self.config("client", network), firewall=False)
        self.assertEqual(self.asked, [])
        self.assertEqual(settings.ipv4, FamilyPath(ip_address("10.0.0.2"), bytes.fromhex("aabbccddeeff")))

    def test_client_without_router(self) -> None:
        """A router that does not answer, or a family that the file leaves out, is said with what mends it."""
        self.route = replace(ROUTE, router_mac=None)
        problem = self.assertRaises(ConfigError, options.client_raw_settings, self.config("client"), firewall=False)
        self.assertIn("give its hardware address as network.ipv4.router_mac", str(problem))
        only6 = self.config("client", "ipv6: {addr: '[2001:db8::1]:0'}")
        problem = self.assertRaises(ConfigError, options.client_raw_settings, only6, firewall=False)
        self.assertIn("is reached by IPv4, which network does not configure", str(problem))

    def test_server(self) -> None:
        """A server takes the default route of each family that it has, and learns its clients' stations without a router."""
        self.route = replace(ROUTE, router_mac=None)
        settings = options.server_raw_settings(self.config("server"), firewall=True)
        self.assertEqual(self.asked, [(None, "", 4)])
        self.assertEqual((settings.port, settings.ipv4), (9999, FamilyPath(ip_address("192.0.2.7"), None)))
        self.asked.clear()
        options.server_raw_settings(
            self.config("server", "ipv4: {addr: ':9999'}\nipv6: {addr: ':9999'}"), firewall=True
        )
        self.assertEqual([family for _, _, family in self.asked], [4, 6])

    def test_names(self) -> None:
        """A server may be a name; one that is not known is one line."""
        self.assertTrue(options.look_up("localhost").is_loopback)
        problem = self.assertRaises(ConfigError, options.look_up, "no-such-host.invalid")
        self.assertIn("name no-such-host.invalid is not known", str(problem))

    def test_udp_addresses(self) -> None:
        """What a UDP server binds: an address, all of one family, or all of both."""
        for network, interface in (
            ("", ""),
            ("ipv4: {addr: '10.0.0.1:9999'}", "10.0.0.1"),
            ("ipv4: {addr: ':9999'}", ""),
            ("ipv6: {addr: ':9999'}", "::"),
            ("ipv6: {addr: '[2001:db8::1]:9999'}", "2001:db8::1"),
            ("ipv4: {addr: ':9999'}\nipv6: {addr: ':9999'}", "::"),
        ):
            self.assertEqual(service._interface(self.config("server", network)), interface)


class CommandLineTests(FileTestCase):
    """Options."""

    def server(self, *words: str) -> tap_server.Options:
        """Parse a server's."""
        parsed = tap_server.Options()
        parsed.parseOptions(["--config", self.file("server"), "--state-dir", self.mktemp(), *words])
        return parsed

    def client(self, *words: str, more: str = "") -> tap_client.Options:
        """Parse a client's."""
        parsed = tap_client.Options()
        parsed.parseOptions(["--config", self.file("client", more=more), *words])
        return parsed

    def test_server_limits(self) -> None:
        """Caps of sessions and streams, with their defaults (Q6)."""
        settings = self.server(
            "--max-sessions", "7", "--max-unverified-per-address", "3", "--refusal-time", "2"
        ).settings
        link = settings.link
        self.assertEqual((link.max_sessions, link.max_sessions_per_host), (7, 64))
        self.assertEqual((link.max_probation, link.max_probation_per_host, link.patience.probation), (256, 3, 2.0))
        self.assertEqual((settings.max_streams, settings.max_per_session, settings.firewall), (10_000, 1024, True))
        self.assertFalse(settings.policy.permits(ip_address("127.0.0.1"), 80))

    def test_second_server(self) -> None:
        """Two servers on one port do not share a state folder."""
        state = self.mktemp()
        first = tap_server.Options()
        first.parseOptions(["--config", self.file("server"), "--state-dir", state])
        self.assertTrue(list(Path(state).iterdir()))

    def test_doors_of_file_and_options(self) -> None:
        """Both add up; the file's SOCKS doors have passwords of their own."""
        doors = "socks5:\n  - {listen: '127.0.0.1:1080', username: u, password: p}\n  - {listen: '[::1]:1080'}\n"
        doors += "forward:\n  - {listen: '127.0.0.1:1', target: 'a:1', protocol: tcp}\n"
        doors += "  - {listen: '127.0.0.1:2', target: 'b:2', protocol: udp}\n"
        front = self.client("--http", "tcp:3128", more=doors).front
        self.assertEqual([kind for kind, *_ in front.doors], ["http"])
        self.assertEqual([text for _, text, _, _ in front.own_doors], ["127.0.0.1:1080", "[::1]:1080"])
        self.assertTrue(front.own_doors[0][3] is not None and front.own_doors[0][3].check(b"u", b"p"))
        self.assertIsNone(front.own_doors[1][3])
        self.assertEqual([to for *_, to in front.forwards], [Address("a", 1)])
        self.assertEqual(front.udp_forwards, ((Address("127.0.0.1", 2), Address("b", 2)),))

    def test_refusals(self) -> None:
        """No door at all, another word for the firewall, no file, a server's file for ping."""
        for call in (
            self.client,
            lambda: self.client("--socks", "tcp:1", "--firewall", "maybe"),
            lambda: self.server("--firewall", "maybe"),
            lambda: self.server("--max-sessions", "0"),
            lambda: tap_server.Options().parseOptions([]),
            lambda: ping.Options().parseOptions([self.file("server")]),
            lambda: ping.Options().parseOptions([]),
            lambda: ping.Options().parseOptions([self.file("client"), "--count", "0"]),
        ):
            problem = self.assertRaises(SystemExit, call)
            self.assertNotIn("\n", str(problem))

    def test_ping_options(self) -> None:
        """Ping takes a client's file."""
        parsed = ping.Options()
        parsed.parseOptions([self.file("client"), "--count", "9", "--firewall", "off"])
        self.assertEqual((parsed.count, parsed.firewall, wants_firewall(parsed)), (9, False, False))

    def test_client_ports(self) -> None:
        """Over UDP each connection has sockets of its own, made when a session begins."""
        setup = options.load_setup(self.file("client", ours="carrier: udp"), insecure_ok=False)
        ports = service.client_ports(Clock(), setup, True, Counters(), 3)
        self.assertEqual([type(port) for port in ports], [UdpClientPort] * 3)
        self.assertEqual(service.client_config(setup, Counters()).remote_flags, ())
        raw = options.load_setup(self.file("client"), insecure_ok=False)
        self.assertEqual(service.client_config(raw, Counters()).remote_flags, (0x18,))
