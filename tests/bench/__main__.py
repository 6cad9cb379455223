"""``python -m tests.bench``: measure tunnels and their peers in turn, and print the tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tests.bench import report
from tests.bench.measure import Round, Sizes, measure, sweep
from tests.bench.peers import PEERS
from tests.support.processes import Process, free_port

DEFAULT = "mika,ss-aes-256-cfb,ss-aes-256-gcm,microsocks"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--peers", default=DEFAULT, help=f"comma-separated, ours first; known: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="each peer is measured once a round, in turn")
    parser.add_argument("--megabytes", type=int, default=500, help="size of each transfer")
    parser.add_argument("--connections", type=int, default=2000, help="short connections of a round")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections of a round")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=Path, help="sweep chunk sizes and numbers of connections, write an SVG there")
    options = parser.parse_args()
    names = options.peers.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        parser.error(f"unknown peer {unknown[0]!r}")
    sizes = Sizes(options.megabytes * 1_000_000, options.connections, idle=options.idle)
    command = "python -m tests.bench " + " ".join(sys.argv[1:])
    results: dict[str, list[Round]] = {name: [] for name in names}
    sweeps: dict[str, Any] = {}
    port = free_port()
    with Process([sys.executable, "-m", "tests.bench.target", str(port)], ports=(port,)):
        for number in range(options.rounds):
            for name in names:
                progress(f"round {number + 1} of {options.rounds}: {name}")
                results[name].append(measure(name, port, sizes))
        if options.plot:
            for name in names:
                progress(f"sweep: {name}")
                sweeps[name] = sweep(name, port, sizes.transfer // 5, [64, 512, 4096, 16384, 65536], [1, 4, 16, 64])
    progress("")
    print(report.describe(results, command.strip()))
    print()
    print(report.table(results))
    print()
    print(report.ratios(results, names[0]))
    if options.plot:
        report.write_plots(options.plot, sweeps)
    if options.json:
        report.write_json(options.json, results, sweeps, command)


def progress(text: str) -> None:
    """Show what is being done, on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
