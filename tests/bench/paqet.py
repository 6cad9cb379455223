"""paqet between two network namespaces joined by a veth pair. Needs root.

    python -m tests.bench.paqet speed [--megabytes 200] [--rounds 3] [--carriers raw,udp]
    python -m tests.bench.paqet memory [--sessions 1000] [--streams 10]
    python -m tests.bench.paqet forged [--rate 5000] [--megabytes 60] [--rounds 3]
    python -m tests.bench.paqet repeated [--packets 100000]
    python -m tests.bench.paqet quiet [--minutes 10]

``speed``: beside kcptun over UDP on the same pair, with the same cipher, windows, MTU and mode (paqet's defaults: aes,
1350 bytes, server 1024/1024, client 128/512 packets, mode fast, smux 2), no FEC, no compression: goodput, and CPU seconds
per GB of both ends together. One TCP connection carries the bytes, both ways one after the other. Pairs take turns.

``memory``: what a server holds for so many live sessions with so many open streams each.

``forged``: goodput of a download while packets of random bytes come to the server from the client's own address, right
in every header, beside the same without them, in turn.

``repeated``: so many packets that a client recorded are sent again to the server, and as many that the server sent are
turned round to it, during a session; what was accepted of them.

``quiet``: transfers for so many minutes, and the RSTs that either kernel sent.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.kcp import SECRET, Figures, give, serve, take
from tests.interop.paqet_ends import file_text, write_file
from tests.lab.veth import VethPair
from tests.support.peers import require_program
from tests.support.processes import Process, cpu, rss, wait_for, wait_listening

_PORT, _FRONT, _TARGET = 29900, 21080, 28000
_TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"

Pair = tuple[Process, Process]


def _listens(process: Process, port: int, udp: bool = False) -> None:
    wait_listening(port, udp=udp, process=process)


class World:
    """Two namespaces, the target in the second, and a folder for files."""

    def __init__(self, stack: ExitStack) -> None:
        self.pair = stack.enter_context(VethPair())
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-bench-")))
        self.server, self.client = self.pair.second, self.pair.first
        with self.server.entered():
            import socket

            listener = socket.create_server((self.server.address, _TARGET), backlog=4096)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        stack.callback(listener.close)

    def connect(self, port: int = _FRONT) -> Any:
        """A connection of an application."""
        import socket

        with self.client.entered():
            return socket.create_connection(("127.0.0.1", port), timeout=60)

    # -- pairs

    def paqet(self, carrier: str, kcp: str = "mode: fast", more: str = "") -> Pair:
        """Our server and client."""
        kcp = f'key: "{SECRET}"\n{kcp}'
        where = f"{self.server.address}:{_PORT}"
        network = f"ipv4: {{addr: '{where}'}}\ninterface: {self.server.interface}"
        text = file_text("server", where, network, kcp, f"carrier: {carrier}")
        server_file = write_file(self.folder, "server.yaml", text)
        text = file_text("client", where, f"interface: {self.client.interface}", kcp, f"carrier: {carrier}", more)
        text += f"forward: [{{listen: '127.0.0.1:{_FRONT}', target: '{self.server.address}:{_TARGET}', protocol: tcp}}]\n"
        client_file = write_file(self.folder, "client.yaml", text)
        server = self._twistd(
            self.server,
            "paqet-server",
            *("--config", server_file, "--allow-egress", "10.77.0.0/16", "--state-dir", str(self.folder)),
            *("--max-sessions", "5000", "--max-sessions-per-address", "5000", "--max-unverified", "5000"),
            *("--max-unverified-per-address", "5000", "--max-connections", "50000", "--drain-time", "0"),
        )
        if carrier == "udp":
            _listens(server, _PORT, udp=True)
        else:
            wait_for(lambda: "paqet server on" in server.output, what=f"the server\n{server.output}")
        client = self._twistd(self.client, "paqet-client", "--config", client_file, "--drain-time", "0")
        _listens(client, _FRONT)
        return server, client

    def _twistd(self, space: Any, *words: str) -> Process:
        from tests.support.processes import ROOT

        command = [sys.executable, "-c", _TWISTD, "--nodaemon", "--pidfile=", *words]
        made: Process = space.start(command, cwd=str(self.folder), env={"PYTHONPATH": str(ROOT)})
        return made

    def kcptun(self) -> Pair:
        """Debian's, set as ours is."""
        common = ["--crypt", "aes", "--nocomp", "--smuxver", "2", "--mode", "fast", "--quiet", "--ds", "0", "--ps", "0"]
        env = {"KCPTUN_KEY": SECRET}
        to = f"{self.server.address}:{_TARGET}"
        where = f"{self.server.address}:{_PORT}"
        server = self.server.start([require_program("kcptun-server"), "-l", where, "-t", to, *common], env=env)
        _listens(server, _PORT, udp=True)
        ends = ["-l", f"127.0.0.1:{_FRONT}", "-r", where]
        client = self.client.start([require_program("kcptun-client"), *ends, *common], env=env)
        _listens(client, _FRONT)
        return server, client

    @contextmanager
    def running(self, make: Callable[[], Pair]) -> Iterator[Pair]:
        """A pair, stopped at the end."""
        pair = make()
        try:
            yield pair
        finally:
            for process in pair:
                process.stop()

    def transfer(self, up: int, down: int) -> float:
        """Carry bytes; the seconds that it took."""
        with self.connect() as connection:
            began = time.monotonic()
            connection.sendall(up.to_bytes(8, "big") + down.to_bytes(8, "big"))
            give(connection, up)
            take(connection, 1 + down)
            return time.monotonic() - began


