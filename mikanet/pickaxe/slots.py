"""The client's carriers: each opened, lost and opened again, for as long as the client runs."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mikanet.interfaces import ICarrier, IClientCarrier
from mikanet.pickaxe.policy import Standing


class SlotUser(Protocol):
    """Who hears of carriers."""

    def slot_opened(self, slot: Slot) -> None:
        """A carrier is there: ``slot.carrier``."""

    def slot_failed(self, slot: Slot, failure: Failure) -> None:
        """It could not be opened; it will be tried again."""


class Slot:
    """One carrier of the user's list.

    :ivar carrier: what is open now. :ivar standing: what is known of it. :ivar probed_at: when it was last asked to
        repeat an answer.
    """

    def __init__(self, reactor: Any, index: int, source: IClientCarrier, user: SlotUser) -> None:
        self.name: str = source.name
        self.carrier: ICarrier | None = None
        self.standing = Standing(index)
        self.probed_at = float("-inf")
        self._reactor = reactor
        self._source = source
        self._user = user
        self._opening: Deferred[ICarrier] | None = None
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def start(self, delay: float = 0.0) -> None:
        """Open it, and keep it open."""
        if not self._stopped and self._timer is None:
            self._timer = self._reactor.callLater(delay, self._open)

    def _open(self) -> None:
        self._timer = None
        if self._stopped or self.carrier is not None or self._opening is not None:
            return
        opening = self._opening = self._source.open()
        opening.addCallbacks(self._opened, self._failed)

    def _opened(self, carrier: ICarrier) -> None:
        self._opening = None
        if self._stopped:
            carrier.abort()
            return
        self.carrier = carrier
        self.standing.opened(self._reactor.seconds())
        self._user.slot_opened(self)

    def _failed(self, failure: Failure) -> None:
        self._opening = None
        if self._stopped or failure.check(CancelledError):
            return
        self.standing.failed(self._reactor.seconds())
        self._user.slot_failed(self, failure)
        self.start(self.standing.wait)

    def lost(self) -> None:
        """Its carrier is gone: open another."""
        self.carrier = None
        self.standing.failed(self._reactor.seconds())
        self.start(self.standing.wait)

    def give_up(self) -> None:
        """Its carrier is silent when it should not be: cut it, and open another."""
        carrier, self.carrier = self.carrier, None
        if carrier is not None:
            carrier.user = None
            carrier.abort()
        self.lost()

    def stop(self) -> None:
        """Close it for good."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opening is not None:
            self._opening.cancel()
        if self.carrier is not None:
            self.carrier.close()
