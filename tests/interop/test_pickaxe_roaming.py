"""One download over WebSocket, DNS, ICMP and back, as the network takes one way after the other away."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.lab.netns import Namespaces
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, wait_for

_TWISTD = [sys.executable, "-c", "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"]
_SIZE, _BLOCK = 50_000_000, 20_000

#: Sends numbered blocks, about a megabyte per second.
_TARGET = f"""
import socket, time
listener = socket.create_server(("", 7000))
connection, _ = listener.accept()
for number in range({_SIZE // _BLOCK}):
    connection.sendall(number.to_bytes(4, "big") * {_BLOCK // 4})
    time.sleep(0.019)
connection.close()
"""
#: Prints a line for each pause of more than 300 ms, then the hash.
_CLIENT = """
import hashlib, socket, time
connection = socket.create_connection(("127.0.0.1", 7001), 20)
connection.settimeout(60)
digest, last, total = hashlib.sha256(), time.time(), 0
while data := connection.recv(65536):
    now = time.time()
    if now - last > 0.3:
        print(f"pause {now - last:.2f} s", flush=True)
    last, total = now, total + len(data)
    digest.update(data)
print("end", total, digest.hexdigest(), flush=True)
"""


class RoamingTests(TestCase):
    """A session is more than its carriers."""

    timeout = 240

    def setUp(self) -> None:
        require_program("iptables")
        self.pair = Namespaces("", seed=7)
        self.pair.__enter__()
        self.addCleanup(self.pair.close)
        self.folder = Path(tempfile.mkdtemp(prefix="mikanet-roaming-"))
        self.secret = self.folder / "password"
        self.secret.touch(mode=0o600)
        self.secret.write_text("correct horse battery staple 42\n")

    def start(self, first: bool, command: list[str]) -> Process:
        """A program in one of the namespaces."""
        process = (self.pair.first if first else self.pair.second).start(command)
        self.addCleanup(process.kill)
        return process

    def rule(self, *words: str) -> None:
        """Take a way away, or give it back."""
        self.pair.second.run(["iptables", *words])

    def test_one_download(self) -> None:
        """WebSocket, DNS when TCP is cut, ICMP when DNS goes silent, WebSocket again: every byte, in order, once."""
        words = [sys.executable, "-c", "from mikanet.cli.main import main; main()", "passwd", "me"]
        made = subprocess.run([*words, "--password-file", str(self.secret)], capture_output=True, text=True, cwd=ROOT)
        users = self.folder / "users"
        users.touch(mode=0o600)
        users.write_text(made.stdout)
        server, state = self.pair.second.address, ["--state-dir", str(self.folder)]
        self.pair.second.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"])
        carriers = [f"http://{server}:8080/t", f"dns://{server}:53/t.example", f"icmp://{server}"]
        listening = [word for url in carriers for word in ("--carrier", url)]
        serve = [*_TWISTD, "-n", "--pidfile=", "pickaxe-server", "--users", str(users), *state]
        self.start(False, [*serve, *listening, "--allow-egress", "10.0.0.0/8"])
        self.start(False, [sys.executable, "-c", _TARGET])
        carriers[0] = f"ws://{server}:8080/t"
        dialled = [word for url in carriers for word in ("--carrier", url)]
        door = f"tcp:7001:interface=127.0.0.1={server}:7000"
        run = [*_TWISTD, "-n", "--pidfile=", "pickaxe-client", "--user", "me", "--password-file", str(self.secret)]
        time.sleep(2)
        client = self.start(True, [*run, *dialled, "--forward", door, *state])
        wait_for(lambda: "session with the server by" in client.output, 30, "the session")
        load = self.start(True, [sys.executable, "-c", _CLIENT])
        time.sleep(5)
        self.rule("-I", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "REJECT", "--reject-with", "tcp-reset")
        time.sleep(8)
        self.rule("-I", "INPUT", "-p", "udp", "--dport", "53", "-j", "DROP")
        self.rule("-I", "INPUT", "-p", "tcp", "--dport", "53", "-j", "DROP")
        time.sleep(22)
        self.rule("-D", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "REJECT", "--reject-with", "tcp-reset")
        self.rule("-I", "INPUT", "-p", "icmp", "-j", "DROP")
        self.assertEqual(load.wait(150), 0, load.output + client.output)
        digest = hashlib.sha256()
        for number in range(_SIZE // _BLOCK):
            digest.update(number.to_bytes(4, "big") * (_BLOCK // 4))
        self.assertIn(f"end {_SIZE} {digest.hexdigest()}", load.output)
        pauses = [float(found) for found in re.findall(r"pause ([\d.]+) s", load.output)]
        self.assertLessEqual(max(pauses, default=0.0), 5)
        log = client.output
        for scheme in ("dns", "icmp", "ws"):
            self.assertRegex(log, rf"by {scheme}://", scheme)
        print(f"pauses of more than 0.3 s: {pauses}")
