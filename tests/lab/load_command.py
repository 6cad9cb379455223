"""``python -m tests.lab load KIND``: load a tunnel on loopback and say what it did."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from tests.lab import load
from tests.lab.load import Result
from tests.lab.soak import soak
from tests.lab.target import Target
from tests.lab.tunnels import TUNNELS, Tunnel

_Run = Callable[[Tunnel, Target, argparse.Namespace], Awaitable[Result]]

_KINDS: dict[str, tuple[str, _Run]] = {
    "echo": ("parallel clients, --count of them with --size bytes each", lambda t, g, o: load.echo(t, g, o.count or 50, o.size, o.seed)),
    "transfer": ("--size bytes down and up", lambda t, g, o: load.transfer(t, g, o.size, o.seed)),
    "idle": ("--count idle tunnels", lambda t, g, o: load.idle(t, g, o.count or 10000)),
    "slow-readers": ("--count applications that do not read", lambda t, g, o: load.slow_readers(t, g, o.count or 100, o.seconds or 5)),
    "slow-writers": ("--count strangers, a byte per 10 s", lambda t, g, o: load.slow_writers(t, g, o.count or 5000, o.seconds or 30, seed=o.seed)),
    "half-open": ("--count strangers that say nothing", lambda t, g, o: load.half_open(t, g, o.count or 2000, o.seconds or 10)),
    "soak": ("mixed traffic with kills", lambda t, g, o: soak(t, g, o.seconds or 3600, kill_every=o.kill_every, seed=o.seed)),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run one load; 0 if there was no fault."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab load",
        description=__doc__,
        epilog="kinds: " + "; ".join(f"{name}: {text}" for name, (text, _) in _KINDS.items()),
    )
    parser.add_argument("kind", choices=_KINDS)
    parser.add_argument("--tunnel", choices=TUNNELS, default="mika")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--size", type=float, default=1e7, help="bytes (default 1e7)")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--kill-every", type=float, default=60, help="seconds between kills in a soak; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    for side in ("server", "client"):
        parser.add_argument(f"--{side}-option", action="append", default=[], help=f"for the {side}, as --name=value")
    options = parser.parse_args(arguments)
    options.size = int(options.size)

    async def run() -> Result:
        made = TUNNELS[options.tunnel](server_options=options.server_option, client_options=options.client_option)
        with made as tunnel:
            async with Target().running() as target:
                result = await _KINDS[options.kind][1](tunnel, target, options)
            result.faults += [f"in a log: {line}" for line in tunnel.unhandled()[:5]]
            return result

    result = asyncio.run(run())
    print(result)
    return 1 if result.faults else 0
