"""``python -m tests.lab hostile --system NAME``: one honest user beside forty hostile peers, kind after kind.

The honest user sends small requests over an established tunnel, one every 20 ms whether or not the last was answered
(an open loop: what waits counts from when it was due), and makes a new connection five times a second. He is measured
alone first, then beside each kind of :mod:`tests.lab.hostile_peers`, which runs in a process of its own and, where its
peers are users, through a client of their own from another network. His 99th percentile may be 200 ms more than alone,
and nothing of his may be lost. Two processors are shared by five processes here, so what is too much is measured up to
twice more, with a new look at what he has alone: a fault is what shows each time. asyncio; loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from mikanet.crypto import rsa_oaep
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.users import format_user
from tests.lab import quest
from tests.lab.hostile_peers import Facts
from tests.lab.load import percentile
from tests.lab.name_server import NameServer
from tests.lab.target import Target, abort, connect, receive
from tests.lab.tunnels import MikaTunnel, NitroSocksTunnel, PaqetTunnel, PickaxeTunnel, Tunnel
from tests.support.processes import Process, TwistdProcess, cpu, free_port, wait_listening

#: Most that the 99th percentile may be above what it is alone, in seconds.
MOST = 0.2
#: Seconds between two requests, and between two new connections.
REQUEST_EVERY, CONNECT_EVERY = 0.02, 0.2
#: After the load begins, before its end, and for what is still under way at the end (seconds).
_RAMP, _MARGIN, _REST = 1.0, 0.5, 5.0
#: Measurements that a fault must show in.
_TIMES = 3
#: Where the name server is that knows some names and never answers for others.
_NAME_SERVER = "127.0.0.153"

#: Code before a hostile client: its connections come from another network than the honest one's.
_ELSEWHERE = """
import socket as _module
class _Elsewhere(_module.socket):
    def connect_ex(self, address):
        if self.family == _module.AF_INET and self.getsockname()[0] == "0.0.0.0":
            super().bind(("127.9.200.1", 0))
        return super().connect_ex(address)
    def bind(self, address):
        if self.type & 15 == _module.SOCK_DGRAM and self.family == _module.AF_INET and address[0] in ("", "0.0.0.0"):
            address = ("127.9.200.1", address[1])
        super().bind(address)
_module.socket = _Elsewhere
"""

#: Code before a server: its own view of resolv.conf.
_NAMES = """
import ctypes as _ctypes
_libc = _ctypes.CDLL(None, use_errno=True)
def _done(result):
    if result:
        raise OSError(_ctypes.get_errno(), "cannot set up resolv.conf")
_done(_libc.unshare(0x20000))
_done(_libc.mount(b"none", b"/", None, 0x44000, None))
_done(_libc.mount({file!r}.encode(), b"/etc/resolv.conf", None, 0x1000, None))
"""


@dataclasses.dataclass
class Row:
    """What the honest user had beside one kind.

    :ivar requests: seconds of each request over the established tunnel; :ivar connections: of each new connection.
    :ivar lost: of either, or of the tunnel. :ivar done: things that the hostile peers did. :ivar cpu: the server's share of
        a processor.
    """

    kind: str
    requests: list[float]
    connections: list[float]
    lost: int
    done: int = 0
    cpu: float = 0.0

    @property
    def worst(self) -> float:
        """The higher of both 99th percentiles."""
        return max(percentile(self.requests, 0.99), percentile(self.connections, 0.99))

    def faults(self, alone: Row) -> list[str]:
        """What must not be."""
        found = []
        for what, mine, theirs in (
            ("requests", self.requests, alone.requests),
            ("new connections", self.connections, alone.connections),
        ):
            took, base = percentile(mine, 0.99), percentile(theirs, 0.99)
            if not took <= MOST + base:
                found.append(f"{self.kind}: p99 of {what} {took * 1000:.0f} ms, alone {base * 1000:.0f} ms")
        if self.lost:
            found.append(f"{self.kind}: {self.lost} requests lost")
        if self is not alone and not self.done:
            found.append(f"{self.kind}: the hostile peers did nothing")
        return found

    def __str__(self) -> str:
        times = [
            1000 * percentile(values, share) for values in (self.requests, self.connections) for share in (0.5, 0.99)
        ]
        texts = "".join(f"{value:9.1f}" for value in times)
        return f"{self.kind:16}{texts}{self.lost:6}{self.done:9}{100 * self.cpu:6.0f} %"


HEADING = f"{'ms':16}{'requests':>9}{'p99':>9}{'new':>9}{'p99':>9}{'lost':>6}{'hostile':>9}{'server':>8}"


class Honest:
    """An honest user's way to ask: over an established tunnel, and anew."""

    async def start(self) -> None:
        """Establish the tunnel."""

    async def ask(self, number: int) -> bool:
        """Ask once, over the established tunnel; whether the answer is right."""
        raise NotImplementedError

    async def connect(self, number: int) -> bool:
        """Connect, ask once and leave; whether the answer is right."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Leave."""


