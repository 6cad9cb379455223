"""``mikanet doctor PROGRAM ...`` beside real servers: what is right, and what is wrong with what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.tunnels import (
    CLOCK_FILE,
    SHIFTED_CLOCK,
    MikaTunnel,
    NitroSocksTunnel,
    PaqetTunnel,
    PickaxeTunnel,
    Tunnel,
    set_clock,
)
from tests.support.processes import ROOT, TwistdProcess, free_port

_MIKANET = "import sys; from mikanet.cli.main import main; sys.argv[0] = 'mikanet'; main()"


def doctor(*words: str) -> dict[str, list[tuple[str, str, str]]]:
    """What the doctor finds: for each check its status, text and fix, in order."""
    done = subprocess.run(
        [sys.executable, "-c", _MIKANET, "doctor", "--json", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found: dict[str, list[tuple[str, str, str]]] = {}
    problems = 0
    for line in done.stdout.splitlines():
        row = json.loads(line)
        problems += row["status"] == "problem"
        found.setdefault(row["check"], []).append((row["status"], row["text"], row["fix"]))
    assert done.returncode == (1 if problems else 0), done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return found


class ClientTests(SynchronousTestCase):
    """Clients beside running servers."""

    def tunnel(self, tunnel: Tunnel, env: dict[str, str] | None = None, before: str = "") -> Tunnel:
        """A tunnel whose server runs."""
        self.addCleanup(tunnel.close)
        tunnel.start_server(env, before)
        return tunnel

    def assert_right(self, found: dict[str, list[tuple[str, str, str]]]) -> None:
        """Nothing is wrong, and the server has let the client in."""
        statuses = {status for rows in found.values() for status, *_ in rows}
        self.assertLessEqual(statuses, {"ok", "note"}, found)
        self.assertEqual(found["server"][0][0], "ok", found)

    def assert_problem(self, found: dict[str, list[tuple[str, str, str]]], check: str, words: str) -> None:
        """There is a problem with ``check``, in these words, and something that fixes it."""
        problems = [row for row in found.get(check, []) if row[0] == "problem"]
        self.assertTrue(problems, found)
        self.assertRegex(problems[0][1], words)
        self.assertTrue(problems[0][2], found)

    def test_right(self) -> None:
        """Mika, NitroSocks, Pickaxe over TCP and over HTTP, paqet over UDP."""
        port = free_port()
        web = PickaxeTunnel(
            carriers=[f"http://127.0.0.1:{port}/tunnel"],
            server_options=[f"--carrier=http://127.0.0.1:{port}/tunnel"],
        )
        for tunnel in (MikaTunnel(), NitroSocksTunnel(), PickaxeTunnel(), web, PaqetTunnel()):
            self.tunnel(tunnel)
            self.assert_right(doctor(*tunnel.client_args()))
            tunnel.close()

    def test_wrong_password(self) -> None:
        """Mika: the password, and not the clock."""
        tunnel = self.tunnel(MikaTunnel(refusal_time=60))
        assert isinstance(tunnel, MikaTunnel)
        tunnel.password_file.write_text("another password that is long enough\n")
        found = doctor(*tunnel.client_args())
        self.assert_problem(found, "server", "answers nothing")
        self.assertIn("password", found["clock"][0][1])

    def test_wrong_clock(self) -> None:
        """Mika: an hour behind, and three minutes ahead, with the right password."""
        for seconds, words in ((3600.0, "about an hour behind"), (-180.0, "about 3 minutes ahead of")):
            tunnel = MikaTunnel(refusal_time=60)
            clock = tunnel.folder / "clock"
            set_clock(clock, seconds)
            self.tunnel(tunnel, {CLOCK_FILE: os.fspath(clock)}, SHIFTED_CLOCK)
            found = doctor(*tunnel.client_args())
            self.assert_problem(found, "clock", words)
            tunnel.close()

    def test_nobody_there(self) -> None:
        """A port where nothing listens, a name without an address, a server that is none of ours."""
        tunnel = MikaTunnel()
        self.addCleanup(tunnel.close)
        self.assert_problem(doctor(*tunnel.client_args()), "port", "refuses connections")
        words = [w.replace("tcp:127.0.0.1", "tcp:nowhere.invalid") for w in tunnel.client_args()]
        self.assert_problem(doctor(*words), "name", "nowhere.invalid has no address")
        self.assert_problem(doctor(*tunnel.client_args(), "--no-such-option"), "options", "no-such-option")

    def test_certificate(self) -> None:
        """NitroSocks: a certificate for another name."""
        tunnel = self.tunnel(NitroSocksTunnel())
        words = [w.replace("--server-name=localhost", "--server-name=other.example") for w in tunnel.client_args()]
        self.assert_problem(doctor(*words), "certificate", "is for localhost, not for other.example")


class ServerTests(SynchronousTestCase):
    """Servers before they are started, and beside themselves."""

    def test_servers(self) -> None:
        """Each can be started; one that runs is noted and left alone; what is missing is named."""
        for tunnel in (MikaTunnel(), NitroSocksTunnel(), PickaxeTunnel(), PaqetTunnel()):
            self.addCleanup(tunnel.close)
            found = doctor("--seconds=4", *tunnel.server_args())
            self.assertIn("ok", [status for status, *_ in found["start"]], found)
            self.assertEqual(found["port"][0][0], "ok", found)
        tunnel = MikaTunnel()
        self.addCleanup(tunnel.close)
        tunnel.start_server()
        found = doctor(*tunnel.server_args())
        self.assertEqual(found["port"][0][0], "note", found)
        self.assertIn("running already", found["port"][0][1])
        tunnel.password_file.chmod(0o644)
        found = doctor(*tunnel.server_args())
        self.assertEqual(found["options"][0][0], "problem", found)
        self.assertIn("chmod 600", found["options"][0][1])


class MegakiTests(SynchronousTestCase):
    """The gateway and the server with its workers."""

    def test_megaki(self) -> None:
        """A worker that answers; a server that is another one; a script that does not load."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        base, port = Path(folder.name), free_port()
        worker = base / "worker.py"
        worker.write_text("def on_handle(request):\n    return b'you said ' + request\n")
        for name in ("keys", "other"):
            subprocess.run(
                [sys.executable, "-c", _MIKANET, "keygen", "megaki", str(base / name)],
                capture_output=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        server = [
            "megaki-server",
            f"--listen=tcp:{port}:interface=127.0.0.1",
            f"--key={base}/keys/server-private.pem",
            f"--worker=python:{worker}",
        ]
        client = ["megaki-client", f"--server=tcp:127.0.0.1:{port}", "--listen-http=tcp:0:interface=127.0.0.1"]
        found = doctor("--seconds=6", *server)
        self.assertIn(("ok", f"megaki server on 127.0.0.1:{port}", ""), found["start"], found)
        with ExitStack() as stack:
            stack.enter_context(TwistdProcess([*server, f"--state-dir={base}"], ports=[port]))
            found = doctor(*client, f"--server-key={base}/keys/server.cert")
            self.assertEqual(found["server"][0][0], "ok", found)
            found = doctor("--seconds=6", *client, f"--server-key={base}/other/server.cert")
            self.assertEqual(found["server"][0][0], "problem", found)
        worker.write_text("this is no python\n")
        found = doctor("--seconds=6", *server)
        self.assertEqual(found["options"][0][0], "problem", found)
        self.assertIn(worker.name, found["options"][0][1])
