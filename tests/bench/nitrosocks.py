"""``python -m tests.bench.nitrosocks``: NitroSocks beside two stunnels and ``ssh -D``, in one run, on loopback.

Each figure is taken of each peer in turn, in every round. stunnel carries each connection in a TLS connection of its own to
one target; ``ssh -D`` and NitroSocks carry all of them in one session.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import load
from tests.bench.target import ORDER
from tests.lab.tunnels import NitroSocksTunnel, write_certificate
from tests.nitrosocks.hijacker import Hijacker
from tests.support.peers import require_program
from tests.support.processes import Process, cpu, free_port, rss

#: Holds so many sessions of its own open and does nothing with them: ``python -c IDLE FOLDER PORT COUNT``.
IDLE = """
import sys
from twisted.internet import reactor
from mikanet.net.endpoint import TcpEndpoint
from mikanet.address import Address
from mikanet.nitrosocks.client import NitroTunnel, Server
from mikanet.nitrosocks.options import make_client_config
folder, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = make_client_config(server_name="localhost", private_key=folder + "/keys/client.key",
    token_file=folder + "/keys/token", tls_verify="off", cipher="aes-256-gcm", tls_binding="off", insecure_ok=False)
server = Server("server", TcpEndpoint(reactor, Address("127.0.0.1", port)))
tunnels = []
def more(_=None):
    if len(tunnels) in (20, count):
        print("sessions", len(tunnels), flush=True)
    if len(tunnels) == 20:
        sys.stdin.readline()
    if len(tunnels) < count:
        tunnels.append(NitroTunnel(reactor, [server], config))
        tunnels[-1].session().addCallback(lambda s: reactor.callLater(0, more))
