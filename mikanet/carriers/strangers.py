"""Who has proved nothing yet, in carriers whose strangers are no connections of their own: at most so many (X3).

Where places are taken by a message or two, turning newcomers away would let one sender hold all of them. So the oldest
goes, of the newcomer's own address if that has its share: honest clients prove themselves within a few round trips.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_Stranger = TypeVar("_Stranger", bound=Hashable)


class Strangers(Generic[_Stranger]):
    """Strangers by their group, which is an address or whatever else they share.

    :param most: in all. :param most_per_group: of one group.
    """

    def __init__(self, most: int, most_per_group: int) -> None:
        self._most = most
        self._most_per_group = most_per_group
        self._all: OrderedDict[_Stranger, Hashable] = OrderedDict()
        self._groups: dict[Hashable, OrderedDict[_Stranger, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def in_the_way(self, group: Hashable) -> _Stranger | None:
        """Whoever has to go before one more of this group comes; None if there is room."""
        ours = self._groups.get(group)
        if ours is not None and len(ours) >= self._most_per_group:
            return next(iter(ours))
        return next(iter(self._all)) if len(self._all) >= self._most else None

    def add(self, stranger: _Stranger, group: Hashable) -> None:
        """One more."""
        self._all[stranger] = group
        self._groups.setdefault(group, OrderedDict())[stranger] = None

    def discard(self, stranger: _Stranger) -> None:
        """One is gone or has proved itself; an unknown one is no error."""
        if stranger not in self._all:
            return
        group = self._all.pop(stranger)
        ours = self._groups[group]
        del ours[stranger]
        if not ours:
            del self._groups[group]
