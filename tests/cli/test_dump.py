"""``mikanet dump`` reading files; what it captures is tested in ``tests/interop/test_rawpackets_tools.py``."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.dump import Options, run
from mikanet.wire.captures import Captured, file_header, packet_block, read_captures
from tests.cli.test_dissect import CAPTURES

CONFIG = """\
role: server
listen:
  addr: ":9999"
network:
  interface: eth0
  ipv4:
    addr: 10.77.0.1:9999
transport:
  protocol: kcp
  kcp:
    block: "null"
"""


class DumpTests(SynchronousTestCase):
    """Reading and writing."""

    def setUp(self) -> None:
        """A configuration and a capture."""
        folder = Path(self.mktemp())
        folder.mkdir()
        self.config, self.read, self.written = (
            str(folder / name) for name in ("server.yaml", "in.pcapng", "out.pcapng")
        )
        Path(self.config).write_text(CONFIG)
        Path(self.config).chmod(0o600)
        entries = CAPTURES["paqet_alpha21_null_block_http_get"]
        packets = [Captured(1e9 + entry["t_us"] / 1e6, bytes.fromhex(entry["frame"]), 1) for entry in entries]
        Path(self.read).write_bytes(file_header() + b"".join(map(packet_block, packets)))

    def dump(self, *words: str) -> str:
        """What is printed."""
        options = Options()
        options.parseOptions([*words, "--insecure-ok", self.config])
        with mock.patch.object(sys, "stdout", StringIO()) as out:
            self.assertEqual(run(options), 0)
        return out.getvalue()

    def test_table(self) -> None:
        """A line for each fact; times count from the first packet; ends stand in a packet's first line only."""
        lines = self.dump("--read", self.read).splitlines()
        self.assertEqual(lines[0].split(), ["seconds", "from", "to", "layer", "what"])
        self.assertEqual(
            lines[1].split(), ["0.000000", "10.77.0.2:59807", "10.77.0.1:9999", "tcp", "PA", "56", "bytes"]
        )
        self.assertEqual(lines[5].split(), ["paqet", "FLAGS", "PA", "(a21)"])
        self.assertIn("   1.189233  10.77.0.1:9999         10.77.0.2:59807        tcp     PA 321 bytes", lines)
        self.assertNotIn("HTTP", "".join(lines))

    def test_count(self) -> None:
        """It ends after so many packets."""
        self.assertEqual(self.dump("--read", self.read, "--count", "2").count("10.77.0.2:59807"), 2)

    def test_write(self) -> None:
        """The same packets, with what was found in them as comments."""
        self.dump("--read", self.read, "--write", self.written)
        data = Path(self.written).read_bytes()
        with open(self.read, "rb") as first, open(self.written, "rb") as second:
            self.assertEqual(list(read_captures(first.read)), list(read_captures(second.read)))
        self.assertIn(b"paqet: TCP to 10.77.0.1:8000 (a21)", data)

    def test_mistakes(self) -> None:
        """One line each."""
        for words, part in (
            (["--read", self.config, self.config], "neither a pcap nor a pcapng file"),
            (["--read", "/nonesuch", self.config], "No such file"),
            ([], "give one file"),
            (["--count", "x", self.config], "--count takes a number"),
            (["/nonesuch"], "cannot read /nonesuch"),
        ):
            with self.assertRaises(SystemExit) as caught:
                options = Options()
                options.parseOptions([*words[:-1], "--insecure-ok", *words[-1:]] if words else [])
                run(options)
            self.assertIn(part, str(caught.exception.code))
            self.assertNotIn("\n", str(caught.exception.code))
