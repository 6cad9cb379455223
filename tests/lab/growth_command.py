"""``python -m tests.lab growth [WORD ...]``: CPU and memory per input byte of the worst inputs, and whether they grow."""

from __future__ import annotations

import argparse

from tests.lab.fuzzer import FaultError
from tests.lab.growth import check_growth
from tests.lab.loads import LOADS


def main(arguments: list[str]) -> int:
    """Measure; 0 if nothing costs more than it may, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab growth", description=__doc__)
    parser.add_argument("word", nargs="*", help="only loads whose name has one of these in it")
    words = parser.parse_args(arguments).word
    faults = 0
    for name, load in LOADS.items():
        if words and not any(word in name for word in words):
            continue
        try:
            print(check_growth(load), flush=True)
        except FaultError as fault:
            faults += 1
            print(f"FAULT {fault}", flush=True)
    return 1 if faults else 0