class HonestStream(Honest):
    """Through a SOCKS door: one connection to an echo, and new ones, to a name where names are served."""

    def __init__(self, socks: int, target: int, host: Callable[[], str]) -> None:
        self._socks, self._target, self._host = socks, target, host
        self._waiting: dict[int, asyncio.Future[bool]] = {}

    async def start(self) -> None:
        """See :class:`Honest`."""
        self._reader, self._writer = await connect(self._socks, self._target)
        self._writer.write(b"echo\n")
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in itertools.count():
                data = await self._reader.readexactly(64)
                waiting = self._waiting.pop(number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(data == number.to_bytes(64, "big"))

    async def ask(self, number: int) -> bool:
        """See :class:`Honest`: a number of 64 bytes, which must come back in its turn."""
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(number.to_bytes(64, "big"))
        return await waiting

    async def connect(self, number: int) -> bool:
        """See :class:`Honest`."""
        reader, writer = await connect(self._socks, self._target, self._host())
        try:
            writer.write(b"down 1000 5\n")
            return await receive(reader, 1000, 5)
        finally:
            abort(writer)

    async def stop(self) -> None:
        """See :class:`Honest`."""
        self._reading.cancel()
        abort(self._writer)


class HonestMegaki(Honest):
    """A session of Megaki, one request after the other, and new sessions."""

    def __init__(self, server: quest.Server) -> None:
        self._server = server
        self._one = asyncio.Lock()
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """See :class:`Honest`."""
        self._line = await self._stack.enter_async_context(quest.connected(self._server, "127.2.0.1"))
        await self._line.shake_hands()

    async def ask(self, number: int) -> bool:
        """See :class:`Honest`."""
        async with self._one:
            return await self._line.ask(b"%064d" % number) == (b"%064d" % number)[::-1]

    async def connect(self, number: int) -> bool:
        """See :class:`Honest`."""
        async with quest.connected(self._server, "127.2.0.1") as line:
            await line.shake_hands()
            return await line.ask(b"abc") == b"cba"

    async def stop(self) -> None:
        """See :class:`Honest`."""
        await self._stack.aclose()


async def measure(honest: Honest, kind: str, seconds: float) -> Row:
    """What an honest user has for so many seconds."""
    row = Row(kind, [], [], 0)

    async def one(job: Callable[[int], Awaitable[bool]], number: int, due: float, times: list[float]) -> None:
        try:
            right = await asyncio.wait_for(job(number), seconds + _REST)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            right = False
        if right:
            times.append(time.monotonic() - due)
        else:
            row.lost += 1

    async def loop(job: Callable[[int], Awaitable[bool]], every: float, times: list[float]) -> None:
        began = time.monotonic()
        tasks = []
        for number in range(int(seconds / every)):
            due = began + number * every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(one(job, number, due, times)))
        done, late = await asyncio.wait(tasks, timeout=_REST)
        row.lost += len(late)
        for task in late:
            task.cancel()
        await asyncio.gather(*done, *late, return_exceptions=True)

    await honest.start()
    try:
        await asyncio.gather(
            loop(honest.ask, REQUEST_EVERY, row.requests), loop(honest.connect, CONNECT_EVERY, row.connections)
        )
    finally:
        await honest.stop()
    return row


# -- systems


