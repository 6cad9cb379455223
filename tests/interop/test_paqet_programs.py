"""paqet's programs: ``twistd paqet-server``, ``paqet-client``, ``mikanet ping`` and the endpoint string, as a user runs them."""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mikanet.endpoints import paqet, quote
from mikanet.rawpackets.firewall import Firewall, find_rules
from tests.bench.kcp import give, serve, take
from tests.interop.paqet_ends import Ends, Transfer, file_text, run, write_file
from tests.kcp.test_reach import BAD
from tests.lab.netns import Namespace, Namespaces
from tests.lab.veth import VethNamespace, VethPair
from tests.support.processes import ROOT, Process, free_port, wait_for, wait_listening

_TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
_MIKANET = "import sys; from mikanet.cli.main import main; sys.argv[0] = 'mikanet'; main()"


class Programs:
    """Files and processes of one test.

    :ivar key: a good secret. :ivar wide: more lines of ``transport.kcp``.
    """

    def __init__(self, case: Any) -> None:
        folder = tempfile.TemporaryDirectory(prefix="mikanet-paqet-")
        case.addCleanup(folder.cleanup)
        self.case = case
        self.folder = Path(folder.name)
        self.key = secrets.token_urlsafe(24)
        self.wide = ""
        self.port, self.socks, self.forward = free_port(), free_port(), free_port()

    def file(self, role: str, where: str, network: str = "", ours: str = "carrier: udp", more: str = "") -> str:
        """A configuration file with a good key."""
        return write_file(
            self.folder, f"{role}.yaml", file_text(role, where, network, f'key: "{self.key}"', ours) + more
        )

    def twistd(self, *words: str, space: Namespace | None = None) -> Process:
        """Start a service."""
        return self._start([sys.executable, "-c", _TWISTD, "--nodaemon", "--pidfile=", *words], space)

    def mikanet(self, *words: str, space: Namespace | None = None) -> Process:
        """Start a command."""
        return self._start([sys.executable, "-c", _MIKANET, *words], space)

    def _start(self, command: list[str], space: Namespace | None) -> Process:
        env = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(self.folder)}
        made = (
            Process(command, cwd=self.folder, env=env)
            if space is None
            else space.start(command, cwd=str(self.folder), env=env)
        )
        self.case.addCleanup(made.kill)
        return made

    def fails(self, *words: str, space: Namespace | None = None) -> str:
        """The one line of a service that does not start."""
        process = self.twistd(*words, space=space)
        self.case.assertNotEqual(process.wait(20), 0)
        lines = [line for line in process.output.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]  # no log
        self.case.assertEqual(len(lines), 1, process.output)
        self.case.assertNotIn("Traceback", process.output)
        return lines[0]


def fetch(connection: socket.socket, up: int, down: int) -> None:
    """Carry bytes over a connection to the target."""
    with connection:
        connection.settimeout(30)
        connection.sendall(up.to_bytes(8, "big") + down.to_bytes(8, "big"))
        give(connection, up)
        take(connection, 1 + down)


def socks_connect(space: VethNamespace | None, port: int, host: str, target: int, login: bytes = b"") -> socket.socket:
    """A connection through a SOCKS5 door."""
    connection = _connect(space, port)
    connection.sendall(b"\x05\x01\x02" if login else b"\x05\x01\x00")
    connection.recv(2)
    if login:
        connection.sendall(login)
        if connection.recv(2) != b"\x01\x00":
            raise ConnectionRefusedError("the door does not take the password")
    connection.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + target.to_bytes(2, "big"))
    if connection.recv(10)[:2] != b"\x05\x00":
        raise ConnectionRefusedError("the door refused")
    return connection


def _connect(space: VethNamespace | None, port: int) -> socket.socket:
    if space is None:
        return socket.create_connection(("127.0.0.1", port), timeout=30)
    with space.entered():
        return socket.create_connection(("127.0.0.1", port), timeout=30)


