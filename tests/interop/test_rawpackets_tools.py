"""``mikanet doctor`` and ``mikanet dump`` at a real link: paqet's server and client over a veth pair."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mikanet.rawpackets.firewall import Firewall, find_rules
from mikanet.wire.captures import read_captures
from tests.lab.veth import VethNamespace, VethPair
from tests.support.processes import Process, wait_for

ROOT = Path(__file__).resolve().parents[2]
PORT = 9999
KEY = "a secret of good length"


class ToolTests(SynchronousTestCase):
    """Both tools."""

    def setUp(self) -> None:
        """Two machines, the second with a server's file."""
        self.pair = VethPair()
        self.pair.__enter__()
        self.addCleanup(self.pair.close)
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        first, second = self.pair.first, self.pair.second
        self.server = self.file(
            "server.yaml",
            f"role: server\nlisten:\n  addr: ':{PORT}'\nnetwork:\n  interface: {second.interface}\n",
        )
        self.client = self.file("client.yaml", f"role: client\nserver:\n  addr: {second.address}:{PORT}\n")
        self.space = first

    def file(self, name: str, text: str, key: str = KEY, more: str = "") -> str:
        """A configuration."""
        path = self.folder / name
        path.write_text(f"{text}transport:\n  protocol: kcp\n  kcp:\n    key: {key}\n{more}")
        path.chmod(0o600)
        return str(path)

    def start_server(self, more: str = "", words: Sequence[str] = ()) -> Process:
        """A server that listens.

        :param more: of its file. :param words: more options of twistd.
        """
        if more:
            with open(self.server, "a", encoding="utf-8") as file:
                file.write(more)
        program = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
        words = ["-c", program, "--pidfile=", *words, "-n", "paqet-server", "--config", self.server]
        words += ["--state-dir", str(self.folder / "state")]
        server = self.pair.second.start([sys.executable, *words], cwd=str(ROOT))
        self.addCleanup(server.kill)
        wait_for(lambda: "paqet server on raw port" in server.output, what="paqet server on raw port")
        return server

    def command(self, *words: str) -> list[str]:
        """The command line of ours."""
        return [sys.executable, "-c", "from mikanet.cli.main import main; main()", *words]

    def run_in(self, space: VethNamespace, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            space.command(self.command(*words)), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )

    def client_with(self, *, key: str = KEY, network: str = "", more: str = "") -> str:
        """Another client's file."""
        head = f"role: client\nserver:\n  addr: {self.pair.second.address}:{PORT}\n"
        return self.file("other.yaml", head + network, key, more)

    def test_healthy(self) -> None:
        """A client's doctor finds the server and its dialect; a server's finds itself, and packets both ways."""
        self.start_server()
        watching = self.pair.second.start(self.command("doctor", self.server, "--seconds", "5"), cwd=str(ROOT))
        self.addCleanup(watching.kill)
        wait_for(lambda: "no rules of killed processes" in watching.output, what="no rules of killed processes")
        client = self.run_in(self.pair.first, "doctor", self.client)
        self.assertEqual((client.returncode, client.stderr), (0, ""), client.stdout)
        self.assertIn("in dialect a21", client.stdout)
        self.assertIn("nothing is wrong", client.stdout)
        self.assertEqual(watching.wait(20), 0)
        self.assertIn("that this key opens", watching.output)
        self.assertIn("is held by", watching.output)

    def test_no_server(self) -> None:
        """The kernel's RST is recognized."""
        client = self.run_in(self.pair.first, "doctor", self.client, "--seconds", "2")
        self.assertEqual(client.returncode, 1)
        self.assertIn("kernel answers with RST", client.stdout)
        self.assertIn("twistd -n paqet-server", client.stdout)

    def test_blocked_port(self) -> None:
        """A server that a filter hides: nothing comes back, and the server's doctor sees nothing arrive."""
        self.start_server()
        nft = f"table netdev block {{\n chain in {{\n type filter hook egress device {self.pair.first.interface} priority 0\n tcp dport {PORT} drop\n}}\n}}\n"
        with self.pair.first.entered():
            subprocess.run(["nft", "-f", "-"], input=nft, text=True, check=True)
        client = self.run_in(self.pair.first, "doctor", self.client, "--seconds", "2")
        self.assertIn("nothing comes back", client.stdout)
        self.assertEqual(client.returncode, 1)
        server = self.run_in(self.pair.second, "doctor", self.server, "--seconds", "1")
        self.assertIn(f"none came to port {PORT}", server.stdout)

    def test_wrong_key(self) -> None:
        """The server's doctor sees packets that its key does not open, and from whom."""
        self.start_server()
        watching = self.pair.second.start(self.command("doctor", self.server, "--seconds", "5"), cwd=str(ROOT))
        self.addCleanup(watching.kill)
        wait_for(lambda: "no rules of killed processes" in watching.output, what="no rules of killed processes")
        client = self.run_in(self.pair.first, "doctor", self.client_with(key=KEY + "!"), "--seconds", "2")
        self.assertEqual(client.returncode, 1)
        self.assertEqual(watching.wait(20), 1)
        self.assertIn(f"packets from {self.pair.first.address} are not opened by this key", watching.output)

    def test_another_interface(self) -> None:
        """Of a machine with several interfaces: the server's log says which it took and why, and its doctor where packets
        come in when that is another."""
        second = self.pair.second
        with second.entered():
            subprocess.run(["ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1"], check=True)
            subprocess.run(["ip", "addr", "add", "198.51.100.1/24", "dev", "other0"], check=True)
            subprocess.run(["ip", "link", "set", "other0", "up"], check=True)
        self.server = self.file(
            "server.yaml", f"role: server\nlisten:\n  addr: ':{PORT}'\nnetwork:\n  interface: other0\n"
        )
        server = self.start_server()
        self.assertIn(
            f"raw packets on other0 with 198.51.100.1, as the file says; not on {second.interface}", server.output
        )
        watching = second.start(self.command("doctor", self.server, "--seconds", "5"), cwd=str(ROOT))
        self.addCleanup(watching.kill)
        wait_for(lambda: "no rules of killed processes" in watching.output, what="no rules of killed processes")
        self.run_in(self.pair.first, "doctor", self.client, "--seconds", "2")
        self.assertEqual(watching.wait(20), 1)
        self.assertRegex(watching.output, rf"came \d+ on {second.interface}, and none on other0")
        self.assertIn(f"interface: {second.interface}   (under network:", watching.output)

    def test_wrong_dialect(self) -> None:
        """Both dialects are named, and the line that mends it."""
        self.start_server(more="mikanet:\n  dialect: a21\n")
        client = self.run_in(self.pair.first, "doctor", self.client_with(more="mikanet:\n  dialect: gob\n"))
        self.assertEqual(client.returncode, 1)
        self.assertIn("speaks dialect a21 and not gob", client.stdout)
        self.assertIn("dialect: a21   (under mikanet:", client.stdout)

    def test_wrong_station(self) -> None:
        """The router's right one stands in the answer."""
        network = (
            f"network:\n  interface: {self.pair.first.interface}\n  ipv4:\n    addr: {self.pair.first.address}:0\n"
            f"    router_mac: '02:00:00:00:00:99'\n"
        )
        client = self.run_in(self.pair.first, "doctor", self.client_with(network=network))
        self.assertEqual(client.returncode, 1)
        self.assertIn(f'router_mac: "{self.pair.second.mac}"', client.stdout)

    def rules(self) -> str:
        """The tables of ours in the server's namespace."""
        listed = self.pair.second.run(["nft", "list", "tables"]).stdout
        return "".join(line for line in listed.splitlines() if "mikanet" in line)

    def take_over(self) -> None:
        """As a new start: the keeper, which is still root, removes the rules then and not some time later."""
        with self.pair.second.entered():
            Firewall(PORT, find_rules())._wait_for_mark().close()
        self.assertEqual(self.rules(), "")

    def test_rules_of_a_killed_server(self) -> None:
        """The rules are there while it runs, and gone after kill -9 when a new start asks."""
        server = self.start_server()
        self.assertEqual(self.rules(), f"table inet mikanet_paqet_{PORT}")
        server.signal(9)
        wait_for(lambda: not server.alive, what="the end")
        self.take_over()

    def test_rules_without_privileges(self) -> None:
        """A server that became somebody else answers as before, and its rules are gone when it ends."""
        state = self.folder / "state"
        state.mkdir()
        os.chown(state, 65534, 65534)
        server = self.start_server(words=["--uid", "65534"])
        self.assertEqual(self.run_in(self.pair.first, "ping", self.client, "--count", "1").returncode, 0)
        self.assertNotEqual(self.rules(), "")
        server.stop()
        self.take_over()

    def test_dump(self) -> None:
        """A capture at the server shows a client's session, is written, and is read again the same."""
        self.start_server()
        written = str(self.folder / "out.pcapng")
        dump = self.pair.second.start(
            self.command("dump", self.server, "--count", "8", "--write", written), cwd=str(ROOT)
        )
        self.addCleanup(dump.kill)
        # It says nothing before the first packet; pings are repeated until there are enough.
        while dump.alive:
            self.run_in(self.pair.first, "ping", self.client, "--count", "2")
        self.assertIn("paqet   PING (a21)", dump.output)
        self.assertIn("paqet   PONG (a21)", dump.output)
        with open(written, "rb") as file:
            self.assertEqual(len(list(read_captures(file.read))), 8)
        again = self.run_in(self.pair.second, "dump", self.server, "--read", written)
        self.assertEqual(again.stdout, dump.output)

    def test_without_rights(self) -> None:
        """One line, or a finding, that says which."""
        for command, part in (
            ("dump", "need root, or the capabilities CAP_NET_RAW"),
            ("doctor", "sudo mikanet doctor"),
        ):
            words = [
                "setpriv",
                "--bounding-set",
                "-net_raw",
                "--inh-caps",
                "-net_raw",
                *self.command(command, self.server),
            ]
            done = subprocess.run(
                self.pair.second.command(words), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            self.assertIn(part, done.stdout + done.stderr)
            self.assertEqual(done.returncode, 1)
            self.assertNotIn("Traceback", done.stderr)
