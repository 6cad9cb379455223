"""paqet's YAML files: everything in them, what is left out, and every mistake with its line."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import ConfigError
from mikanet.kcp.settings import MODES, Mode
from mikanet.paqet.config import Door, Family, Forward, Kcp, Network, parse_config
from mikanet.paqet.wire import Dialect
from mikanet.paqet.yaml_sections import read_yaml
from tests.support.feeding import mutations

CLIENT = """\
# A file as the original takes it.
role: "client"
log:
  level: "info"
socks5:
  - listen: "127.0.0.1:1080"
    username: ""
    password: ""
  - listen: ":1081"
    username: "user"
    password: "a password"
forward:
  - listen: "127.0.0.1:8080"
    target: "example.com:80"
    protocol: "tcp"
  - listen: "[::1]:5353"
    target: "8.8.8.8:53"
    protocol: "udp"
network:
  interface: "eth0"
  guid: "{ABC}"
  ipv4:
    addr: "192.168.1.100:0"
    router_mac: "aa:bb:cc:dd:ee:ff"
  ipv6:
    addr: "[2001:db8::1]:0"
    router_mac: "AA-BB-CC-DD-EE-00"
  tcp:
    local_flag: ["PA", "A"]
    remote_flag: ["SA"]
  pcap:
    sockbuf: 2097152
server:
  addr: "vpn.example.com:9999"
transport:
  protocol: "kcp"
  conn: 4
  tcpbuf: 8192
  udpbuf: 4096
  kcp:
    mode: "manual"
    nodelay: 1
    interval: 15
    resend: 3
    nocongestion: 1
    wdelay: true
    acknodelay: false
    mtu: 1400
    rcvwnd: 600
    sndwnd: 700
    dshard: 10
    pshard: 3
    block: "aes-128-gcm"
    key: "a key of good length"
    smuxbuf: 8388608
    streambuf: 4194304
    smuxkalive: 3
    smuxktimeout: 9
mikanet:
  carrier: udp
  dialect: [gob, a20]
  congestion: on
"""

SERVER = """\
role: server
listen: {addr: ":9999"}
transport:
  protocol: kcp
  kcp: {key: a key of good length}
