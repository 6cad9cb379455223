"""Pickaxe over its carriers against OpenSSH's ``ssh -L``, in one run: CPU of both ends, goodput, latency.

    python -m tests.bench.pickaxe [--carriers tcp,ws] [--megabytes 400] [--rounds 3] [--connections 1000]

Each pair is a server and a client on loopback with one forward to the same target; pairs take turns, so that other work
on the machine meets them alike. CPU is user and system time of all processes of both ends, sshd's children included.
``--stalls`` measures instead how long a download stands still when its carrier is cut.
"""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import load
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, cpu, free_port, wait_for

PASSWORD = "a password for benchmarks only"  # of nothing but this


@dataclass
class Pair:
    """Both ends, running.

    :ivar front: the port to connect to. :ivar roots: the processes that were started, whose children count too.
    """

    front: int
    roots: tuple[int, ...]

    def cpu(self) -> float:
        """CPU seconds of all processes of both ends so far."""
        return sum(cpu(pid) for root in self.roots for pid in (root, *_descendants(root)))


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
    found: list[int] = []
    level = [root]
    while level:
        level = [pid for pid, parent in parents.items() if parent in level]
        found += level
    return found


def twistd(*words: str) -> list[str]:
    """A command line of twistd with this checkout's plugins."""
    program = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    return [sys.executable, "-c", program, "--nodaemon", "--pidfile=", *words]


def write_users(folder: Path) -> tuple[Path, Path]:
    """A password file and the users file that lets ``bench`` in by it."""
    from mikanet.pickaxe.keys import Kdf, Secret
    from mikanet.pickaxe.users import format_user

    password, users = folder / "password", folder / "users"
    for file, text in (
        (password, PASSWORD),
        (users, format_user("bench", Secret.of_password(Kdf.MIKANET, "bench", PASSWORD.encode()))),
    ):
        file.touch(mode=0o600)
        file.write_text(text + "\n")
    return password, users


#: For each carrier: what the client and the server are told, with the server's port in the place of {}.
CARRIERS = {
    "tcp": ("tcp://127.0.0.1:{}", "tcp://127.0.0.1:{}"),
    "ws": ("ws://127.0.0.1:{}/tunnel", "http://127.0.0.1:{}/tunnel"),
    "http": ("http://127.0.0.1:{}/tunnel", "http://127.0.0.1:{}/tunnel"),
    "bosh": ("bosh://127.0.0.1:{}/tunnel", "http://127.0.0.1:{}/tunnel"),
}


@contextmanager
def pickaxe(carrier: str, target: int, through: Callable[[int], int] | None = None) -> Iterator[Pair]:
    """Our server and client.

    :param through: makes, of the server's port, another port that leads there.
    """
    to, at = CARRIERS[carrier]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-bench-")))
        password, users = write_users(folder)
        port, front = free_port(), free_port()
        state = ["--state-dir", str(folder)]
        server = ["pickaxe-server", "--users", str(users), "--carrier", at.format(port)]
        started = Process(twistd(*server, "--allow-egress", "127.0.0.0/8", *state), ports=(port,), timeout=30)
        stack.callback(started.stop)
        near = through(port) if through else port
        client = ["pickaxe-client", "--user", "bench", "--password-file", str(password), "--carrier", to.format(near)]
        forward = f"tcp:{front}:interface=127.0.0.1:backlog=4096=127.0.0.1:{target}"
        other = Process(twistd(*client, "--forward", forward, *state), ports=(front,), timeout=30)
        stack.callback(other.stop)
        wait_for(lambda: "session with the server" in other.output, what="the session")
        yield Pair(front, (started.pid, other.pid))