class RawProgramTests(SynchronousTestCase):
    """Raw packets, in two namespaces."""

    def test_short_files(self) -> None:
        """Files that say next to nothing are enough; doors of the file work; rules come and go with the programs."""
        programs = Programs(self)
        with VethPair() as pair:
            near, far = pair.first, pair.second
            with far.entered():
                target = socket.create_server((far.address, 8000))
            self.addCleanup(target.close)
            threading.Thread(target=serve, args=(target,), daemon=True).start()
            where = f"{far.address}:{programs.port}"
            server_file = programs.file("server", f":{programs.port}", f"interface: {far.interface}", "carrier: raw")
            doors = (
                f"socks5:\n  - {{listen: '127.0.0.1:{programs.socks}', username: someone, password: 'a password'}}\n"
                f"forward:\n  - {{listen: '127.0.0.1:{programs.forward}', target: '{far.address}:8000', protocol: tcp}}\n"
            )
            client_file = programs.file("client", where, "", "carrier: raw", doors)
            egress = ["--allow-egress", "10.77.0.0/16"]
            server = programs.twistd("paqet-server", "--config", server_file, *egress, "--drain-time", "1", space=far)
            wait_for(lambda: "paqet server on raw port" in server.output, what=f"the server\n{server.output}")
            client = programs.twistd("paqet-client", "--config", client_file, "--drain-time", "1", space=near)
            wait_listening(programs.forward, process=client)
            for space in (near, far):
                self.assertIn(str(programs.port) if space is far else "notrack", self.rules(space))
            fetch(_connect(near, programs.forward), 100_000, 1_000_000)
            login = b"\x01\x07someone\x0aa password"
            fetch(socks_connect(near, programs.socks, far.address, 8000, login), 1000, 100_000)
            with self.assertRaises(ConnectionRefusedError):
                socks_connect(near, programs.socks, far.address, 8000, login[:-1] + b"x")
            self.assertIn("another", self.port_busy(programs, server_file, far))
            for process in (client, server):
                self.assertIn(process.stop(), (143, -15))
                self.assertNotIn("Traceback", process.output)
            for space in (near, far):
                self.assertIn("notrack", self.rules(space))  # a peer that knows of no end still gets no RST
                self.ask_keepers_to_end(space)
                self.assertEqual(self.rules(space), "")
            busy = self.taken_by_another(programs, server_file, far)
            self.assertIn(f"TCP port {programs.port} is in use", busy)

    @staticmethod
    def ask_keepers_to_end(space: VethNamespace) -> None:
        """What a new start on each of their ports does."""
        with space.entered():
            rules = find_rules()
            for port in rules.ports():
                Firewall(port, rules)._wait_for_mark().close()

    @staticmethod
    def rules(space: VethNamespace) -> str:
        """The firewall's rules there."""
        return space.run(["nft", "list", "ruleset"], check=False).stdout

    def port_busy(self, programs: Programs, server_file: str, far: VethNamespace) -> str:
        """A second server on the same port."""
        return programs.fails("paqet-server", "--config", server_file, space=far)

    def taken_by_another(self, programs: Programs, server_file: str, far: VethNamespace) -> str:
        """A server on a port that another program listens on."""
        with far.entered():
            other = socket.create_server(("", programs.port))
        with other:
            return programs.fails("paqet-server", "--config", server_file, space=far)


class WireTests(SynchronousTestCase):
    """Raw packets over the lab's wire."""

    def test_bad_wire(self) -> None:
        """20 MB come through exactly at RTT 40 ms, 10 % loss, 5 % reordered, 1 % repeated, 0.1 % corrupted frames."""
        programs = Programs(self)
        blob = random.Random(20).randbytes(20_000_000)
        (programs.folder / "blob").write_bytes(blob)
        with Namespaces(BAD, seed=20) as pair:
            target = pair.second.start(
                [
                    sys.executable,
                    "-m",
                    "http.server",
                    "8000",
                    "--bind",
                    pair.second.address,
                    "-d",
                    str(programs.folder),
                ],
                ports=[8000],
            )
            self.addCleanup(target.kill)
            programs.wide = "mode: fast3\nsndwnd: 1024\nrcvwnd: 1024\n"
            server_file = programs.file(
                "server", f":{programs.port}", f"interface: {pair.second.interface}", "carrier: raw"
            )
            where = f"{pair.second.address}:{programs.port}"
            doors = f"forward: [{{listen: '127.0.0.1:{programs.forward}', target: '{pair.second.address}:8000', protocol: tcp}}]\n"
            client_file = programs.file("client", where, "", "carrier: raw", doors)
            egress = ["--allow-egress", "10.77.0.0/16"]
            server = programs.twistd("paqet-server", "--config", server_file, *egress, space=pair.second)
            wait_for(lambda: "paqet server on raw port" in server.output, what=f"the server\n{server.output}")
            client = programs.twistd("paqet-client", "--config", client_file, space=pair.first)
            wait_listening(programs.forward, process=client)
            got = pair.first.run(
                ["curl", "-sSo", str(programs.folder / "got"), f"http://127.0.0.1:{programs.forward}/blob"], check=False
            )
            self.assertEqual(got.returncode, 0, got.stderr)
            self.assertEqual((programs.folder / "got").read_bytes(), blob)
            counts = pair.counts()
        for action in ("loss", "reorder", "duplicate", "corrupt"):
            self.assertGreater(counts[f"down {action}"], 0, counts)


