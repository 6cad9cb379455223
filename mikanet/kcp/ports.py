"""Where packets of KCP links come from and go to: the contract, and the transports of single sessions over it.

A port carries sealed packets of many peers: UDP in :mod:`mikanet.kcp.udp`, raw TCP packets elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from twisted.internet.interfaces import IAddress, IConsumer, IProducer
from zope.interface import Attribute, Interface, implementer

from mikanet.interfaces import IPacketTransport
from mikanet.kcp.link import PacketSealer

#: How a port names a peer: anything that can be a key of a dict, (host, port, ...) for UDP.
Peer = TypeVar("Peer")


class IPacketPort(Interface):
    """Sends packets to many peers."""

    def send_packets(peer: Any, packets: Sequence[bytes]) -> None:  # noqa: N805  # interfaces have no self
        """Send a batch to one peer. What does not fit is lost, as packets are."""

    def address_of(peer: Any) -> IAddress:  # noqa: N805
        """A peer's address for ``getPeer``."""

    def host_address() -> IAddress:
        """Our own address for ``getHost``."""

    source_of = Attribute("Callable that gives what peers of one host share, for limits.")


@implementer(IPacketTransport, IConsumer)
class PacketPath:
    """The way to one peer: the transport at the bottom of a session's stack.

    Packets are lost, repeated and reordered as on the port's own wire. It is never full: what is above paces itself.
    """

    def __init__(
        self, port: Any, peer: Any, sealer: PacketSealer, max_packet_size: int, on_close: Callable[[], None]
    ) -> None:
        self._port = port
        self._peer = peer
        self._sealer = sealer
        self._on_close: Callable[[], None] | None = on_close
        self.max_packet_size = max_packet_size

    def write(self, data: bytes) -> None:
        """Send one packet."""
        self.writeSequence([data])

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Seal and send packets."""
        if self._on_close is not None:
            self._port.send_packets(self._peer, self._sealer.seal(iovec))

    def loseConnection(self) -> None:
        """Forget the session."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    abortConnection = loseConnection

    def getPeer(self) -> IAddress:
        """The peer's address."""
        return self._port.address_of(self._peer)  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        """Our own address."""
        return self._port.host_address()  # type: ignore[no-any-return]

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Nothing: a path is never full."""

    def unregisterProducer(self) -> None:
        """Nothing."""
