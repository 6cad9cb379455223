"""Feeding stream parsers: whole, byte by byte, and cut at every offset, expecting the same each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence


def fragmentations(data: bytes, seed: int = 0, most_cuts: int = 400) -> Iterator[list[bytes]]:
    """``data`` whole, byte by byte, cut in two at each offset (at most ``most_cuts`` of them), and in random pieces."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    offsets: Sequence[int] = range(1, len(data))
    rng = random.Random(seed)
    if len(offsets) > most_cuts:
        offsets = sorted(rng.sample(offsets, most_cuts))
    for cut in offsets:
        yield [data[:cut], data[cut:]]
    for _ in range(8):
        yield random_pieces(data, rng)


def random_pieces(data: bytes, rng: random.Random, longest: int = 64) -> list[bytes]:
    """``data`` in pieces of 1 to ``longest`` bytes."""
    pieces = []
    while data:
        size = rng.randint(1, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def mutations(golden: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """``count`` seeded mutations of golden inputs: flips, cuts, inserts, repeats, splices and random bytes."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(golden))
        for _ in range(rng.randint(1, 4)):
            _MUTATORS[rng.randrange(len(_MUTATORS))](data, rng, golden)
        yield bytes(data)


def _flip(data: bytearray, rng: random.Random, golden: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, golden: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(data: bytearray, rng: random.Random, golden: Sequence[bytes]) -> None:
    if data:
        del data[rng.randrange(len(data)) :]


def _insert(data: bytearray, rng: random.Random, golden: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 16))


def _repeat(data: bytearray, rng: random.Random, golden: Sequence[bytes]) -> None:
    if data:
        at = rng.randrange(len(data))
        data[at:at] = data[at : at + rng.randint(1, 32)]


def _splice(data: bytearray, rng: random.Random, golden: Sequence[bytes]) -> None:
    other = rng.choice(golden)
    data[rng.randint(0, len(data)) :] = other[rng.randint(0, len(other)) :]


_MUTATORS: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
    _flip,
    _overwrite,
    _cut,
    _insert,
    _repeat,
    _splice,
)
