"""The how-tos, followed: their command lines and their program, over loopback."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.genkey import new_secret
from mikanet.endpoints import quote
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, TwistdProcess, free_port, wait_for

HOWTO = ROOT / "docs" / "howto"
PAGE = b"the far end\n" * 1000


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


class HowToTestCase(SynchronousTestCase):
    """A web server at the far end, a folder for passwords, and programs that end with the test."""

    def setUp(self) -> None:
        """Start the web server."""
        folder = tempfile.TemporaryDirectory(prefix="mikanet-howto-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        web = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
        self.addCleanup(web.server_close)
        thread = Thread(target=web.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(web.shutdown)
        self.web_port: int = web.server_address[1]
        self.url = f"http://127.0.0.1:{self.web_port}/"

    def password(self, name: str) -> str:
        """A file with a new password."""
        file = self.folder / name
        file.touch(mode=0o600)
        file.write_text(new_secret())
        return str(file)

    def server(self, password_file: str, listen: str = "tcp:{port}:interface=127.0.0.1") -> tuple[int, Process]:
        """A Mika server that may reach loopback; its port and process."""
        port = free_port()
        arguments = ["mika-server", "--listen", listen.format(port=port), "--password-file", password_file]
        arguments += ["--state-dir", str(self.folder / f"state-{port}"), "--verbose", "--drain-time", "0"]
        process = TwistdProcess([*arguments, "--allow-egress", "127.0.0.0/8"], ports=[port])
        self.addCleanup(process.stop)
        return port, process

    def client(self, password_file: str, server: str, *options: str) -> int:
        """A Mika client; the port of its SOCKS door."""
        port = free_port()
        arguments = ["mika-client", "--server", server, "--password-file", password_file, "--drain-time", "0"]
        process = TwistdProcess([*arguments, "--socks", f"tcp:{port}:interface=127.0.0.1", *options], ports=[port])
        self.addCleanup(process.stop)
        return port

    def fetch(self, *options: str) -> bytes:
        """What curl gets."""
        command = [require_program("curl"), "--silent", "--show-error", "--max-time", "20", "--noproxy", "", *options]
        return subprocess.run([*command, self.url], capture_output=True, check=True, timeout=30).stdout

    def fetch_through(self, port: int) -> bytes:
        """What curl gets through a SOCKS door."""
        return self.fetch("--socks5-hostname", f"127.0.0.1:{port}")


def command_lines(page: str, program: str) -> list[list[str]]:
    """The arguments of a program in the literal blocks of a page, as a shell would split them."""
    text = (HOWTO / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(rf"^    \S*mikanet {program} (.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def value_of(arguments: list[str], option: str) -> str:
    """The value of an option."""
    return arguments[arguments.index(option) + 1]


class ServerTests(HowToTestCase):
    """docs/howto/server.rst and docs/howto/browser.rst."""

    def test_the_unit_and_the_client(self) -> None:
        """The unit's own command line, with other paths, serves the client of the page; curl comes through both doors."""
        password, port, http = self.password("password"), free_port(), free_port()
        text = (HOWTO / "units" / "mika-server.service").read_text(encoding="utf-8")
        words = shlex.split(re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)[0])
        swaps = {
            "tcp:8388": f"tcp:{port}",
            "/etc/mikanet/password": password,
            "/var/lib/mikanet": str(self.folder / "state"),
        }
        arguments = [swaps.get(word, word) for word in words[words.index("mika-server") :]]
        server = TwistdProcess([*arguments, "--allow-egress", "127.0.0.0/8"], ports=[port])
        self.addCleanup(server.stop)
        self.assertIn(f"mika server on 0.0.0.0:{port}", server.output)
        (line,) = command_lines("server.rst", "mika-client")
        self.assertEqual(value_of(line, "--socks"), "tcp:1080:interface=127.0.0.1")
        socks = self.client(password, f"tcp:localhost:{port}", "--http", f"tcp:{http}:interface=127.0.0.1")
        self.assertEqual(self.fetch_through(socks), PAGE)
        self.assertEqual(self.fetch("--proxy", f"http://127.0.0.1:{http}"), PAGE)

    def test_messages(self) -> None:
        """The client's log says what the page says that it does, for a server that is not there."""
        port, door = free_port(), free_port()
        arguments = ["mika-client", "--server", f"tcp:127.0.0.1:{port}", "--password-file", self.password("password")]
        client = TwistdProcess([*arguments, "--socks", f"tcp:{door}:interface=127.0.0.1"], ports=[door])
        self.addCleanup(client.stop)
        self.assertRaises(subprocess.CalledProcessError, self.fetch_through, door)
        wait_for(lambda: f"the server tcp:127.0.0.1:{port} refuses connections" in client.output, what="the message")

    def test_chromium_leaves_names_to_the_proxy(self) -> None:
        """Chromium with the page's options passes names on: the server sees one that exists nowhere."""
        chromium = require_program("chromium")
        password = self.password("password")
        port, server = self.server(password)
        socks = self.client(password, f"tcp:127.0.0.1:{port}")
        command = [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.folder / 'profile'}"),
            *(f"--proxy-server=socks5://127.0.0.1:{socks}", "--webrtc-ip-handling-policy=disable_non_proxied_udp"),
            *("--dump-dom", "http://page.mikanet.invalid/"),
        ]
        browser = Process(command, env={"HOME": str(self.folder)})
        self.addCleanup(browser.stop)
        wait_for(lambda: "-> page.mikanet.invalid:80" in server.output, 60, "the browser's request at the server")