# -- the commands


def speed(world: World, chosen: argparse.Namespace) -> None:
    """Beside kcptun."""
    size = chosen.megabytes * 1_000_000
    makers: dict[str, Callable[[], Pair]] = {"kcptun, UDP": world.kcptun}
    for carrier in chosen.carriers.split(","):
        makers[f"mikanet, {carrier}"] = lambda carrier=carrier: world.paqet(carrier)
    runs: dict[str, list[dict[str, Figures]]] = {name: [] for name in makers}
    for _ in range(chosen.rounds):
        for name, make in makers.items():
            with world.running(make) as pair:
                world.transfer(1000, 1_000_000)
                runs[name].append({way: _measure(world, pair, *sizes) for way, sizes in _ways(size)})
    print(f"aes, no FEC, smux 2, mode fast: {chosen.megabytes} MB each way, median of {chosen.rounds}")
    base: dict[str, tuple[float, float]] = {}
    for name, measured in runs.items():
        for way, _ in _ways(size):
            goodput = statistics.median(each[way].goodput for each in measured)
            cost = statistics.median(each[way].server + each[way].client for each in measured)
            server = statistics.median(each[way].server for each in measured)
            line = f"  {name:14} {way:4} {goodput / 1e6:6.1f} MB/s   CPU s/GB: server {server * 1e9:5.1f}, both {cost * 1e9:5.1f}"
            base.setdefault(way, (goodput, cost))
            line += f"   goodput x{goodput / base[way][0]:.2f}, CPU x{cost / base[way][1]:.2f}"
            print(line, flush=True)


def _ways(size: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("down", (0, size)), ("up", (size, 0))


def _measure(world: World, pair: Pair, up: int, down: int) -> Figures:
    used = [cpu(process.pid) for process in pair]
    took = world.transfer(up, down)
    each = [(cpu(process.pid) - before) / (up + down) for process, before in zip(pair, used, strict=True)]
    return Figures((up + down) / took, *each)


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--megabytes", type=int, default=200)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--carriers", default="raw,udp")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        {"speed": speed}[chosen.command](World(stack), chosen)


if __name__ == "__main__":
    main()
