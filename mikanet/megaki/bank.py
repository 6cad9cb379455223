"""The token bank: the sessions that a server remembers, so that they can be resumed (K3, K5). No I/O.

A token enters when its ACK was good, so that half handshakes take no place. Each connection holds its own session key;
the bank only decides what a resumption may start from.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from typing import Protocol

from mikanet.errors import AuthenticationError
from mikanet.megaki.fairness import Weights
from mikanet.megaki.sealing import SessionKey
from mikanet.megaki.wire import KEY, Message

#: Sessions remembered.
CAPACITY = 10_000

#: One part in this many may belong to one group of addresses.
GROUP_SHARE = 8

#: How long, in seconds, a session without a connection is remembered.
IDLE_LIFE = 24 * 3600.0

#: What a remembered MAC counts in the budget, in bytes.
MARK_COST = 80

#: Most remembered MACs of sessions without a connection (our choice), and the part of the budget that they may have.
MAX_IDLE_MARKS, IDLE_SHARE = 2_000_000, 2


class Budget(Protocol):
    """What is counted in bytes."""

    used: int
    limit: int


class Session:
    """One remembered session.

    :ivar current: the key in use. :ivar previous: the one before, until the first message under the current one:
        if RSTORACK was lost, the client still has that one.
    :ivar live: connections. :ivar weight: remembered MACs when the last of them ended.
    """

    __slots__ = ("current", "group", "idle_since", "live", "previous", "token", "weight")

    def __init__(self, token: bytes, key: SessionKey, group: str) -> None:
        self.token = token
        self.current = key
        self.previous: SessionKey | None = None
        self.group = group
        self.live = 1
        self.idle_since = 0.0
        self.weight = 0

    @property
    def marks(self) -> int:
        """Remembered MACs."""
        return self.current.remembered + (self.previous.remembered if self.previous is not None else 0)

    def rest(self) -> None:
        """No connection uses it for now."""
        self.current.rest()
        if self.previous is not None:
            self.previous.rest()

    def open_augment(self, message: Message) -> tuple[SessionKey, bytes]:
        """The key that a resumption starts from, and the client's augment.

        :raises AuthenticationError: if neither key fits.
        """
        if self.previous is None:
            return self.current, self.current.open(message, self.token)
        try:
            return self.current, self.current.open(message, self.token)
        except AuthenticationError:
            return self.previous, self.previous.open(message, self.token)

    def renew(self, start: SessionKey, key: SessionKey) -> None:
        """``key`` was made from ``start``."""
        self.previous, self.current = start, key

    def used(self, key: SessionKey) -> None:
        """A message came under ``key``: if that is the current one, the one before has done its duty."""
        if key is self.current:
            self.previous = None


class TokenBank:
    """Sessions by token.

    :param capacity: most sessions. :param idle_life: seconds.
    """

    def __init__(self, capacity: int = CAPACITY, idle_life: float = IDLE_LIFE) -> None:
        self._capacity = capacity
        self._group_cap = max(1, capacity // GROUP_SHARE)
        self._idle_life = idle_life
        self._sessions: dict[bytes, Session] = {}
        self._idle: OrderedDict[bytes, Session] = OrderedDict()
        self._groups: dict[str, _Group] = {}
        self._idle_groups = Weights()
        self._idle_marks = 0
        self._marks_of: dict[str, int] = {}
        self._budget: Budget | None = None

    def use_budget(self, budget: Budget) -> None:
        """Count the marks of sessions without a connection here; they get half of it at most."""
        self._budget = budget
        budget.used += self._idle_marks * MARK_COST

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, token: bytes) -> bool:
        return token in self._sessions

    def has_room(self, group: str) -> bool:
        """Whether a new session of this group could be added now."""
        return self._victim(group) is not None or not self._full(group)

    def add(self, token: bytes, key: SessionKey, group: str) -> Session | None:
        """Remember a new session with one connection; None if every place is taken by one with a connection."""
        if self._full(group):
            victim = self._victim(group)
            if victim is None:
                return None
            self._forget(victim)
        session = Session(token, key, group)
        self._sessions[token] = session
        self._groups.setdefault(group, _Group()).count += 1
        return session

    def _full(self, group: str) -> bool:
        of_group = self._groups.get(group)
        return len(self._sessions) >= self._capacity or (of_group is not None and of_group.count >= self._group_cap)

    def _victim(self, group: str) -> Session | None:
        """The session that would have to go first: the longest idle of the group, if that is full, or of the one with most."""
        of_group = self._groups.get(group)
        if of_group is not None and of_group.count >= self._group_cap:
            return next(iter(of_group.idle.values()), None)
        heaviest = self._idle_groups.heaviest
        return None if heaviest is None else next(iter(self._groups[heaviest].idle.values()))

    def find(self, token: bytes, now: float) -> Session | None:
        """The session of a token; None if unknown or too old."""
        self.expire(now)
        return self._sessions.get(token)

    def attach(self, session: Session) -> None:
        """One more connection."""
        if session.live == 0 and session.token in self._idle:
            self._wake(session)
        session.live += 1

    def _wake(self, session: Session) -> None:
        del self._idle[session.token]
        del self._groups[session.group].idle[session.token]
        self._idle_groups.remove(session.group)
        self._count_marks(session.group, -session.weight)
        session.weight = 0

    def _count_marks(self, group: str, number: int) -> None:
        self._idle_marks += number
        of_group = self._marks_of.get(group, 0) + number
        if of_group:
            self._marks_of[group] = of_group
        else:
            self._marks_of.pop(group, None)
        if self._budget is not None:
            self._budget.used += number * MARK_COST

    @property
    def _most_marks(self) -> int:
        if self._budget is None:
            return MAX_IDLE_MARKS
        return min(MAX_IDLE_MARKS, self._budget.limit // (IDLE_SHARE * MARK_COST))

    def detach(self, session: Session, now: float) -> None:
        """One connection less."""
        session.live -= 1
        if session.live == 0 and self._sessions.get(session.token) is session:
            session.idle_since = now
            self._idle[session.token] = session
            self._groups[session.group].idle[session.token] = session
            self._idle_groups.add(session.group)
            session.rest()
            session.weight = session.marks
            self._count_marks(session.group, session.weight)
            while self._idle_marks > self._most_marks:
                self._forget_marks()

    def _forget_marks(self) -> None:
        """The group whose idle sessions have most marks gives up the oldest of those that have any."""
        group = max(self._marks_of, key=self._marks_of.__getitem__)
        self._forget(next(each for each in self._groups[group].idle.values() if each.weight))

    def expire(self, now: float) -> None:
        """Forget what has been idle for too long."""
        while self._idle:
            oldest = next(iter(self._idle.values()))
            if now - oldest.idle_since <= self._idle_life:
                return
            self._forget(oldest)

    def _forget(self, session: Session) -> None:
        """Drop a session without connections."""
        self._wake(session)
        del self._sessions[session.token]
        group = self._groups[session.group]
        group.count -= 1
        if not group.count:
            del self._groups[session.group]


class _Group:
    """The sessions of one group of addresses."""

    __slots__ = ("count", "idle")

    def __init__(self) -> None:
        self.count = 0
        self.idle: OrderedDict[bytes, Session] = OrderedDict()


def waste_time(message: Message) -> None:
    """As much work as a known token would have cost, so that the clock does not tell whether one is known."""
    hmac.compare_digest(hmac.digest(bytes(KEY), message.sealed, "sha256"), message.mac)
