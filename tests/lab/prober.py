"""The prober: sends probes to a server, many at a time, and says what tells the classes apart.

A server reacts to a probe with bytes, with a kind of close, and at a time. A server that cannot be told apart answers
no byte, closes every probe with a FIN, and after times of one distribution, whatever the class.
"""

from __future__ import annotations

import asyncio
import collections
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tests.lab import ks
from tests.lab.probes import BASELINE, Probe
from tests.lab.progress import Progress


class Reaction(NamedTuple):
    """What a server did with one probe.

    :ivar close: ``fin``, ``rst``, ``none`` (still open at the time limit) or ``refused``.
    :ivar seconds: from the connection to its close.
    """

    name: str
    length: int
    received: int
    close: str
    seconds: float


class _Connection(asyncio.Protocol):
    """One probe under way."""

    def __init__(self, probe: Probe, done: asyncio.Future[Reaction], limit: float) -> None:
        self._probe = probe
        self._done = done
        self._limit = limit
        self._received = 0
        self._close = "none"
        self._ended = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._started = time.perf_counter()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._limit, self._give_up)
        if self._probe.gap:
            self._send_byte(0)
        else:
            if self._probe.data:
                transport.write(self._probe.data)
            self._sent()

    def _send_byte(self, at: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._probe.data[at : at + 1])
        if at + 1 < len(self._probe.data):
            self._loop.call_later(self._probe.gap, self._send_byte, at + 1)
        else:
            self._sent()

    def _sent(self) -> None:
        if self._probe.fin:
            self._transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)

    def eof_received(self) -> bool:
        self._close, self._ended = "fin", time.perf_counter()
        return False

    def _give_up(self) -> None:
        self._ended = time.perf_counter()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if exc is not None and self._close == "none" and not self._ended:
            self._close = "rst"
        seconds = (self._ended or time.perf_counter()) - self._started
        if not self._done.done():
            self._done.set_result(Reaction(self._probe.name, self._probe.length, self._received, self._close, seconds))


async def run(
    address: tuple[str, int],
    probes: Sequence[Probe],
    *,
    limit: float,
    per_second: float = 400,
    at_once: int = 10000,
    seed: object = 1,
    progress: Progress | None = None,
) -> list[Reaction]:
    """Send every probe on a connection of its own.

    :param limit: seconds after which a connection that is still open is given up.
    :param per_second: how many connections are begun.
    :param at_once: most connections that are open.
    :param seed: of the loopback addresses that connections come from, when ``address`` is on loopback.
    """
    loop = asyncio.get_running_loop()
    places = asyncio.Semaphore(at_once)
    rng = random.Random(f"{seed}/source")
    out: list[Reaction] = []
    started = loop.time()

    async def one(probe: Probe, source: tuple[str, int] | None) -> None:
        done: asyncio.Future[Reaction] = loop.create_future()
        try:
            await loop.create_connection(lambda: _Connection(probe, done, limit), *address, local_addr=source)
        except OSError:
            out.append(Reaction(probe.name, probe.length, 0, "refused", 0.0))
        else:
            out.append(await done)
        places.release()
        if progress is not None:
            progress.at(len(out))

    tasks = set()
    for number, probe in enumerate(probes):
        await places.acquire()
        await asyncio.sleep(max(0.0, started + number / per_second - loop.time()))
        source = None
        if address[0].startswith("127."):
            source = (f"127.{rng.randint(1, 254)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}", 0)
        task = asyncio.create_task(one(probe, source))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return out


class Verdict(NamedTuple):
    """What the reactions of one round say.

    :ivar faults: one line for everything by which the server can be told; empty if nothing was found.
    :ivar table: per class its name, count, least, median and greatest time, and p against the baseline.
    """

    faults: list[str]
    table: list[tuple[str, int, float, float, float, float]]


def compare(reactions: Iterable[Reaction], significance: float = 0.01, classes: int | None = None) -> Verdict:
    """Compare every class with the baseline class of the same round.

    :param significance: chance to find a difference where there is none, over all classes together (Bonferroni).
    :param classes: how many comparisons there are in all rounds together, if there are more than here.
    """
    by_class: dict[str, list[Reaction]] = collections.defaultdict(list)
    for reaction in reactions:
        by_class[reaction.name].append(reaction)
    baseline = [reaction.seconds for reaction in by_class.get(BASELINE, [])]
    threshold = significance / max(1, (classes or len(by_class)) - 1)
    faults: list[str] = []
    table = []
    for name, found in sorted(by_class.items()):
        loud = [r for r in found if r.received]
        if loud:
            faults.append(f"{name}: {len(loud)} of {len(found)} got bytes back (length {loud[0].length})")
        for close in ("rst", "none", "refused"):
            other = [r for r in found if r.close == close]
            if other:
                lengths = sorted({r.length for r in other})
                faults.append(f"{name}: {len(other)} of {len(found)} ended with {close} (lengths {_brief(lengths)})")
        times = [r.seconds for r in found]
        p = ks.p_value(times, baseline) if baseline else float("nan")
        if p < threshold:
            faults.append(f"{name}: times differ from {BASELINE}: p = {p:.2g}, below {threshold:.2g}")
        table.append((name, len(found), min(times), statistics.median(times), max(times), p))
    return Verdict(faults, table)


def report(verdict: Verdict) -> str:
    """A verdict as text."""
    lines = [f"{'class':24} {'probes':>6} {'least s':>9} {'median s':>9} {'most s':>9} {'p':>8}"]
    for name, count, least, median, most, p in verdict.table:
        lines.append(f"{name:24} {count:6} {least:9.4f} {median:9.4f} {most:9.4f} {p:8.4f}")
    lines += [f"FOUND: {fault}" for fault in verdict.faults] or ["nothing found: no bytes, FIN only, one distribution"]
    return "\n".join(lines)


def _brief(numbers: Sequence[Any]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (" ..." if len(numbers) > 8 else "")
