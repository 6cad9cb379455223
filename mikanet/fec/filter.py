"""FEC as a filter: packets below, packets above."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twisted.internet.interfaces import IProtocol, IReactorTime

from mikanet.fec.decoder import FecDecoder
from mikanet.fec.encoder import FecEncoder
from mikanet.fec.header import OVERHEAD
from mikanet.fec.reedsolomon import ReedSolomon
from mikanet.filters.packets import PacketFilter, deliver, deliver_recovered


class FecFilter(PacketFilter):
    """Adds parity to what is sent, and rebuilds what is lost of what comes.

    Lower side: packets. Upper side: packets, 8 bytes smaller. The peer may use other shard counts, or none.

    :param authenticated: False until :meth:`peer_authenticated`.
    :ivar decoder: its counts are those that were found to be the peer's.
    """

    overhead = OVERHEAD

    __slots__ = ("_clock", "_encoder", "decoder")

    def __init__(
        self,
        upper: IProtocol,
        data_shards: int,
        parity_shards: int,
        clock: IReactorTime,
        authenticated: bool = True,
    ) -> None:
        super().__init__(upper)
        code = ReedSolomon(data_shards, parity_shards)
        self._encoder = FecEncoder(code)
        self.decoder = FecDecoder(code, authenticated)
        self._clock = clock

    def peer_authenticated(self) -> None:
        """From now on shards are collected and the peer's counts are looked for."""
        self.decoder.authenticated = True
        super().peer_authenticated()

    def packets_received(self, packets: Sequence[bytes]) -> None:
        """Hand on what the data shards carry, then what could be rebuilt."""
        recovered: list[bytes] = []
        receive = self.decoder.receive
        direct = [data for packet in packets if (data := receive(packet, recovered)) is not None]
        if direct:
            deliver(self.upper, direct)
        if recovered:
            deliver_recovered(self.upper, recovered)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send packets, and the parity of each group that they fill."""
        if self.transport is not None:
            self.transport.writeSequence(self._encoder.encode(iovec, int(self._clock.seconds() * 1000)))
