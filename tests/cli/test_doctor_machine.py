"""What the doctor sees of a machine, of which the tests have one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import IPAddress
from mikanet.cli.doctor_findings import Finding, Status
from mikanet.cli.doctor_machine import CAP_NET_ADMIN, CAP_NET_RAW, Machine, machine_findings, rule_commands
from mikanet.errors import ConfigError
from mikanet.paqet.options import load_setup
from mikanet.rawpackets.routes import Route

ROUTER = bytes.fromhex("020000000001")
SERVER = """\
role: server
listen:
  addr: ":9999"
network:
  interface: eth0
  ipv4:
    addr: 192.0.2.5:9999
    router_mac: "02:00:00:00:00:01"
transport:
  protocol: kcp
  kcp:
    key: a secret of good length
"""
CLIENT = """\
role: client
server:
  addr: 198.51.100.1:9999
transport:
  protocol: kcp
  kcp:
    key: a secret of good length
"""


class Healthy(Machine):
    """A machine where everything is right; tests spoil one thing each."""

    def __init__(self) -> None:
        self.capabilities = {CAP_NET_ADMIN, CAP_NET_RAW}
        self.up = {"eth0": True}
        self.own: list[IPAddress] = [IPv4Address("192.0.2.5"), IPv6Address("2001:db8::5")]
        self.size = 1500
        self.interface = "eth0"
        self.router: bytes | None = ROUTER
        self.routes = True
        self.known = True
        self.free = True
        self.holder = ""
        self.answers: bool | OSError = False
        self.stale: set[int] | ConfigError = set()

    def may(self, capability: int) -> bool:
        """As Machine."""
        return capability in self.capabilities

    def interface_up(self, name: str) -> bool:
        """As Machine."""
        if name not in self.up:
            raise OSError("none")
        return self.up[name]

    def mtu(self, name: str) -> int:
        """As Machine."""
        return self.size

    def addresses(self, name: str) -> Sequence[IPAddress]:
        """As Machine."""
        return self.own

    def route(self, destination: IPAddress | None, interface: str, family: int) -> Route:
        """As Machine."""
        if not self.routes:
            raise ConfigError("there is no IPv4 default route")
        gateway = IPv4Address("192.0.2.1")
        return Route(self.interface, bytes(6), self.size, self.own[0], gateway, self.router)

    def look_up(self, host: str) -> IPAddress:
        """As Machine."""
        if not self.known:
            raise ConfigError(f"the server's name {host} is not known")
        return ip_address(host)

    def port_is_free(self, port: int) -> bool:
        """As Machine."""
        return self.free

    def port_holder(self, port: int) -> str:
        """As Machine."""
        return self.holder

    def kernel_answers(self, address: IPAddress, port: int) -> bool:
        """As Machine."""
        if isinstance(self.answers, OSError):
            raise self.answers
        return self.answers

    def stale_ports(self) -> set[int]:
        """As Machine."""
        if isinstance(self.stale, ConfigError):
            raise self.stale
        return self.stale

    def removal_commands(self, ports: set[int]) -> str:
        """As Machine."""
        return f"remove {' '.join(map(str, sorted(ports)))}"


class MachineTests(SynchronousTestCase):
    """One thing wrong at a time."""

    def look(self, machine: Machine, text: str = SERVER) -> list[Finding]:
        """All findings."""
        path = Path(self.mktemp())
        path.write_text(text)
        path.chmod(0o600)
        return list(machine_findings(load_setup(str(path), False), machine))

    def the_problem(self, machine: Machine, text: str = SERVER) -> Finding:
        """The one problem that there is."""
        (found,) = (each for each in self.look(machine, text) if each.status is Status.PROBLEM)
        self.assertTrue(found.mend)
        return found

    def test_healthy(self) -> None:
        """Nothing but ok, at either end."""
        for text in (SERVER, CLIENT):
            self.assertEqual({each.status for each in self.look(Healthy(), text)}, {Status.OK})

    def test_udp(self) -> None:
        """The UDP carrier needs nothing of it."""
        machine = Healthy()
        machine.capabilities = set()
        (found,) = self.look(machine, f"{CLIENT}mikanet:\n  carrier: udp\n")
        self.assertIs(found.status, Status.OK)

    def test_rights(self) -> None:
        """Without raw sockets nothing more can be looked at; without CAP_NET_ADMIN the rest can, and it is a problem."""
        machine = Healthy()
        machine.capabilities = {CAP_NET_RAW}
        self.assertIn("CAP_NET_ADMIN", self.the_problem(machine).text)
        machine.capabilities = set()
        (found,) = self.look(machine)
        self.assertTrue(found.mend.startswith("sudo mikanet doctor "))

    def test_interface(self) -> None:
        """It does not exist, it is down, or the way to the server is another."""
        machine = Healthy()
        machine.up = {}
        self.assertIn("no interface eth0", self.the_problem(machine).text)
        machine.up = {"eth0": False}
        self.assertEqual(self.the_problem(machine).mend, "ip link set eth0 up")
        machine = Healthy()
        machine.interface = "wlan0"
        found = self.the_problem(machine, CLIENT + "network:\n  interface: eth0\n")
        self.assertTrue(found.mend.startswith("interface: wlan0 "))

    def test_address(self) -> None:
        """One that the interface has not."""
        machine = Healthy()
        machine.own = [IPv4Address("192.0.2.6"), IPv6Address("2001:db8::5")]
        self.assertIn("which has 192.0.2.6", self.the_problem(machine).text)

    def test_router(self) -> None:
        """The wrong station is a problem with the right one in its answer; one that cannot be compared is not."""
        machine = Healthy()
        machine.router = bytes.fromhex("0200000000ff")
        self.assertTrue(self.the_problem(machine).mend.startswith('router_mac: "02:00:00:00:00:ff" '))
        machine.router = None
        self.assertIn(Status.NOTE, {each.status for each in self.look(machine)})
        self.assertTrue(self.the_problem(machine, CLIENT).mend.startswith("ip -4 neigh"))

    def test_no_route(self) -> None:
        """A problem unless the file says it all."""
        machine = Healthy()
        machine.routes = False
        self.assertNotIn(Status.PROBLEM, {each.status for each in self.look(machine)})
        self.assertEqual(self.the_problem(machine, CLIENT).mend, "ip route")

    def test_name(self) -> None:
        """A server that nobody knows."""
        machine = Healthy()
        machine.known = False
        self.assertIn("getent hosts", self.the_problem(machine, CLIENT).mend)

    def test_size(self) -> None:
        """An interface that is too small for the packets: with SYN in a list they have eight bytes less."""
        machine = Healthy()
        machine.size = 1400
        self.assertTrue(self.the_problem(machine).mend.startswith("mtu: 1348 "))
        text = SERVER.replace("network:\n", 'network:\n  tcp:\n    local_flag: ["S", "PA"]\n')
        self.assertTrue(self.the_problem(machine, text).mend.startswith("mtu: 1340 "))

    def test_port(self) -> None:
        """Somebody else's is a problem; our own server's is as it should be."""
        machine = Healthy()
        machine.free = False
        machine.holder = "nginx (process 7)"
        self.assertIn("in use by nginx (process 7)", self.the_problem(machine).text)
        machine.holder = "twistd -n paqet-server --config server.yaml (process 7)"
        self.assertEqual({each.status for each in self.look(machine)}, {Status.OK})

    def test_kernel(self) -> None:
        """RST beside a server that runs is a problem with the rules in its answer, without one a note with the same."""
        machine = Healthy()
        machine.answers = True
        (found,) = (each for each in self.look(machine) if each.check == "kernel")
        self.assertIs(found.status, Status.NOTE)
        machine.free, machine.holder = False, "paqet-server"
        self.assertEqual(self.the_problem(machine).mend, found.mend)
        self.assertIn("9999", found.mend)
        machine.answers = OSError("no")
        (found,) = (each for each in self.look(machine) if each.check == "kernel")
        self.assertIs(found.status, Status.NOTE)

    def test_stale_rules(self) -> None:
        """They are named, and so is the reason why they cannot be."""
        machine = Healthy()
        machine.stale = {7, 8}
        found = self.look(machine)[-1]
        self.assertIn("for port 7, 8", found.text)
        self.assertEqual(found.mend, "remove 7 8")
        machine.stale = ConfigError("neither nft nor iptables")
        self.assertIn("neither", self.look(machine)[-1].text)

    def test_rule_commands(self) -> None:
        """They name the port in each of the three rules."""
        self.assertGreaterEqual(rule_commands(4321).count("4321"), 3)


class RealMachineTests(SynchronousTestCase):
    """What is read of /proc."""

    def test_port_holder(self) -> None:
        """The program that listens is found by its command line; a port that is free has none."""
        import os
        import socket

        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            self.assertEqual(Machine().port_holder(port), "")
            listening.listen()
            self.assertIn(f"(process {os.getpid()})", Machine().port_holder(port))
            self.assertFalse(Machine().port_is_free(port))

    def test_capabilities(self) -> None:
        """The bits of the kernel's mask."""
        self.assertIsInstance(Machine().may(CAP_NET_RAW), bool)
