"""Reed-Solomon over shards, with the matrix that kcp-go uses. No I/O.

The coding matrix is a Vandermonde matrix (``V[r][c] = r ** c``) times the inverse of its upper square, so that the data
shards stay as they are. In other words, shard ``i`` is the value at ``i`` of the polynomial whose values at 0, 1, 2 ... are
the data shards: rows are interpolations, and cost the square of the number of shards, where inverting a matrix costs the
cube. All work on bytes is one operation, :data:`combine`, which the optional C extension also has.

Source: klauspost/reedsolomon, default matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from mikanet.errors import ConfigError
from mikanet.fec.galois import PRODUCTS, interpolation_rows

#: Most shards of a group, data and parity.
MAX_SHARDS = 256
_CACHED_REBUILDS = 1024

Combine = Callable[[Sequence[bytes], Sequence[bytes], int], list[bytes]]


def plain_combine(rows: Sequence[bytes], shards: Sequence[bytes], length: int) -> list[bytes]:
    """For each row the sum of ``row[i] * shards[i]``, ``length`` bytes; shorter shards count as ending in zeros."""
    results = []
    for row in rows:
        total = 0
        for factor, shard in zip(row, shards, strict=True):
            if factor:
                total ^= int.from_bytes(shard if factor == 1 else shard.translate(PRODUCTS[factor]), "little")
        results.append(total.to_bytes(length, "little"))
    return results


try:
    from mikanet import _speedups
except ImportError:  # an install without a compiler
    combine: Combine = plain_combine
else:
    combine = _speedups.combine


@lru_cache(maxsize=64)
def parity_rows(data_shards: int, parity_shards: int) -> tuple[bytes, ...]:
    """The rows of the coding matrix that make the parity shards."""
    return tuple(interpolation_rows(range(data_shards), range(data_shards, data_shards + parity_shards)))


@lru_cache(maxsize=_CACHED_REBUILDS)
def _rebuild_rows(missing: tuple[int, ...], present: tuple[int, ...]) -> tuple[bytes, ...]:
    """Rows that make the missing data shards of as many others as there are data shards."""
    return tuple(interpolation_rows(present, missing))


class ReedSolomon:
    """The code for one pair of shard counts. Its rows are made when they are needed, and once for all of its kind.

    :raises ConfigError: if a count is below 1 or the sum above 256.
    """

    __slots__ = ("_combine", "data_shards", "parity_shards")

    def __init__(self, data_shards: int, parity_shards: int, combine: Combine = combine) -> None:
        if data_shards < 1 or parity_shards < 1 or data_shards + parity_shards > MAX_SHARDS:
            raise ConfigError(f"{data_shards} data and {parity_shards} parity shards: give at least 1 each, 256 in all")
        self.data_shards = data_shards
        self.parity_shards = parity_shards
        self._combine = combine

    def encode(self, shards: Sequence[bytes]) -> list[bytes]:
        """The parity of one group, each as long as the longest data shard."""
        return self._combine(parity_rows(self.data_shards, self.parity_shards), shards, max(map(len, shards)))

    def rebuild(self, shards: Mapping[int, bytes]) -> list[bytes]:
        """The missing data shards, in order, each as long as the longest shard present.

        :param shards: by index in the group, at least as many as there are data shards.
        """
        missing = tuple(i for i in range(self.data_shards) if i not in shards)
        present = tuple(sorted(shards)[: self.data_shards])
        pieces = [shards[i] for i in present]
        return self._combine(_rebuild_rows(missing, present), pieces, max(map(len, pieces)))
