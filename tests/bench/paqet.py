"""paqet between two network namespaces joined by a veth pair. Needs root.

    python -m tests.bench.paqet speed [--megabytes 200] [--rounds 3] [--carriers raw,udp] [--window 0]
    python -m tests.bench.paqet memory [--sessions 1000] [--streams 10]
    python -m tests.bench.paqet forged [--rate 5000] [--megabytes 60] [--rounds 3]
    python -m tests.bench.paqet repeated [--packets 100000]
    python -m tests.bench.paqet quiet [--minutes 10]

``speed``: beside kcptun over UDP on the same pair, with the same cipher, windows, MTU and mode (paqet's defaults: aes,
1350 bytes, server 1024/1024, client 128/512 packets, mode fast, smux 2), no FEC, no compression: goodput, and CPU seconds
per GB of both ends together. ``--window`` sets all windows of both programs. One TCP connection carries the bytes, both ways one after the other. Pairs take turns.

``memory``: what a server holds for so many live sessions with so many open streams each.

``forged``: goodput of a download while packets of random bytes come to the server from the client's own address, right
in every header, beside the same without them, in turn.

``repeated``: so many packets that a client recorded are sent again to the server, and as many that the server sent are
turned round to it, during a session; what was accepted of them.

``quiet``: transfers for so many minutes, and the RSTs that either kernel sent.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from mikanet.service.counters_socket import read_all, runtime_dir
from tests.bench.kcp import SECRET, Figures, give, serve, take
from tests.interop.paqet_ends import TcpFrame, file_text, write_file
from tests.lab.veth import VethPair
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, cpu, rss, wait_for, wait_listening

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
            listener = socket.create_server((self.server.address, _TARGET), backlog=4096)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        stack.callback(listener.close)

    def connect(self, port: int = _FRONT) -> Any:
        """A connection of an application."""
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
        text += (
            f"forward: [{{listen: '127.0.0.1:{_FRONT}', target: '{self.server.address}:{_TARGET}', protocol: tcp}}]\n"
        )
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
        command = [sys.executable, "-c", _TWISTD, "--nodaemon", "--pidfile=", *words]
        made: Process = space.start(command, cwd=str(self.folder), env={"PYTHONPATH": str(ROOT)})
        return made

    def kcptun(self, window: int) -> Pair:
        """Debian's, set as ours is."""
        common = ["--crypt", "aes", "--nocomp", "--smuxver", "2", "--mode", "fast", "--quiet", "--ds", "0", "--ps", "0"]
        if window:
            common += ["--sndwnd", str(window), "--rcvwnd", str(window)]
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
            for process in reversed(pair):  # the client first: a server that is gone is answered for by its kernel
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
    kcp = "mode: fast" + (f"\nsndwnd: {chosen.window}\nrcvwnd: {chosen.window}" if chosen.window else "")
    makers: dict[str, Callable[[], Pair]] = {"kcptun, UDP": partial(world.kcptun, chosen.window)}
    for carrier in chosen.carriers.split(","):
        makers[f"mikanet, {carrier}"] = partial(world.paqet, carrier, kcp)
    runs: dict[str, list[dict[str, Figures]]] = {name: [] for name in makers}
    for _ in range(chosen.rounds):
        for name, make in makers.items():
            with world.running(make) as pair:
                world.transfer(1000, 1_000_000)
                runs[name].append({way: _measure(world, pair, *sizes) for way, sizes in _ways(size)})
    print(
        f"aes, no FEC, smux 2, mode fast, windows {chosen.window or '128/512, 1024/1024'}: {chosen.megabytes} MB each way, median of {chosen.rounds}"
    )
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


def memory(world: World, chosen: argparse.Namespace) -> None:
    """What many sessions with many streams cost a server."""
    hold = "import asyncio\nasync def keep(r, w):\n  await r.read()\nasync def main():\n"
    hold += f"  s = await asyncio.start_server(keep, {world.server.address!r}, {_TARGET + 1}, backlog=4096)\n"
    hold += "  await s.serve_forever()\nimport resource as r; h = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (h, h))\n"
    target = world.server.start([sys.executable, "-c", hold + "asyncio.run(main())"])
    _listens(target, _TARGET + 1)
    with world.running(lambda: world.paqet("raw" if chosen.raw else "udp")) as (server, client):
        client.stop()
        before = rss(server.pid)
        command = [sys.executable, "-m", "tests.bench.paqet", "clients", str(world.folder / "client.yaml")]
        command += [str(chosen.sessions), str(chosen.streams), world.server.address, str(_TARGET + 1)]
        clients = world.client.start(command, cwd=str(ROOT), env={"PYTHONPATH": str(ROOT)})
        wanted = chosen.sessions * chosen.streams
        wait_for(lambda: f"open {wanted}" in clients.output, 240, f"{wanted} streams\n{clients.output[-500:]}")
        time.sleep(2)
        held = rss(server.pid)
        counted = counters(server)
        print(
            f"{chosen.sessions} sessions x {chosen.streams} streams: server {held / 1e6:.0f} MB, {before / 1e6:.0f} MB of it before"
        )
        print(
            f"  clients' process {rss(clients.pid) / 1e6:.0f} MB; streams {counted.get('paqet.server.message.a21.tcp')}"
        )
        clients.kill()
    target.kill()


