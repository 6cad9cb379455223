"""Tests of :mod:`tests.lab.netns`, :mod:`tests.lab.tapwire` and :mod:`tests.lab.frames`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.lab.frames import FrameRules, Translator, checksum, layout, mirrored
from tests.lab.link import check_log
from tests.lab.netns import Namespaces, remove_left_over
from tests.lab.scenario import Direction
from tests.support.processes import ROOT, wait_for

#: An IPv4 UDP datagram 10.0.0.1:4000 > 10.0.0.2:5000 with "hi!!" in it; the sums were computed by hand (RFC 1071).
_UDP = bytes.fromhex("02000000000202000000000108004500002000010000401166ca0a0000010a0000020fa01388000c00006869212100")[
    :-1
]

_DATAGRAMS = """
import socket, sys, time
mode, address, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
if mode == "echo":
    sock.bind((address, 5000))
    print("up", flush=True)
    while True:
        data, source = sock.recvfrom(2000)
        print(source[0], source[1], flush=True)
        sock.sendto(data, source)
else:
    sock.settimeout(0.5)
    got = []
    for n in range(count):
        sock.sendto(b"%d" % n, (address, 5000))
        try:
            got.append(int(sock.recv(2000)))
        except TimeoutError:
            pass
    print(*got)
"""


class FrameTests(SynchronousTestCase):
    """Frames are changed so that nobody but the attacked program notices."""

    def setUp(self) -> None:
        frame = bytearray(_UDP)
        FrameRules().mend(frame)
        self.frame = bytes(frame)

    def test_the_example_of_rfc_1071(self) -> None:
        """The checksum of the RFC's example bytes is the complement of ddf2."""
        self.assertEqual(checksum(bytes.fromhex("0001f203f4f5f6f7")), 0xFFFF - 0xDDF2)

    def test_a_mended_frame_sums_to_nothing(self) -> None:
        """Over the IP header, and over pseudo-header and datagram, a mended frame sums to all ones."""
        found = layout(self.frame)
        assert found is not None
        self.assertEqual(checksum(self.frame[14:34]), 0)
        pseudo = self.frame[26:34] + bytes([0, 17]) + (found.end - found.transport).to_bytes(2, "big")
        self.assertEqual(checksum(pseudo + self.frame[34:]), 0)

    def test_payload_and_whole(self) -> None:
        """Forgers change the datagram's content; line damage falls anywhere behind the Ethernet header."""
        self.assertEqual(FrameRules().payload(self.frame), (42, 46))
        self.assertEqual(FrameRules().whole(self.frame), (14, 46))

    def test_a_mirrored_frame_is_an_answer(self) -> None:
        """A mirrored frame goes back to its sender, with right sums; mirrored twice it is itself."""
        back = mirrored(self.frame)
        mended = bytearray(back)
        FrameRules().mend(mended)
        self.assertEqual(bytes(mended), back)
        self.assertEqual(back[34:38], bytes.fromhex("13880fa0"))
        self.assertEqual(mirrored(back), self.frame)

    def test_the_translator_gives_and_forgets_ports(self) -> None:
        """After a rebind frames leave under a new port, answers to it come back to the old one, others are lost."""
        for by_address in (False, True):
            translator = Translator(by_address)
            first, second = translator.up(self.frame, 0), translator.up(self.frame, 1)
            self.assertEqual(first, self.frame)
            self.assertNotEqual(second, self.frame)
            self.assertIsNone(translator.down(mirrored(first), 1))
            self.assertEqual(translator.down(mirrored(second), 1), mirrored(self.frame))

    @settings(deadline=None)
    @given(st.binary(max_size=80), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
    def test_any_frame_is_taken(self, rest: bytes, kind: bytes) -> None:
        """Whatever crosses the wire, the rules answer, and with a span inside the frame."""
        frame = bytes(12) + kind + rest
        for first, end in (FrameRules().payload(frame), FrameRules().whole(frame)):
            self.assertTrue(0 <= first <= end <= len(frame))
        FrameRules().mend(bytearray(frame))
        self.assertEqual(len(mirrored(frame)), len(frame))
        Translator(False).up(frame, 3)


class NamespacesTests(SynchronousTestCase):
    """Two machines with a seeded wire between them."""

    def test_traffic_by_the_scenario(self) -> None:
        """UDP over IPv4 and IPv6 loses exactly the listed packets, and the log runs again."""
        log = self.mktemp()
        with Namespaces("delay=1ms droplist@up=2,4", 1, log=log) as pair:
            for address in (pair.second.address, pair.second.address6):
                echo = pair.second.start([sys.executable, "-c", _DATAGRAMS, "echo", address, "0"])
                wait_for(lambda echo=echo: "up" in echo.output)
                got = pair.first.run([sys.executable, "-c", _DATAGRAMS, "send", address, "6"]).stdout.split()
                echo.stop()
                self.assertEqual(got, ["0", "2", "4", "5"] if ":" not in address else ["0", "1", "2", "3", "4", "5"])
            counts = pair.counts()
        self.assertEqual((counts["up droplist"], counts["up deliver"]), (2, 10))
        with open(log, encoding="ascii") as lines:
            self.assertEqual(check_log(map(json.loads, lines)), 22)

    def test_a_rebind_is_seen_by_the_server_only(self) -> None:
        """The server sees the client's port or address change, while the client's own socket goes on."""
        for word in ("port", "address"):
            with Namespaces(f"rebind={word}", 1) as pair:
                address = pair.second.address
                echo = pair.second.start([sys.executable, "-c", _DATAGRAMS, "echo", address, "0"])
                wait_for(lambda echo=echo: "up" in echo.output)
                one = "import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.settimeout(2)\n"
                one += f"for line in open(0):\n    s.sendto(b'x', ('{address}', 5000)); print(s.recv(9), flush=True)\n"
                client = subprocess.Popen(
                    pair.first.command([sys.executable, "-c", one]),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert client.stdin is not None
                assert client.stdout is not None
                for _ in range(2):
                    client.stdin.write("go\n")
                    client.stdin.flush()
                    self.assertEqual(client.stdout.readline(), "b'x'\n")
                    pair.rebind()
                client.stdin.close()
                client.stdout.close()
                client.wait(5)
                echo.stop()
                seen = [line.split() for line in echo.output.splitlines()[1:]]
                self.assertNotEqual(seen[0], seen[1])
                self.assertEqual(seen[0][0] == seen[1][0], word == "port")

    def test_tcp_goes_through_loss(self) -> None:
        """The kernel's own TCP carries a megabyte over a lossy, corrupting, duplicating wire without an error."""
        folder = Path(self.mktemp())
        folder.mkdir()
        content = os.urandom(1_000_000)
        (folder / "file").write_bytes(content)
        with Namespaces("delay=1ms loss=2% corrupt=1% duplicate=1% reorder=1% reorder-by=2ms", 3) as pair:
            web = pair.second.start([sys.executable, "-m", "http.server", "8000"], cwd=str(folder), ports=[8000])
            url = f"http://{pair.second.address}:8000/file"
            got = str(folder / "got")
            fetch = "import sys, urllib.request as u; open(sys.argv[2], 'wb').write(u.urlopen(sys.argv[1]).read())"
            pair.first.run([sys.executable, "-c", fetch, url, got])
            self.assertGreater(pair.counts()["down loss"], 5)
            web.stop()
        self.assertEqual(Path(got).read_bytes(), content)

    def test_an_outage_by_hand(self) -> None:
        """A test can cut the wire and mend it."""
        with Namespaces() as pair:
            echo = pair.second.start([sys.executable, "-c", _DATAGRAMS, "echo", pair.second.address, "0"])
            wait_for(lambda: "up" in echo.output)
            send = [sys.executable, "-c", _DATAGRAMS, "send", pair.second.address, "2"]
            self.assertEqual(pair.first.run(send).stdout, "0 1\n")
            pair.block(Direction.DOWN)
            self.assertEqual(pair.first.run(send).stdout, "\n")
            pair.block(Direction.DOWN, False)
            self.assertEqual(pair.first.run(send).stdout, "0 1\n")

    def test_nothing_is_left_behind(self) -> None:
        """A closed pair leaves no namespace and no process, and those of a killed program are removed by the next."""
        code = "from tests.lab.netns import Namespaces\nNamespaces().__enter__()\nimport os; os.kill(os.getpid(), 9)"
        with Namespaces() as pair:
            names = [pair.first.name, pair.second.name]
        killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        killed.wait(20)
        removed = remove_left_over()
        self.assertTrue(all(str(killed.pid) in name for name in removed))
        listed = subprocess.run(["ip", "netns", "list"], text=True, capture_output=True).stdout
        for name in [*names, *removed]:
            self.assertNotIn(name, listed)
        self.assertEqual(len(removed), 2)
