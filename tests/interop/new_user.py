"""The new user: a fresh environment, two machines, and the lines of the pages as they stand there.

A literal block belongs to the server or to the user's machine by the paragraph before it, which says *On the server* or *On your
machine*. Its lines are typed in a folder of that machine with ``SERVER`` replaced by the server's address, and nothing else.
Programs that run in the foreground go on beside the lines that follow.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.lab.tunnels import write_certificate
from tests.lab.veth import VethNamespace, VethPair
from tests.support.peers import missing, require_program, require_root
from tests.support.processes import ROOT, Process, listening, wait_for

#: Where www.example.com is, for the server alone. An address that servers may reach: not private, and not their own.
EXAMPLE = "93.184.215.14"
PAGE = "a page for "

_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "__pycache__", "_trial_temp*", "_build", "*.so", "corpus", "data"
)
_PLACES = re.compile(r"\bOn (the server|your machine)\b")
_PROGRAM = re.compile(r"mikanet (\S+-(?:server|client))\b")
#: What a program's words say about the ports that it opens, as TCP's or UDP's.
_DOORS = re.compile(
    r"--(?:socks|http|listen-http|listen|forward)[ =]'?(tcp|kcp):(\d+)|--carrier[ =]'?(tcp|http)://0\.0\.0\.0:(\d+)"
)

_WEB = f"""
import http.server, ssl, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("{PAGE}" + self.client_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("{EXAMPLE}", 443), Page)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

_SCP = """#!/usr/bin/env python3
import os, shutil, sys
*sources, target = sys.argv[1:]
for source in sources:
    host, _, path = source.partition(":")
    assert host == os.environ["THE_SERVER"], host
    shutil.copy(os.path.join(os.environ["SERVERS_FOLDER"], path), target)
"""


