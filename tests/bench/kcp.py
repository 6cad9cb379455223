"""Our KCP and smux against kcptun, in one run: goodput, and CPU seconds per GB of both ends together.

    python -m tests.bench.kcp [--megabytes 300] [--rounds 3] [--plain]

Both ends of a pair are processes of their own, joined by UDP on loopback, with the same windows, MTU and mode (kcptun's
defaults: 1350 bytes, server 1024/1024, client 128/512 packets, mode fast, aes, no compression). One TCP connection
carries the bytes, both ways one after the other. Pairs take turns, so that other work on the machine meets them alike.
``--plain`` adds our pair without the C extension.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.peers import require_program
from tests.support.processes import Process, cpu, free_port, wait_listening

SECRET = "a secret for benchmarks"
_CHUNK = bytes(1 << 18)


# -- our ends, as processes


def _end(role: str, block: str, fec: bool, smux: int, port: int, other: int, pure: bool) -> None:
    """Run one of our ends: ``port`` is the UDP port, ``other`` the TCP port of target or front."""
    if pure:
        sys.modules["mikanet._speedups"] = None  # type: ignore[assignment]  # as if it had not been built
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint

    from mikanet.crypto.packet_keys import Kdf, derive_key
    from mikanet.kcp.endpoints import KcpClientEndpoint, KcpServerEndpoint
    from mikanet.kcp.link import LinkSettings
    from mikanet.kcp.settings import KCPTUN_MODES
    from mikanet.smux.forward import ForwardListenFactory, SmuxDialer, SmuxServerFactory
    from mikanet.smux.session import SmuxSettings

    client = role == "client"
    link = LinkSettings(
        block,
        derive_key(SECRET.encode(), Kdf.KCPTUN),
        KCPTUN_MODES["fast"],
        snd_wnd=128 if client else 1024,
        rcv_wnd=512 if client else 1024,
        data_shards=10 if fec else 0,
        parity_shards=3 if fec else 0,
        require_proof=not client,
    )
    running: Any = reactor
    if client:
        dialer = SmuxDialer(SmuxSettings(smux), running, KcpClientEndpoint(running, "127.0.0.1", port, link))
        running.listenTCP(other, ForwardListenFactory(dialer), interface="127.0.0.1")
    else:
        target = TCP4ClientEndpoint(running, "127.0.0.1", other)
        KcpServerEndpoint(running, port, "127.0.0.1", link).listen(
            SmuxServerFactory(SmuxSettings(smux), running, target)
        )
    running.run()


@dataclass
class Case:
    """What is compared."""

    block: str
    fec: bool
    smux: int

    def __str__(self) -> str:
        return f"{self.block}, {'FEC 10/3' if self.fec else 'no FEC'}, smux {self.smux}"


Pair = tuple[Process, Process, int]


def our_pair(case: Case, target: int, pure: bool = False) -> Pair:
    """Our server and client, and the TCP port to connect to."""
    port, front = free_port(), free_port()

    def start(role: str, other: int) -> Process:
        words = [role, case.block, str(int(case.fec)), str(case.smux), str(port), str(other), str(int(pure))]
        return Process([sys.executable, "-m", "tests.bench.kcp", "--end", *words])

    server = start("server", target)
    wait_listening(port, udp=True, process=server)
    client = start("client", front)
    wait_listening(front, process=client)
    return server, client, front


def kcptun_pair(case: Case, target: int) -> Pair:
    """Debian's server and client."""
    port, front = free_port(), free_port()
    shards = ["--ds", "10", "--ps", "3"] if case.fec else ["--ds", "0", "--ps", "0"]
    common = ["--crypt", case.block, "--nocomp", "--smuxver", str(case.smux), "--mode", "fast", "--quiet", *shards]
    env = {"KCPTUN_KEY": SECRET}
    to = f"127.0.0.1:{target}"
    server = Process([require_program("kcptun-server"), "-l", f"127.0.0.1:{port}", "-t", to, *common], env=env)
    wait_listening(port, udp=True, process=server)
    ends = ["-l", f"127.0.0.1:{front}", "-r", f"127.0.0.1:{port}"]
    client = Process([require_program("kcptun-client"), *ends, *common], env=env)
    wait_listening(front, process=client)
    return server, client, front


