"""The kernel kept silent: firewall rules with nft and with iptables, the held port, the self-test, routes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.rawpackets import firewall as module
from mikanet.rawpackets import port as port_module
from mikanet.rawpackets.firewall import (
    Firewall,
    FirewallError,
    IptablesRules,
    NftRules,
    Rules,
    clear_stale,
    stale_ports,
)
from mikanet.rawpackets.hold import FIRST_FREE, hold_port
from mikanet.rawpackets.port import RawTcpPort
from mikanet.rawpackets.routes import find_route, own_addresses
from mikanet.rawpackets.selftest import kernel_answers
from mikanet.rawpackets.settings import FamilyPath, RawSettings
from mikanet.wire.ethernet import parse_mac
from tests.lab.veth import VethNamespace, VethPair
from tests.support.peers import require_program

ROOT = Path(__file__).resolve().parents[2]
PORT = 9999


class FileRules:
    """Rules that are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, port: int) -> None:
        """A file."""
        (self.folder / str(port)).touch()

    def removal(self, port: int) -> str:
        """Its removal."""
        return f"rm -f {self.folder}/{port}"

    def ports(self) -> set[int]:
        """The files."""
        return {int(file.name) for file in self.folder.iterdir()}


class BrokenRules(FileRules):
    """Rules that cannot be added whole."""

    def add(self, port: int) -> None:
        """Half of it."""
        super().add(port)
        raise FirewallError("half of it")


