"""Who makes room when there is none: those who have most (K2, K5). Plain Python.

Groups are networks. :class:`Weights` counts what each has, :class:`FairQueue` lets them wait in turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Weights:
    """How many things each group has, and which has most. Every change costs the same, however many groups there are."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._with: dict[int, OrderedDict[str, None]] = {}  # groups by number, those that came to it first in front
        self._most = 0

    def __getitem__(self, group: str) -> int:
        return self._of.get(group, 0)

    @property
    def heaviest(self) -> str | None:
        """The group that has most, of several the one for longest; None if none has any."""
        return next(iter(self._with[self._most])) if self._most else None

    def add(self, group: str) -> None:
        """One more."""
        self._move(group, 1)

    def remove(self, group: str) -> None:
        """One less."""
        self._move(group, -1)

    def _move(self, group: str, by: int) -> None:
        old = self._of.get(group, 0)
        new = old + by
        if old:
            groups = self._with[old]
            del groups[group]
            if not groups:
                del self._with[old]
        if new:
            self._of[group] = new
            self._with.setdefault(new, OrderedDict())[group] = None
        else:
            del self._of[group]
        if new > self._most:
            self._most = new
        elif self._most not in self._with:
            self._most = new  # it was the only one with so many, and has one less now


class FairQueue(Generic[T]):
    """Things that wait: those of one group in order, the groups in turn.

    When there is no room, the group that has most waiting gives up its newest.
    """

    def __init__(self) -> None:
        self._groups: OrderedDict[str, OrderedDict[int, T]] = OrderedDict()  # the one whose turn is next in front
        self._weights = Weights()
        self._group_of: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._group_of)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._group_of))

    def may_push(self, group: str, room: int) -> bool:
        """Whether one more of this group may wait among at most ``room``: if there is space, or another has more."""
        if len(self) < room:
            return True
        heaviest = self._weights.heaviest
        return heaviest is not None and room > 0 and self._weights[heaviest] > self._weights[group] + 1

    def push(self, number: int, group: str, item: T) -> None:
        """Let it wait."""
        self._groups.setdefault(group, OrderedDict())[number] = item
        self._group_of[number] = group
        self._weights.add(group)

    def newest_of_heaviest(self) -> int:
        """The number of what is to make room."""
        heaviest = self._weights.heaviest
        assert heaviest is not None
        return next(reversed(self._groups[heaviest]))

    def pop(self) -> T:
        """The oldest of the group whose turn it is."""
        group, waiting = next(iter(self._groups.items()))
        number = next(iter(waiting))
        item = self.remove(number)
        assert item is not None
        if group in self._groups:
            self._groups.move_to_end(group)
        return item

    def remove(self, number: int) -> T | None:
        """Take it out; None if it is not here."""
        group = self._group_of.pop(number, None)
        if group is None:
            return None
        waiting = self._groups[group]
        item = waiting.pop(number)
        if not waiting:
            del self._groups[group]
        self._weights.remove(group)
        return item
