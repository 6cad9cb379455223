"""The soak: hours of mixed traffic with kills, and a look at what grows. asyncio; ends by itself.

Workers open tunnels, move seeded bytes and check each. In the first part the server or the client is killed now and
then and started again. Whatever a kill cuts must end as an error: a stream that ends cleanly before its last byte is a
fault. In the rest memory must have no slope; at the end open files are back where they were, and no log has an
unhandled error.
"""

from __future__ import annotations

import asyncio
import random
import time

from tests.lab.load import Result, one_request, slope
from tests.lab.progress import Progress
from tests.lab.target import Target, abort, connect, content, send
from tests.lab.tunnels import Tunnel

#: Share of a soak in which there are kills; the rest looks at what grows.
_KILLING = 0.4
#: Memory growth of one process that is still called none, once it is warm: so many bytes, or so many per second if that
#: is more (our choice: allocators do as much; ten thousand tunnels that leak 1 KB each do more).
MAX_GROWTH, MAX_SLOPE = 8e6, 4000.0
#: Seconds after a start in which memory may grow: caches fill and the allocator settles.
_WARM = 60.0


class _Soak:
    """One soak under way."""

    def __init__(self, tunnel: Tunnel, target: Target, seconds: float, kill_every: float, seed: int) -> None:
        self.tunnel, self.target, self.seconds, self.kill_every, self.seed = tunnel, target, seconds, kill_every, seed
        self.result = Result(f"soak, {seconds:g} s, a kill each {kill_every:g} s, seed {seed}")
        self.rng = random.Random(seed)
        self.down = False  # a kill is under way, or was just now: errors are no faults
        self.last_kill = 0.0
        self.moved = self.connections = self.cut = self.kills = 0
        self.recoveries: list[float] = []
        self.ended = False

    async def run(self, workers: int) -> Result:
        started = time.monotonic()
        await one_request(self.tunnel, self.target)
        before = self.tunnel.usage()
        tasks = [asyncio.create_task(self.worker(number)) for number in range(workers)]
        progress = Progress("seconds", self.seconds, every=10)
        memory: dict[str, list[tuple[float, float]]] = {"server": [], "client": []}
        begun = {"server": started, "client": started}
        next_kill = started + self.kill_every
        while (now := time.monotonic()) < started + self.seconds:
            await asyncio.sleep(0.5)
            progress.at(
                round(now - started), f"{self.moved / 1e6:.0f} MB, {self.connections} tunnels, {self.kills} kills"
            )
            for side in memory:
                if now - begun[side] > min(_WARM, self.seconds / 4):
                    memory[side].append((now, self.tunnel.usage()[f"{side} rss"]))
            if self.kill_every and next_kill < now < started + self.seconds * _KILLING:
                next_kill = now + self.kill_every
                side = self.rng.choice(("server", "client"))
                self.judge_memory(side, memory[side])
                memory[side].clear()
                await self.kill(side)
                begun[side] = time.monotonic()
        self.ended = True
        await asyncio.wait(tasks, timeout=30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for side, points in memory.items():
            self.judge_memory(side, points)
        await self.judge_files(before)
        self.result.faults += [f"in a log: {line}" for line in self.tunnel.unhandled()[:5]]
        self.result.figures |= {
            "MB": self.moved / 1e6,
            "tunnels": self.connections,
            "kills": self.kills,
            "cut by kills": self.cut,
            "slowest recovery s": max(self.recoveries, default=0.0),
        }
        return self.result

    async def worker(self, number: int) -> None:
        """Tunnels one after the other, each of a random kind."""
        rng = random.Random(f"{self.seed}/{number}")
        while not self.ended:
            kind = rng.choice(("down", "up", "echo", "idle", "abort"))
            began = time.monotonic()
            try:
                await asyncio.wait_for(self.one(kind, rng), 60)
                self.connections += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                # A tunnel that lived while something was killed may fail; any other may not.
                if self.down or self.last_kill >= began:
                    self.cut += 1
                    await asyncio.sleep(0.2)
                else:
                    self.result.faults.append(
                        f"{kind} failed without a kill, {time.monotonic() - self.last_kill:.1f} s after the last: {error!r}"
                    )

    async def one(self, kind: str, rng: random.Random) -> None:
        size, seed = int(10 ** rng.uniform(0, 6.7)), rng.randint(0, 1000)
        reader, writer = await connect(self.tunnel.socks_port, self.target.port)
        try:
            if kind == "down":
                writer.write(b"down %d %d\n" % (size, seed))
                await self.expect(reader, size, seed, kind)
            elif kind == "up":
                writer.write(b"up %d %d\n" % (size, seed))
                await send(writer, size, seed, rng)
                if await reader.readexactly(1) != b"1":
                    self.result.faults.append("up: the target got wrong bytes")
            elif kind == "echo":
                writer.write(b"echo\n")
                size = min(size, 200_000)
                sending = asyncio.create_task(send(writer, size, seed, rng))
                try:
                    await self.expect(reader, size, seed, kind)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            elif kind == "idle":
                writer.write(b"hold\n")
                await asyncio.sleep(rng.uniform(0, 3))
                size = 0
            else:
                writer.write(b"down %d %d\n" % (10 * size, seed))
                await reader.read(size)
            self.moved += size
        finally:
            abort(writer)

    async def expect(self, reader: asyncio.StreamReader, size: int, seed: int, kind: str) -> None:
        """Every byte right; a clean end before the last one, or a wrong one, is a fault, kill or no kill."""
        began, got = time.monotonic(), 0
        while got < size:
            data = await reader.read(min(262144, size - got))
            if not data or data != content(seed, got, len(data)):
                what = "wrong bytes" if data else "a clean end too early"
                since = time.monotonic() - self.last_kill
                after = f"at {got} of {size} bytes, {time.monotonic() - began:.2f} s after the request"
                self.result.faults.append(f"{kind}: {what} {after}, {since:.2f} s after the last kill's end")
                return
            got += len(data)

    async def kill(self, side: str) -> None:
        self.kills += 1
        self.down = True
        loop = asyncio.get_running_loop()
        if side == "server":
            self.tunnel.kill_server()
            await loop.run_in_executor(None, self.tunnel.start_server)
        else:
            self.tunnel.kill_client()
            await loop.run_in_executor(None, self.tunnel.start_client)
        up = time.monotonic()
        while True:
            try:
                await asyncio.wait_for(one_request(self.tunnel, self.target), 5)
                break
            except (OSError, TimeoutError):
                if time.monotonic() - up > 30:
                    self.result.faults.append(f"no tunnel 30 s after the {side} came back")
                    break
                await asyncio.sleep(0.05)
        self.recoveries.append(time.monotonic() - up)
        self.last_kill = time.monotonic()
        self.down = False

    def judge_memory(self, side: str, points: list[tuple[float, float]]) -> None:
        """Memory of one life of one process."""
        if len(points) < 60:
            return
        growth = slope(points)
        name = f"{side} bytes/s"
        seconds = points[-1][0] - points[0][0]
        self.result.figures[name] = growth  # the last life's, which is the longest
        if growth * seconds > max(MAX_GROWTH, MAX_SLOPE * seconds):
            self.result.faults.append(f"{side}: memory grows by {growth:.0f} bytes/s")

    async def judge_files(self, before: dict[str, float]) -> None:
        """Open files after everything has ended."""
        for _ in range(100):
            now = self.tunnel.usage()
            over = {side: now[f"{side} fds"] - before[f"{side} fds"] for side in ("server", "client")}
            if max(over.values()) <= 2:
                break
            await asyncio.sleep(0.2)
        for side, count in over.items():
            self.result.figures[f"{side} files more"] = count
            if count > 2:
                self.result.faults.append(f"{side}: {count:g} files more than before")


async def soak(
    tunnel: Tunnel, target: Target, seconds: float, *, workers: int = 8, kill_every: float = 60.0, seed: int = 1
) -> Result:
    """Run a soak of ``seconds`` on a running tunnel."""
    return await _Soak(tunnel, target, seconds, kill_every, seed).run(workers)
