"""Which carrier carries the data: the rules, without carriers. Plain Python, no I/O: time is passed in.

A carrier is tried when it is open, and works once something came back by it. The best working one carries the data. One
that failed has to wait before it is preferred again, longer each time, so that a bad path does not pull the session to
and fro.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

#: How long, in seconds, a carrier that failed is not preferred to a working one: at first, doubling, at most.
FIRST_PENALTY, MAX_PENALTY = 1.0, 30.0

#: Waits before a carrier that failed is opened again: at first, doubling, at most.
FIRST_WAIT, MAX_WAIT = 0.1, 2.0

#: A carrier that has worked for so long, in seconds, before it was lost is opened again at once.
STEADY_TIME = 0.5

#: After this time of work a carrier's failures are forgotten.
FORGIVE_TIME = 30.0

#: In ``race``, another carrier takes over when its round trip is this much shorter.
_CLEARLY_FASTER = 0.5

#: While something is under way: silence of the carrier in use after which it is asked, and after which another takes over
#: if there is one that works (P8 asks for less than 3 s).
ASK_AFTER, FAIL_AFTER = 0.5, 1.5

#: For so long, in seconds, after data last went or came, more is expected on open connections. After that they are idle,
#: and cost what an idle session costs, until one of them says something (our choice).
ACTIVE_TIME = 3.0

#: Silence of a carrier, with something asked, after which it is cut in any case; and of all of them, after which the
#: session is taken for lost at the server (P8).
CUT_AFTER, LOST_AFTER = 10.0, 20.0

#: For so long of that, in seconds, there must have been a carrier: without one, the session waits (``keep_session``).
LOST_PROOF = 5.0


class Policy(Enum):
    """What makes a carrier the best one: its place in the list, its round trip, or all of them share."""

    ORDERED = "ordered"
    RACE = "race"
    SPREAD = "spread"


class Standing:
    """What is known of one carrier.

    :ivar index: its place in the user's list. :ivar open: whether its path stands. :ivar works: whether something came
        back by it since. :ivar round_trip: seconds, of the last probe; None if not measured.
    """

    __slots__ = (
        "_failures",
        "_not_before",
        "_vain",
        "index",
        "open",
        "opened_at",
        "round_trip",
        "works",
        "works_since",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.open = self.works = False
        self.opened_at = self.works_since = 0.0
        self.round_trip: float | None = None
        self._failures = 0
        self._vain = 0  # attempts in a row that brought nothing
        self._not_before = 0.0

    def opened(self, now: float) -> None:
        """Its path stands."""
        self.open, self.works = True, False
        self.opened_at = now

    def answered(self, now: float) -> None:
        """Something came back by it."""
        if not self.works:
            self.works = True
            self.works_since = now

    def failed(self, now: float) -> None:
        """It could not be opened, was lost, or is silent when it should not be."""
        if self.works:
            lasted = now - self.works_since
            if lasted >= FORGIVE_TIME:
                self._failures = 0
            self._not_before = now + min(FIRST_PENALTY * 2**self._failures, MAX_PENALTY)
            self._failures = min(self._failures + 1, 16)
            self._vain = 0 if lasted >= STEADY_TIME else 1
        else:
            self._vain = min(self._vain + 1, 16)
        self.open = self.works = False
        self.round_trip = None

    @property
    def wait(self) -> float:
        """Seconds before it is opened again: none if it has worked for a while, few if it has worked at all."""
        return min(FIRST_WAIT * 2 ** (self._vain - 1), MAX_WAIT) if self._vain else 0.0

    def preferable(self, now: float) -> bool:
        """Whether it may take over from one that works."""
        return self.works and now >= self._not_before


def choose(policy: Policy, standings: Sequence[Standing], current: Standing | None, now: float) -> Standing | None:
    """The carrier that should carry the data now; None if none is open.

    :param current: the one that does.
    """
    if current is None or not current.open:
        candidates = [each for each in standings if each.works] or [each for each in standings if each.open]
        return min(candidates, key=lambda each: _rank(policy, each), default=None)
    if not current.works:
        working = [each for each in standings if each.works]
        return min(working, key=lambda each: _rank(policy, each), default=current)
    best = min(
        (each for each in standings if each is current or each.preferable(now)), key=lambda each: _rank(policy, each)
    )
    if best is current or policy is Policy.ORDERED:
        return best
    if best.round_trip is None or current.round_trip is None:
        return current
    return best if best.round_trip < _CLEARLY_FASTER * current.round_trip else current


def _rank(policy: Policy, standing: Standing) -> tuple[float, int]:
    if policy is Policy.ORDERED:
        return (0.0, standing.index)
    return (float("inf") if standing.round_trip is None else standing.round_trip, standing.index)
