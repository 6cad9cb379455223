"""Finding the sender's shard counts from what arrives. No I/O.

Source: kcp-go ``autotune.go``.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

#: Packets that are remembered.
MEMORY = 258
_MASK, _HALF = 0xFFFFFFFF, 0x80000000


class AutoTune:
    """Remembers which of the last packets were data."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[int, bool]] = deque(maxlen=MEMORY)

    def sample(self, seqid: int, is_data: bool) -> None:
        """Remember one packet."""
        self._samples.append((seqid, is_data))

    def shard_counts(self) -> tuple[int, int] | None:
        """The sender's data and parity shards, if a whole run of each is there without a gap before it."""
        samples = set(self._samples)
        if not samples:
            return None
        # On the circle of seqids, those of the samples lie around any one of them.
        start = (self._samples[0][0] - _HALF) & _MASK
        ordered = sorted(((seqid - start) & _MASK, is_data) for seqid, is_data in samples)
        lengths: dict[bool, int] = {}
        edge: int | None = None  # where the current run began, if its beginning was seen
        for (seqid, is_data), (following, its_data) in pairwise(ordered):
            if following != seqid + 1:
                return None
            if is_data != its_data:
                if edge is not None:
                    lengths.setdefault(is_data, following - edge)
                edge = following
            if len(lengths) == 2:
                return lengths[True], lengths[False]
        return None
