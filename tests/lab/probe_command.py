"""``python -m tests.lab probe HOST:PORT``: probe any TCP server and compare its reactions, class by class."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.lab import prober, probes
from tests.lab.progress import Progress
from tests.lab.recording import streams


def main(arguments: list[str]) -> int:
    """Probe a server; 0 if nothing tells it, 1 if something does."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab probe", description=__doc__)
    parser.add_argument("server", metavar="HOST:PORT")
    parser.add_argument("--per-class", type=int, default=2000, help="probes of each class (default 2000)")
    parser.add_argument("--limit", type=float, default=100, help="seconds to wait for a close (default 100)")
    parser.add_argument("--rate", type=float, default=200, help="connections begun per second (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--recording",
        metavar="FILE",
        help='first flights that the server accepted, made by wire --tcp "record@up=FILE"',
    )
    parser.add_argument(
        "--restart", action="store_true", help="wait for Enter, then replay once more (restart it first)"
    )
    options = parser.parse_args(arguments)
    host, _, port = options.server.rpartition(":")
    address = (host, int(port))
    flights = [flight for flight in streams(options.recording) if flight] if options.recording else []
    rounds = plan(flights, options.per_class, options.seed)
    count = sum(len({probe.name for probe in found}) for _, found in rounds)
    found_any = False
    started = time.monotonic()
    for delay, batch in rounds:
        time.sleep(max(0.0, started + delay - time.monotonic()))
        found_any |= not _round(address, batch, options, count)
    if options.restart and flights:
        print("restart the server, then press Enter", file=sys.stderr)
        sys.stdin.readline()
        after = [*probes.baseline_probes(options.per_class, "restart")]
        after += probes.replay_probes(flights, options.per_class, "replay after restart")
        found_any |= not _round(address, after, options, count)
    return 1 if found_any else 0


def plan(flights: list[bytes], per_class: int, seed: int) -> list[tuple[float, list[probes.Probe]]]:
    """The rounds of a probing: seconds after the start, and the probes, each round with its own baseline."""
    first = [*probes.random_probes(per_class, seed)]
    if not flights:
        return [(0.0, first)]
    first += probes.replay_probes(flights, per_class, "replay at 0 s")
    first += probes.altered_probes(flights, per_class, seed)
    rounds = [(0.0, first)]
    for delay in probes.REPLAY_TIMES[1:]:
        batch = [*probes.baseline_probes(per_class, delay)]
        batch += probes.replay_probes(flights, per_class, f"replay at {delay:g} s")
        rounds.append((delay, batch))
    return rounds


def _round(address: tuple[str, int], batch: list[probes.Probe], options: argparse.Namespace, classes: int) -> bool:
    progress = Progress("probes", len(batch), every=5)
    reactions = asyncio.run(
        prober.run(
            address,
            probes.shuffled(batch, options.seed),
            limit=options.limit,
            per_second=options.rate,
            seed=options.seed,
            progress=progress,
        )
    )
    verdict = prober.compare(reactions, classes=classes)
    print(prober.report(verdict), flush=True)
    return not verdict.faults
