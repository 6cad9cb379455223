"""The harness: what the pool, its workers and its owner have to know of each other. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

from mikanet.errors import MikanetError


class Failure(enum.Enum):
    """Why a request got no answer."""

    DIED = "the worker died"
    STALLED = "the worker took too long"
    NOT_UP = "the worker took too long to load its script (see --start-time)"
    BROKEN = "the worker broke the protocol"
    FAILED = "the worker said that it failed"
    QUEUE_FULL = "too many requests are waiting"
    QUEUE_TIME = "no worker was free in time"
    SICK = "no worker stays alive"
    STOPPED = "the pool was stopped"


class WorkerError(MikanetError):
    """A request got no answer.

    :ivar failure: why.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


@dataclass(frozen=True)
class PoolSettings:
    """How a pool behaves.

    :ivar size: workers. :ivar deadline: seconds for a whole exchange, then the worker is killed.
    :ivar queue_length: requests that may wait. :ivar queue_time: how long, in seconds.
    :ivar max_requests: requests after which a worker is replaced. :ivar slow_time: an exchange of so many seconds is
        logged. :ivar start_time: seconds that a worker may take to load its script.
    """

    size: int = 4
    deadline: float = 10.0
    queue_length: int = 64
    queue_time: float = 10.0
    max_requests: int = 1000
    slow_time: float = 1.0
    start_time: float = 10.0


@dataclass(frozen=True)
class PoolStatus:
    """A pool's figures now, and its totals since start."""

    size: int
    starting: int
    idle: int
    busy: int
    retiring: int
    queued: int
    sick: bool
    served: int
    failed: int
    deaths: int
    killed: int
    retired: int
    slow: int

    def __str__(self) -> str:
        return ", ".join(f"{each.name} {getattr(self, each.name)}" for each in fields(self))


class Worker(Protocol):
    """What the pool needs of a worker process.

    :ivar pid: for messages. :ivar is_shell: whether it takes whole exchanges at once, and probes.
    """

    pid: int | None
    is_shell: bool

    def write(self, data: bytes) -> None:
        """Bytes for the worker."""

    def retire(self) -> None:
        """Close its input: it is to end."""

    def kill(self) -> None:
        """SIGKILL."""


class Listener(Protocol):
    """What a worker tells the pool."""

    def data_received(self, data: bytes) -> None:
        """Bytes from the worker."""

    def exited(self, how: str, last_words: bytes = b"") -> None:
        """It is gone and reaped; ``last_words`` were still on their way."""


#: Starts a worker process. Raises OSError if that is not possible.
Spawn = Callable[[Listener], Worker]
