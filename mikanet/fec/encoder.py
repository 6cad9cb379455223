"""FEC, sending side. No I/O; the clock is passed in."""

from __future__ import annotations

from collections.abc import Iterable

from mikanet.fec.header import DATA, DATA_HEADER, HEADER, PARITY, SIZE, wrap_of
from mikanet.fec.reedsolomon import ReedSolomon

#: A group whose last packet came this long after the one before goes without parity: it would come too late to help.
STALE_MS = 500


class FecEncoder:
    """Numbers packets and adds the parity packets of each full group. A partial group is never closed early."""

    __slots__ = ("_code", "_group", "_last", "_seqid", "_wrap")

    def __init__(self, code: ReedSolomon, first_seqid: int = 0) -> None:
        self._code = code
        self._wrap = wrap_of(code.data_shards + code.parity_shards)
        self._seqid = first_seqid
        self._group: list[bytes] = []
        self._last = -STALE_MS

    def encode(self, packets: Iterable[bytes], now: int) -> list[bytes]:
        """What to send for ``packets``, at ``now`` milliseconds."""
        shards = []
        group, seqid, last = self._group, self._seqid, self._last
        full = self._code.data_shards
        pack, pack_size = DATA_HEADER.pack, SIZE.pack
        for packet in packets:
            size = len(packet) + 2
            shards.append(pack(seqid, DATA, size) + packet)
            seqid += 1
            group.append(pack_size(size) + packet)
            if len(group) == full:
                if now - last < STALE_MS:
                    shards += self._parity(seqid)
                group.clear()
                seqid += self._code.parity_shards
                if seqid == self._wrap:
                    seqid = 0
            last = now
        self._seqid, self._last = seqid, last
        return shards

    def _parity(self, seqid: int) -> list[bytes]:
        pack = HEADER.pack
        return [pack(seqid + i, PARITY) + parity for i, parity in enumerate(self._code.encode(self._group))]