reactor.callWhenRunning(more)
reactor.run()
"""


@dataclass
class Peer:
    """What is measured.

    :ivar port: where applications connect; ``socks`` says whether they speak SOCKS5 there. :ivar roots: its processes,
        whose children count, too.
    """

    port: int
    socks: bool
    roots: list[int]

    def pids(self) -> list[int]:
        """All of its processes now."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents[int(entry.name)] = int(fields[1])
        found = list(self.roots)
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid and child not in found]
        return found

    def cpu(self) -> float:
        """CPU seconds of all of them so far."""
        return sum(map(cpu, self.pids()))

    def connect(self, proxy: int, target: int) -> socket.socket:
        """A connection to the target through it."""
        if self.socks:
            return _socks_connect(proxy, target)
        sock = socket.create_connection(("127.0.0.1", proxy), timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


_socks_connect = load.connect


@contextmanager
def stunnel(target: int) -> Iterator[Peer]:
    """Two stunnels, one hop of TLS."""
    program = require_program("stunnel4")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        near, far = free_port(), free_port()
        write_certificate(folder / "server.pem", folder / "ca.pem", "localhost")
        common = "foreground=yes\npid=\ndebug=3\nsocket=l:TCP_NODELAY=1\nsocket=r:TCP_NODELAY=1\n[a]\n"
        (folder / "server.conf").write_text(
            f"{common}accept=127.0.0.1:{far}\nconnect=127.0.0.1:{target}\ncert={folder}/server.pem\n"
        )
        (folder / "client.conf").write_text(
            f"{common}client=yes\naccept=127.0.0.1:{near}\nconnect=127.0.0.1:{far}\n"
            f"CAfile={folder}/ca.pem\nverifyChain=yes\n"
        )
        server = stack.enter_context(Process([program, str(folder / "server.conf")], ports=(far,)))
        client = stack.enter_context(Process([program, str(folder / "client.conf")], ports=(near,)))
        yield Peer(near, False, [server.pid, client.pid])


@contextmanager
def ssh(target: int) -> Iterator[Peer]:
    """``ssh -D`` to a server of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        near, far = free_port(), free_port()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        (folder / "sshd_config").write_text(
            f"Port {far}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nMaxStartups 1000\nMaxSessions 1000\n"
        )
        server = stack.enter_context(
            Process([require_program("sshd"), "-D", "-f", str(folder / "sshd_config")], ports=(far,))
        )
        quiet = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known", "-o", "LogLevel=ERROR"]
        client = stack.enter_context(
            Process(
                [
                    *(require_program("ssh"), "-N", "-F", "none", "-i", str(folder / "user"), *quiet),
                    *("-p", str(far), "-D", f"127.0.0.1:{near}", "root@127.0.0.1"),
                ],
                ports=(near,),
            )
        )
        yield Peer(near, True, [server.pid, client.pid])


@contextmanager
def ours(target: int, socks: bool = True) -> Iterator[Peer]:
    """Our server and client."""
    forward = free_port()
    with NitroSocksTunnel(
        client_options=[f"--forward=tcp:{forward}:interface=127.0.0.1:backlog=4096=127.0.0.1:{target}"]
    ) as tunnel:
        yield Peer(tunnel.socks_port if socks else forward, socks, [tunnel.server_pid, tunnel.client_pid])


@contextmanager
def ours_forward(target: int) -> Iterator[Peer]:
    """The same by a forward to the target, as stunnel has it."""
    with ours(target, socks=False) as peer:
        yield peer


PEERS: dict[str, Callable[[int], object]] = {
    "nitrosocks": ours_forward,
    "nitrosocks-socks": ours,
    "stunnel x2": stunnel,
    "ssh -D": ssh,
}

Figures = dict[str, float]


def one_round(name: str, target: int, size: int, connections: int) -> Figures:
    """Every figure of one peer, once."""
    figures: Figures = {}
    with PEERS[name](target) as peer:  # type: ignore[attr-defined]  # each is a context manager
        load.connect = peer.connect
        load.short_connections(peer.port, target, 50)
        for way, transfer in (("down", load.download), ("up", load.upload)):
            before = peer.cpu()
            seconds = transfer(peer.port, target, size)
            figures[f"{way}, CPU s/GB"] = (peer.cpu() - before) / size * 1e9
            figures[f"{way}, MB/s"] = size / seconds / 1e6
        before = peer.cpu()
        seconds = load.short_connections(peer.port, target, connections)
        figures["new connections, 1/s"] = connections / seconds
        figures["new connection, CPU us"] = (peer.cpu() - before) / connections * 1e6
        trips = load.round_trips(peer.port, target, 500)
        figures["round trip p50, us"] = trips[len(trips) // 2] * 1e6
    return figures


def idle_memory(count: int) -> Figures:
    """KB of each end for each idle session with a TLS connection of its own."""
    tunnel = NitroSocksTunnel()
    try:
        tunnel.start_server()
        driver = subprocess.Popen(
            [sys.executable, "-c", IDLE, str(tunnel.folder), str(tunnel.server_port), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert driver.stdout is not None
            assert driver.stdin is not None
            driver.stdout.readline()
            before = rss(tunnel.server_pid), rss(driver.pid)
            driver.stdin.write("\n")
            driver.stdin.flush()
            driver.stdout.readline()
            time.sleep(1)
            after = rss(tunnel.server_pid), rss(driver.pid)
        finally:
            driver.kill()
            driver.wait()
        server, client = ((late - early) / (count - 20) / 1024 for early, late in zip(before, after, strict=True))
        return {"idle session, server KB": server, "idle session, client KB": client}
    finally:
        tunnel.close()


def stalls(target: int, count: int) -> Figures:
    """What an application that echoes sees of a TLS connection that is cut: seconds until its next answer."""
    with ExitStack() as stack:
        tunnel = NitroSocksTunnel()
        stack.callback(tunnel.close)
        tunnel.start_server()
        hijacker = Hijacker(tunnel.certificate, tunnel.server_port)
        stack.callback(hijacker.close)
        tunnel.through = hijacker.port
        tunnel.start_client()
        try:
            sock = stack.enter_context(_socks_connect(tunnel.socks_port, target))
        except ConnectionError as problem:
            assert tunnel.client is not None
            raise ConnectionError(f"{problem}; the client says: {tunnel.client.output}") from None
        sock.sendall(ORDER.pack(b"E", 0))
        times = []
        for number in range(count):
            while len(hijacker.connections) <= number:
                time.sleep(0.001)
            hijacker.connections[number].cut()
            data = os.urandom(16)
            begun = time.perf_counter()
            sock.sendall(data)
            got = b""
            while len(got) < len(data):
                got += sock.recv(64)
            times.append(time.perf_counter() - begun)
            assert got == data
            time.sleep(0.02)
    times.sort()
    return {
        "stall after a cut p50, ms": times[len(times) // 2] * 1000,
        "stall after a cut p95, ms": times[len(times) * 95 // 100] * 1000,
        "stall after a cut, most ms": times[-1] * 1000,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nitrosocks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=220, help="idle sessions whose memory is taken")
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, list[Figures]] = {name: [] for name in options.peers.split(",")}
    port = free_port()
    with Process([sys.executable, "-m", "tests.bench.target", str(port)], ports=(port,)):
        for number in range(options.rounds):
            for name, rounds in results.items():
                print(f"round {number + 1}: {name}", file=sys.stderr)
                rounds.append(one_round(name, port, options.megabytes * 1_000_000, options.connections))
        alone = {**(stalls(port, options.cuts) if options.cuts else {})}
    alone |= idle_memory(options.sessions) if options.sessions else {}
    print(f"{'median':28}" + "".join(f"{name:>20}" for name in results))
    for figure in next(iter(results.values()))[0]:
        medians = [statistics.median(each[figure] for each in rounds) for rounds in results.values()]
        print(f"{figure:28}" + "".join(f"{value:20.2f}" for value in medians))
    for figure, value in alone.items():
        print(f"{figure:28}{value:20.1f}")
    if options.json:
        options.json.write_text(json.dumps({"rounds": results, "alone": alone}, indent=1) + "\n")


if __name__ == "__main__":
    main()
