"""``python -m tests.lab quest``: handshakes left half done by the thousand, then clients, again and again.

Each round leaves 2,500 SYNs without their ACK at a Megaki server, from 125 networks: in even rounds each is sent when a
place among forty is free, so that all of them become half open; in odd rounds all at once. A session that stands asks
on through all of it. Then, with all of that still open, 30 clients from as many other networks shake hands, ask, resume
and ask again. Every one of them must get right answers; between rounds nothing may be left, and nothing may grow.
asyncio; loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from mikanet.crypto import rsa_oaep
from mikanet.megaki.sealing import SavedSession
from mikanet.megaki.yami import ClientYami, Event, Reply, Response
from mikanet.service.secret_files import write_private_file
from tests.lab.load import Result, percentile, slope
from tests.lab.progress import Progress
from tests.support.processes import TwistdProcess, cpu, fds, free_port, rss

#: Strangers and clients of a round, strangers of one network, and how many strangers wait at once in even rounds.
STRANGERS, CLIENTS, OF_NETWORK, AT_ONCE = 2500, 30, 20, 40

#: How long a client may take for everything, in seconds: as long as our client library waits for a handshake alone.
CLIENT_SECONDS = 10.0

#: Memory growth that is still called none, in bytes a second (our choice, as in the soak), once it is warm.
MAX_SLOPE, WARM_ROUNDS = 4000.0, 30

#: What the server remembers of a round on purpose, in bytes: the sessions of its clients (up to 10,000 in all, for a day),
#: and how many SYNs each network has sent (up to 50,000).
REMEMBERED = CLIENTS * 2500 + STRANGERS // OF_NETWORK * 500

#: A session that stands asks so often in a round, with so many seconds between.
STANDING, STANDING_EVERY = 100, 0.05

WORKERS = 4

#: Lingering for no time: a close is a reset.
_RESET = struct.pack("ii", 1, 0)
WORKER = "def on_handle(request): return request[::-1]\n"


class Server:
    """A Megaki server with Python workers, on loopback."""

    def __init__(self, folder: Path, client_key: rsa_oaep.PrivateKey) -> None:
        self.key = rsa_oaep.generate()
        self.client_key = client_key
        self.public = self.key.public_key()
        write_private_file(folder / "key", rsa_oaep.private_to_pem(self.key))
        (folder / "worker.py").write_text(WORKER)
        self.port = free_port()
        self.process = TwistdProcess(
            [
                "megaki-server",
                f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=4096",
                f"--key={folder / 'key'}",
                f"--worker=python:{folder / 'worker.py'}",
                f"--workers={WORKERS}",
                f"--state-dir={folder / 'state'}",
                "--max-unverified=100000",
            ],
            ports=[self.port],
        )

    def workers(self) -> int:
        """Live worker processes."""
        return len(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())


class Line:
    """One connection to the server, with the client's Yami on it."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self.yami = ClientYami(os.urandom)
        self.answered = False

    async def any_byte(self) -> bool:
        """Whether anything comes before the end."""
        return bool(await self._reader.read(65536))

    async def event(self) -> Event:
        """The next thing that happens.

        :raises ConnectionError: if the connection ends instead.
        """
        while (event := self.yami.next_event()) is None:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError("the server closed")
            self.yami.feed(data)
        return event

    def send(self, data: bytes) -> None:
        """Write a packet."""
        self._writer.write(data)

    async def shake_hands(self) -> None:
        """A session."""
        self.send(self.yami.connect(self._server.public, self._server.client_key))
        while isinstance(event := await self.event(), Reply):
            self.send(event.reply)

    async def resume(self, saved: SavedSession) -> None:
        """A session that was there before."""
        self.send(self.yami.resume(saved))
        await self.event()

    async def ask(self, request: bytes) -> bytes:
        """The answer to a request."""
        self.send(self.yami.send_message(request))
        event = await self.event()
        assert isinstance(event, Response)
        return event.plain


