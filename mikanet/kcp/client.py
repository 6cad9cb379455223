"""The client's end of a KCP link: one session over one port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IProtocol, IReactorTime

from mikanet.filters.packets import deliver
from mikanet.kcp.link import (
    FEC_TYPES,
    LinkSettings,
    PacketSealer,
    RandomBytes,
    conv_bytes,
    conv_of,
    kcp_datagram,
    kcp_stack,
    random_u32,
)
from mikanet.kcp.ports import PacketPath


class KcpClientSession:
    """A session with a random conv to one peer.

    :param sealer: shared by all sessions of one key, as it remembers packets.
    :param on_close: called when the session is over, so that the port can be closed.
    :ivar opened: packets that were good; :ivar refused: packets that failed their check.
    """

    def __init__(
        self,
        port: Any,
        peer: Any,
        upper: IProtocol,
        settings: LinkSettings,
        sealer: PacketSealer,
        clock: IReactorTime,
        random_bytes: RandomBytes,
        on_close: Callable[[], None],
    ) -> None:
        self.opened = self.refused = 0
        self._sealer = sealer
        self._settings = settings
        self._conv = random_u32(random_bytes)
        self._head = conv_bytes(self._conv)
        self._bottom, self.kcp = kcp_stack(upper, self._conv, settings, clock, random_u32(random_bytes))
        self._path = PacketPath(port, peer, self._sealer, settings.packet_room, on_close)

    def start(self) -> None:
        """Connect the stack, and with it the upper protocol."""
        self._bottom.makeConnection(self._path)

    def packets_received(self, packets: Sequence[bytes]) -> None:
        """A batch of sealed packets from the peer."""
        refused = self._sealer.refused
        bodies = self._sealer.open(list(packets))
        self.opened += len(bodies)
        self.refused += self._sealer.refused - refused
        if self._settings.has_fec:
            bodies = [body for body in bodies if conv_of(body) in (self._conv, None)]
        else:
            head = self._head
            if [body for body in bodies if body[:4] != head or body[4:5] >= FEC_TYPES]:
                bodies = [kcp_datagram(body) for body in bodies if conv_of(body) == self._conv]
        if bodies:
            deliver(self._bottom, bodies)
