"""Pickaxe over DNS and ICMP beside dns2tcp, iodine and ptunnel-ng, in one run, between two network namespaces (root).

    python -m tests.bench.pickaxe_dns [--rounds 3] [--seconds 3] [--only pickaxe-dns,dns2tcp]

One TCP connection through each tunnel carries bytes down, then up, for about so many seconds. Printed are goodput and
the CPU seconds per GB of all processes that carry the data (a resolver's apart), then the time of a small request on a
connection of its own over a wire with 15 ms each way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.netns import Namespaces
from tests.support.peers import require_program
from tests.support.processes import Process, cpu

ZONE = "t.example"
PASSWORD = "correct horse battery staple 42"
_TARGET_PORT, _NEAR_PORT = 7000, 7001
_TWISTD = [sys.executable, "-c", "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"]

# What runs in namespaces: a target that takes and gives, and a client that measures.
_TARGET = """
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(6, 1, 1)
        head = b""
        while len(head) < 16:
            head += self.request.recv(16 - len(head)) or exit()
        up, down = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
        while up:
            up -= len(self.request.recv(min(65536, up)) or exit())
        self.request.sendall(b"k")
        block = bytes(65536)
        while down:
            part = min(down, 65536)
            self.request.sendall(block[:part])
            down -= part
        self.request.recv(1)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("", int(sys.argv[1])), Handler).serve_forever()
"""
_LOAD = """
import socket, sys, time
host, port, up, down, times = sys.argv[1], *map(int, sys.argv[2:])
for _ in range(times):
    began = time.monotonic()
    connection = socket.create_connection((host, port), 20)
    connection.setsockopt(6, 1, 1)
    connection.sendall(up.to_bytes(8, "big") + down.to_bytes(8, "big"))
    block, rest = bytes(65536), up
    while rest:
        part = min(rest, 65536)
        connection.sendall(block[:part])
        rest -= part
    rest = down + 1
    while rest:
        got = connection.recv(65536)
        if not got:
            raise SystemExit("ended early")
        rest -= len(got)
    print(time.monotonic() - began, flush=True)
    connection.close()
"""


@dataclass
class Setting:
    """Two machines and what runs on them."""

    pair: Namespaces
    folder: Path
    stack: ExitStack
    carriers: list[Process] = field(default_factory=list)
    aside: list[Process] = field(default_factory=list)

    def start(self, first: bool, command: Sequence[str], aside: bool = False) -> Process:
        """Start a program on one of them."""
        process = (self.pair.first if first else self.pair.second).start(command)
        self.stack.callback(process.kill)
        (self.aside if aside else self.carriers).append(process)
        return process

    def file(self, name: str, text: str) -> str:
        """A file for a program."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    @property
    def server(self) -> str:
        """The second machine's address."""
        return self.pair.second.address


#: Starts a tunnel; gives host and port to which the first machine connects.
Tunnel = Callable[[Setting], tuple[str, int]]


def pickaxe(carrier: str, listen: str = "") -> Tunnel:
    """Ours by one carrier; ``{server}`` is the server's address."""

    def start(setting: Setting) -> tuple[str, int]:
        secret = setting.file("password", PASSWORD + "\n")
        words = [
            sys.executable,
            "-c",
            "from mikanet.cli.main import main; main()",
            "passwd",
            "alice",
            "--password-file",
            secret,
        ]
        line = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        users = setting.file("users", line)
        server = (listen or carrier).format(server=setting.server)
        state = ["--state-dir", str(setting.folder)]
        egress = ["--allow-egress", "10.0.0.0/8"]
        setting.start(
            False,
            [*_TWISTD, "-n", "--pidfile=", "pickaxe-server", "--users", users, *egress, "--carrier", server, *state],
        )
        time.sleep(2)
        door = f"tcp:{_NEAR_PORT}:interface=127.0.0.1={setting.server}:{_TARGET_PORT}"
        client = [*_TWISTD, "-n", "--pidfile=", "pickaxe-client", "--user", "alice", "--password-file", secret]
        url = carrier.format(server=setting.server)
        setting.start(True, [*client, "--carrier", url, "--forward", door, *state])
        time.sleep(4)
        return "127.0.0.1", _NEAR_PORT

    return start


