"""A paqet client whose network changes under it, in namespaces: found again within ten seconds, without a restart.

The server has a bridge with two ports; the client has an interface at each of them and uses one at a time.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.test_paqet_programs import Programs
from tests.lab.veth import VethPair
from tests.support.peers import require_program, require_root
from tests.support.processes import Process, wait_for

#: Seconds within which a stream can be opened again.
MOST = 10.0


class NetworkTests(SynchronousTestCase):
    """Raw packets, with everything left out of the client's file that can be found."""

    timeout = 120

    def setUp(self) -> None:
        """Namespaces with a bridge, a web server as target, and both programs."""
        require_root()
        require_program("curl")
        self.pair = VethPair()
        self.pair.__enter__()
        self.addCleanup(self.pair.close)
        client, server = self.pair.first, self.pair.second
        network = client.address.rpartition(".")[0]
        self.own = [f"{network}.{number}" for number in (1, 2, 3, 50)]
        self.second = f"{client.interface}z"
        for words in (
            "link add br0 type bridge",
            f"addr flush dev {server.interface}",
            f"link set {server.interface} master br0",
            f"link add {self.second} netns {client.name} type veth peer name port2",
            "link set port2 master br0 up",
            "link set br0 address 02:77:00:00:00:10 up",
            f"addr add {self.own[1]}/24 dev br0",
            f"addr add {self.own[2]}/24 dev br0",
        ):
            self.ip(server.name, words)
        self.programs = Programs(self)
        self.hosts = Path("/etc/netns", client.name, "hosts")
        self.hosts.parent.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, self.hosts.parent)
        self.hosts.write_text(f"127.0.0.1 localhost\n{self.own[1]} server.example\n")
        (self.programs.folder / "index.html").write_text("found\n")
        target = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "8000"]
        self.addCleanup(server.start(target, cwd=str(self.programs.folder)).kill)
        self.server = self.start_server(self.own[1])
        where = f"server.example:{self.programs.port}"
        file = self.programs.file("client", where, ours="carrier: raw")
        socks = f"tcp:{self.programs.socks}:interface=127.0.0.1"
        self.client = self.programs.twistd(
            "paqet-client", f"--config={file}", f"--socks={socks}", space=self.pair.first
        )
        wait_for(self.fetches, 20, "the first stream")

    def start_server(self, address: str) -> Process:
        """A server at an address of the bridge."""
        network = f"interface: br0\nipv4: {{addr: '{address}:{self.programs.port}'}}"
        file = self.programs.file("server", f":{self.programs.port}", network, ours="carrier: raw")
        return self.programs.twistd(
            "paqet-server", f"--config={file}", "--allow-egress=127.0.0.0/8", "--drain-time=0", space=self.pair.second
        )

    @staticmethod
    def ip(space: str, words: str) -> None:
        """A change of a namespace."""
        subprocess.run(["ip", "-n", space, *words.split()], check=True, capture_output=True)

    def fetches(self) -> bool:
        """Whether a stream brings the page."""
        door = f"127.0.0.1:{self.programs.socks}"
        command = ["curl", "-s", "-m", "2", "--socks5-hostname", door, "http://127.0.0.1:8000/index.html"]
        return self.pair.first.run(command, check=False).stdout == "found\n"

    def recovers(self) -> None:
        """Streams can be opened again in time."""
        began = time.monotonic()
        wait_for(self.fetches, 30, f"a stream after the change\n{self.client.output}\n{self.server.output}")
        took = time.monotonic() - began
        self.assertLess(took, MOST, self.client.output)
        self.assertNotIn("Traceback", self.client.output + self.server.output)

    def test_address(self) -> None:
        """Another address of the same interface."""
        client = self.pair.first
        self.ip(client.name, f"addr del {client.address}/24 dev {client.interface}")
        self.ip(client.name, f"addr add {self.own[3]}/24 dev {client.interface}")
        wait_for(lambda: f"from {self.own[3]}" in self.client.output, MOST, "the new address")
        self.recovers()

    def test_interface(self) -> None:
        """Another interface, with another address, while the first is gone for good."""
        client = self.pair.first
        self.ip(client.name, f"link del {client.interface}")
        self.ip(client.name, f"link set {self.second} up")
        self.ip(client.name, f"addr add {self.own[3]}/24 dev {self.second}")
        self.recovers()
        self.assertIn(f"by {self.second} from {self.own[3]}", self.client.output)

    def test_router(self) -> None:
        """Another station at the next hop's address, of which the kernel hears nothing."""
        self.ip(self.pair.second.name, "link set br0 address 02:77:00:00:00:20")
        self.recovers()

    def test_server_name(self) -> None:
        """The server's name leads to another address, where another server is."""
        self.server.kill()
        self.hosts.write_text(f"127.0.0.1 localhost\n{self.own[2]} server.example\n")
        self.server = self.start_server(self.own[2])
        self.recovers()
        self.assertIn(f"server.example:{self.programs.port}: {self.own[2]}", self.client.output)

    def test_without_privileges(self) -> None:
        """Another interface after privileges were dropped: the socket that is open goes there."""
        self.client.stop()
        file = self.programs.folder / "client.yaml"
        for each in (self.programs.folder, file):
            shutil.chown(each, 65534)
        socks = f"tcp:{self.programs.socks}:interface=127.0.0.1"
        self.client = self.programs.twistd(
            "--uid=65534", "--gid=65534", "paqet-client", f"--config={file}", f"--socks={socks}", space=self.pair.first
        )
        wait_for(self.fetches, 20, f"the first stream\n{self.client.output}")
        client = self.pair.first
        self.ip(client.name, f"link del {client.interface}")
        self.ip(client.name, f"link set {self.second} up")
        self.ip(client.name, f"addr add {self.own[3]}/24 dev {self.second}")
        self.recovers()

    def test_narrow_path(self) -> None:
        """A path that drops packets above 1,300 bytes without a word, either way: a page of 300 KB comes through, and ping
        says which size passes."""
        require_program("nft")
        self.client.stop()
        (self.programs.folder / "index.html").write_bytes(b"x" * 300_000)
        device = self.pair.second.interface
        rules = "".join(
            f"chain {hook} {{ type filter hook {hook} device {device} priority 0; meta length > 1300 drop; }}\n"
            for hook in ("ingress", "egress")
        )
        file = self.programs.folder / "rules"
        file.write_text(f"table netdev narrow {{\n{rules}}}\n")
        self.pair.second.run(["nft", "-f", str(file)])
        config = str(self.programs.folder / "client.yaml")
        ping = self.programs.mikanet("ping", config, space=self.pair.first)
        self.assertEqual(ping.wait(60), 0, ping.output)
        self.assertRegex(
            ping.output, r"packets pass up to 12\d\d bytes, not up to the MTU of 1350: set mtu: 12\d\d at both ends"
        )
        socks = f"tcp:{self.programs.socks}:interface=127.0.0.1"
        self.client = self.programs.twistd(
            "paqet-client", f"--config={config}", f"--socks={socks}", space=self.pair.first
        )
        wait_for(lambda: "socks front door" in self.client.output, 20, "the door")
        door = f"127.0.0.1:{self.programs.socks}"
        command = ["curl", "-s", "-m", "20", "--socks5-hostname", door, "http://127.0.0.1:8000/index.html"]
        self.assertEqual(len(self.pair.first.run(command, check=False).stdout), 300_000, self.client.output)
