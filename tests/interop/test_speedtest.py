"""``mikanet speedtest`` through real tunnels."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.tunnels import MikaTunnel, PickaxeTunnel
from tests.support.processes import ROOT, Process, free_port

_MIKANET = "import sys; from mikanet.cli.main import main; sys.argv[0] = 'mikanet'; main()"


class SpeedtestTests(SynchronousTestCase):
    """Both ends as a user runs them."""

    def setUp(self) -> None:
        self.port = free_port()
        served = Process(
            [sys.executable, "-c", _MIKANET, "speedtest", f"--serve=127.0.0.1:{self.port}"], ports=[self.port]
        )
        self.addCleanup(served.stop)

    def measure(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The other end."""
        command = [sys.executable, "-c", _MIKANET, "speedtest", "--seconds=0.5", *words]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)

    def test_figures(self) -> None:
        """Mika carries everything; Pickaxe no datagrams, and that is said."""
        for make, datagrams in ((MikaTunnel, True), (PickaxeTunnel, False)):
            with make() as tunnel:
                where = (f"--socks=127.0.0.1:{tunnel.socks_port}", f"--target=127.0.0.1:{self.port}")
                done = self.measure("--json", *where)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                found = json.loads(done.stdout)
                self.assertGreater(found["down_mbit_s"], 10)
                self.assertGreater(found["up_mbit_s"], 10)
                self.assertTrue(0 < found["latency_ms"] <= found["latency_worst_ms"] < 1000, found)
                self.assertEqual(found["loss_percent"], 0.0 if datagrams else None)
                done = self.measure(*where)
                self.assertEqual(
                    [line.split()[0] for line in done.stdout.splitlines()], ["latency", "down", "up", "loss"]
                )

    def test_mistakes(self) -> None:
        """One line each."""
        with MikaTunnel() as tunnel:
            door = f"--socks=127.0.0.1:{tunnel.socks_port}"
            for words, expected in (
                ((), "--target is missing"),
                ((f"--target=127.0.0.1:{self.port}",), "--socks is missing"),
                ((f"--target=127.0.0.1:{self.port}", f"--socks=127.0.0.1:{free_port()}"), "Connection refused"),
                ((f"--target=127.0.0.1:{free_port()}", door), "--serve running at the target"),
            ):
                done = self.measure(*words)
                self.assertEqual((done.returncode, done.stdout), (1, ""), words)
                self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
                self.assertIn(expected, done.stderr)
