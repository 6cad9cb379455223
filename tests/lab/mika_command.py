"""``python -m tests.lab mika FIGURE ...``: measure what docs/reliability.rst says of Mika."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from tests.lab import load, mika
from tests.lab.load import Result
from tests.lab.soak import soak
from tests.lab.target import Target
from tests.lab.tunnels import MikaTunnel, Tunnel


async def _loaded(use: Callable[[Tunnel, Target], Awaitable[Result]], refusal_time: float = 2.0) -> Result:
    with MikaTunnel(refusal_time=refusal_time) as tunnel:
        async with Target().running() as target:
            result = await use(tunnel, target)
        result.faults += [f"in a log: {line}" for line in tunnel.unhandled()[:5]]
    return result


async def _flips_in_memory(seed: int) -> Result:
    return mika.flips_in_memory(seed)


#: Chance of a false find in a short form, which runs with every change and must not cry wolf.
_RARE = 1e-5

#: Each figure: in full, and short as in CI (seconds instead of minutes).
FIGURES: dict[str, tuple[Callable[[int], Awaitable[Result]], Callable[[int], Awaitable[Result]]]] = {
    "replay": (lambda seed: mika.replays(2000), lambda seed: mika.replays(60, (0.0, 5.0), significance=_RARE)),
    "probe": (
        lambda seed: mika.probing(2000, refusal_time=20, seed=seed),
        lambda seed: mika.probing(100, seed=seed, recorded_count=50, significance=_RARE),
    ),
    "probe-default-time": (
        lambda seed: mika.probing(300, refusal_time=61, seed=seed),
        lambda seed: mika.probing(20, significance=_RARE),
    ),
    "flips": (_flips_in_memory, _flips_in_memory),
    "flips-live": (lambda seed: mika.flips_live(1, seed=seed), lambda seed: mika.flips_live(67, seed=seed)),
    "idle": (
        lambda seed: _loaded(lambda t, g: load.idle(t, g, 10_000)),
        lambda seed: _loaded(lambda t, g: load.idle(t, g, 300, 0.5)),
    ),
    "slow-writers": (
        lambda seed: _loaded(lambda t, g: load.slow_writers(t, g, 5000, 60, seed=seed), 75.0),
        lambda seed: _loaded(lambda t, g: load.slow_writers(t, g, 300, 4, every=1, seed=seed), 8.0),
    ),
    "half-open": (
        lambda seed: _loaded(lambda t, g: load.half_open(t, g, 5000, 30), 75.0),
        lambda seed: _loaded(lambda t, g: load.half_open(t, g, 300, 3), 8.0),
    ),
    # The same with a short refusal time: strangers who come again as soon as they are closed.
    "flood": (
        lambda seed: _loaded(lambda t, g: load.half_open(t, g, 500, 30)),
        lambda seed: _loaded(lambda t, g: load.half_open(t, g, 300, 3)),
    ),
    "slow-readers": (
        lambda seed: _loaded(lambda t, g: load.slow_readers(t, g, 300, 10)),
        lambda seed: _loaded(lambda t, g: load.slow_readers(t, g, 20, 1)),
    ),
    "echo": (
        lambda seed: _loaded(lambda t, g: load.echo(t, g, 1000, 1_000_000, seed)),
        lambda seed: _loaded(lambda t, g: load.echo(t, g, 50, 200_000, seed)),
    ),
    "transfer": (lambda seed: mika.large_transfer(10**9, seed), lambda seed: mika.large_transfer(2 * 10**7, seed)),
    "kill": (lambda seed: mika.killed_mid_download(100), lambda seed: mika.killed_mid_download(20)),
    "kill-dialling": (
        lambda seed: mika.killed_while_dialling(50),
        lambda seed: mika.killed_while_dialling(10),
    ),
    "cuts": (mika.cuts, mika.cuts),
    "clock": (lambda seed: mika.clock_jumps(100), lambda seed: mika.clock_jumps(100)),
    "soak": (
        lambda seed: _loaded(lambda t, g: soak(t, g, 3600, seed=seed)),
        lambda seed: _loaded(lambda t, g: soak(t, g, 300, kill_every=30, seed=seed)),
    ),
}


def main(arguments: list[str]) -> int:
    """Measure; 0 if there was no fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab mika", description=__doc__)
    parser.add_argument("figure", nargs="+", choices=[*FIGURES, "all"])
    parser.add_argument("--short", action="store_true", help="as in CI: smaller numbers, the same checks")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    names = [name for name in FIGURES if name != "soak"] if "all" in options.figure else options.figure
    faults = 0
    for name in names:
        print(f"== {name}, seed {options.seed}{', short' if options.short else ''}", file=sys.stderr, flush=True)
        result = asyncio.run(_start(FIGURES[name][options.short], options.seed))
        print(result, flush=True)
        faults += len(result.faults)
    return 1 if faults else 0


async def _start(figure: Callable[[int], Awaitable[Result]], seed: int) -> Result:
    return await figure(seed)
