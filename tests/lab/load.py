"""Load on a tunnel: parallel clients, idle ones, slow readers and writers, and floods. asyncio; all of it bounded.

Each function takes a running :class:`~tests.lab.tunnels.Tunnel` and a running :class:`~tests.lab.target.Target`, and
answers with what it measured. What is right or wrong with it says the caller.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from tests.lab.progress import Progress
from tests.lab.target import Target, abort, connect, receive, send
from tests.lab.tunnels import Tunnel
from tests.support.processes import cpu

#: How long any single step may take.
STEP_SECONDS = 60.0


@dataclasses.dataclass
class Result:
    """What one load did.

    :ivar figures: measured numbers by name. :ivar faults: one line for each thing that must not be.
    """

    what: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        return "\n".join([f"{self.what}: {figures}", *(f"  FAULT {fault}" for fault in self.faults)])


def percentile(values: Iterable[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed; not a number for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the straight line with the least squares through points (x, y)."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


async def one_request(tunnel: Tunnel, target: Target, size: int = 1000) -> float:
    """A short request on a new connection; seconds until its whole answer is there.

    :raises ConnectionError: if the answer is not right.
    """
    started = time.perf_counter()
    reader, writer = await connect(tunnel.socks_port, target.port)
    try:
        writer.write(b"down %d 5\n" % size)
        if not await receive(reader, size, 5):
            raise ConnectionError("a wrong or short answer")
    finally:
        abort(writer)
    return time.perf_counter() - started


async def good_requests(tunnel: Tunnel, target: Target, count: int, every: float, result: Result) -> None:
    """A good client's requests, one by one; their times go into the result, their failures are faults."""
    times, failed = [], 0
    for _ in range(count):
        try:
            times.append(await asyncio.wait_for(one_request(tunnel, target), STEP_SECONDS))
        except (ConnectionError, TimeoutError):
            failed += 1
        await asyncio.sleep(every)
    if failed:
        result.faults.append(f"{failed} of {count} requests of a good client failed")
    result.figures |= {"good p50 s": percentile(times, 0.5), "good p95 s": percentile(times, 0.95)}


async def echo(tunnel: Tunnel, target: Target, clients: int, size: int, seed: int = 1) -> Result:
    """Parallel clients, each of which sends ``size`` bytes in writes of random sizes and checks every byte back."""
    result = Result(f"echo, {clients} clients, {size} bytes each, seed {seed}")

    async def one(number: int) -> None:
        reader, writer = await connect(tunnel.socks_port, target.port)
        try:
            writer.write(b"echo\n")
            sending = asyncio.create_task(send(writer, size, number, random.Random(f"{seed}/{number}")))
            if not await receive(reader, size, number):
                result.faults.append(f"client {number}: wrong or missing bytes")
            await sending
        finally:
            abort(writer)

    started, cpu_before = time.perf_counter(), cpu(tunnel.server_pid) + cpu(tunnel.client_pid)
    await _together(result, (functools.partial(one, number) for number in range(clients)), at_once=clients)
    seconds = time.perf_counter() - started
    gigabytes = 2 * clients * size / 1e9
    result.figures |= {
        "seconds": seconds,
        "MB/s both ways": gigabytes * 1000 / seconds,
        "CPU s/GB": (cpu(tunnel.server_pid) + cpu(tunnel.client_pid) - cpu_before) / gigabytes,
    }
    return result


async def transfer(tunnel: Tunnel, target: Target, size: int, seed: int = 1) -> Result:
    """One connection each way: ``size`` bytes down, then up in writes of random sizes, every byte checked."""
    result = Result(f"transfer, {size} bytes each way, seed {seed}")
    for way in ("down", "up"):
        reader, writer = await connect(tunnel.socks_port, target.port)
        started, cpu_before = time.perf_counter(), cpu(tunnel.server_pid) + cpu(tunnel.client_pid)
        writer.write(b"%s %d %d\n" % (way.encode(), size, seed))
        if way == "down":
            right = await receive(reader, size, seed) and not await reader.read()
        else:
            await send(writer, size, seed, random.Random(seed))
            right = await reader.read() == b"1"
        seconds = time.perf_counter() - started
        if not right:
            result.faults.append(f"{way}: wrong or missing bytes")
        used = cpu(tunnel.server_pid) + cpu(tunnel.client_pid) - cpu_before
        result.figures |= {f"{way} MB/s": size / 1e6 / seconds, f"{way} CPU s/GB": used / size * 1e9}
        abort(writer)
    return result