class UdpProgramTests(SynchronousTestCase):
    """Without root."""

    def test_ping(self) -> None:
        """Ping says how fast and in which dialect the server answers, and fails when none is there."""
        programs = Programs(self)
        where = f"127.0.0.1:{programs.port}"
        server = programs.twistd("paqet-server", "--config", programs.file("server", where))
        wait_listening(programs.port, udp=True, process=server)
        client_file = programs.file("client", where)
        ping = programs.mikanet("ping", client_file, "--count", "2")
        self.assertEqual(ping.wait(20), 0, ping.output)
        self.assertRegex(
            ping.output, rf"(?s)^{where}: live after \d+ ms, dialect a21\n1: .* ms\n2: .*\n2 of 2 answered, "
        )
        server.stop()
        late = programs.mikanet("ping", client_file)
        self.assertEqual(late.wait(30), 1)
        self.assertIn("answers nothing", late.output)

    def test_port_busy(self) -> None:
        """A UDP port that is taken is one line."""
        programs = Programs(self)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", programs.port))
            line = programs.fails(
                "paqet-server",
                "--config",
                programs.file("server", f"127.0.0.1:{programs.port}", f"ipv4: {{addr: '127.0.0.1:{programs.port}'}}"),
            )
        self.assertEqual(
            line,
            f"cannot listen on udp port {programs.port}: Address already in use; another program has that port: stop it, "
            "or choose another port",
        )

    def test_mistakes(self) -> None:
        """A file that others can read, a wrong key in it, a wrong role, a weak secret, no doors: one line each."""
        programs = Programs(self)
        server_file = programs.file("server", "127.0.0.1:9")
        client_file = programs.file("client", "127.0.0.1:9")
        self.assertRegex(
            programs.fails("paqet-server", "--config", client_file), "has the role of a client: start it with"
        )
        self.assertRegex(
            programs.fails("paqet-client", "--config", server_file), "has the role of a server: start it with"
        )
        self.assertRegex(programs.fails("paqet-client", "--config", client_file), "^paqet-client: no front door")
        os.chmod(server_file, 0o644)
        self.assertRegex(
            programs.fails("paqet-server", "--config", server_file), "can be read by others: run chmod 600"
        )
        os.chmod(server_file, 0o600)
        programs.key = "short"
        self.assertRegex(
            programs.fails("paqet-server", "--config", programs.file("server", "127.0.0.1:9")), "is too easy to guess"
        )
        wrong = programs.file("server", "127.0.0.1:9", more="colour: blue\n")
        self.assertRegex(programs.fails("paqet-server", "--config", wrong), r"line \d+: colour is not a key")


class EndpointTests(TestCase):
    """``paqet:`` in a Twisted program."""

    timeout = 60.0

    def test_from_string(self) -> Any:
        """A string makes an endpoint whose session comes when it is wanted and goes when idle."""

        async def work() -> None:
            programs = Programs(self)
            where = f"127.0.0.1:{programs.port}"
            config = programs.file("server", where)
            server = programs.twistd("paqet-server", "--config", config, "--allow-egress", "127.0.0.0/8")
            wait_listening(programs.port, udp=True, process=server)
            ends = Ends(self, None)
            client_file = programs.file("client", where)
            text = f"paqet:127.0.0.1:{ends.target.port}:config={quote(client_file)}"
            for _ in range(2):
                transfer = Transfer(10_000, 200_000)
                await clientFromString(reactor, text).connect(_always(transfer))
                self.assertTrue(await transfer.done)
                assert transfer.transport is not None
                transfer.transport.loseConnection()
            await stop_tunnels()

        return run(work())


def _always(protocol: Protocol) -> Factory:
    return Factory.forProtocol(lambda: protocol)


async def stop_tunnels() -> None:
    """What a program's end does."""
    for tunnel in paqet._tunnels.values():
        await tunnel.stop()
    paqet._tunnels.clear()
    done: defer.Deferred[None] = defer.Deferred()
    reactor.callLater(0.1, done.callback, None)
    await done
