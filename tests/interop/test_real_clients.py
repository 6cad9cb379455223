"""Programs that people use, through a tunnel on loopback: a browser, ssh, git and dig.

The tunnel is Mika, as ``twistd`` runs it; each test checks in the server's own log that the traffic went through it.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import shutil
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.tunnels import MikaTunnel
from tests.support.peers import require_program
from tests.support.processes import Process, free_port, wait_for

_FILE = random.Random(11).randbytes(3_000_003)
_PAGE = b"""<html><head><title>page</title></head><body><p id=t>static</p>
<script>document.getElementById('t').textContent = 'script ' + 6 * 7</script></body></html>"""


class _Site(http.server.BaseHTTPRequestHandler):
    """A page with a script, and a file to be downloaded."""

    protocol_version = "HTTP/1.1"
    requests: list[str] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        body, kind = (_FILE, "application/octet-stream") if self.path == "/file" else (_PAGE, "text/html")
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.path == "/file":
            self.send_header("Content-Disposition", 'attachment; filename="got.bin"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _GitSite(http.server.BaseHTTPRequestHandler):
    """``git http-backend`` behind HTTP, for the repositories below ``root``."""

    root = ""

    def do_GET(self) -> None:
        self._run(b"")

    def do_POST(self) -> None:
        self._run(self.rfile.read(int(self.headers["Content-Length"])))

    def _run(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        env = {
            **os.environ,
            "GIT_PROJECT_ROOT": self.root,
            "GIT_HTTP_EXPORT_ALL": "1",
            # The repository may belong to another user than the one who runs the test.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=env, timeout=60)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        self.send_response(next((int(value[:3]) for name, value in fields if name == "Status"), 200))
        for name, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Names(socketserver.BaseRequestHandler):
    """Answers every question for an A record with 192.0.2.7."""

    def handle(self) -> None:
        query, sock = self.request
        end = 12
        while query[end]:
            end += query[end] + 1
        question = query[12 : end + 5]
        head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
        answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes((192, 0, 2, 7))
        sock.sendto(head + question + answer, self.client_address)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    """Run a server in a thread; its port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class RealClientTestCase(SynchronousTestCase):
    """Has a tunnel and a folder."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mikanet-clients-"))
        self.addCleanup(shutil.rmtree, self.folder, True)

    def tunnel(self, *client_options: str) -> MikaTunnel:
        """A running tunnel that logs destinations."""
        made = MikaTunnel(server_options=["--verbose"], client_options=client_options)
        made.__enter__()
        self.addCleanup(self._close, made)
        return made

    def _close(self, tunnel: MikaTunnel) -> None:
        unhandled = tunnel.unhandled()
        tunnel.close()
        self.assertEqual(unhandled, [])

    def assert_carried(self, tunnel: MikaTunnel, port: int) -> None:
        """The server's log says that it opened a connection to ``port``."""
        assert tunnel.server is not None
        self.assertIn(f"-> 127.0.0.1:{port}", tunnel.server.output)

    def run_program(self, args: list[str], timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end; a failure shows what was said."""
        done = subprocess.run(args, timeout=timeout, capture_output=True, text=True, errors="replace", **options)
        self.assertEqual(done.returncode, 0, f"{args[0]}: {done.stdout[-1000:]}\n{done.stderr[-2000:]}")
        return done


class ChromiumTests(RealClientTestCase):
    """A browser without a screen."""

    def setUp(self) -> None:
        super().setUp()
        self.chromium = require_program("chromium")
        _Site.requests.clear()

    def _options(self, profile: str, proxy: str) -> list[str]:
        return [
            self.chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={self.folder / profile}",
            f"--proxy-server={proxy}",
            "--proxy-bypass-list=<-loopback>",
        ]

    def _browse(self, proxy: str, tunnel: MikaTunnel) -> None:
        with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)) as port:
            page = self.run_program([*self._options("page", proxy), "--dump-dom", f"http://127.0.0.1:{port}/page"])
            self.assertIn("script 42", page.stdout)
            self.assertIn("/page", _Site.requests)
            downloads = self.folder / "downloads"
            downloads.mkdir()
            settings = self.folder / "file" / "Default" / "Preferences"
            settings.parent.mkdir(parents=True)
            download = {"default_directory": str(downloads), "prompt_for_download": False}
            settings.write_text(json.dumps({"download": download}))
            got = downloads / "got.bin"
            command = [*self._options("file", proxy), f"http://127.0.0.1:{port}/file"]
            with Process(command) as browser:
                wait_for(got.exists, 60, "the download")
                wait_for(lambda: got.stat().st_size == len(_FILE), 30, "the whole download")
                browser.stop()
            self.assertEqual(hashlib.sha256(got.read_bytes()).digest(), hashlib.sha256(_FILE).digest())
            self.assert_carried(tunnel, port)

    def test_through_socks(self) -> None:
        """Chromium loads a page with a script and downloads a file byte-exact through the SOCKS5 door."""
        tunnel = self.tunnel()
        self._browse(f"socks5://127.0.0.1:{tunnel.socks_port}", tunnel)

    def test_through_the_http_proxy(self) -> None:
        """The same through the HTTP proxy door."""
        tunnel = self.tunnel()
        self._browse(f"http://127.0.0.1:{tunnel.http_port}", tunnel)


class SshTests(RealClientTestCase):
    """ssh with a ProxyCommand, to an sshd of our own."""

    def _sshd(self) -> int:
        sshd, keygen = require_program("sshd"), require_program("ssh-keygen")
        for name in ("host", "user"):
            self.run_program([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)])
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # sshd's own requirement when it starts as root
        port = free_port()
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder / 'authorized'}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        daemon = Process([sshd, "-D", "-e", "-f", str(config)], ports=[port])
        self.addCleanup(daemon.stop)
        return port

    def _ssh(self, tunnel: MikaTunnel, port: int, proxy_command: str) -> list[str]:
        return [
            require_program("ssh"),
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            f"UserKnownHostsFile={self.folder / 'known'}",
            "-o",
            f"ProxyCommand={proxy_command}",
            "-o",
            "BatchMode=yes",
            "-i",
            str(self.folder / "user"),
            "-p",
            str(port),
            "127.0.0.1",
        ]

    def _check(self, proxy_command: str, tunnel: MikaTunnel) -> None:
        port = self._sshd()
        content = random.Random(3).randbytes(2_000_000)
        ssh = self._ssh(tunnel, port, proxy_command)
        said = self.run_program([*ssh, "echo", "from", "there"])
        self.assertEqual(said.stdout, "from there\n")
        both = subprocess.run([*ssh, "cat"], input=content, capture_output=True, timeout=60)
        self.assertEqual((both.returncode, both.stdout == content), (0, True))
        self.assert_carried(tunnel, port)

    def test_through_socks_by_socat(self) -> None:
        """A command's output, and 2 MB through ``cat`` there and back, with socat as the ProxyCommand."""
        socat = require_program("socat")
        tunnel = self.tunnel()
        self._check(f"{socat} - SOCKS4A:127.0.0.1:%h:%p,socksport={tunnel.socks_port}", tunnel)

    def test_through_socks5_by_a_helper(self) -> None:
        """The same over SOCKS5, with a few lines of Python as the ProxyCommand."""
        tunnel = self.tunnel()
        helper = self.folder / "connect.py"
        helper.write_text(_SOCKS5_CONNECT)
        self._check(f"{sys.executable} {helper} {tunnel.socks_port} %h %p", tunnel)


#: ``connect.py SOCKS-PORT HOST PORT``: stdin and stdout to a host through a SOCKS5 door, with half-close.
_SOCKS5_CONNECT = """
import os, socket, struct, sys, threading
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
host = sys.argv[2].encode()
sock.sendall(b"\\5\\1\\0" + b"\\5\\1\\0\\3" + bytes([len(host)]) + host + struct.pack("!H", int(sys.argv[3])))
def exactly(count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            sys.exit("the door closed")
        data += piece
    return data
assert exactly(2) == b"\\5\\0"
reply = exactly(4)
if reply[1]:
    sys.exit(f"reply {reply[1]}")
exactly({1: 4, 4: 16}[reply[3]] + 2)
def up():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := sock.recv(65536):
    os.write(1, data)
"""


class GitTests(RealClientTestCase):
    """git over HTTP through SOCKS5."""

    def test_clone(self) -> None:
        """``git clone`` from a loopback ``git http-backend`` through SOCKS5 brings every object, and fsck is content."""
        git = require_program("git")
        env = {
            **os.environ,
            "HOME": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.com",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.com",
            "no_proxy": "",
        }
        source = self.folder / "source"
        self.run_program([git, "init", "-q", "-b", "main", str(source)], env=env)
        for number in range(20):
            (source / f"file{number}").write_bytes(random.Random(number).randbytes(50_000))
        self.run_program([git, "-C", str(source), "add", "."], env=env)
        self.run_program([git, "-C", str(source), "commit", "-q", "-m", "files"], env=env)
        self.run_program([git, "clone", "-q", "--bare", str(source), str(self.folder / "repo.git")], env=env)
        tunnel = self.tunnel()
        _GitSite.root = str(self.folder)
        with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), _GitSite)) as port:
            proxy = f"http.proxy=socks5h://127.0.0.1:{tunnel.socks_port}"
            url = f"http://127.0.0.1:{port}/repo.git"
            self.run_program([git, "-c", proxy, "clone", "-q", url, str(self.folder / "clone")], env=env)
        self.run_program([git, "-C", str(self.folder / "clone"), "fsck", "--full"], env=env)
        for number in range(20):
            name = f"file{number}"
            self.assertEqual((self.folder / "clone" / name).read_bytes(), (source / name).read_bytes())
        self.assert_carried(tunnel, port)