def clients(chosen: argparse.Namespace) -> None:
    """The clients of ``memory``, in a process of their own."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol

    from mikanet.address import Address
    from mikanet.counters import Counters
    from mikanet.paqet.client import PaqetTunnel
    from mikanet.paqet.options import load_setup
    from mikanet.paqet.service import client_config, client_ports
    from mikanet.service.listening import raise_file_limit

    raise_file_limit()
    setup = load_setup(chosen.file, insecure_ok=True)
    many = Counters()
    ports = client_ports(reactor, setup, False, many, chosen.sessions)
    tunnel = PaqetTunnel(running := cast(Any, reactor), ports, client_config(setup, many), "the server")
    tunnel.start_ports()
    opened = [0]

    class Held(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(b"hello")
            opened[0] += 1
            if opened[0] % 500 == 0:
                print(f"open {opened[0]}", flush=True)

    def start(number: int) -> None:
        # A few at a time, as clients come.
        for connection in tunnel.connections[number : number + 10]:
            connection.open()
        if number + 10 < chosen.sessions:
            running.callLater(0.05, start, number + 10)
        else:
            running.callLater(2, streams, 0)

    def streams(number: int) -> None:
        destination = Address(chosen.host, chosen.port)
        for _ in range(100):
            tunnel.stream_endpoint(destination).connect(Factory.forProtocol(Held))
        if number + 100 < chosen.sessions * chosen.streams:
            running.callLater(0.05, streams, number + 100)

    running.callWhenRunning(start, 0)
    running.run()


def forged(world: World, chosen: argparse.Namespace) -> None:
    """A flood of packets that fail their check, from the client's own address."""
    size = chosen.megabytes * 1_000_000
    with world.running(lambda: world.paqet("raw")) as (server, _):
        frames = [frame for frame in _record(world, 3_000_000) if frame.destination_port == _PORT]
        stock = world.folder / "forged"
        stock.write_bytes(
            b"".join(_packed(frame.garbled(n)) for n, frame in enumerate(frames * 3, 1) if len(frame.payload) > 60)
        )
        ratios = []
        for _ in range(chosen.rounds):
            alone = size / world.transfer(0, size) / 1e6
            command = [
                sys.executable,
                "-m",
                "tests.bench.paqet",
                "send",
                world.client.interface,
                str(stock),
                str(chosen.rate),
            ]
            flood = world.client.start([*command, "10000000"], cwd=str(ROOT), env={"PYTHONPATH": str(ROOT)})
            time.sleep(2)
            before, began = counters(server)["kcp.server.dropped.check"], time.monotonic()
            under = size / world.transfer(0, size) / 1e6
            came = (counters(server)["kcp.server.dropped.check"] - before) / (time.monotonic() - began)
            flood.kill()
            ratios.append(under / alone)
            print(
                f"  alone {alone:.1f} MB/s, under {came:.0f} forged packets a second {under:.1f} MB/s: {under / alone:.0%}"
            )
        print(
            f"forged packets at {chosen.rate}/s leave {statistics.median(ratios):.0%} of the goodput (median of {chosen.rounds})"
        )


def repeated(world: World, chosen: argparse.Namespace) -> None:
    """Recorded packets again, and the server's own turned round."""
    count = chosen.packets
    with world.running(lambda: world.paqet("raw")) as (server, _):
        frames = _record(world, int(count * 1306 * 1.1), both=True)
        for name, chosen_frames in (
            ("replayed", [frame.frame for frame in frames if frame.destination_port == _PORT][:count]),
            ("reflected", [frame.turned_round() for frame in frames if frame.source_port == _PORT][:count]),
        ):
            stock = world.folder / name
            stock.write_bytes(b"".join(map(_packed, chosen_frames)))
            before = counters(server)
            command = [sys.executable, "-m", "tests.bench.paqet", "send", world.client.interface, str(stock), "8000"]
            sender = world.client.start(
                [*command, str(len(chosen_frames))], cwd=str(ROOT), env={"PYTHONPATH": str(ROOT)}
            )
            sender.wait(120)
            time.sleep(1)
            after = counters(server)
            change = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
            dropped = change.get("kcp.server.dropped.repeated", 0)
            lost = change.get("rawpackets.dropped.kernel", 0)
            print(
                f"{name}: {len(chosen_frames)} sent, {dropped} dropped as seen before, {lost} lost in the kernel; ",
                end="",
            )
            print(f"accepted: {len(chosen_frames) - dropped - lost}")
        world.transfer(1000, 1000)


