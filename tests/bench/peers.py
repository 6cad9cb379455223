"""What is measured: each entry starts one way from a SOCKS5 port on loopback to the target. A new peer is one line in
``PEERS``."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers import require_program
from tests.support.processes import Process, cpu, free_port, rss


@dataclass
class Running:
    """A peer that runs.

    :ivar port: its SOCKS5 port. :ivar pids: the processes that carry the data, both hops.
    """

    port: int
    pids: tuple[int, ...]

    def cpu(self) -> float:
        """CPU seconds used so far by all of them."""
        return sum(map(cpu, self.pids))

    def rss(self) -> int:
        """Resident bytes of all of them."""
        return sum(map(rss, self.pids))


Commands = Callable[[int, int, Path], Sequence[Sequence[str]]]


def _password(folder: Path) -> str:
    file = folder / "password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(32) + "\n")
    return str(file)


def _twistd(*arguments: str) -> list[str]:
    program = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    return [sys.executable, "-c", program, "--nodaemon", "--pidfile=", *arguments]


def mika(*options: str) -> Commands:
    """Our Mika, server and client."""

    def commands(near: int, far: int, folder: Path) -> Sequence[Sequence[str]]:
        common = ["--password-file", _password(folder), "--state-dir", str(folder), *options]
        caps = ["--max-unverified-per-address", "100000", "--max-unverified", "100000", "--max-connections", "100000"]
        server = ["mika-server", "--listen", f"tcp:{far}:interface=127.0.0.1:backlog=4096"]
        client = ["mika-client", "--server", f"tcp:127.0.0.1:{far}"]
        return (
            _twistd(*server, "--allow-egress", "127.0.0.0/8", *common, *caps),
            _twistd(*client, "--socks", f"tcp:{near}:interface=127.0.0.1:backlog=4096", *common, *caps[-2:]),
        )

    return commands


def shadowsocks(method: str) -> Commands:
    """shadowsocks-libev with one of its methods."""

    def commands(near: int, far: int, folder: Path) -> Sequence[Sequence[str]]:
        common = ["-s", "127.0.0.1", "-p", str(far), "-k", secrets.token_urlsafe(16), "-m", method]
        return (
            [require_program("ss-server"), *common],
            [require_program("ss-local"), *common, "-b", "127.0.0.1", "-l", str(near)],
        )

    return commands


def microsocks(near: int, far: int, folder: Path) -> Sequence[Sequence[str]]:
    """microsocks: a SOCKS5 server without any tunnel, one hop."""
    return ([require_program("microsocks"), "-i", "127.0.0.1", "-p", str(near)],)


#: Every peer by name.
PEERS: dict[str, Commands] = {
    "mika": mika(),
    "mika-go": mika("--profile", "go"),
    "ss-aes-256-cfb": shadowsocks("aes-256-cfb"),
    "ss-aes-256-gcm": shadowsocks("aes-256-gcm"),
    "microsocks": microsocks,
}

#: How to ask a peer's program for its version, and the Debian package where it has no such option.
_VERSIONS: dict[str, tuple[Sequence[str], str]] = {
    "ss-aes-256-cfb": ((), "shadowsocks-libev"),
    "ss-aes-256-gcm": ((), "shadowsocks-libev"),
    "microsocks": ((), "microsocks"),
}


def version(name: str) -> str:
    """The version of a peer as its package says; ours for our own."""
    if name not in _VERSIONS:
        from mikanet import __version__

        return f"mikanet {__version__}"
    package = _VERSIONS[name][1]
    query = shutil.which("dpkg-query")
    if query is None:
        return package
    found = subprocess.run([query, "-W", "-f=${Version}", package], capture_output=True, text=True, check=False).stdout
    return f"{package} {found}".strip()


@contextmanager
def running(name: str) -> Iterator[Running]:
    """A peer, started afresh and stopped at the end."""
    near, far = free_port(), free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-bench-")))
        commands = PEERS[name](near, far, folder)
        ports = (near,) if len(commands) == 1 else (far, near)
        # The one that listens for applications is the last.
        pids = [
            stack.enter_context(Process(command, ports=(port,), timeout=30)).pid
            for command, port in zip(commands, ports, strict=True)
        ]
        yield Running(near, tuple(pids))
