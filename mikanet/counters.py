"""Ground floor: the one registry of named counters. No I/O.

Every service counts what happens under dotted names (``mika.server.refused.replay``). Names are few and fixed in the
code, never made from peers' data, so the registry is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Counters:
    """Named totals since start; all zero until first counted."""

    __slots__ = ("_totals",)

    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Add ``amount`` to the total called ``name``."""
        self._totals[name] += amount

    def __getitem__(self, name: str) -> int:
        return self._totals[name]

    def snapshot(self) -> Mapping[str, int]:
        """A copy of all totals."""
        return dict(self._totals)