class ProgramTests(HowToTestCase):
    """docs/howto/program.rst."""

    def test_the_example_runs(self) -> None:
        """The program of the page fetches a page through a server."""
        password = self.password("password")
        port, _ = self.server(password)
        command = [sys.executable, HOWTO / "from_twisted.py", f"tcp:127.0.0.1:{port}", password, self.url]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        self.assertEqual(done.stdout, PAGE)


class ChainingTests(HowToTestCase):
    """docs/howto/chaining.rst; ``tests/test_docs.py`` compares the quoting on the page with :func:`quote`."""

    def setUp(self) -> None:
        """Two servers."""
        super().setUp()
        self.first_password, self.second_password = self.password("first"), self.password("second")
        self.first, self.first_server = self.server(self.first_password)
        self.second, _ = self.server(self.second_password)

    def test_through_a_socks_proxy(self) -> None:
        """Mika through the SOCKS door of another client."""
        proxy = self.client(self.first_password, f"tcp:127.0.0.1:{self.first}")
        inner = quote(f"tcp:127.0.0.1:{proxy}")
        socks = self.client(self.second_password, f"socks5:127.0.0.1:{self.second}:server={inner}")
        self.assertEqual(self.fetch_through(socks), PAGE)
        self.assertIn(f"-> 127.0.0.1:{self.second}", self.first_server.output)

    def test_through_another_mika(self) -> None:
        """Mika through Mika: the first server sees the second and nothing else."""
        inner = quote(f"tcp:127.0.0.1:{self.first}")
        password = quote(self.first_password)
        endpoint = f"mika:127.0.0.1:{self.second}:server={inner}:password-file={password}"
        socks = self.client(self.second_password, endpoint)
        self.assertEqual(self.fetch_through(socks), PAGE)
        self.assertEqual(set(re.findall(r"-> (\S+)", self.first_server.output)), {f"127.0.0.1:{self.second}"})

    def test_both(self) -> None:
        """Mika through Mika through a SOCKS proxy, which is the door of a third one."""
        third_password = self.password("third")
        third, third_server = self.server(third_password)
        proxy = self.client(third_password, f"tcp:127.0.0.1:{third}")
        inner = quote(f"socks5:127.0.0.1:{self.first}:server={quote(f'tcp:127.0.0.1:{proxy}')}")
        password = quote(self.first_password)
        endpoint = f"mika:127.0.0.1:{self.second}:password-file={password}:server={inner}"
        self.assertEqual(self.fetch_through(self.client(self.second_password, endpoint)), PAGE)
        asked = set(re.findall(r"-> (\S+)", third_server.output)) - {
            "[::1]:1"
        }  # which a client asks to see whether it may
        self.assertEqual(asked, {f"127.0.0.1:{self.first}"})
        self.assertEqual(set(re.findall(r"-> (\S+)", self.first_server.output)), {f"127.0.0.1:{self.second}"})


class ObfuscationTests(HowToTestCase):
    """docs/howto/http-obfuscation.rst."""

    def test_both_ends(self) -> None:
        """The page's strings, with another host and port, carry a page."""
        (server,) = command_lines("http-obfuscation.rst", "mika-server")
        (client,) = command_lines("http-obfuscation.rst", "mika-client")
        password = self.password("password")
        listen = value_of(server, "--listen").replace("8388", "{port}\\:interface\\=127.0.0.1")
        port, _ = self.server(password, listen)
        endpoint = value_of(client, "--server").replace("SERVER", "127.0.0.1").replace("8388", str(port))
        self.assertEqual(self.fetch_through(self.client(password, endpoint)), PAGE)