class MikaKcpTunnel(MikaTunnel):
    """Mika over its original's KCP link."""

    def start_server(self, env: dict[str, str] | None = None, before: str = "") -> TwistdProcess:
        """Over UDP there is no TCP port to wait for."""
        (self.folder / "server").mkdir(exist_ok=True)
        self.server = TwistdProcess(self.server_args(), cwd=self.folder / "server", env=env, before=before)
        wait_listening(self.server_port, udp=True, process=self.server)
        return self.server

    def server_args(self) -> list[str]:
        """On UDP."""
        return _replaced(super().server_args(), "--listen", f"kcp:{self.server_port}:interface=127.0.0.1")

    def client_args(self) -> list[str]:
        """To UDP."""
        return _replaced(super().client_args(), "--server", f"kcp:127.0.0.1:{self.server_port}")


class PickaxeHttpTunnel(PickaxeTunnel):
    """Pickaxe over plain HTTP."""

    def server_args(self) -> list[str]:
        """A carrier at a path."""
        return _replaced(super().server_args(), "--carrier", f"http://127.0.0.1:{self.server_port}/t")

    def client_args(self) -> list[str]:
        """The same."""
        return _replaced(super().client_args(), "--carrier", f"http://127.0.0.1:{self.server_port}/t")


class PickaxeDraftTunnel(PickaxeTunnel):
    """Pickaxe with the keys of the author's draft."""

    def prepare(self) -> None:
        """A user with a password as the draft has it."""
        super().prepare()
        password = self.password_file.read_text().strip()
        self.users_file.write_text(format_user("alice", Secret(Kdf.DRAFT, password.encode())) + "\n")

    def server_args(self) -> list[str]:
        """With its derivation."""
        return [*super().server_args(), "--kdf=draft"]

    def client_args(self) -> list[str]:
        """The same."""
        return [*super().client_args(), "--kdf=draft"]


def _replaced(args: list[str], option: str, value: str) -> list[str]:
    return [f"{option}={value}" if each.startswith(option + "=") else each for each in args]


#: Kinds of users, for every system that has tunnels to targets.
_USERS = ("silent-names", "black-hole", "unread", "abandoned", "tiny")
_TUNNELS: dict[str, tuple[type[Tunnel], tuple[str, ...]]] = {
    "mika": (MikaTunnel, ("garbage", "crumbs", *_USERS)),
    "mika-kcp": (MikaKcpTunnel, ("codes", "early-segments", "forged", *_USERS)),
    "pickaxe": (PickaxeTunnel, ("garbage", "crumbs", "fragments", "logins", *_USERS)),
    "pickaxe-draft": (PickaxeDraftTunnel, ("proofs",)),
    "pickaxe-http": (PickaxeHttpTunnel, ("garbage", "crumbs", "requests", *_USERS)),
    "nitrosocks": (NitroSocksTunnel, ("garbage", "crumbs", "hellos", *_USERS)),
    "paqet": (PaqetTunnel, ("forged", "early-segments", *_USERS)),
}
_MEGAKI = ("garbage", "crumbs", "half-handshakes", "resuming", "left-requests")
#: Kinds by system.
SYSTEMS = {name: kinds for name, (_, kinds) in _TUNNELS.items()} | {"megaki": _MEGAKI}

#: Those that cost most where they were not bounded, for a look in short.
SHORT = {
    "mika": ("unread", "abandoned"),
    "mika-kcp": ("codes", "early-segments"),
    "pickaxe": ("fragments", "logins"),
    "pickaxe-draft": ("proofs",),
    "pickaxe-http": ("requests",),
    "nitrosocks": ("hellos", "silent-names"),
    "paqet": ("forged", "black-hole"),
    "megaki": ("resuming", "left-requests"),
}


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port of loopback that answers no SYN, since its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        yield port