def quiet(world: World, chosen: argparse.Namespace) -> None:
    """Minutes of transfers without a word of either kernel, and no rules left behind."""
    watchers = [
        space.start(
            [
                "tcpdump",
                "-lni",
                space.interface,
                "-Q",
                "out",
                "tcp[tcpflags] & tcp-rst != 0 or (ip6 and ip6[53] & 4 != 0)",
            ]
        )
        for space in (world.client, world.server)
    ]
    time.sleep(1)
    end, carried = time.monotonic() + chosen.minutes * 60, 0
    with world.running(lambda: world.paqet("raw")) as (server, _):
        rules = [_rules(space) for space in (world.client, world.server)]
        while time.monotonic() < end:
            world.transfer(1_000_000, 5_000_000)
            carried += 6
            time.sleep(1.0)
        seen = counters(server).get("rawpackets.dropped.rst", 0)
        time.sleep(1)  # counted before the first end goes: what comes for it afterwards is answered by its kernel
        resets = [sum(" Flags [R" in line for line in watcher.output.splitlines()) for watcher in watchers]
    left = [_rules(space) for space in (world.client, world.server)]
    print(
        f"{chosen.minutes} minutes, {carried} MB: RSTs sent by the client's kernel {resets[0]}, by the server's {resets[1]}, ",
        end="",
    )
    print(
        f"seen by the server {seen}; rules while running {list(map(len, rules))} lines, afterwards {list(map(len, left))}"
    )


# -- tools


def counters(process: Process) -> dict[str, int]:
    """The counters of a running service."""
    return next(dict(each["counters"]) for each in read_all(runtime_dir()) if each["pid"] == process.pid)


def _rules(space: Any) -> list[str]:
    text: str = space.run(["nft", "list", "ruleset"], check=False).stdout
    return [line for line in text.splitlines() if line.strip()]


def _record(world: World, size: int, both: bool = False) -> list[TcpFrame]:
    """The packets of a transfer, by tcpdump, as that loses none."""
    file = world.folder / "recorded"
    command = [
        "tcpdump",
        "-ni",
        world.client.interface,
        "-B",
        "262144",
        "-w",
        str(file),
        "-U",
        "-Z",
        "root",
        f"tcp port {_PORT}",
    ]
    watcher = world.client.start(command)
    wait_for(lambda: "listening on" in watcher.output, what="tcpdump")
    world.transfer(size, size if both else 0)
    time.sleep(1)
    watcher.stop()
    data = file.read_bytes()
    frames, at = [], 24
    while at + 16 <= len(data):
        length = int.from_bytes(data[at + 8 : at + 12], "little")
        frames.append(TcpFrame(data[at + 16 : at + 16 + length]))
        at += 16 + length
    return [frame for frame in frames if frame.payload]


def _packed(frame: bytes) -> bytes:
    return len(frame).to_bytes(2, "big") + frame


def send(chosen: argparse.Namespace) -> None:
    """Put frames on the wire at a steady rate, from the first again when they are used up; a process of its own."""
    data, frames, at = Path(chosen.file).read_bytes(), [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        frames.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((chosen.interface, 0))
    began, sent = time.monotonic(), 0
    while sent < chosen.count:
        due = min(int((time.monotonic() - began) * chosen.rate), chosen.count)
        for number in range(sent, due):
            out.send(frames[number % len(frames)])
        sent = due
        time.sleep(0.002)


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, **options: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name)
        for option, default in options.items():
            made.add_argument(f"--{option}", type=type(default), default=default)
        return made

    command("speed", megabytes=200, rounds=3, carriers="raw,udp", window=0)
    command("memory", sessions=1000, streams=10).add_argument("--raw", action="store_true")
    command("forged", rate=5000, megabytes=60, rounds=3)
    command("repeated", packets=100_000)
    command("quiet", minutes=10.0)
    inner = command("clients")
    for name, kind in (("file", str), ("sessions", int), ("streams", int), ("host", str), ("port", int)):
        inner.add_argument(name, type=kind)
    inner = command("send")
    for name, kind in (("interface", str), ("file", str), ("rate", int), ("count", int)):
        inner.add_argument(name, type=kind)
    chosen = parser.parse_args()
    if chosen.command in ("clients", "send"):
        {"clients": clients, "send": send}[chosen.command](chosen)
        return
    benches = {"speed": speed, "memory": memory, "forged": forged, "repeated": repeated, "quiet": quiet}
    with ExitStack() as stack:
        benches[chosen.command](World(stack), chosen)


if __name__ == "__main__":
    main()