@contextlib.asynccontextmanager
async def connected(server: Server, source: str) -> AsyncIterator[Line]:
    """A connection from an address, which ends with a reset: the kernel keeps nothing of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))
    try:
        yield Line(server, reader, writer)
    finally:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


class _Quest:
    """One quest under way."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.result = Result(f"quest, seed {seed}")
        self.half_open = self.unanswered = 0
        self.client_times: list[float] = []
        self.standing_times: list[float] = []

    async def round(self, number: int) -> None:
        """One round, from nothing left to nothing left."""
        first = self.rng.randrange(1 << 15)
        sources = [_address(first + each // OF_NETWORK, each) for each in range(STRANGERS)]
        clients = [f"127.3.{each}.{number % 250 + 1}" for each in range(CLIENTS)]
        async with contextlib.AsyncExitStack() as left_open:
            line = await left_open.enter_async_context(connected(self.server, "127.2.0.1"))
            await line.shake_hands()
            standing = asyncio.create_task(self.standing(line))
            strangers = await self.strangers(left_open, sources, burst=bool(number % 2))
            await asyncio.gather(*map(self.client, clients))
            answered = await asyncio.gather(*(self.answered(stranger, 0.1) for stranger in strangers))
            self.half_open += sum(answered)
            self.unanswered += len(answered) - sum(answered)
            await standing

    async def strangers(self, left_open: contextlib.AsyncExitStack, sources: list[str], *, burst: bool) -> list[Line]:
        """A SYN from each address, and nothing after it; in a burst nobody waits for the others' SYNACK."""
        syn = ClientYami(os.urandom).connect(self.server.public, self.server.client_key)
        places = asyncio.Semaphore(STRANGERS if burst else AT_ONCE)

        async def one(source: str) -> Line:
            async with places:
                line = await left_open.enter_async_context(connected(self.server, source))
                line.send(syn)
                if not burst:
                    await self.answered(line, CLIENT_SECONDS)
            return line

        return await asyncio.gather(*map(one, sources))

    async def answered(self, stranger: Line, seconds: float) -> bool:
        """Whether the stranger has its SYNACK, or gets it within so many seconds."""
        if not stranger.answered:
            with contextlib.suppress(TimeoutError, ConnectionError):
                stranger.answered = await asyncio.wait_for(stranger.any_byte(), seconds)
        return stranger.answered

    async def standing(self, line: Line) -> None:
        """Requests of a session that stands, one after the other."""
        for _ in range(STANDING):
            request = self.rng.randbytes(self.rng.randrange(1, 2000))
            since = time.monotonic()
            try:
                answer = await asyncio.wait_for(line.ask(request), CLIENT_SECONDS)
            except (ConnectionError, TimeoutError) as problem:
                self.result.faults.append(f"a session that stands got no answer: {problem!r}")
                return
            if answer != request[::-1]:
                self.result.faults.append("a session that stands got a wrong answer")
            self.standing_times.append(time.monotonic() - since)
            await asyncio.sleep(STANDING_EVERY)

    async def client(self, source: str) -> None:
        """A client's whole life; everything that is not right is a fault."""
        since = time.monotonic()
        try:
            await asyncio.wait_for(self._client(source), CLIENT_SECONDS)
        except (ConnectionError, TimeoutError, AssertionError) as problem:
            self.result.faults.append(f"a client failed after {time.monotonic() - since:.1f} s: {problem!r}")
        self.client_times.append(time.monotonic() - since)

    async def _client(self, source: str) -> None:
        saved = None
        for _ in range(2):
            async with connected(self.server, source) as line:
                await (line.shake_hands() if saved is None else line.resume(saved))
                request = self.rng.randbytes(100)
                if await line.ask(request) != request[::-1]:
                    raise AssertionError("a wrong answer")
                saved = line.yami.saved

    async def run(self, seconds: float, every: float) -> Result:
        """Rounds for so many seconds, one each ``every`` seconds."""
        process, started = self.server.process, time.monotonic()
        await asyncio.sleep(2)
        files, used = fds(process.pid), cpu(process.pid) + time.process_time()
        memory: list[tuple[float, float]] = []
        progress = Progress("seconds", seconds, every=30)
        number = 0
        while number == 0 or time.monotonic() - started < seconds - every:
            begun = time.monotonic()
            await self.round(number)
            number += 1
            await self.judge_rest(files)
            if number > WARM_ROUNDS:
                memory.append((time.monotonic(), rss(process.pid)))
            faults = len(self.result.faults)
            progress.at(round(time.monotonic() - started), f"{number} rounds, {faults} faults")
            await asyncio.sleep(max(0.0, every - (time.monotonic() - begun)))
        if len(memory) > WARM_ROUNDS:
            self.result.figures["server bytes/s"] = growth = slope(memory)
            if growth > MAX_SLOPE + REMEMBERED / every:
                self.result.faults.append(f"the server's memory grows by {growth:.0f} bytes/s")
        wall = time.monotonic() - started
        self.result.figures |= {
            "seconds": wall,
            "rounds": number,
            "half open": self.half_open,
            "SYNs without answer": self.unanswered,
            "clients": len(self.client_times),
            "client p50 s": percentile(self.client_times, 0.5),
            "client worst s": max(self.client_times),
            "standing requests": len(self.standing_times),
            "standing p50 s": percentile(self.standing_times, 0.5),
            "standing p99 s": percentile(self.standing_times, 0.99),
            "standing worst s": max(self.standing_times),
            "server MB": rss(process.pid) / 1e6,
            "share of a core": (cpu(process.pid) + time.process_time() - used) / wall,
        }
        self.result.faults += [f"in the log: {line}" for line in process.output.splitlines() if "Traceback" in line]
        return self.result

    async def judge_rest(self, files: int) -> None:
        """Between rounds the server has no file more than at first, and all its workers."""
        for _ in range(100):
            more = fds(self.server.process.pid) - files
            if more <= 2:
                break
            await asyncio.sleep(0.1)
        if more > 2:
            self.result.faults.append(f"{more} files more than at first")
        if self.server.workers() != WORKERS:
            self.result.faults.append(f"{self.server.workers()} workers instead of {WORKERS}")


def _address(network: int, number: int) -> str:
    """An address of a network of strangers."""
    network %= 1 << 15
    return f"127.{100 + (network >> 8)}.{network & 255}.{number % OF_NETWORK + 1}"


async def quest(seconds: float, every: float = 20.0, seed: int = 1) -> Result:
    """A server of its own, and rounds against it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with tempfile.TemporaryDirectory(prefix="mikanet-quest-") as folder:
            Path(folder).chmod(0o755)
            server = Server(Path(folder), rsa_oaep.generate())
            with server.process:
                return await _Quest(server, seed).run(seconds, every)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main(arguments: list[str]) -> int:
    """Run it; 0 if there was no fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab quest", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from one round to the next")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    result = asyncio.run(quest(options.minutes * 60, options.every, options.seed))
    print(result)
    return 1 if result.faults else 0
