"""Who may do something costly now: a bounded number at a time, fair between users. No I/O."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)


@dataclass(frozen=True)
class TurnLimits:
    """How much may go on.

    :ivar running: jobs at a time, of all users. :ivar running_per_user: of one. :ivar waiting: jobs that wait, of all
        users. :ivar waiting_per_user: of one. :ivar safe_time: seconds for which a running job is never ended in favour
        of a user who has none.
    """

    running: int = 64
    running_per_user: int = 8
    waiting: int = 4096
    waiting_per_user: int = 256
    safe_time: float = 1.0


class FairTurns(Generic[Job]):
    """Gives turns to jobs of users.

    While there is room a job runs at once. Others wait, and the users take turns. When nothing is free for a user who has
    nothing running, the oldest job of whoever has most running has to go: so a few users with jobs that never end do not
    keep the others out.
    """

    def __init__(self, limits: TurnLimits | None = None) -> None:
        self._limits = limits or TurnLimits()
        self._running: dict[Job, Hashable] = {}
        self._by_user: dict[Hashable, OrderedDict[Job, float]] = {}
        self._waiting: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._waiting_users: dict[Job, Hashable] = {}

    @property
    def running(self) -> int:
        """Jobs that run now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return len(self._waiting_users)

    def ask(self, job: Job, user: Hashable) -> bool:
        """Queue a job; False if too many wait already. :meth:`next_jobs` says when it is its turn."""
        queue = self._waiting.get(user)
        if len(self._waiting_users) >= self._limits.waiting or (
            queue is not None and len(queue) >= self._limits.waiting_per_user
        ):
            return False
        if queue is None:
            queue = self._waiting[user] = deque()
        queue.append(job)
        self._waiting_users[job] = user
        return True

    def leave(self, job: Job) -> None:
        """A job has ended, or is not wanted any more; an unknown one is no error."""
        if job in self._running:
            user = self._running.pop(job)
            mine = self._by_user[user]
            del mine[job]
            if not mine:
                del self._by_user[user]
        elif job in self._waiting_users:
            user = self._waiting_users.pop(job)
            queue = self._waiting[user]
            queue.remove(job)
            if not queue:
                del self._waiting[user]

    def next_jobs(self, now: float) -> tuple[list[Job], list[Job]]:
        """The jobs whose turn it is, and running ones that have to end for them. Both have been dealt with here already."""
        begin: list[Job] = []
        ended: list[Job] = []
        passed_over = 0
        while self._waiting and passed_over < len(self._waiting):
            user, queue = next(iter(self._waiting.items()))
            mine = self._by_user.get(user)
            if mine is not None and len(mine) >= self._limits.running_per_user:
                self._waiting.move_to_end(user)
                passed_over += 1
                continue
            if len(self._running) >= self._limits.running:
                victim = self._victim(now) if mine is None else None
                if victim is None:
                    if mine is None:
                        break  # nobody can be asked to go
                    self._waiting.move_to_end(user)
                    passed_over += 1
                    continue
                self.leave(victim)
                ended.append(victim)
            job = queue.popleft()
            del self._waiting_users[job]
            if queue:
                self._waiting.move_to_end(user)
            else:
                del self._waiting[user]
            self._running[job] = user
            self._by_user.setdefault(user, OrderedDict())[job] = now
            begin.append(job)
            passed_over = 0
        return begin, ended

    def _victim(self, now: float) -> Job | None:
        mine = max(self._by_user.values(), key=len)
        job, began = next(iter(mine.items()))
        return job if len(mine) > 1 and now - began >= self._limits.safe_time else None
