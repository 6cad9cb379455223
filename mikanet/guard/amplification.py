"""How much may go to an address before it has shown that answers reach it: the one rule of every datagram server.

The source of a datagram can be forged. Whoever is answered with more than he sent, by an address that is somebody else's,
has a weapon. So until an address has sent something that only who receives our answers can know, it gets at most
:data:`FACTOR` times what came from it: :func:`allowance` for servers that answer questions, :class:`Allowance` for links
that speak by themselves. :class:`Reached` remembers addresses that have shown it by a way of their own, as by TCP.

Plain Python: time is passed in. Source of the number: RFC 9000, section 8.1.
"""

from __future__ import annotations

from collections import OrderedDict

#: Bytes that may go to an address for each that came from it.
FACTOR = 3

#: For how long, in seconds, what an address has shown counts (our choice), and how many addresses are remembered.
SHOWN_TIME, MAX_SHOWN = 600.0, 65_536


def allowance(size: int) -> int:
    """Bytes that may answer a datagram of ``size`` bytes."""
    return FACTOR * size


class Allowance:
    """What may go to one peer that speaks to us and has shown nothing yet.

    :param weight: bytes that leave for each that is told here, as with parity.
    :ivar shown: whether it has; then there is no bound.
    """

    __slots__ = ("_left", "_weight", "shown")

    def __init__(self, weight: float = 1.0) -> None:
        self._left = 0.0
        self._weight = weight
        self.shown = False

    @property
    def left(self) -> int:
        """Bytes that may go now."""
        return int(self._left / self._weight)

    def received(self, size: int) -> None:
        """So many bytes came."""
        self._left += FACTOR * size

    def take(self, size: int) -> bool:
        """Whether so many may go; they count if so."""
        if self.shown:
            return True
        cost = size * self._weight
        if cost > self._left:
            return False
        self._left -= cost
        return True


class Reached:
    """Addresses that have shown that answers reach them. The oldest is forgotten where there are too many."""

    __slots__ = ("_shown",)

    def __init__(self) -> None:
        self._shown: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shown)

    def show(self, group: str, now: float) -> None:
        """An address group has."""
        self._shown[group] = now
        self._shown.move_to_end(group)
        if len(self._shown) > MAX_SHOWN:
            self._shown.popitem(last=False)

    def has(self, group: str, now: float) -> bool:
        """Whether it has, lately."""
        when = self._shown.get(group)
        return when is not None and now - when <= SHOWN_TIME
