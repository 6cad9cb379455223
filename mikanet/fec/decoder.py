"""FEC, receiving side. No I/O.

Data shards are handed on at once; parity only feeds the recovery of those that are missing. Packets without an FEC
header pass unchanged, so either end may go without FEC.
"""

from __future__ import annotations

from mikanet.fec.autotune import MEMORY, AutoTune
from mikanet.fec.header import CODED_AT, DATA, HEADER, OUT_OF_BAND, OVERHEAD, PARITY, SIZE, wrap_of
from mikanet.fec.reedsolomon import MAX_SHARDS, ReedSolomon

#: Groups further than this behind the newest are forgotten.
KEPT_GROUPS = 3


class FecDecoder:
    """Collects shards by group and rebuilds what is missing.

    :param authenticated: whether the peer is known to be one of ours. Until :attr:`authenticated` is set nothing is
        collected, rebuilt or looked for: data shards give what they carry, and that is all.
    :ivar data_shards: and :ivar parity_shards: the sender's counts as believed now.
    :ivar recovered: packets rebuilt so far.
    :ivar malformed: packets dropped because their header or what was rebuilt of them cannot be.
    """

    __slots__ = (
        "_code",
        "_groups",
        "_newest",
        "_searching",
        "_settled",
        "_total",
        "_tune",
        "_wrap",
        "authenticated",
        "data_shards",
        "malformed",
        "parity_shards",
        "recovered",
    )

    def __init__(self, code: ReedSolomon, authenticated: bool = True) -> None:
        self.authenticated = authenticated
        self._tune = AutoTune()
        self._searching = False
        self._settled = 0  # packets during which the counts that were found last are kept
        self.recovered = 0
        self.malformed = 0
        self._adopt(code)

    def _adopt(self, code: ReedSolomon) -> None:
        self._code = code
        self.data_shards = code.data_shards
        self.parity_shards = code.parity_shards
        self._total = code.data_shards + code.parity_shards
        self._wrap = wrap_of(self._total)
        # Shards by index in their group; None once nothing more is wanted of the group.
        self._groups: dict[int, dict[int, bytes] | None] = {}
        self._newest = 0

    def receive(self, packet: bytes, recovered: list[bytes]) -> bytes | None:
        """The packet that a shard carries, if it carries one; rebuilt packets are appended to ``recovered``."""
        if len(packet) < OVERHEAD:
            self.malformed += 1
            return None
        seqid, kind = HEADER.unpack_from(packet)
        if kind == DATA:
            data = packet[OVERHEAD:]
        elif kind == PARITY:
            data = None
        elif kind == OUT_OF_BAND:
            return None
        else:
            return packet
        if self.authenticated and seqid < self._wrap and self._in_step(seqid, kind == DATA):
            self._store(seqid, packet, recovered)
        return data

    def _in_step(self, seqid: int, is_data: bool) -> bool:
        """Whether a packet may be stored: it stands where its kind belongs, and the sender's counts are not in doubt.

        As kcp-go does, the first packet in a wrong place begins a search that goes on with each packet, and stores
        none, until counts are found. Unlike there, finding the counts that we have ends it too, and others are not
        adopted more often than once in so many packets as are remembered.
        """
        self._tune.sample(seqid, is_data)
        if self._settled:
            self._settled -= 1
        fits = (seqid % self._total < self.data_shards) == is_data
        if not fits:
            self._searching = True
        if not self._searching:
            return True
        counts = self._tune.shard_counts()
        if counts is None or sum(counts) > MAX_SHARDS:
            return False
        if counts == (self.data_shards, self.parity_shards):
            self._searching = False
            return fits
        if not self._settled:
            self._searching = False
            self._settled = MEMORY
            self._adopt(ReedSolomon(*counts))
        return False

    def _store(self, seqid: int, packet: bytes, recovered: list[bytes]) -> None:
        number, index = divmod(seqid, self._total)
        groups = self._groups
        if number != self._newest or not groups:
            self._move_to(number)
        try:
            shards = groups[number]
        except KeyError:
            if self._behind(number) > KEPT_GROUPS:
                return
            shards = groups[number] = {}
        if shards is None or index in shards:
            return
        shards[index] = packet
        if len(shards) == self.data_shards:
            groups[number] = None
            if max(shards) >= self.data_shards:
                self._rebuild(shards, recovered)

    def _behind(self, number: int) -> int:
        """How many groups ``number`` is behind the newest; negative if ahead."""
        circle = self._wrap // self._total
        return (self._newest - number + circle // 2) % circle - circle // 2

    def _move_to(self, number: int) -> None:
        if not self._groups or self._behind(number) < 0:
            self._newest = number
            for old in [old for old in self._groups if not 0 <= self._behind(old) <= KEPT_GROUPS]:
                del self._groups[old]

    def _rebuild(self, shards: dict[int, bytes], recovered: list[bytes]) -> None:
        for coded in self._code.rebuild({index: packet[CODED_AT:] for index, packet in shards.items()}):
            size = SIZE.unpack_from(coded)[0]
            if 2 <= size <= len(coded):
                self.recovered += 1
                recovered.append(coded[2:size])
            else:
                self.malformed += 1
