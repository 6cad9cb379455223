"""Pickaxe over HTTP: beside ``ssh -L`` and httptunnel on loopback, and over long paths.

python -m tests.bench.pickaxe_web [--megabytes 200] [--rounds 3]          CPU and goodput, both peers in turn
python -m tests.bench.pickaxe_web --far [--rtt 0,40,200] [--seconds 5]    goodput and latency through the lab's wire
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench import load
from tests.bench.pickaxe import Pair, pickaxe, ssh
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, free_port

WEB = ("ws", "bosh", "http")


@contextmanager
def httptunnel(target: int) -> Iterator[Pair]:
    """GNU httptunnel: one connection at a time."""
    with ExitStack() as stack:
        port, front = free_port(), free_port()
        server = Process([require_program("hts"), "-w", "-F", f"127.0.0.1:{target}", str(port)], ports=(port,))
        stack.callback(server.stop)
        client = Process([require_program("htc"), "-w", "-F", str(front), f"127.0.0.1:{port}"], ports=(front,))
        stack.callback(client.stop)
        yield Pair(front, (server.pid, client.pid))


@contextmanager
def started(name: str, target: int) -> Iterator[Pair]:
    """A pair by its name."""
    if name == "httptunnel":
        with httptunnel(target) as pair:
            yield pair
    else:
        with ssh(target) if name == "ssh -L" else pickaxe(name, target) as pair:
            yield pair


def measure(name: str, target: int, size: int) -> dict[str, float]:
    """CPU seconds per GB and MB/s each way. httptunnel is started afresh for each, because it serves one connection."""
    figures: dict[str, float] = {}
    for way, transfer in (("down", load.download), ("up", load.upload)):
        with started(name, target) as pair:
            if name != "httptunnel":
                load.short_connections(pair.front, load.STRAIGHT, 20)
            before = pair.cpu()
            seconds = transfer(pair.front, load.STRAIGHT, size)
            figures[f"{way} [CPU s/GB]"] = (pair.cpu() - before) / size * 1e9
            figures[f"{way} [MB/s]"] = size / seconds / 1e6
            if way == "down" and name != "httptunnel":
                trips = load.round_trips(pair.front, load.STRAIGHT, 300)
                figures["round trip, p50 [ms]"] = trips[len(trips) // 2] * 1e3
    return figures


def compare(names: list[str], size: int, rounds: int) -> None:
    """Everybody in turn; medians."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    port = free_port()
    with Process([sys.executable, "-m", "tests.bench.target", str(port)], ports=(port,), cwd=ROOT):
        for _ in range(rounds):
            for name in names:
                results[name].append(measure(name, port, size))
    print(f"{size / 1e6:.0f} MB each way, median of {rounds}")
    print(f"{'':24}" + "".join(f"{name:>14}" for name in names))
    for key in results[names[0]][0]:
        cells = [
            f"{statistics.median(each[key] for each in results[name]):.2f}" if key in results[name][0] else ""
            for name in names
        ]
        print(f"{key:24}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def _down_for(pair: Pair, seconds: float) -> float:
    """MB/s of a download, its first second left out."""
    buffer = bytearray(262_144)
    size = 0
    with load.connect(pair.front, load.STRAIGHT) as sock:
        sock.sendall(load.ORDER.pack(b"D", 1 << 40))
        begin = time.perf_counter() + 1.0
        while (now := time.perf_counter()) < begin + seconds:
            got = sock.recv_into(buffer)
            if not got:
                raise ConnectionError("the download ended early")
            size += got if now > begin else 0
    return size / seconds / 1e6


def _up_for(pair: Pair, seconds: float, target: _Counting) -> float:
    """MB/s of an upload as it arrives, its first second left out."""
    with socket.create_connection(("127.0.0.1", pair.front)) as sock:
        stop = threading.Event()

        def send() -> None:
            block = bytes(65536)
            try:
                while not stop.is_set():
                    sock.sendall(block)
            except OSError:
                pass

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        time.sleep(1.0)
        before = target.received
        time.sleep(seconds)
        size = target.received - before
        stop.set()
        sock.shutdown(socket.SHUT_RDWR)
        sender.join(5)
    return size / seconds / 1e6


class _Counting:
    """A far end that counts what comes: what an upload has really brought there."""

    def __init__(self) -> None:
        self.received = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            threading.Thread(target=self._take, args=(sock,), daemon=True).start()

    def _take(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(262_144):
                self.received += len(data)
        except OSError:
            pass


def far(names: list[str], rtts: list[int], seconds: float) -> None:
    """Goodput and latency through a wire that delays."""
    port = free_port()
    counting = _Counting()
    print(f"{'':6}{'RTT [ms]':>10}{'down [MB/s]':>14}{'up [MB/s]':>12}{'trip p50 [ms]':>15}{'p99 [ms]':>10}")
    with Process([sys.executable, "-m", "tests.bench.target", str(port)], ports=(port,), cwd=ROOT):
        for rtt in rtts:
            for name in names:
                with ExitStack() as stack:

                    def through(server: int, rtt: int = rtt, stack: ExitStack = stack) -> int:
                        if not rtt:
                            return server
                        outer = free_port()
                        words = [sys.executable, "-m", "tests.lab", "wire", f"delay={rtt / 2}ms"]
                        relay = Process([*words, "--tcp", f"{outer}=127.0.0.1:{server}"], ports=(outer,), cwd=ROOT)
                        stack.callback(relay.stop)
                        return outer

                    with pickaxe(name, port, through) as pair:
                        trips = load.round_trips(pair.front, load.STRAIGHT, 100 if rtt < 100 else 30)
                        down = _down_for(pair, seconds)
                    with pickaxe(name, counting.port, through) as pair:
                        up = _up_for(pair, seconds, counting)
                p50, p99 = trips[len(trips) // 2] * 1e3, trips[len(trips) * 99 // 100] * 1e3
                print(f"{name:6}{rtt:10}{down:14.1f}{up:12.1f}{p50:15.1f}{p99:10.1f}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--carriers", default=",".join(WEB), help="comma-separated")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--far", action="store_true", help="over paths with a delay")
    parser.add_argument("--rtt", default="0,40,200", help="round trip times of those, in ms")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each transfer on those")
    options = parser.parse_args()
    carriers = options.carriers.split(",")
    if options.far:
        far(carriers, [int(word) for word in options.rtt.split(",")], options.seconds)
    else:
        compare([*carriers, "ssh -L", "httptunnel"], options.megabytes * 1_000_000, options.rounds)


if __name__ == "__main__":
    main()