"""


class ReadingTests(SynchronousTestCase):
    """Files that are right."""

    def test_everything(self) -> None:
        """Every key of a client's file is read."""
        config = parse_config(CLIENT, "client.yaml")
        self.assertFalse(config.is_server)
        self.assertEqual(config.server, Address("vpn.example.com", 9999))
        self.assertEqual(
            config.doors, (Door(Address("127.0.0.1", 1080), "", ""), Door(Address("", 1081), "user", "a password"))
        )
        self.assertEqual(
            config.forwards,
            (
                Forward(Address("127.0.0.1", 8080), Address("example.com", 80), False),
                Forward(Address("::1", 5353), Address("8.8.8.8", 53), True),
            ),
        )
        self.assertEqual(
            config.network,
            Network(
                "eth0",
                Family(ip_address("192.168.1.100"), 0, bytes.fromhex("aabbccddeeff")),
                Family(ip_address("2001:db8::1"), 0, bytes.fromhex("aabbccddee00")),
                (0x18, 0x10),
                (0x12,),
                2097152,
            ),
        )
        mode = Mode(1, 15, 3, 0, write_delay=True, ack_no_delay=False)  # congestion control is switched on by us
        self.assertEqual(
            config.kcp,
            Kcp(mode, 1400, 700, 600, 10, 3, "aes-128-gcm", "a key of good length", 8388608, 4194304, 3, 9),
        )
        self.assertEqual((config.connections, config.carrier), (4, "udp"))
        self.assertEqual(config.dialects, (Dialect.GOB, Dialect.A20))

    def test_what_is_left_out(self) -> None:
        """A short server's file has the original's defaults, and raw packets."""
        config = parse_config(SERVER, "server.yaml")
        self.assertEqual((config.is_server, config.port, config.carrier), (True, 9999, "raw"))
        self.assertEqual(config.network, Network(sockbuf=8 << 20))
        self.assertEqual(
            config.kcp,
            Kcp(MODES["fast"], 1350, 1024, 1024, 0, 0, "aes", "a key of good length", 4 << 20, 2 << 20, 2, 8),
        )
        self.assertEqual(config.dialects, (Dialect.GOB, Dialect.A21))
        client = parse_config(SERVER.replace("role: server\nlisten", "role: client\nserver").replace('":', '"h:'), "c")
        self.assertEqual((client.kcp.snd_wnd, client.kcp.rcv_wnd, client.network.sockbuf), (128, 512, 4 << 20))

    def test_port_of_a_server(self) -> None:
        """The port of the network section is the one in use, whatever listen says."""
        text = SERVER + "network:\n  ipv4: {addr: '10.0.0.1:7777', router_mac: 'aa:bb:cc:dd:ee:ff'}\n"
        self.assertEqual(parse_config(text, "s").port, 7777)

    def test_zero_is_the_default(self) -> None:
        """Zero and nothing mean the default."""
        text = SERVER.replace("key:", "mtu: 0, rcvwnd: , mode: '', key:")
        self.assertEqual(parse_config(text, "s").kcp, parse_config(SERVER, "s").kcp)

    def test_ours(self) -> None:
        """The section of our own: dialect by one word, congestion control either way."""
        for words, dialects in (("auto", (Dialect.GOB, Dialect.A21)), ("a21", (Dialect.A21,))):
            config = parse_config(SERVER + f"mikanet: {{dialect: {words}}}\n", "s")
            self.assertEqual(config.dialects, dialects)
        fast3 = SERVER.replace("key:", "mode: fast3, key:")
        for word, nc in (("on", 0), ("off", 1)):
            mode = parse_config(fast3 + f"mikanet: {{congestion: {word}}}\n", "s").kcp.mode
            self.assertEqual(mode, replace(MODES["fast3"], nc=nc))

    def test_key_stays_text(self) -> None:
        """A secret of digits stays as it is written, and is in no repr."""
        config = parse_config(SERVER.replace("a key of good length", "0123456789012345"), "s")
        self.assertEqual(config.kcp.key, "0123456789012345")
        self.assertNotIn("0123456789012345", repr(config))
        self.assertNotIn("a password", repr(parse_config(CLIENT, "c")))


