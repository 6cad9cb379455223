"""What input costs: CPU and memory per input byte, and whether they grow with the input.

A *load* makes the worst input of some kind in any size: fragments at even offsets, frames of one byte, many gaps, deep
queues. It is run in doubling sizes. What costs the same for each byte passes, whatever it costs; what costs twice as much
for each byte of twice as much input is quadratic, and a fault. CPU time is the process's own, the least of several runs,
and the collector is off, so that a busy machine changes little; the bounds are generous, so that the rest changes nothing.
"""

from __future__ import annotations

import dataclasses
import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

from mikanet.errors import ProtocolError
from tests.lab.fuzzer import FaultError

#: How much larger the largest input is than the smallest that is compared.
SPAN = 4
#: By how much the cost of a byte may grow over that span. What is quadratic grows by the span itself, n log n by 1.2.
MAX_GROWTH = 2.2
#: CPU that any one input byte may cost, in seconds (our choice: ten times what a whole packet of ten bytes costs here).
MAX_PER_BYTE = 20e-6
#: Bytes of memory at the peak for each input byte, beside :data:`FREE_MEMORY` for all.
MAX_MEMORY_PER_BYTE, FREE_MEMORY = 150, 2_000_000
#: The smallest run that is measured takes so long, in seconds of CPU, or is as large as its load allows.
_LEAST = 0.008
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Load:
    """One kind of bad input.

    :ivar codec: the names, in :mod:`tests.lab.codecs`, of the codecs whose code this drives.
    :ivar make: from a count of parts to those parts; not measured. :ivar run: takes them; a declared error ends it.
    :ivar most: parts beyond which a protocol's own window or limit ends what can grow. :ivar least: parts below which it
        has hardly begun.
    """

    name: str
    make: Callable[[int], Sequence[bytes]]
    run: Callable[[Sequence[bytes]], Any]
    codec: tuple[str, ...] = ()
    most: int = 16_384
    least: int = 64


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a load cost at one size.

    :ivar parts: of the input. :ivar size: of it, in bytes. :ivar seconds: of CPU.
    """

    parts: int
    size: int
    seconds: float

    @property
    def per_byte(self) -> float:
        """Seconds of CPU for each byte."""
        return self.seconds / self.size


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured of a load.

    :ivar memory: bytes at the peak of the largest input.
    """

    name: str
    costs: tuple[Cost, ...]
    memory: int

    @property
    def growth(self) -> float:
        """By how much a byte of the largest input costs more than one of the smallest."""
        return self.costs[-1].per_byte / self.costs[0].per_byte

    def __str__(self) -> str:
        last = self.costs[-1]
        return (
            f"{self.name:36} {last.parts:>6} parts {last.size:>9} bytes {last.per_byte * 1e9:>8.0f} ns/byte "
            f"growth {self.growth:4.2f}  {self.memory / last.size:>6.1f} bytes kept per byte"
        )


def measure(load: Load) -> Finding:
    """Measure a load at a size that takes long enough, and at twice and :data:`SPAN` times that."""
    most = load.most // SPAN
    parts = min(load.least, most)
    while (cost := _cost(load, parts, 1)).seconds < _LEAST and parts < most:
        parts = min(most, parts * 2)
    costs = [_cost(load, size, _REPEATS) for size in (parts, parts * 2, parts * SPAN)]
    del cost
    return Finding(load.name, tuple(costs), _memory(load, parts * SPAN))


def check_growth(load: Load) -> Finding:
    """Measure a load.

    :raises FaultError: if its cost per byte grows, or is beyond the bounds.
    """
    finding = measure(load)
    if finding.growth > MAX_GROWTH:
        finding = min(finding, measure(load), key=lambda each: each.growth)  # once more, before anybody is blamed
    if finding.growth > MAX_GROWTH:
        costs = ", ".join(f"{each.size} bytes {each.seconds * 1000:.1f} ms" for each in finding.costs)
        raise FaultError(f"{load.name}: a byte costs {finding.growth:.1f} times as much in more input: {costs}")
    last = finding.costs[-1]
    if last.per_byte > MAX_PER_BYTE:
        raise FaultError(f"{load.name}: {last.per_byte * 1e6:.1f} us of CPU for each byte")
    if finding.memory > FREE_MEMORY + MAX_MEMORY_PER_BYTE * last.size:
        raise FaultError(f"{load.name}: {finding.memory} bytes of memory for {last.size} bytes of input")
    return finding


def _run(load: Load, pieces: Sequence[bytes]) -> None:
    try:
        load.run(pieces)
    except ProtocolError:
        pass


def _cost(load: Load, parts: int, repeats: int) -> Cost:
    pieces = load.make(parts)
    best = float("inf")
    for _ in range(repeats):
        gc.collect()
        gc.disable()
        try:
            started = time.process_time()
            _run(load, pieces)
            best = min(best, time.process_time() - started)
        finally:
            gc.enable()
    return Cost(parts, sum(map(len, pieces)), best)


def _memory(load: Load, parts: int) -> int:
    pieces = load.make(parts)
    tracemalloc.start(1)
    try:
        _run(load, pieces)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