def unbound(setting: Setting) -> None:
    """unbound on the first machine, with what dns2tcp needs."""
    text = f"""
server:
  interface: 127.0.0.1@53
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "{setting.folder}"
  pidfile: "{setting.folder}/pid"
  use-syslog: no
  do-not-query-localhost: no
  module-config: "iterator"
  qname-minimisation: no
  infra-host-ttl: 1
  infra-keep-probing: yes
stub-zone:
  name: "{ZONE}"
  stub-addr: {setting.server}@53
"""
    setting.start(True, [require_program("unbound"), "-d", "-c", setting.file("unbound.conf", text)], aside=True)
    time.sleep(1)


def dns2tcp(resolver: str = "") -> Tunnel:
    """dns2tcp, straight or through a resolver."""

    def start(setting: Setting) -> tuple[str, int]:
        lines = [f"listen = {setting.server}", "port = 53", "user = root", "chroot = /tmp", f"domain = {ZONE}"]
        lines.append(f"resources = load:{setting.server}:{_TARGET_PORT}")
        config = setting.file("dns2tcpd", "\n".join(lines) + "\n")
        setting.start(False, [require_program("dns2tcpd"), "-F", "-f", config])
        time.sleep(1)
        words = ["-r", "load", "-z", ZONE, "-l", str(_NEAR_PORT), resolver or setting.server]
        setting.start(True, [require_program("dns2tcpc"), *words])
        time.sleep(2)
        return "127.0.0.1", _NEAR_PORT

    return start


def iodine(raw: bool) -> Tunnel:
    """iodine with its raw UDP mode, or kept to DNS."""

    def start(setting: Setting) -> tuple[str, int]:
        common = ["-f", "-P", "bench"]
        setting.start(False, [require_program("iodined"), *common, "-c", "10.177.0.1/24", ZONE])
        time.sleep(1)
        setting.start(True, [require_program("iodine"), *common, *([] if raw else ["-r"]), setting.server, ZONE])
        time.sleep(8)
        return "10.177.0.1", _TARGET_PORT

    return start


def ptunnel(setting: Setting) -> tuple[str, int]:
    """ptunnel-ng."""
    setting.start(False, [require_program("ptunnel-ng")])
    time.sleep(1)
    words = ["-p", setting.server, "-l", str(_NEAR_PORT), f"-r{setting.server}", f"-R{_TARGET_PORT}"]
    setting.start(True, [require_program("ptunnel-ng"), *words])
    time.sleep(2)
    return "127.0.0.1", _NEAR_PORT


def direct(setting: Setting) -> tuple[str, int]:
    """No tunnel."""
    return setting.server, _TARGET_PORT


def through_unbound(tunnel: Tunnel) -> Tunnel:
    """The same through unbound on the client's machine."""

    def start(setting: Setting) -> tuple[str, int]:
        unbound(setting)
        return tunnel(setting)

    return start


_SERVER_DNS = f"dns://{{server}}:53/{ZONE}"
TUNNELS: dict[str, Tunnel] = {
    "direct": direct,
    "pickaxe-dns": pickaxe(_SERVER_DNS),
    "pickaxe-dns-names": pickaxe(_SERVER_DNS + "?wide=no", _SERVER_DNS),
    "dns2tcp": dns2tcp(),
    "iodine-dns": iodine(raw=False),
    "pickaxe-dns-unbound": through_unbound(pickaxe(f"dns://127.0.0.1:53/{ZONE}", _SERVER_DNS)),
    "dns2tcp-unbound": through_unbound(dns2tcp("127.0.0.1")),
    "pickaxe-icmp": pickaxe("icmp://{server}"),
    "ptunnel-ng": ptunnel,
    "iodine-raw": iodine(raw=True),
}
#: Ours, theirs, and what is aimed at (times theirs).
AIMS = (
    ("pickaxe-dns", "dns2tcp", 0.7),
    ("pickaxe-dns", "iodine-dns", 3.0),
    ("pickaxe-dns-names", "dns2tcp", 0.7),
    ("pickaxe-dns-unbound", "dns2tcp-unbound", 0.7),
    ("pickaxe-icmp", "ptunnel-ng", 10.0),
    ("pickaxe-icmp", "iodine-raw", 0.3),
)