class _AssociateBridge(socketserver.BaseRequestHandler):
    """Carries a program's datagrams over a UDP ASSOCIATE, for programs that know no SOCKS."""

    def handle(self) -> None:
        datagram, sock = self.request
        server: Any = self.server
        header = b"\x00\x00\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack("!H", server.target_port)
        server.out.sendto(header + datagram, server.relay)
        answer = server.out.recv(4096)
        sock.sendto(answer[10:], self.client_address)


class DigTests(RealClientTestCase):
    """dig, over UDP."""

    def _dig(self, port: int) -> None:
        dig = require_program("dig")
        for name in ("one.example", "two.example", "a-long-name.with.labels.example"):
            command = [dig, "@127.0.0.1", "-p", str(port), name, "A", "+short", "+tries=1", "+time=5", "+notcp"]
            self.assertEqual(self.run_program(command).stdout, "192.0.2.7\n", name)

    def test_through_a_udp_forward(self) -> None:
        """dig asks a name server behind ``--forward-udp``."""
        with serving(socketserver.UDPServer(("127.0.0.1", 0), _Names)) as names:
            port = free_port()
            self.tunnel(f"--forward-udp=127.0.0.1:{port}=127.0.0.1:{names}")
            self._dig(port)

    def test_through_udp_associate(self) -> None:
        """dig asks a name server over a UDP ASSOCIATE of the SOCKS5 door."""
        tunnel = self.tunnel()
        with (
            serving(socketserver.UDPServer(("127.0.0.1", 0), _Names)) as names,
            socket.create_connection(("127.0.0.1", tunnel.socks_port)) as control,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
        ):
            control.settimeout(10)
            out.settimeout(10)
            control.sendall(b"\x05\x01\x00")
            self.assertEqual(control.recv(2), b"\x05\x00")
            control.sendall(b"\x05\x03\x00\x01" + bytes(6))
            reply = control.recv(10)
            self.assertEqual(reply[:4], b"\x05\x00\x00\x01")
            bridge: Any = socketserver.UDPServer(("127.0.0.1", 0), _AssociateBridge)
            bridge.out, bridge.target_port = out, names
            bridge.relay = (socket.inet_ntoa(reply[4:8]), struct.unpack("!H", reply[8:])[0])
            with serving(bridge) as port:
                self._dig(port)
