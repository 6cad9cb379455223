"""Front doors: forwards. Whoever connects to the local port is taken to one fixed destination."""

from __future__ import annotations

from functools import partial

from twisted.internet.protocol import DatagramProtocol

from mikanet.address import Address
from mikanet.errors import Reason
from mikanet.frontdoors.door import Door, DoorFactory, DoorSettings
from mikanet.frontdoors.udp import FlowTable, send_datagram
from mikanet.interfaces import ITunnel


class ForwardDoor(Door):
    """A connection that goes to the factory's one destination, without any handshake."""

    kind = "forward"

    def __init__(self, factory: DoorFactory, destination: Address) -> None:
        super().__init__(factory)
        self._destination = destination

    def connectionMade(self) -> None:
        """Dial; what the application sends meanwhile is held, and goes with the tunnel's first bytes."""
        super().connectionMade()
        self.dial(partial(self.factory.tunnel.stream_endpoint, self._destination))

    def not_reached(self, reason: Reason, why: str) -> None:
        """A forward has no words; a reset says that this was no clean end."""
        self.abort()


class UdpForward(DatagramProtocol):
    """Datagrams from each source go to one destination, and its answers back to that source.

    To be given to ``listenUDP`` with ``maxPacketSize=65536``.
    """

    def __init__(self, tunnel: ITunnel, destination: Address, settings: DoorSettings) -> None:
        self._tunnel = tunnel
        self._destination = destination
        self._flows: FlowTable[tuple[str, int]] = FlowTable(settings)

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Pass a datagram on in the flow of its source."""
        flow = self._flows.get(addr)
        if flow is None:
            make_endpoint = partial(self._tunnel.datagram_endpoint, self._destination)
            flow = self._flows.open(addr, make_endpoint, partial(self._answer, addr))
            if flow is None:
                return
        flow.send(datagram)

    def _answer(self, addr: tuple[str, int], datagram: bytes) -> None:
        send_datagram(self.transport, datagram, addr, self._flows.counters)

    def stopProtocol(self) -> None:
        """The port is closed: so are the flows."""
        self._flows.close()
