"""An answer that somebody waits for: given once, however many try, and also when nobody waits for it any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def _nothing() -> None:
    """What there is to do for most."""


class Answer(Generic[T]):
    """One answer, to come.

    A Deferred with a canceller that has been cancelled raises when it is fired; one without a canceller swallows one
    result, and hides mistakes. This takes the first result and drops the others, and says so to whoever gives them.

    :param withdrawn: called when whoever waits gives up before there is an answer.
    :ivar deferred: fires with the answer, or fails; may be cancelled.
    """

    __slots__ = ("_given", "_withdrawn", "deferred")

    def __init__(self, withdrawn: Callable[[], object] = _nothing) -> None:
        self._given = False
        self._withdrawn = withdrawn
        self.deferred: Deferred[T] = Deferred(self._cancelled)

    def _cancelled(self, _: object) -> None:
        self._given = True  # Twisted fails the Deferred with CancelledError when this is over
        self._withdrawn()

    @property
    def waited_for(self) -> bool:
        """Whether there is no answer yet, and somebody waits for one."""
        return not self._given

    def give(self, value: T) -> bool:
        """The answer; False if there was one, or nobody waits for it any more."""
        if self._given:
            return False
        self._given = True
        self.deferred.callback(value)
        return True

    def fail(self, why: Failure | Exception) -> bool:
        """No answer, for this reason; False as with :meth:`give`."""
        if self._given:
            return False
        self._given = True
        self.deferred.errback(why)
        return True
