"""The DNS carrier on real sockets: straight, through unbound, dnsmasq and a hostile resolver, and over bad wires."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.carriers.bulk import digest_of
from tests.support.carrier_ends import run_client, run_handshakes, start_server
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, free_port, wait_listening

ZONE = "t.example"
_UNBOUND = """
server:
  interface: 127.0.0.1@{port}
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "{folder}"
  pidfile: "{folder}/pid"
  use-syslog: no
  do-not-query-localhost: no
  module-config: "iterator"
  use-caps-for-id: {caps}
stub-zone:
  name: "{zone}"
  stub-addr: 127.0.0.1@{upstream}
"""


class DnsTestCase(TestCase):
    """A server on a port of its own."""

    timeout = 240

    def setUp(self) -> None:
        self.port = free_port()
        self.server = start_server(f"dns://127.0.0.1:{self.port}/{ZONE}")
        self.addCleanup(self.server.kill)
        wait_listening(self.port, udp=True, process=self.server)

    def url(self, port: int, options: str = "") -> str:
        """The client's URL for a resolver."""
        return f"dns://127.0.0.1:{port}/{ZONE}{'?' if options else ''}{options}"

    def carry(self, port: int, up: int, down: int, options: str = "", timeout: float = 60) -> Any:
        """Both ways, one after the other; the last result."""
        result: Any = None
        if up:
            result = run_client(self.url(port, options), up=up, timeout=timeout)
            self.assertEqual(result["problem"], "")
        if down:
            result = run_client(self.url(port, options), down=down, timeout=timeout)
            self.assertEqual(result["problem"], "")
            self.assertEqual(result["digest"], digest_of(down))
        return result

    def start(self, command: list[str], port: int) -> None:
        """A resolver."""
        process = Process(command)
        self.addCleanup(process.kill)
        wait_listening(port, udp=True, process=process)

    def dig(self, *words: str) -> str:
        """What dig prints."""
        command = [require_program("dig"), "@127.0.0.1", "-p", str(self.port), "+tries=1", "+time=3", *words]
        return subprocess.run(command, text=True, capture_output=True, timeout=20).stdout


class StraightTests(DnsTestCase):
    """Nobody between client and server."""

    def test_wide(self) -> None:
        """The best there is: NULL records, and data beside the name."""
        found = self.carry(self.port, 3_000_000, 3_000_000)["found"]
        self.assertIn("NULL", found)
        self.assertIn("1200 beside the name", found)

    def test_every_record_type(self) -> None:
        """Each type carries everything, whatever it costs."""
        for kind in ("NULL", "TXT", "CNAME", "MX", "AAAA", "A"):
            found = self.carry(self.port, 30_000, 60_000, f"type={kind}&wide=no")["found"]
            self.assertIn(kind, found)
            self.assertNotIn("beside", found)

    def test_tcp(self) -> None:
        """Over TCP."""
        self.assertIn("over TCP", self.carry(self.port, 1_000_000, 1_000_000, "transport=tcp")["found"])

    def test_apex(self) -> None:
        """SOA, NS and A at the apex, and the name server's own address; every TTL is 0."""
        self.assertIn(
            f"{ZONE}.\t\t0\tIN\tSOA\tns.{ZONE}. hostmaster.{ZONE}.", self.dig(ZONE, "SOA", "+noall", "+answer")
        )
        self.assertIn(f"{ZONE}.\t\t0\tIN\tNS\tns.{ZONE}.", self.dig(ZONE, "NS", "+noall", "+answer"))
        self.assertEqual(self.dig(f"ns.{ZONE}", "A", "+short").strip(), "127.0.0.1")
        self.assertEqual(self.dig(ZONE, "A", "+short", "+tcp").strip(), "127.0.0.1")

    def test_no_name_is_missing(self) -> None:
        """Names that mean nothing, and parts of tunnel names, exist and are empty; other zones are refused."""
        for name in (f"www.{ZONE}", f"00.{ZONE}", f"{'0' * 63}.{'0' * 63}.{ZONE}"):
            for kind in ("A", "NS", "TXT", "NULL"):
                answer = self.dig(name, kind)
                self.assertIn("status: NOERROR", answer)
                self.assertIn("ANSWER: 0, AUTHORITY: 1", answer)
        self.assertIn("status: REFUSED", self.dig("www.example.org", "A"))

    def test_doctor(self) -> None:
        """``mikanet doctor`` says what works, prints the records to paste, and finds a server that is away."""
        words = [sys.executable, "-c", "from mikanet.cli.main import main; main()", "doctor", self.url(self.port)]
        done = subprocess.run(words, text=True, capture_output=True, timeout=60, cwd=ROOT)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("works: NULL", done.stdout)
        self.assertIn("t.example.    IN  NS    tns.example.", done.stdout)
        self.server.kill()
        done = subprocess.run(words, text=True, capture_output=True, timeout=60, cwd=ROOT)
        self.assertEqual(done.returncode, 1)
        self.assertIn("does not answer over UDP", done.stdout)

    def test_server_restarts(self) -> None:
        """A server that knows nothing of a link says so: the carrier is lost soon, not after a time-out."""
        client = Process(
            [sys.executable, "-m", "tests.carriers.bulk", "client", self.url(self.port), "--down", "300000000"]
        )
        self.addCleanup(client.kill)
        time.sleep(2)
        self.server.kill()
        again = start_server(self.url(self.port))
        self.addCleanup(again.kill)
        self.assertEqual(client.wait(30), 0)
        self.assertIn("closed cleanly", client.output)


