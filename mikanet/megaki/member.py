"""The members of a pool: what it knows of each worker, and of each request that waits for one. No I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from mikanet.answers import Answer
from mikanet.megaki.exchange import Exchange


class MemberOwner(Protocol):
    """What a member tells its pool."""

    def member_said(self, member: Member, data: bytes) -> None:
        """Bytes from a worker."""

    def member_gone(self, member: Member, how: str, last_words: bytes = b"") -> None:
        """A worker process has ended and was reaped."""


class State(enum.Enum):
    """What a member of the pool does."""

    STARTING = enum.auto()
    IDLE = enum.auto()
    BUSY = enum.auto()
    PROBED = enum.auto()
    RETIRING = enum.auto()
    CONDEMNED = enum.auto()


class Member:
    """One worker in the pool, as :class:`mikanet.megaki.harness.Listener`."""

    __slots__ = (
        "_pool",
        "answer",
        "began",
        "exchange",
        "generation",
        "key",
        "leaving",
        "limit",
        "proved",
        "served",
        "state",
        "worker",
    )

    def __init__(self, pool: MemberOwner, generation: int, limit: int) -> None:
        self._pool = pool
        self.worker: Any = None
        self.state = State.STARTING
        self.generation = generation
        self.limit = limit
        self.leaving = False
        self.served = 0
        self.proved = False  # it has come up, as far as one can tell
        self.exchange: Exchange | None = None
        self.answer: Answer[bytes] | None = None
        self.began = 0.0
        self.key = -1

    def data_received(self, data: bytes) -> None:
        """Bytes from the worker."""
        self._pool.member_said(self, data)

    def exited(self, how: str, last_words: bytes = b"") -> None:
        """It is gone and reaped."""
        self._pool.member_gone(self, how, last_words)


@dataclass(slots=True)
class Waiting:
    """A request in the queue."""

    context: bytes
    request: bytes
    answer: Answer[bytes]
    key: int = -1


#: States of workers that serve or will.
SERVING = frozenset({State.STARTING, State.IDLE, State.BUSY, State.PROBED})
