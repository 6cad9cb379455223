"""How many targets may be open, and being opened, for each user and in all: the one rule of every server that opens them.

Each target is an open file, and so is each attempt at one, also at an address that never answers. Without a bound one
user takes them all, and the server can take no connection of anybody's. Plain Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

#: Most of one user (our choice: as many as one session may have streams).
MAX_PER_USER = 4096

#: One user gets at most one in so many of all.
_USERS = 4

#: So many there are always room for.
_LEAST = 16


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """The bounds. :ivar total: open files of targets and attempts. :ivar per_user: the same of one user."""

    total: int
    per_user: int


def limits_below(files: int) -> TargetLimits:
    """The bounds for a process that may open ``files`` files: three quarters, as the others are for those who ask."""
    total = max(_LEAST, files - files // 4)
    return TargetLimits(total, max(_LEAST, min(MAX_PER_USER, total // _USERS)))


class Targets:
    """What is open now.

    :ivar total: open files.
    """

    __slots__ = ("_by_user", "limits", "total")

    def __init__(self, limits: TargetLimits) -> None:
        self.limits = limits
        self.total = 0
        self._by_user: Counter[Hashable] = Counter()

    def of(self, user: Hashable) -> int:
        """How many of them are one user's."""
        return self._by_user.get(user, 0)

    def take(self, user: Hashable, files: int = 1) -> Place | None:
        """Room for so many files; None if there is none. ``user`` is None where users are not told apart."""
        if self.total + files > self.limits.total:
            return None
        if user is not None and self.of(user) + files > self.limits.per_user:
            return None
        self._add(user, files)
        return Place(self, user, files)

    def _add(self, user: Hashable, files: int) -> None:
        self.total += files
        self._by_user[user] += files
        if not self._by_user[user]:
            del self._by_user[user]


class Place:
    """Room that was taken, to be given back."""

    __slots__ = ("_files", "_targets", "_user")

    def __init__(self, targets: Targets, user: Hashable, files: int) -> None:
        self._targets = targets
        self._user = user
        self._files = files

    def shrink(self, files: int = 1) -> None:
        """No more than so many are needed any more."""
        if files < self._files:
            self._targets._add(self._user, files - self._files)
            self._files = files

    def release(self) -> None:
        """None are. May be told twice."""
        self.shrink(0)
