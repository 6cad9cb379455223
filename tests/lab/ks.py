"""The two-sample Kolmogorov-Smirnov test, in plain Python. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """The greatest distance between the two samples' distribution functions, 0 to 1."""
    a, b = sorted(first), sorted(second)
    i = j = 0
    most = 0.0
    while i < len(a) and j < len(b):
        value = min(a[i], b[j])
        while i < len(a) and a[i] == value:
            i += 1
        while j < len(b) and b[j] == value:
            j += 1
        most = max(most, abs(i / len(a) - j / len(b)))
    return most


def survival(value: float) -> float:
    """The chance that Kolmogorov's distribution exceeds ``value``: twice the alternating sum of exp(-2 k² value²)."""
    if value < 0.2:
        return 1.0  # the series converges slowly here, and the chance is 1 to twelve digits
    total = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * value * value) for k in range(1, 101))
    return min(1.0, max(0.0, total))


def p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """The chance to see so great a distance although both samples are of one distribution.

    Asymptotic, with Stephens' correction for small samples.

    :raises ValueError: for an empty sample.
    """
    if not first or not second:
        raise ValueError("a test needs two samples")
    size = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    return survival((size + 0.12 + 0.11 / size) * distance(first, second))
