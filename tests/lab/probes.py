"""Probes: what a prober sends to a server that it suspects, by class, seeded. No I/O.

The classes are those seen from real probers of encrypted tunnels, and those by which tests of such tunnels look for a
telling reaction: random bytes of every short length (a threshold in the parser shows as a change between two lengths),
single bytes, recorded first flights whole, cut, and with one byte changed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: The class that all others are compared with.
BASELINE = "random 221"
#: Every one of them is probed: each short one, and some beyond any header.
LENGTHS = (*range(222), 256, 512, 1024, 16384)
#: When recorded flights are sent again, in seconds after they were recorded: around a time window of 30 s.
REPLAY_TIMES = (0.0, 5.0, 29.0, 31.0, 61.0)
#: Offsets at which a recorded flight is changed: every one where the head of a tunnel may hold a field.
_CHANGED = range(300)


class Probe(NamedTuple):
    """What one connection sends.

    :ivar name: its class. :ivar length: how many bytes it sends.
    :ivar gap: seconds between its bytes if they are sent one by one, else 0.
    :ivar fin: whether it ends its own direction after that.
    """

    name: str
    data: bytes
    gap: float = 0.0
    fin: bool = False

    @property
    def length(self) -> int:
        """Bytes that it sends."""
        return len(self.data)


def random_probes(per_class: int, seed: int, gap: float = 0.02) -> Iterator[Probe]:
    """Probes that need no recording: of every length at least once, and ``per_class`` of each class."""
    rng = random.Random(f"{seed}/random")
    runs = {
        "silence": (0,),
        "random 1..49": range(1, 50),
        "random 50..220": range(50, 221),
        BASELINE: (221,),
        "random 256..1024": (256, 512, 1024),
        "random 16384": (16384,),
    }
    for name, lengths in runs.items():
        for number in range(max(per_class, len(lengths))):
            yield Probe(name, rng.randbytes(lengths[number % len(lengths)]))
    for _ in range(per_class):
        yield Probe("byte by byte", rng.randbytes(rng.choice((7, 50, 100))), gap=gap)
        yield Probe("random, then FIN", rng.randbytes(221), fin=True)
        yield Probe("silence, then FIN", b"", fin=True)


def baseline_probes(count: int, seed: object) -> Iterator[Probe]:
    """Probes of the class to compare with, for a round of their own."""
    rng = random.Random(f"{seed}/baseline")
    for _ in range(count):
        yield Probe(BASELINE, rng.randbytes(221))


def replay_probes(flights: Sequence[bytes], count: int, name: str) -> Iterator[Probe]:
    """Recorded first flights, whole."""
    for number in range(count):
        yield Probe(name, flights[number % len(flights)])


def altered_probes(flights: Sequence[bytes], per_class: int, seed: int) -> Iterator[Probe]:
    """Recorded first flights cut at each offset, with one byte changed at each offset, and with more bytes behind."""
    rng = random.Random(f"{seed}/altered")
    for name, offsets in (("flight cut", _CHANGED), ("flight changed", _CHANGED)):
        for number in range(max(per_class, len(offsets))):
            flight = flights[rng.randrange(len(flights))]
            at = offsets[number % len(offsets)] % len(flight)
            if name == "flight cut":
                yield Probe(name, flight[:at])
            else:
                changed = bytearray(flight)
                changed[at] ^= rng.randrange(1, 256)
                yield Probe(name, bytes(changed))
    for _ in range(per_class):
        flight = flights[rng.randrange(len(flights))]
        yield Probe("flight and more", flight + rng.randbytes(rng.randint(1, 2000)))


def shuffled(probes: Iterator[Probe] | Sequence[Probe], seed: object) -> list[Probe]:
    """Probes in a seeded order, so that every class meets the same load on the machine."""
    out = list(probes)
    random.Random(f"{seed}/order").shuffle(out)
    return out
