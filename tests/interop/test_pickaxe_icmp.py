"""The ICMP carrier between two network namespaces: both families, the kernel's own answers on and off, bad wires."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from tests.carriers.bulk import digest_of
from tests.lab.netns import Namespaces
from tests.support.carrier_ends import run_client, run_handshakes, start_server
from tests.support.processes import wait_for


class IcmpTests(TestCase):
    """Real raw sockets."""

    timeout = 240

    def pair(self, scenario: str = "", kernel_answers: bool = False, six: bool = False) -> tuple[Namespaces, str]:
        """Two namespaces with a server in the second, and its URL."""
        pair = Namespaces(scenario, seed=7)
        pair.__enter__()
        self.addCleanup(pair.close)
        if not kernel_answers:
            pair.second.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"])
            pair.second.run(["sysctl", "-qw", "net.ipv6.icmp.echo_ignore_all=1"])
        url = f"icmp://[{pair.second.address6}]" if six else f"icmp://{pair.second.address}"
        server = start_server(url, pair.second.start)
        self.addCleanup(server.kill)
        table = "raw6" if six else "raw"
        wait_for(lambda: len(pair.second.run(["cat", f"/proc/net/{table}"]).stdout.splitlines()) > 1, what="the socket")
        return pair, url

    def carry(self, pair: Namespaces, url: str, up: int, down: int) -> Any:
        """Both ways, one after the other."""
        result = run_client(url, up=up, start=pair.first.start)
        self.assertEqual(result["problem"], "")
        result = run_client(url, down=down, start=pair.first.start)
        self.assertEqual(result["problem"], "")
        self.assertEqual(result["digest"], digest_of(down))
        return result

    def test_kernel_is_silent(self) -> None:
        """Full Ethernet frames pass."""
        pair, url = self.pair()
        self.assertIn("1470 bytes", self.carry(pair, url, 3_000_000, 3_000_000)["found"])

    def test_kernel_answers_too(self) -> None:
        """Its copies of our own requests are told from the server's answers."""
        pair, url = self.pair(kernel_answers=True)
        self.carry(pair, url, 1_000_000, 1_000_000)

    def test_ipv6(self) -> None:
        """The same over IPv6."""
        pair, url = self.pair(six=True)
        self.assertIn("1450 bytes", self.carry(pair, url, 1_000_000, 1_000_000)["found"])

    def test_loss(self) -> None:
        """10 and 30 % of all packets are lost."""
        pair, url = self.pair("delay=15ms loss=10%")
        self.carry(pair, url, 300_000, 500_000)
        pair, url = self.pair("delay=15ms loss=30%")
        self.carry(pair, url, 100_000, 200_000)

    def test_fifty_handshakes(self) -> None:
        """50 of 50 at 30 % loss, and at a round trip of 1.5 s."""
        for scenario in ("delay=15ms loss=30%", "delay=750ms"):
            pair, url = self.pair(scenario)
            result = run_handshakes(url, 50, start=pair.first.start)
            self.assertEqual(result["problems"], [], scenario)
            self.assertEqual(len(result["times"]), 50)