class FirewallTests(SynchronousTestCase):
    """Installing and removing."""

    def setUp(self) -> None:
        """A folder, and port numbers that no other run of these tests uses now."""
        self.rules = FileRules(Path(self.mktemp()).resolve())
        self.rules.folder.mkdir()
        self.patch(module, "LINGER", 0)
        self.port = 100_000 + os.getpid() * 2

    def test_install_and_remove(self) -> None:
        """The rules are there in between, and nobody takes them for stale."""
        firewall = Firewall(self.port, self.rules)
        firewall.install()
        self.assertEqual(self.rules.ports(), {self.port})
        self.assertEqual(stale_ports(self.rules), set())
        firewall.remove()
        self.assertEqual(self.rules.ports(), set())
        firewall.remove()

    def test_stale_rules_are_cleared(self) -> None:
        """What killed processes left goes at the next start, whatever its port; what lives stays."""
        alive = Firewall(self.port, self.rules)
        alive.install()
        self.addCleanup(alive.remove)
        self.rules.add(self.port + 1)
        self.assertEqual(stale_ports(self.rules), {self.port + 1})
        self.assertEqual(clear_stale(self.rules), {self.port + 1})
        self.assertEqual(self.rules.ports(), {self.port})

    def test_many_descriptors(self) -> None:
        """A process that has many files open, as servers have, is no other."""
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(30)]
        try:
            self.test_install_and_remove()
            self.patch(module, "LINGER", 60)
            firewall = Firewall(self.port, self.rules)
            firewall.install()
            firewall.remove()
        finally:
            for descriptor in held:
                os.close(descriptor)
        self.assertEqual(self.rules.ports(), {self.port})
        Firewall(self.port, self.rules)._wait_for_mark().close()
        self.assertEqual(self.rules.ports(), set())

    def test_one_keeper_for_a_port(self) -> None:
        """A second process that wants the same port's rules is told."""
        self.patch(module, "_CLAIM_TIME", 0.05)
        first = Firewall(self.port, self.rules)
        first.install()
        self.addCleanup(first.remove)
        with self.assertRaises(FirewallError):
            Firewall(self.port, self.rules).install()

    def test_nothing_is_left_behind(self) -> None:
        """Rules that could be added in part only are removed."""
        rules = BrokenRules(self.rules.folder)
        with self.assertRaises(FirewallError):
            Firewall(self.port, rules).install()
        self.assertEqual(rules.ports(), set())

    def test_killed(self) -> None:
        """When the process is killed, its keeper removes the rules."""
        script = (
            "import os, sys, time\n"
            "from pathlib import Path\n"
            "from mikanet.rawpackets.firewall import Firewall\n"
            "from tests.interop.test_rawpackets_rules import FileRules\n"
            f"firewall = Firewall({self.port}, FileRules(Path({str(self.rules.folder)!r})))\n"
            "firewall.install()\n"
            "print(os.listdir(firewall._rules.folder), flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, -9, done.stderr)
        self.assertEqual(done.stdout, f"['{self.port}']\n")
        # The keeper holds the port's mark until it is done: whoever gets the mark finds nothing.
        Firewall(self.port, self.rules)._wait_for_mark().close()
        self.assertEqual(self.rules.ports(), set())


class NamespaceTestCase(SynchronousTestCase):
    """Two machines."""

    def setUp(self) -> None:
        """The pair; this thread is inside the first one."""
        self.pair = VethPair()
        self.pair.__enter__()
        self.addCleanup(self.pair.close)
        self.space: VethNamespace = self.pair.first
        entered = self.space.entered()
        entered.__enter__()
        self.addCleanup(entered.__exit__, None, None, None)

    def answers(self, port: int = PORT) -> list[bool]:
        """Whether the kernel answers, over IPv4 and IPv6."""
        return [
            kernel_answers(ip_address(address), port, 23456) for address in (self.space.address, self.space.address6)
        ]


class HeldPortTests(NamespaceTestCase):
    """The held port."""

    def test_silence(self) -> None:
        """A kernel answers for a port that nobody has, and is silent while it is held."""
        self.assertEqual(self.answers(), [True, True])
        held = hold_port(PORT, random.randint)
        assert held is not None
        self.assertEqual(held.number, PORT)
        self.assertEqual(self.answers(), [False, False])
        held.release()
        self.assertEqual(self.answers(), [True, True])

    def test_any_port(self) -> None:
        """0 takes a free one, where paqet takes them, and passes over one that is taken."""
        tries = iter([FIRST_FREE, FIRST_FREE, FIRST_FREE + 1])
        first, second = (hold_port(0, lambda least, most: next(tries)) for _ in range(2))
        assert first is not None
        assert second is not None
        self.addCleanup(first.release)
        self.addCleanup(second.release)
        self.assertEqual((first.number, second.number), (FIRST_FREE, FIRST_FREE + 1))

    def test_without_net_admin(self) -> None:
        """With CAP_NET_RAW alone a port is either held or refused in words that say what is missing."""
        script = (
            "from mikanet.errors import ConfigError\n"
            "from mikanet.rawpackets.hold import hold_port\n"
            "try:\n"
            f"    print(hold_port({PORT}, max).number)\n"
            "except ConfigError as problem:\n"
            "    print(problem)\n"
        )
        said = self.with_raw_only([sys.executable, "-c", script])
        self.assertIn(said, (f"{PORT}\n", f"holding TCP port {PORT} needs root or CAP_NET_ADMIN beside CAP_NET_RAW\n"))

    def test_doctor_without_net_admin(self) -> None:
        """The doctor calls that a problem, and a free port free."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        file = folder / "server.yaml"
        file.write_text(
            f"role: server\nlisten:\n  addr: ':{PORT}'\nnetwork:\n  interface: {self.space.interface}\n"
            "transport:\n  protocol: kcp\n  kcp:\n    key: a secret of good length\n"
        )
        file.chmod(0o600)
        mikanet = "import sys; from mikanet.cli.main import main; sys.exit(main())"
        said = self.with_raw_only([sys.executable, "-c", mikanet, "doctor", str(file)])
        self.assertRegex(said, r"(?s)PROBLEM +rights .*CAP_NET_ADMIN.*sudo mikanet doctor")
        self.assertIn(f"{PORT} is free", said)

    def with_raw_only(self, command: list[str]) -> str:
        """What a program prints that is root in name and has CAP_NET_RAW of all capabilities."""
        drop = ["--bounding-set=-all,+net_raw", "--inh-caps=-all,+net_raw", "--ambient-caps=-all,+net_raw"]
        whole = [require_program("setpriv"), *drop, *command]
        done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        self.assertNotIn("Traceback", done.stderr)
        return done.stdout

    def test_in_use(self) -> None:
        """Somebody else's port is refused."""
        held = hold_port(PORT, random.randint)
        assert held is not None
        self.addCleanup(held.release)
        with self.assertRaises(ConfigError) as caught:
            hold_port(PORT, random.randint)
        self.assertIn(f"ss -tlnp sport = :{PORT}", str(caught.exception))


class NftTests(NamespaceTestCase):
    """Rules in a kernel, with nft."""

    def make_rules(self) -> Rules:
        """The way of setting rules."""
        return NftRules(require_program("nft"))

    def setUp(self) -> None:
        """The rules."""
        self.rules = self.make_rules()
        self.patch(module, "LINGER", 0)
        super().setUp()

    def test_silence(self) -> None:
        """With the rules the kernel is silent about the port, over both families, and about no other."""
        firewall = Firewall(PORT, self.rules)
        firewall.install()
        self.addCleanup(firewall.remove)
        self.assertEqual(self.rules.ports(), {PORT})
        self.assertEqual(self.answers(), [False, False])
        self.assertEqual(self.answers(PORT + 1), [True, True])
        firewall.remove()
        self.assertEqual(self.rules.ports(), set())
        self.assertEqual(self.answers(), [True, True])

    def test_other_rules_stay(self) -> None:
        """What somebody else set is there afterwards as it was before."""
        theirs = "table inet theirs {\n\tchain input {\n\t\ttcp dport 9999 accept\n\t}\n}\n"
        nft = require_program("nft")
        subprocess.run([nft, "-f", "-"], input=theirs, text=True, check=True)
        firewall = Firewall(PORT, self.rules)
        firewall.install()
        firewall.remove()
        listed = subprocess.run([nft, "list", "table", "inet", "theirs"], text=True, capture_output=True, check=True)
        self.assertEqual(listed.stdout, theirs)

    def test_twice(self) -> None:
        """Rules of the same port that are there already are replaced, not doubled."""
        self.rules.add(PORT)
        firewall = Firewall(PORT, self.rules)
        firewall.install()
        firewall.remove()
        self.assertEqual(self.rules.ports(), set())

    def test_killed_with_its_keeper(self) -> None:
        """Rules of a process that was killed together with its keeper go at the next start, also that of another port."""
        script = (
            "import os, signal, sys\n"
            "from tests.interop.test_rawpackets_rules import *\n"
            f"case = {type(self).__name__}()\n"
            f"firewall = Firewall({PORT}, case.make_rules())\n"
            "firewall.install()\n"
            "os.kill(firewall._keeper.pid, 9)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, -9, done.stderr)
        self.assertEqual(self.rules.ports(), {PORT})
        firewall = Firewall(PORT + 1, self.rules)
        firewall.install()
        self.addCleanup(firewall.remove)
        self.assertEqual(self.rules.ports(), {PORT + 1})

    def test_killed(self) -> None:
        """After kill -9 the keeper removes the rules."""
        script = (
            "import os, sys\n"
            "from tests.interop.test_rawpackets_rules import *\n"
            f"case = {type(self).__name__}()\n"
            f"firewall = Firewall({PORT}, case.make_rules())\n"
            "firewall.install()\n"
            "print(sorted(case.make_rules().ports()), flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stdout), (-9, f"[{PORT}]\n"), done.stderr)
        Firewall(PORT, self.rules)._wait_for_mark().close()
        self.assertEqual(self.rules.ports(), set())


class IptablesTests(NftTests):
    """The same with iptables and ip6tables."""

    def make_rules(self) -> Rules:
        """The way of setting rules."""
        return IptablesRules([require_program("iptables"), require_program("ip6tables")])


class StartTests(NamespaceTestCase):
    """The port as a whole."""

    def start(self, firewall: bool) -> RawTcpPort:
        """A port of this namespace."""
        mac = parse_mac(self.pair.second.mac)
        settings = RawSettings(
            self.space.interface,
            PORT,
            FamilyPath(ip_address(self.space.address), mac),
            FamilyPath(ip_address(self.space.address6), mac),
            firewall=firewall,
        )
        port = RawTcpPort(MemoryReactorClock(), settings, lambda peer, payloads: None)
        self.addCleanup(port.stopListening)
        port.startListening()
        return port

    def test_rules_come_and_go(self) -> None:
        """They are there while the port is open."""
        self.patch(module, "LINGER", 0)
        rules = NftRules(require_program("nft"))
        port = self.start(firewall=True)
        self.assertEqual(rules.ports(), {PORT})
        port.stopListening()
        self.assertEqual(rules.ports(), set())
        self.assertEqual(self.answers(), [True, True])

    def test_nft_that_fails(self) -> None:
        """The next way is taken, and nothing is counted as failed; where all fail that is counted."""
        self.patch(module, "LINGER", 0)
        iptables = IptablesRules([require_program("iptables"), require_program("ip6tables")])
        broken = BrokenRules(Path(self.mktemp()).resolve())
        broken.folder.mkdir()
        self.patch(port_module, "all_rules", lambda: [broken, iptables])
        port = self.start(firewall=True)
        self.assertEqual((iptables.ports(), broken.ports()), ({PORT}, set()))
        self.assertEqual(port.counters["rawpackets.firewall.failed"], 0)
        port.stopListening()
        self.patch(port_module, "all_rules", lambda: [broken])
        port = self.start(firewall=True)
        self.assertEqual(port.counters["rawpackets.firewall.failed"], 1)

    def test_silent_after_the_end(self) -> None:
        """A peer that knows of no end gets no RST for a while; a new start on the port takes over at once."""
        rules = NftRules(require_program("nft"))
        self.start(firewall=True).stopListening()
        self.assertEqual(rules.ports(), {PORT})
        self.assertEqual(stale_ports(rules), set())
        self.assertEqual(self.answers(), [False, False])
        port = self.start(firewall=True)
        self.assertEqual(port.counters["rawpackets.firewall.failed"], 0)
        self.assertEqual(rules.ports(), {PORT})
        port.stopListening()
        Firewall(PORT, rules)._wait_for_mark().close()
        self.assertEqual(rules.ports(), set())

    def test_not_for_ever(self) -> None:
        """When nobody comes, the rules go by themselves."""
        self.patch(module, "LINGER", 1)
        rules = NftRules(require_program("nft"))
        self.start(firewall=True).stopListening()
        for _ in range(100):
            if not rules.ports():
                break
            time.sleep(0.1)
        self.assertEqual(rules.ports(), set())
        self.assertEqual(self.answers(), [True, True])

    def test_no_start_when_the_kernel_answers(self) -> None:
        """Without rules and without the right to hold the port, the self-test sees the RST and says so."""
        self.patch(port_module, "hold_port", lambda port, random_port: None)
        with self.assertRaises(ConfigError) as caught:
            self.start(firewall=False)
        self.assertIn("answers packets", str(caught.exception))
        self.start(firewall=True)

    def test_address_of_another(self) -> None:
        """An address that this machine has not cannot be tested; that is said, and no reason not to start."""
        with self.assertRaises(OSError):
            kernel_answers(IPv4Address("203.0.113.1"), PORT, 23456)


class RouteTests(NamespaceTestCase):
    """What a set-up leaves out."""

    def test_on_the_link(self) -> None:
        """A neighbour: interface, source, and its own station, which is asked for first."""
        for address, source in (
            (self.pair.second.address, self.space.address),
            (self.pair.second.address6, self.space.address6),
        ):
            found = find_route(ip_address(address))
            self.assertEqual((found.interface, str(found.source)), (self.space.interface, source))
            self.assertEqual((found.mac, found.mtu), (parse_mac(self.space.mac), 1500))
            self.assertEqual((found.gateway, found.router_mac), (None, parse_mac(self.pair.second.mac)))

    def test_behind_a_router(self) -> None:
        """The default route: its router's station, for any destination and for none."""
        for family, router in (("-4", self.pair.second.address), ("-6", self.pair.second.address6)):
            self.space.run(["ip", family, "route", "add", "default", "via", router])
        for destination in (IPv4Address("198.51.100.7"), IPv6Address("2001:db8:1::7"), None):
            for interface in ("", self.space.interface):
                found = find_route(destination, interface, 6)
                self.assertEqual(found.router_mac, parse_mac(self.pair.second.mac))
                self.assertEqual(found.interface, self.space.interface)
                version = 6 if destination is None else destination.version
                expected = self.pair.second.address if version == 4 else self.pair.second.address6
                self.assertEqual(str(found.gateway), expected)

    def test_link_of_a_documentation_network(self) -> None:
        """A link may use the networks of examples: its default route is found, and neighbours on it are."""
        self.space.run(["ip", "addr", "add", "192.0.2.9/24", "dev", self.space.interface])
        self.pair.second.run(["ip", "addr", "add", "192.0.2.1/24", "dev", self.pair.second.interface])
        self.space.run(["ip", "route", "add", "default", "via", "192.0.2.1"])
        for destination, gateway in ((None, "192.0.2.1"), (IPv4Address("192.0.2.1"), None)):
            found = find_route(destination)
            self.assertEqual((str(found.source), found.router_mac), ("192.0.2.9", parse_mac(self.pair.second.mac)))
            self.assertEqual(found.gateway, gateway and ip_address(gateway))

    def test_no_router(self) -> None:
        """A server without a default route: its interface's address, and no router. Without an interface: one line."""
        found = find_route(None, self.space.interface)
        self.assertEqual((str(found.source), found.router_mac), (self.space.address, None))
        for destination, interface, part in (
            (None, "", "default route"),
            (IPv4Address("198.51.100.7"), "", "no way to 198.51.100.7"),
            (None, "nonesuch0", "no interface nonesuch0"),
        ):
            with self.assertRaises(ConfigError) as caught:
                find_route(destination, interface)
            self.assertIn(part, str(caught.exception))

    def test_neighbour_that_is_not_there(self) -> None:
        """No station after some patience."""
        nobody = self.space.address.rpartition(".")[0] + ".200"
        began = time.monotonic()
        self.assertIsNone(find_route(ip_address(nobody), patience=0.2).router_mac)
        self.assertLess(time.monotonic() - began, 5)

    def test_own_addresses(self) -> None:
        """Those of an interface, of both families."""
        found = {str(address) for address in own_addresses(self.space.interface)}
        self.assertLessEqual({self.space.address, self.space.address6}, found)