@contextlib.asynccontextmanager
async def running(system: str) -> AsyncIterator[tuple[Honest, Facts, int]]:
    """A system with its honest user, what hostile peers know of it, and the server's process id."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mikanet-hostile-")))
        folder.chmod(0o755)
        if system == "megaki":
            client_key = rsa_oaep.generate()
            server = quest.Server(folder, client_key)
            stack.enter_context(server.process)
            (folder / "server.pub").write_bytes(rsa_oaep.public_to_pem(server.public))
            (folder / "client.key").write_bytes(rsa_oaep.private_to_pem(client_key))
            await asyncio.sleep(1)
            yield HonestMegaki(server), Facts(server.port, folder=str(folder)), server.process.pid
            return
        before, host = _names(stack, folder)
        tunnel = _TUNNELS[system][0]()
        stack.callback(tunnel.close)
        tunnel.start_server(before=before)
        tunnel.start_client()
        hostile = _hostile_client(tunnel, stack)
        target = Target()
        hole = stack.enter_context(black_hole())
        async with target.running():
            facts = Facts(tunnel.server_port, hostile, target.port, hole)
            yield HonestStream(tunnel.socks_port, target.port, host), facts, tunnel.server_pid


def _names(stack: contextlib.ExitStack, folder: Path) -> tuple[str, Callable[[], str]]:
    """Code that gives a server our name server, and what the honest user's names are; addresses for who is not root."""
    if os.geteuid() or ctypes.CDLL(None).unshare(0):
        return "", lambda: "127.0.0.1"
    stack.callback(NameServer(_NAME_SERVER, 53, "127.0.0.1").close)
    (folder / "resolv.conf").write_text(f"nameserver {_NAME_SERVER}\n")
    return _NAMES.format(file=str(folder / "resolv.conf")), lambda: f"honest{secrets.token_hex(4)}.example"


def _hostile_client(tunnel: Tunnel, stack: contextlib.ExitStack) -> int:
    """A second client, from elsewhere; its SOCKS port."""
    port = free_port()
    (tunnel.folder / "hostile").mkdir()
    args = _replaced(tunnel.client_args(), "--socks", f"tcp:{port}:interface=127.0.0.1:backlog=4096")
    args = _replaced(args, "--http", f"tcp:{free_port()}:interface=127.0.0.1")
    args = _replaced(args, "--state-dir", str(tunnel.folder / "hostile"))
    stack.enter_context(TwistdProcess(args, cwd=tunnel.folder / "hostile", ports=[port], before=_ELSEWHERE))
    return port


async def beside(honest: Honest, facts: Facts, kind: str, pid: int, seconds: float) -> Row:
    """The honest user beside one kind."""
    lasts = seconds + _RAMP + _MARGIN
    command = [sys.executable, "-m", "tests.lab.hostile_peers", kind, json.dumps(dataclasses.asdict(facts)), str(lasts)]
    with Process(command) as hostile:
        await asyncio.sleep(_RAMP)
        used, began = cpu(pid), time.monotonic()
        row = await measure(honest, kind, seconds)
        row.cpu = (cpu(pid) - used) / (time.monotonic() - began)
        while hostile.alive:
            await asyncio.sleep(0.1)
        with contextlib.suppress(ValueError, IndexError, KeyError):
            row.done = json.loads(hostile.output.splitlines()[-1])["done"]
        if not row.done:
            print(hostile.output, file=sys.stderr)
    return row


async def run(system: str, kinds: Sequence[str], seconds: float, show: Callable[[object], None]) -> list[str]:
    """Measure a system; its faults, one line each."""
    async with running(system) as (honest, facts, pid):
        await honest.start()  # sessions are established, code is warm
        await honest.connect(0)
        await honest.stop()
        first = await measure(honest, "alone", seconds)
        show(first)
        faults = first.faults(first)
        for kind in kinds:
            alone = first
            for turn in range(_TIMES):
                if turn:
                    alone = await measure(honest, "alone again", seconds)
                    show(alone)
                row = await beside(honest, facts, kind, pid, seconds)
                show(row)
                found = row.faults(alone)
                if not found:
                    break
            faults += found
    return [f"{system}: {fault}" for fault in faults]


def main(arguments: list[str]) -> int:
    """Run it; 0 if there was no fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab hostile", description=__doc__)
    parser.add_argument("--system", choices=[*SYSTEMS, "all"], default="all")
    parser.add_argument("--kind", action="append", help="only this kind (may be given again)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--short", action="store_true", help="5 s a kind (default)")
    length.add_argument("--full", action="store_true", help="60 s a kind")
    options = parser.parse_args(arguments)
    faults = []
    for system in SYSTEMS if options.system == "all" else [options.system]:
        print(f"{system}\n{HEADING}")
        kinds = [kind for kind in SYSTEMS[system] if not options.kind or kind in options.kind]
        faults += asyncio.run(run(system, kinds, 60.0 if options.full else 5.0, print))
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0