class Block(NamedTuple):
    """Lines to type.

    :ivar at_server: on which machine. :ivar anew: whether a new set-up begins here. :ivar text: without indentation.
    """

    at_server: bool
    anew: bool
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The literal blocks of a page that belong to a machine, in order."""
    lines = page.splitlines()
    first = True
    for number, line in enumerate(lines):
        if not line.endswith("::") or line.startswith((" ", "..")):
            continue
        begin = number
        while begin and lines[begin - 1].strip():
            begin -= 1
        paragraph = " ".join(lines[begin : number + 1])
        places = _PLACES.findall(paragraph)
        if not places:
            continue
        end = number + 1
        while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
            end += 1
        at_server = places[-1] == "the server"
        yield Block(
            at_server, first or "empty folder" in paragraph, textwrap.dedent("\n".join(lines[number + 1 : end])).strip()
        )
        first = False


def included_files(page: str, folder: Path) -> dict[str, Path]:
    """What a page says to write: names, and the files that it shows."""
    found = re.findall(r"[Ww]rite ``(\S+)`` there:\n\n\.\. literalinclude:: (\S+)", page)
    return {name: folder / shown for name, shown in found}


def steps(text: str) -> Iterator[tuple[str, bool]]:
    """The block in parts: runs of lines that end, and single programs that stay."""
    run: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if _PROGRAM.match(line):
            if run:
                yield "\n".join(run), False
                run = []
            yield line, True
        else:
            run.append(line)
    if run:
        yield "\n".join(run), False


@functools.cache
def installed() -> tuple[Path, str]:
    """The folder of a fresh environment, made by README's own line in a copy of the checkout; and what the demo said.

    :raises SkipTest: if no package can be fetched (AssertionError when peers are required).
    """
    (line,) = (
        line.strip() for line in (ROOT / "README.rst").read_text("utf-8").splitlines() if line.endswith("mikanet demo")
    )
    folder = Path(tempfile.mkdtemp(prefix="mikanet-new-user-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkout = folder / "mikanet"
    shutil.copytree(ROOT, checkout, ignore=_COPIED)
    python = Path(sys.base_prefix) / "bin"
    environment = {"PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": "", "VIRTUAL_ENV": ""}
    with Process(["bash", "-c", line], cwd=checkout, env=environment) as typed:
        try:
            wait_for(lambda: "Ctrl-C ends" in typed.output or not typed.alive, 240, "the demonstration")
        finally:
            for pid in _children(typed.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
        if "No matching distribution" in typed.output or "ERROR: Could not find a version" in typed.output:
            raise missing("an index of Python packages")
        output = typed.output
    return checkout, output


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in text.read_text().split()] if text.exists() else []


class Machines:
    """The user's machine, a server, and a web site that only the server finds; as a context manager.

    :ivar server_folder: where the user works at the server, ``client_folder`` at home.
    """

    def __init__(self) -> None:
        require_root()
        self.curl = require_program("curl")
        self.checkout, self.demo = installed()
        self._stack = contextlib.ExitStack()
        self.running: list[Process] = []

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._stack.close()

    def _make(self) -> None:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-user-")))
        pair = self._stack.enter_context(VethPair())
        self.client, self.server = pair.first, pair.second
        for space, hosts in ((self.client, ""), (self.server, f"{EXAMPLE} www.example.com\n")):
            own = Path("/etc/netns") / space.name
            own.mkdir(parents=True)
            self._stack.callback(shutil.rmtree, own, ignore_errors=True)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
            (own / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.client.run(["ip", "addr", "add", f"{EXAMPLE}/32", "dev", self.client.interface])
        self.client.run(["ip", "route", "add", "default", "via", self.server.address])
        self.server.run(["ip", "route", "add", "default", "via", self.client.address])
        write_certificate(self.folder / "web.pem", self.folder / "web-ca.pem", "www.example.com")
        shims = self.folder / "bin"
        shims.mkdir()
        (shims / "scp").write_text(_SCP)
        (shims / "scp").chmod(0o755)
        web = self.client.start([sys.executable, "-c", _WEB, str(self.folder / "web.pem")])
        self._stack.callback(web.stop)
        wait_for(lambda: listening(443, pid=web.pid), what="the web site")
        self.begin()

    # -- folders and programs

    def begin(self) -> None:
        """Empty folders, and nothing runs."""
        self.stop()
        base = Path(tempfile.mkdtemp(dir=self.folder))
        self.server_folder, self.client_folder = base / "server", base / "client"
        self.server_folder.mkdir()
        self.client_folder.mkdir()

    def stop(self) -> None:
        """End what runs; nobody waits for connections to drain."""
        for each in self.running:
            each.signal(signal.SIGTERM)
        while self.running:
            self.running.pop().stop(timeout=0.5)

    def space(self, at_server: bool) -> VethNamespace:
        """The machine."""
        return self.server if at_server else self.client

    def environment(self, at_server: bool) -> dict[str, str]:
        """The user's variables there."""
        return {
            "PATH": f"{self.checkout / '.venv' / 'bin'}:{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": "",
            "HOME": str(self.server_folder if at_server else self.client_folder),
            "XDG_STATE_HOME": "",
            "CURL_CA_BUNDLE": str(self.folder / "web-ca.pem"),
            "THE_SERVER": self.server.address,
            "SERVERS_FOLDER": str(self.server_folder),
        }

    def start(self, command: str, at_server: bool, env: dict[str, str] | None = None) -> Process:
        """Type a line that stays in the foreground."""
        folder = self.server_folder if at_server else self.client_folder
        words = ["bash", "-c", f"exec {command.replace('SERVER', self.server.address)}"]
        environment = self.environment(at_server) | (env or {})
        process = self.space(at_server).start(words, cwd=str(folder), env=environment)
        self.running.append(process)
        return process

    def serve(self, command: str, at_server: bool) -> Process:
        """The same for a program that is right; returns when its ports are open."""
        process = self.start(command, at_server)
        doors = [(a or c, int(b or d)) for a, b, c, d in _DOORS.findall(command)]
        if "paqet-client" in command:
            doors.append(("tcp", 1080))

        def ready() -> bool:
            if not process.alive:
                raise AssertionError(f"{command}\nended:\n{process.output}")
            open_ = all(listening(port, udp=kind == "kcp", pid=process.pid) for kind, port in doors)
            return open_ and (bool(doors) or "server on" in process.output)

        wait_for(ready, 20, f"{command}\n{process.output}\nis not ready: its port")
        return process

    def type(self, text: str, at_server: bool) -> str:
        """Type lines that end; what they print.

        :raises AssertionError: if one of them fails.
        """
        folder = self.server_folder if at_server else self.client_folder
        script = "set -e\n" + text.replace("SERVER", self.server.address)
        done = subprocess.run(
            self.space(at_server).command(["bash", "-c", script]),
            cwd=folder,
            env={**os.environ, **self.environment(at_server)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            logs = "\n".join(f"{shlex.join(each.args)}\n{each.output}" for each in self.running)
            raise AssertionError(f"{text}\nfails with {done.returncode}:\n{done.stdout}{done.stderr}\n{logs}")
        return done.stdout

    # -- pages

    def follow(self, path: Path) -> int:
        """Do what a page says, and look at a web page at the end of each set-up; how many lines stayed or ended well."""
        page = path.read_text("utf-8")
        done = 0
        for block in blocks(page):
            if block.anew:
                self.look()
                self.begin()
                for name, shown in included_files(page, path.parent).items():
                    shutil.copy(shown, self.server_folder / name)
            for text, stays in steps(block.text):
                if stays:
                    self.serve(text, block.at_server)
                else:
                    printed = self.type(text, block.at_server)
                    if "www.example.com" in text and PAGE + self.server.address not in printed:
                        raise AssertionError(f"{text}\nprinted {printed!r}")
                done += 1
        self.look()
        self.stop()
        return done

    def look(self) -> None:
        """Fetch the page through the SOCKS door, if there is one: it is for the server's address."""
        if any(listening(1080, pid=each.pid) for each in self.running if each.alive):
            printed = self.type("curl -sS --socks5-hostname 127.0.0.1:1080 https://www.example.com/", False)
            if printed != PAGE + self.server.address:
                raise AssertionError(f"the page is {printed!r}")


# -- mistakes


class Mistake(NamedTuple):
    """A command line with something wrong.

    :ivar name: what is wrong. :ivar command: the line. :ivar cause: what the one message must say (a pattern), and
        ``advice`` what to do about it (a pattern). :ivar at_server: on which machine it is typed.
    :ivar door: a port that is asked for a page, where only traffic shows the mistake; ``http`` sends a POST there instead.
    :ivar clock: seconds by which its clock is wrong.
    """

    name: str
    command: str
    cause: str
    advice: str
    at_server: bool = False
    door: int = 0
    http: bool = False
    clock: float = 0.0


#: Seconds within which the user knows.
PATIENCE = 10.0


def judge(machines: Machines, mistakes: Sequence[Mistake], run_clock: dict[str, str], wrong_clock: str) -> list[str]:
    """Make all mistakes side by side; what the user would complain about."""
    begun: dict[str, tuple[Mistake, Process, float]] = {}
    for each in mistakes:
        command, env = each.command, None
        if each.clock:
            command = command.replace("mikanet ", f"python -c {shlex.quote(wrong_clock)} ", 1)
            env = run_clock
        begun[each.name] = (each, machines.start(command, each.at_server, env), time.monotonic())
    complaints = []
    asking: list[Process] = []
    for each, process, _ in begun.values():
        if each.door:
            wait_for(lambda process=process, each=each: listening(each.door, pid=process.pid) or not process.alive, 15)
            words = ["curl", "-sS", "--max-time", "9"]
            words += (
                ["--data", "x", f"http://127.0.0.1:{each.door}/"]
                if each.http
                else ["--socks5-hostname", f"127.0.0.1:{each.door}", "https://www.example.com/"]
            )
            asking.append(machines.client.start(words, env=machines.environment(False)))
            begun[each.name] = (each, process, time.monotonic())
    for each, process, since in begun.values():
        complaints += _complaint(each, process, since + PATIENCE)
    for curl in asking:
        curl.stop(timeout=1)
    machines.stop()
    return complaints


def _complaint(mistake: Mistake, process: Process, until: float) -> list[str]:
    def lines() -> list[str]:
        return [line for line in process.output.splitlines() if re.search(mistake.cause, line)]

    while not lines() and time.monotonic() < until and (process.alive or not process.output):
        time.sleep(0.05)
    found, output = lines(), process.output
    wrong = []
    if not found:
        wrong.append(f"does not say {mistake.cause!r}")
    elif not re.search(mistake.advice, found[0]):
        wrong.append(f"does not advise {mistake.advice!r}")
    if len(found) > 1:
        wrong.append("says it more than once")
    if "Traceback" in output or "Unhandled" in output:
        wrong.append("shows a traceback")
    if not process.alive and len(output.strip().splitlines()) > 3:
        wrong.append("takes more than three lines")
    return [f"{mistake.name}: {each}\n{output}" for each in wrong]