async def idle(tunnel: Tunnel, target: Target, count: int, seconds: float = 5.0) -> Result:
    """Tunnels that are open and do nothing: what each costs in memory, and whether all are free afterwards."""
    # Both processes need two files for each tunnel, and some for themselves.
    count = min(count, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 60) // 2)
    result = Result(f"idle, {count} tunnels for {seconds:g} s")
    await one_request(tunnel, target)
    before = tunnel.usage()
    points = {"server": [(0.0, before["server rss"])], "client": [(0.0, before["client rss"])]}
    writers: list[asyncio.StreamWriter] = []
    progress = Progress("idle tunnels", count)

    async def one() -> None:
        reader, writer = await connect(tunnel.socks_port, target.port)
        writers.append(writer)
        writer.write(b"echo\n!")
        if await reader.readexactly(1) != b"!":
            result.faults.append("a tunnel is open and does not work")

    step = max(1, count // 10)
    for start in range(0, count, step):
        await _together(result, (one for _ in range(min(step, count - start))), at_once=200)
        progress.at(len(writers))
        for side in points:
            points[side].append((len(writers), tunnel.usage()[f"{side} rss"]))
    await asyncio.sleep(seconds)
    full = tunnel.usage()
    working = Result("")
    await good_requests(tunnel, target, 20, 0.01, working)
    result.faults += working.faults
    for writer in writers:
        abort(writer)
    result.figures |= {
        "open": len(writers),
        "server MB": full["server rss"] / 1e6,
        "client MB": full["client rss"] / 1e6,
        "server KB per tunnel": slope(points["server"]) / 1e3,
        "client KB per tunnel": slope(points["client"]) / 1e3,
        "good p95 s": working.figures["good p95 s"],
    }
    await _files_are_free(tunnel, before, result)
    return result


async def _files_are_free(tunnel: Tunnel, before: dict[str, float], result: Result, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = tunnel.usage()
        if all(now[f"{side} fds"] <= before[f"{side} fds"] + 2 for side in ("server", "client")):
            return
        await asyncio.sleep(0.2)
    for side in ("server", "client"):
        if now[f"{side} fds"] > before[f"{side} fds"] + 2:
            result.faults.append(f"{side}: {now[f'{side} fds']:g} open files, {before[f'{side} fds']:g} before")


async def slow_readers(tunnel: Tunnel, target: Target, count: int, seconds: float = 5.0) -> Result:
    """Applications that ask for 100 MB each and read none of it: what the tunnel keeps must be bounded."""
    result = Result(f"slow readers, {count} for {seconds:g} s")
    before = tunnel.usage()
    writers = []

    async def one() -> None:
        _, writer = await connect(tunnel.socks_port, target.port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"down 100000000 1\n")
        writers.append(writer)

    await _together(result, (one for _ in range(count)), at_once=50)
    await good_requests(tunnel, target, 20, seconds / 20, result)
    full = tunnel.usage()
    for side in ("server", "client"):
        result.figures[f"{side} KB per reader"] = (full[f"{side} rss"] - before[f"{side} rss"]) / count / 1e3
    for writer in writers:
        abort(writer)
    await _files_are_free(tunnel, before, result)
    return result


async def slow_writers(
    tunnel: Tunnel, target: Target, count: int, seconds: float = 30.0, every: float = 10.0, seed: int = 1
) -> Result:
    """Strangers who send the server one byte each ``every`` seconds, while a good client works."""
    return await _strangers(
        tunnel, target, count, seconds, every, seed, f"slow writers, {count}, a byte per {every:g} s"
    )


async def half_open(tunnel: Tunnel, target: Target, count: int, seconds: float = 10.0) -> Result:
    """Strangers who connect to the server and say nothing, and connect again when they are closed."""
    return await _strangers(tunnel, target, count, seconds, 0.0, 1, f"half-open, {count}")


async def _strangers(
    tunnel: Tunnel, target: Target, count: int, seconds: float, every: float, seed: int, what: str
) -> Result:
    result = Result(f"{what}, for {seconds:g} s, seed {seed}")
    before = tunnel.usage()
    rng = random.Random(seed)
    ended = asyncio.Event()
    counts = {"connections": 0, "bytes back": 0, "refused": 0, "open": 0}
    progress = Progress("strangers", count)

    async def one(delay: float) -> None:
        await asyncio.sleep(delay)
        source = (f"127.{rng.randint(1, 254)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}", 0)
        while not ended.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.server_port, local_addr=source)
            except OSError:
                counts["refused"] += 1
                await asyncio.sleep(1)
                continue
            counts["connections"] += 1
            counts["open"] += 1
            reading = asyncio.create_task(reader.read(1))
            try:
                while not (ended.is_set() or reading.done()):
                    if every:
                        writer.write(rng.randbytes(1))
                    await asyncio.wait({reading}, timeout=every * rng.uniform(0.8, 1.2) or 1.0)
                if reading.done() and not reading.exception() and reading.result():
                    counts["bytes back"] += 1
            finally:
                counts["open"] -= 1
                reading.cancel()
                abort(writer)

    ramp = min(10.0, max(1.0, count / 500))
    tasks = [asyncio.create_task(one(rng.uniform(0, ramp))) for _ in range(count)]
    for _ in range(int(ramp * 10) + 5):
        await asyncio.sleep(0.1)
        progress.at(counts["open"])
    most_open = counts["open"]
    requests = max(20, int(seconds * 2))
    used = cpu(tunnel.server_pid)
    started = time.perf_counter()
    await good_requests(tunnel, target, requests, max(0.0, seconds / requests), result)
    load = (cpu(tunnel.server_pid) - used) / (time.perf_counter() - started)
    full = tunnel.usage()
    ended.set()
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            result.faults.append(f"the load itself failed: {outcome!r}")
            break
    if counts["bytes back"]:
        result.faults.append(f"{counts['bytes back']} strangers got an answer")
    result.figures |= {
        "open": most_open,
        "connections": counts["connections"],
        "server MB": full["server rss"] / 1e6,
        "server files": full["server fds"],
        "server CPU": load,
    }
    await _files_are_free(tunnel, before, result, 100.0)
    return result


async def _together(result: Result, jobs: Iterable[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run jobs, some at a time; what goes wrong is a fault, once per kind."""
    places = asyncio.Semaphore(at_once)
    failed: dict[str, int] = {}

    async def guarded(job: Callable[[], Awaitable[None]]) -> None:
        async with places:
            try:
                await asyncio.wait_for(job(), STEP_SECONDS * 10)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                text = f"{type(error).__name__}: {error}"
                failed[text] = failed.get(text, 0) + 1

    await asyncio.gather(*(guarded(job) for job in jobs))
    result.faults += [f"{count} connections failed: {text}" for text, count in failed.items()]
