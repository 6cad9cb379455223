"""What all carriers share: who uses them, and that a loss is told once."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.interfaces import ICarrier, ICarrierUser

#: Seconds that opening a carrier may take; one that takes longer is as good as closed.
OPEN_TIMEOUT = 10.0


@implementer(ICarrier)
class BaseCarrier:
    """A carrier without a wire. A subclass sends packets, and calls :meth:`deliver`, :meth:`room` and :meth:`lose`.

    :param name: what users and logs call it. :param host: the peer's address, if that says something.
    """

    max_packet_size = 65_535
    reliable = True
    shakes_hands = True
    writable = True

    def __init__(self, name: str, host: str = "") -> None:
        self.name = name
        self.host = host
        self.user: ICarrierUser | None = None
        self.lost = False

    # -- for subclasses

    def deliver(self, packets: Sequence[bytes]) -> None:
        """Packets came."""
        if packets and self.user is not None and not self.lost:
            self.user.packets_received(self, packets)

    def room(self, writable: bool) -> None:
        """More may be sent now, or should not be."""
        was, self.writable = self.writable, writable
        if writable and not was and self.user is not None and not self.lost:
            self.user.carrier_writable(self)

    def lose(self, reason: Failure | None = None) -> None:
        """The carrier is gone; only the first call counts."""
        if not self.lost:
            self.lost = True
            self.writable = False
            if self.user is not None:
                self.user.carrier_lost(self, reason or Failure(ConnectionDone()))

    # -- ICarrier

    @property
    def waiting(self) -> int:
        """See :class:`~mikanet.interfaces.ICarrier`."""
        return 0

    def send(self, packets: Sequence[bytes]) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.send`."""
        raise NotImplementedError

    def proven(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.proven`."""

    def refuse(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.refuse`."""
        self.abort()

    def close(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.close`."""
        self.abort()

    def abort(self) -> None:
        """See :meth:`~mikanet.interfaces.ICarrier.abort`."""
        raise NotImplementedError