class MistakeTests(SynchronousTestCase):
    """Files that are wrong."""

    def mistake(self, text: str) -> str:
        """What is said about a file."""
        return str(self.assertRaises(ConfigError, parse_config, text, "f.yaml"))

    def changed(self, old: str, new: str, text: str = CLIENT) -> str:
        """What is said about a file with a change."""
        self.assertIn(old, text)
        return self.mistake(text.replace(old, new, 1))

    def test_unknown_keys(self) -> None:
        """A key that nobody knows is named with its line, wherever it stands."""
        self.assertEqual(
            self.changed('  level: "info"', '  level: "info"\n  file: x'),
            "f.yaml, line 5: log.file is not a key that is known here",
        )
        for old, new, path in (
            ("mode: ", "crypt: aes\n    mode: ", "transport.kcp.crypt"),
            ("role:", "rule: 1\nrole:", "rule"),
            ("carrier:", "carriers: 1\n  carrier:", "mikanet.carriers"),
            ('    protocol: "udp"', '    protocol: "udp"\n    proto: udp', "forward[2].proto"),
            ('    username: "user"', "    user: x", "socks5[2].user"),
        ):
            self.assertRegex(
                self.changed(old, new), rf"^f.yaml, line \d+: {path.replace('[', '.').replace(']', '.')} is not a key"
            )

    def test_values(self) -> None:
        """A value that does not fit is named with its key and line."""
        for old, new, says in (
            ('"client"', '"both"', "line 2: role: 'both' is none of client, server"),
            ("mtu: 1400", "mtu: 1501", "line 48: transport.kcp.mtu: 1501 is not between 50 and 1500"),
            ("mtu: 1400", "mtu: big", "'big' is not a whole number"),
            ("mtu: 1400", "mtu: [1]", "transport.kcp.mtu must be one value"),
            ('"aes-128-gcm"', '"rot13"', "'rot13' is none of aes"),
            ('["PA", "A"]', '["PX"]', "network.tcp.local_flag is wrong: 'X' is not one of the flags"),
            ("192.168.1.100:0", "2001:db8::1:0", "write an IPv6 address in brackets"),
            ("192.168.1.100:0", "[2001:db8::1]:0", "is not an IPv4 address"),
            ("192.168.1.100:0", "192.168.1.100", "is not ADDRESS:PORT"),
            ("192.168.1.100:0", "192.168.1.100:99", "transport.conn must be 1 with a fixed port"),
            ("aa:bb:cc:dd:ee:ff", "aa:bb", "is not a MAC address"),
            ("127.0.0.1:1080", "localhost:1080", "line 6: socks5[1].listen:"),
            ('protocol: "tcp"', 'protocol: "sctp"', "'sctp' is none of tcp, udp"),
            ('    protocol: "tcp"\n', "", "forward[1].protocol is missing"),
            ('key: "a key of good length"', 'key: ""', "transport.kcp.key is missing"),
            ("streambuf: 4194304", "streambuf: 9388608", "transport.kcp.streambuf must not be larger than smuxbuf"),
            ("smuxktimeout: 9", "smuxktimeout: 1", "must not be shorter than smuxkalive"),
            ("dshard: 10", "dshard: 254", "together are more than 256"),
            ("dialect: [gob, a20]", "dialect: a19", "mikanet.dialect is auto, one of gob, a20, a21"),
            ("congestion: on", "congestion: maybe", "'maybe' is neither on nor off"),
            ('  protocol: "kcp"', '  protocol: "quic"', "'quic' is none of kcp"),
            ('  addr: "vpn.example.com:9999"', "  addr:", "server.addr is missing"),
            ("wdelay: true", "wdelay: 7", "'7' is neither on nor off"),
        ):
            self.assertIn(says, self.changed(old, new))

    def test_deep_and_named(self) -> None:
        """A document that is too deep, and one that names itself, are refused or read; neither takes long."""
        self.assertRaises(ConfigError, read_yaml, "a: " + "[" * 100_000, "f")
        self.assertTrue(read_yaml("a: &x {b: 1}\nc: *x\n", "f").section("c"))

    def test_servers(self) -> None:
        """A server has one port, and needs one."""
        self.assertIn("listen.addr is missing", self.changed('":9999"', "", SERVER))
        two = SERVER + "network: {ipv4: {addr: ':1'}, ipv6: {addr: ':2'}}\n"
        self.assertIn("network has different ports", self.mistake(two))

    def test_not_yaml(self) -> None:
        """Text that is no YAML, no mapping, has a key twice or is empty."""
        self.assertEqual(self.mistake("a: [1\nb: 2"), "f.yaml, line 2: no YAML: expected ',' or ']', but got ':'")
        self.assertEqual(self.mistake("- 1"), "f.yaml, line 1: the file must be a list of keys with values")
        self.assertEqual(self.mistake("role: a\nrole: b"), "f.yaml, line 2: role stands here twice")
        self.assertEqual(self.mistake("? [a]\n: b"), "f.yaml, line 1: a key must be a word")
        self.assertEqual(self.mistake(""), "f.yaml is empty")
        self.assertEqual(self.mistake("role: client\nlog: 1"), "f.yaml, line 2: log must be a list of keys with values")
        self.assertIn("no YAML", self.mistake("[" * 5000))
        self.assertIn("no YAML", self.mistake("a: *nothing"))
        self.assertIn("no YAML", self.mistake("a: \0"))

    def test_mutations(self) -> None:
        """2,000 mutated files raise the one error, in one line, or are read."""
        rng = random.Random(1)
        golden = [CLIENT.encode(), SERVER.encode()]
        for data in mutations(golden, 2000, rng.randrange(1000)):
            try:
                parse_config(data[:3000].decode("utf-8", "replace"), "f.yaml")
            except ConfigError as problem:
                self.assertNotIn("\n", str(problem))
