"""The questions of a handshake: each is asked until it is answered, or has been asked often enough. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

#: Seconds until a question is asked again before anything is known of the path, and at least; each time half as much more.
FIRST_TIMEOUT, LEAST_TIMEOUT, MOST_TIMEOUT = 1.0, 0.25, 4.0
_GROWTH = 1.5


@dataclass
class Ask:
    """One question. :ivar name: what it is for. :ivar due: when it is to be asked next.

    :ivar most_tries: after so many it counts as lost. :ivar refused: it was answered, and will not be otherwise.
    """

    name: str
    message: bytes
    due: float = 0.0
    most_tries: int = 1000
    tries: int = 0
    sent_at: float = 0.0
    answer: bytes | None = None
    refused: bool = False

    @property
    def open(self) -> bool:
        """Whether an answer may still come."""
        return self.answer is None and not self.refused and self.tries <= self.most_tries


AskType = TypeVar("AskType", bound=Ask)


class Asks(Generic[AskType]):
    """The questions of one stage after the other. :ivar all: those of this stage. :ivar rtts: seconds, as measured."""

    def __init__(self) -> None:
        self.all: list[AskType] = []
        self.rtts: list[float] = []

    @property
    def timeout(self) -> float:
        """Seconds after which a question is asked a second time."""
        return max(LEAST_TIMEOUT, 2.5 * self.rtts[0]) if self.rtts else FIRST_TIMEOUT

    @property
    def deadline(self) -> float | None:
        """When the next question is due."""
        return min((ask.due for ask in self.all if ask.open), default=None)

    def take_due(self, now: float) -> list[AskType]:
        """What is to be asked now."""
        due = []
        for ask in self.all:
            if ask.open and ask.due <= now + 0.001:
                ask.tries += 1
                ask.due = now + min(self.timeout * _GROWTH ** (ask.tries - 1), MOST_TIMEOUT)
                ask.sent_at = now
                if ask.tries <= ask.most_tries:
                    due.append(ask)
        return due

    def answered(self, ask: AskType, message: bytes, now: float) -> None:
        """An answer came."""
        if ask.tries == 1 or not self.rtts:
            self.rtts.append(now - ask.sent_at)
        ask.answer = message