class ResolverTests(DnsTestCase):
    """Real resolvers between."""

    def unbound(self, caps: str = "no") -> int:
        """unbound with its own settings: recursive, minimising names, caching."""
        program, port = require_program("unbound"), free_port()
        folder = tempfile.mkdtemp(prefix="mikanet-unbound-")
        config = Path(folder) / "unbound.conf"
        config.write_text(_UNBOUND.format(port=port, folder=folder, zone=ZONE, upstream=self.port, caps=caps))
        self.start([program, "-d", "-c", str(config)], port)
        return port

    def test_unbound(self) -> None:
        """Megabytes each way."""
        self.carry(self.unbound(), 300_000, 2_000_000)

    def test_unbound_with_mixed_case(self) -> None:
        """The same with letters of random case in what it asks."""
        self.carry(self.unbound("yes"), 100_000, 500_000)

    def test_unbound_handshakes(self) -> None:
        """20 clients at once."""
        result = run_handshakes(self.url(self.unbound()), 20)
        self.assertEqual(result["problems"], [])

    def test_dnsmasq(self) -> None:
        """A forwarder that takes 150 questions at a time."""
        program, port = require_program("dnsmasq"), free_port()
        words = ["-k", "-p", str(port), "--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts"]
        words += ["--conf-file=/dev/null", "--pid-file=", "--user=root", f"--server=/{ZONE}/127.0.0.1#{self.port}"]
        self.start([program, *words], port)
        self.carry(port, 200_000, 2_000_000)

    def hostile(self, *words: str) -> int:
        """A hostile resolver."""
        port = free_port()
        self.start([sys.executable, "-m", "tests.lab.resolver", f"{port}=127.0.0.1:{self.port}", *words], port)
        return port

    def test_drops_and_truncates(self) -> None:
        """A tenth of questions and of answers is lost, another tenth comes back empty."""
        self.carry(self.hostile("--drop", "0.1", "--truncate", "0.1"), 50_000, 200_000)

    def test_rewrites_case_and_strips_edns(self) -> None:
        """Names come in another case, answers have 512 bytes."""
        found = self.carry(self.hostile("--case", "--no-edns"), 100_000, 300_000)["found"]
        self.assertNotIn("beside", found)

    def test_takes_edns_for_an_error(self) -> None:
        """Nothing is asked with an OPT record any more, and answers have 512 bytes."""
        found = self.carry(self.hostile("--formerr"), 50_000, 200_000)["found"]
        self.assertNotIn("beside", found)

    def test_twenty_questions_per_second(self) -> None:
        """The others are lost, or refused."""
        self.carry(self.hostile("--rate", "20"), 3_000, 60_000, timeout=100)
        self.carry(self.hostile("--rate", "20", "--refuse"), 3_000, 60_000, timeout=100)


class WireTests(DnsTestCase):
    """Bad wires between."""

    def wire(self, scenario: str) -> int:
        """The lab's wire as a UDP relay."""
        port = free_port()
        relay = f"{port}=127.0.0.1:{self.port}"
        self.start([sys.executable, "-m", "tests.lab", "wire", scenario, "--udp", relay, "--seed", "7"], port)
        return port

    def test_loss(self) -> None:
        """10 and 30 % of all packets are lost."""
        self.carry(self.wire("delay=15ms loss=10%"), 100_000, 500_000)
        self.carry(self.wire("delay=15ms loss=30%"), 50_000, 200_000)

    def test_fifty_handshakes(self) -> None:
        """50 of 50 at 10 and 30 % loss, and at a round trip of 1.5 s."""
        for scenario in ("delay=15ms loss=10%", "delay=15ms loss=30%", "delay=750ms"):
            result = run_handshakes(self.url(self.wire(scenario)), 50)
            self.assertEqual(result["problems"], [], scenario)
            self.assertEqual(len(result["times"]), 50)