@contextmanager
def ssh(target: int) -> Iterator[Pair]:
    """OpenSSH with its default cipher: an sshd of our own, and ``ssh -N -L``."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-bench-")))
        folder.chmod(0o700)
        for name in ("host", "user"):
            command = [require_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        Path("/run/sshd").mkdir(exist_ok=True)
        port, front = free_port(), free_port()
        options = {
            "ListenAddress": "127.0.0.1",
            "Port": str(port),
            "HostKey": str(folder / "host"),
            "AuthorizedKeysFile": str(folder / "authorized"),
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "PermitRootLogin": "yes",
            "MaxSessions": "4096",
        }
        (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        sshd = Process([require_program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")], ports=(port,))
        stack.callback(sshd.stop)
        words = ["-N", "-L", f"127.0.0.1:{front}:127.0.0.1:{target}", "-p", str(port), "-i", str(folder / "user")]
        settings = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known", "ExitOnForwardFailure=yes"]
        flags = [word for setting in settings for word in ("-o", setting)]
        command = [require_program("ssh"), "-F", "none", *flags, *words, f"{getpass.getuser()}@127.0.0.1"]
        client = Process(command, ports=(front,))
        stack.callback(client.stop)
        yield Pair(front, (sshd.pid, client.pid))


#: The figures: name, unit and format.
FIGURES = {
    "down_cpu": ("down, CPU", "s/GB", ".2f"),
    "up_cpu": ("up, CPU", "s/GB", ".2f"),
    "down": ("down", "MB/s", ".0f"),
    "up": ("up", "MB/s", ".0f"),
    "connection_cpu": ("new connection, CPU", "us", ".0f"),
    "trip_p50": ("round trip, p50", "us", ".0f"),
    "trip_p99": ("round trip, p99", "us", ".0f"),
}


def measure(pair: Pair, size: int, connections: int) -> dict[str, float]:
    """Take every figure of a running pair once."""
    figures: dict[str, float] = {}
    load.short_connections(pair.front, load.STRAIGHT, 50)
    for name, transfer in (("down", load.download), ("up", load.upload)):
        before = pair.cpu()
        seconds = transfer(pair.front, load.STRAIGHT, size)
        figures[name] = size / seconds / 1e6
        figures[f"{name}_cpu"] = (pair.cpu() - before) / size * 1e9
    trips = load.round_trips(pair.front, load.STRAIGHT, 1000)
    figures["trip_p50"] = trips[len(trips) // 2] * 1e6
    figures["trip_p99"] = trips[len(trips) * 99 // 100] * 1e6
    before = pair.cpu()
    load.short_connections(pair.front, load.STRAIGHT, connections)
    time.sleep(0.2)
    figures["connection_cpu"] = (pair.cpu() - before) / connections * 1e6
    return figures


def compare(carriers: list[str], size: int, rounds: int, connections: int) -> None:
    """Measure in turn and print medians."""
    names = [*carriers, "ssh -L"]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    port = free_port()
    with Process([sys.executable, "-m", "tests.bench.target", str(port)], ports=(port,), cwd=ROOT):
        for _ in range(rounds):
            for name in names:
                with ssh(port) if name == "ssh -L" else pickaxe(name, port) as pair:
                    results[name].append(measure(pair, size, connections))
    print(f"{size / 1e6:.0f} MB each way, {connections} connections, median of {rounds}")
    print(f"{'':28}" + "".join(f"{name:>16}" for name in names))
    for key, (text, unit, form) in FIGURES.items():
        medians = {name: statistics.median(each[key] for each in results[name]) for name in names}
        base = medians["ssh -L"]
        cells = [f"{medians[name]:{form}} (x{medians[name] / base:.2f})" for name in names]
        print(f"{text + ' [' + unit + ']':28}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


# -- stalls


class Cutter:
    """A TCP relay whose connections can all be cut at once, or only stop moving bytes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._sockets: set[socket.socket] = set()
        self.frozen = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pipe, args=(source, sink), daemon=True).start()

    def _pipe(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                while self.frozen.is_set():
                    time.sleep(0.01)
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self) -> None:
        """Reset every connection."""
        sockets, self._sockets = self._sockets, set()
        for each in sockets:
            try:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RDWR)
                each.close()
            except OSError:
                pass

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        self.cut()


def stalls(carrier: str, cuts: int, every: float) -> None:
    """Download while the carrier is cut again and again; the longest silence around each cut."""
    port = free_port()
    cutters: list[Cutter] = []

    def through(server: int) -> int:
        cutters.append(Cutter(server))
        return cutters[0].port

    found: list[float] = []
    with (
        Process([sys.executable, "-m", "tests.bench.target", str(port)], ports=(port,), cwd=ROOT),
        pickaxe(carrier, port, through) as pair,
        load.connect(pair.front, load.STRAIGHT) as sock,
    ):
        sock.sendall(load.ORDER.pack(b"D", 1 << 40))
        started = last = time.perf_counter()
        longest, done = 0.0, 0
        buffer = bytearray(65536)
        while done < cuts:
            if not sock.recv_into(buffer):
                raise ConnectionError("the download ended early")
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            if now - started >= every:
                if done or longest:
                    found.append(longest)
                longest, started = 0.0, now
                done += 1
                cutters[0].cut()
    cutters[0].close()
    found = sorted(found[1:])
    print(f"{carrier}: {len(found)} cuts; silence of a busy download: median {found[len(found) // 2]:.3f} s, ", end="")
    print(f"worst {found[-1]:.3f} s")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carriers", default="tcp", help=f"comma-separated; known: {', '.join(CARRIERS)}")
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--stalls", type=int, metavar="CUTS", help="cut the carrier so many times, twice a second")
    options = parser.parse_args()
    carriers = options.carriers.split(",")
    if options.stalls:
        for carrier in carriers:
            stalls(carrier, options.stalls + 1, 0.5)
    else:
        compare(carriers, options.megabytes * 1_000_000, options.rounds, options.connections)


if __name__ == "__main__":
    main()
