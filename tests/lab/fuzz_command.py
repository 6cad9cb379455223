"""``python -m tests.lab fuzz [CODEC ...]``: feed seeded mutations of golden inputs to the codecs."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import queue
import subprocess
import sys
from typing import Any

from tests.lab.codecs import CODECS
from tests.lab.fuzzer import CORPUS, Outcome, fuzz, keep, limit_memory, shrink
from tests.lab.progress import Progress


def main(arguments: list[str]) -> int:
    """Fuzz; 0 if no input was a fault, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab fuzz", description=__doc__)
    parser.add_argument("codec", nargs="*", help=f"default: all of {', '.join(CODECS)}")
    parser.add_argument("--inputs", type=float, default=100_000, help="for each codec (default 100000; 1e7 is fine)")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-keep", action="store_true", help="do not put faulty inputs into the corpus")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, one codec")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.codec if name not in CODECS]
    if unknown:
        print(f"no such codec: {', '.join(unknown)}; there are {', '.join(CODECS)}", file=sys.stderr)
        return 2
    names = options.codec or list(CODECS)
    if options.atheris:
        return _atheris(names[0], int(options.inputs))
    outcomes = _run(names, int(options.inputs), options.seed, options.processes)
    faults = 0
    for name in names:
        outcome = outcomes[name]
        print(outcome)
        for text, data in outcome.faults:
            faults += 1
            small = shrink(CODECS[name], data)
            where = "" if options.no_keep else f", kept as {keep(name, small).relative_to(CORPUS.parents[2])}"
            print(f"  FAULT {text}\n    {len(small)} bytes: {small[:64].hex()}{where}")
    print(f"{sum(outcome.inputs for outcome in outcomes.values())} inputs, seed {options.seed}, {faults} faults")
    return 1 if faults else 0


def _run(names: list[str], inputs: int, seed: str, processes: int) -> dict[str, Outcome]:
    """Spread the work: parts of each codec's inputs, each with a seed of its own that does not depend on the spread."""
    part = 50_000
    jobs = [
        (name, min(part, inputs - start), f"{seed}/{start // part}")
        for start in range(0, max(inputs, 1), part)
        for name in names
    ]
    outcomes = {name: Outcome(name) for name in names}
    progress = Progress("inputs", sum(size for _, size, _ in jobs))
    context = multiprocessing.get_context("fork")
    ticks: Any = context.SimpleQueue() if processes == 1 else context.Queue()
    with context.Pool(processes, _start_worker, (ticks,)) as pool:
        results = [pool.apply_async(_work, job) for job in jobs]
        done, waiting = 0, list(results)
        while waiting:
            done += _ticks(ticks)
            progress.at(done)
            waiting[0].wait(0.2)
            while waiting and waiting[0].ready():
                _merge(outcomes, waiting.pop(0).get())
    return outcomes


def _ticks(ticks: Any) -> int:
    count = 0
    try:
        while not ticks.empty():
            count += ticks.get()
    except queue.Empty:
        pass
    return count


def _merge(outcomes: dict[str, Outcome], part: Outcome) -> None:
    whole = outcomes[part.name]
    whole.inputs += part.inputs
    whole.seconds += part.seconds
    whole.verdicts += part.verdicts
    for text, data in part.faults:
        # One input per kind of fault is enough.
        if all(text.partition(":")[0] != known.partition(":")[0] for known, _ in whole.faults):
            whole.faults.append((text, data))


_tick_queue: Any = None


def _start_worker(ticks: Any) -> None:
    global _tick_queue
    _tick_queue = ticks
    limit_memory()


def _work(name: str, inputs: int, seed: str) -> Outcome:
    return fuzz(CODECS[name], inputs, seed, tick=lambda count: _tick_queue.put(count))


def _atheris(name: str, inputs: int) -> int:
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "tests.lab.guided", name, f"-runs={inputs}"]).returncode