# -- the load


def serve(listener: socket.socket) -> None:
    """The target: each connection in a thread of its own."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    """The first 8 bytes say how much to take and how much to give."""
    with contextlib.suppress(OSError, SystemExit), connection:
        head = connection.recv(16, socket.MSG_WAITALL)
        up, down = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
        take(connection, up)
        connection.sendall(b"k")
        give(connection, down)
        connection.recv(1)


def take(connection: socket.socket, count: int) -> None:
    buffer = bytearray(1 << 18)
    while count:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            raise SystemExit("the connection ended early")
        count -= got


def give(connection: socket.socket, count: int) -> None:
    while count:
        part = min(count, len(_CHUNK))
        connection.sendall(_CHUNK[:part])
        count -= part


@dataclass
class Figures:
    """One direction: bytes per second, and CPU seconds per byte at the server's and the client's end."""

    goodput: float
    server: float
    client: float


def measure(make: Callable[[int], Pair], size: int) -> dict[str, Figures]:
    """Start a pair, carry ``size`` bytes each way, stop it."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    server, client, front = make(listener.getsockname()[1])
    results = {}
    try:
        for name, up, down in (("down", 0, size), ("up", size, 0)):
            with socket.create_connection(("127.0.0.1", front)) as connection:
                used = cpu(server.pid), cpu(client.pid)
                began = time.monotonic()
                connection.sendall(up.to_bytes(8, "big") + down.to_bytes(8, "big"))
                give(connection, up)
                take(connection, 1 + down)
                took = time.monotonic() - began
                each = [cpu(p.pid) - before for p, before in zip((server, client), used, strict=True)]
            results[name] = Figures(size / took, each[0] / size, each[1] / size)
            time.sleep(0.3)
    finally:
        server.stop()
        client.stop()
        listener.close()
    return results


def main() -> None:
    """Run all cases and print a table."""
    if sys.argv[1:2] == ["--end"]:
        role, block, fec, smux, port, other, pure = sys.argv[2:]
        _end(role, block, fec == "1", int(smux), int(port), int(other), pure == "1")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="measure our pair without the C extension too")
    parser.add_argument("--smux", type=int, default=1)
    parser.add_argument("--blocks", default="aes")
    chosen = parser.parse_args()
    for block in chosen.blocks.split(","):
        for fec in (False, True):
            compare(Case(block, fec, chosen.smux), chosen.megabytes * 1_000_000, chosen.rounds, chosen.plain)


def compare(case: Case, size: int, rounds: int, plain: bool) -> None:
    """Measure the pairs in turn and print the medians."""
    print(f"{case}: {size / 1e6:.0f} MB each way, median of {rounds}")
    makers: dict[str, Callable[[int], Pair]] = {
        "kcptun": lambda target: kcptun_pair(case, target),
        "mikanet": lambda target: our_pair(case, target),
    }
    if plain:
        makers["mikanet, plain Python"] = lambda target: our_pair(case, target, pure=True)
    runs: dict[str, list[dict[str, Figures]]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, make in makers.items():
            runs[name].append(measure(make, size))
    base: dict[str, tuple[float, float]] = {}
    for name, measured in runs.items():
        for way in ("down", "up"):
            goodput = statistics.median(m[way].goodput for m in measured)
            server = statistics.median(m[way].server for m in measured)
            client = statistics.median(m[way].client for m in measured)
            cost = statistics.median(m[way].server + m[way].client for m in measured)
            line = f"  {name:22} {way:4} {goodput / 1e6:6.1f} MB/s   CPU s/GB: server {server * 1e9:5.1f}, "
            line += f"client {client * 1e9:5.1f}, both {cost * 1e9:5.1f}"
            if name == "kcptun":
                base[way] = goodput, cost
            else:
                line += f"   goodput x{goodput / base[way][0]:.2f}, CPU x{cost / base[way][1]:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