@contextmanager
def running(name: str, scenario: str | None) -> Iterator[tuple[Setting, str, int]]:
    """A tunnel between two machines; without a scenario they are joined by a plain veth."""
    with ExitStack() as stack:
        pair = stack.enter_context(Namespaces(scenario or "", 1))
        if scenario is None:
            _join(pair)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-bench-")))
        if "icmp" in name:
            pair.second.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"])
        if name == "ptunnel-ng":
            pair.second.run(["sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"])
        setting = Setting(pair, folder, stack)
        setting.start(False, [sys.executable, "-c", _TARGET, str(_TARGET_PORT)], aside=True)
        time.sleep(0.5)
        host, port = TUNNELS[name](setting)
        yield setting, host, port


def _join(pair: Namespaces) -> None:
    """A veth instead of the wire's two TAP devices, with the same addresses."""
    first, second = pair.first, pair.second
    for space in (first, second):
        subprocess.run(["ip", "-n", space.name, "addr", "flush", "dev", space.interface], check=True)
    ends = f"veth{os.getpid() % 10000}"
    words = ["ip", "link", "add", f"{ends}a", "netns", first.name, "type", "veth", "peer", "name", f"{ends}b"]
    subprocess.run([*words, "netns", second.name], check=True)
    for space, end in ((first, "a"), (second, "b")):
        subprocess.run(["ip", "-n", space.name, "addr", "add", f"{space.address}/24", "dev", ends + end], check=True)
        subprocess.run(["ip", "-n", space.name, "link", "set", ends + end, "up"], check=True)


def _load(setting: Setting, host: str, port: int, up: int, down: int, times: int = 1) -> list[float]:
    words = [sys.executable, "-c", _LOAD, host, str(port), str(up), str(down), str(times)]
    done = setting.pair.first.run(words, timeout=90)
    return [float(line) for line in done.stdout.split()]


def goodput(name: str, seconds: float) -> dict[str, tuple[float, float]]:
    """Bytes per second and CPU seconds per byte, each way."""
    found = {}
    with running(name, None) as (setting, host, port):
        for way in ("down", "up"):
            probe = 200_000

            def carry(size: int, way: str = way) -> float:
                up, down = (size, 0) if way == "up" else (0, size)
                return _load(setting, host, port, up, down)[0]

            # A tunnel's start is not its speed: the second guess is made of a transfer of half a second.
            probe = int(min(20e6, max(probe, probe / carry(probe) * 0.5)))
            size = int(min(200e6, max(probe, probe / carry(probe) * seconds)))
            before = sum(cpu(process.pid) for process in setting.carriers)
            took = carry(size)
            used = sum(cpu(process.pid) for process in setting.carriers) - before
            found[way] = size / took, used / size
    return found


def latency(name: str) -> float:
    """The median of small requests, each on a connection of its own, over 15 ms each way."""
    with running(name, "delay=15ms") as (setting, host, port):
        return statistics.median(_load(setting, host, port, 0, 100, times=15))


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", default=",".join(TUNNELS))
    parser.add_argument("--no-latency", action="store_true")
    chosen = parser.parse_args()
    names = chosen.only.split(",")
    runs: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in names}
    for number in range(chosen.rounds):
        for name in names:
            try:
                runs[name].append(goodput(name, chosen.seconds))
            except (subprocess.SubprocessError, IndexError, OSError) as problem:
                print(f"  round {number}: {name} failed: {type(problem).__name__}", flush=True)
    medians: dict[tuple[str, str], float] = {}
    for name in names:
        for way in ("down", "up"):
            if runs[name]:
                rate = medians[name, way] = statistics.median(run[way][0] for run in runs[name])
                cost = statistics.median(run[way][1] for run in runs[name])
                print(f"{name:22} {way:4} {rate / 1e6:8.2f} MB/s   {cost * 1e9:8.1f} CPU s/GB", flush=True)
    for ours, theirs, aim in AIMS:
        for way in ("down", "up"):
            if (ours, way) in medians and (theirs, way) in medians:
                ratio = medians[ours, way] / medians[theirs, way]
                print(f"{ours} / {theirs}, {way}: {ratio:.2f} (aim {aim})")
    if not chosen.no_latency:
        for name in names:
            if name.startswith(("direct", "pickaxe")) and "unbound" not in name:
                print(f"{name:22} small request {latency(name) * 1000:7.1f} ms", flush=True)


if __name__ == "__main__":
    main()
