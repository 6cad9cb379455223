"""The client's carriers: each opened, lost and opened again, for as long as the client runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mikanet.carriers.urls import shown
from mikanet.errors import DestinationError, Reason
from mikanet.interfaces import ICarrier, IClientCarrier
from mikanet.net.server_state import describe_failure
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
        repeat an answer. :ivar problem: why it could not be opened, the last time that was tried: the reason, and words that
        follow its name.
    """

    def __init__(self, reactor: Any, index: int, source: IClientCarrier, user: SlotUser) -> None:
        self.name: str = source.name
        self.carrier: ICarrier | None = None
        self.standing = Standing(index)
        self.probed_at = float("-inf")
        self.problem: tuple[Reason, str] | None = None
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
        self.problem = None
        self.standing.opened(self._reactor.seconds())
        self._user.slot_opened(self)

    def _failed(self, failure: Failure) -> None:
        self._opening = None
        if self._stopped or failure.check(CancelledError):
            return
        self.problem = _problem(failure)
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


def _problem(failure: Failure) -> tuple[Reason, str]:
    """Why a carrier could not be opened; what its proxy or web server said goes before what Twisted knows."""
    problem = failure.value
    if isinstance(problem, DestinationError) and str(problem) != problem.reason.value:
        return problem.reason, f"cannot be reached: {' '.join(str(problem).split()).rstrip('.')}"
    return describe_failure(failure)


def problem_of_all(slots: Sequence[Slot]) -> tuple[Reason, str] | None:
    """Why none of the carriers could be opened; None if that is not known of any. One is the server to its user."""
    problems = [(shown(slot.name), *slot.problem) for slot in slots if slot.problem is not None]
    if len(slots) == 1 or not problems:
        return slots[0].problem if slots else None
    reasons = {reason for _, reason, _ in problems}
    text = "; ".join(f"{name} {text}" for name, _, text in problems)
    return reasons.pop() if len(reasons) == 1 else Reason.FAILURE, f"cannot be used: {text}"
