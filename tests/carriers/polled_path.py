"""A path for polled links in virtual time: delay, loss, duplication, reordering and a limit of questions per second."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.polled_client import PolledClient
from mikanet.carriers.polled_numbers import KEY_SIZE, Numbers
from mikanet.carriers.polled_server import PolledLink, PolledServer


class CountedNumbers(Numbers):
    """1, 2, 3 ..; each is known for ever, to everybody.

    :ivar last: given.
    """

    def __init__(self) -> None:
        super().__init__(bytes(KEY_SIZE))
        self.last = 0

    def _next(self, group: str, now: float) -> int:
        """The next one."""
        self.last += 1
        return self.last

    def knows(self, number: int, group: str, now: float) -> bool:
        """Whether it was given."""
        return 0 < number <= self.last


class Path:
    """A client and a server, joined.

    :param loss: share of questions, and of answers, that is lost. :param limit: questions per second that pass.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        delay: float = 0.02,
        loss: float = 0.0,
        double: float = 0.0,
        jitter: float = 0.0,
        limit: float = 0.0,
        up_room: int = 140,
        down_room: int = 1200,
        stock: int = 4,
        hold: float = 3.0,
    ) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.delay, self.loss, self.double, self.jitter, self.limit = delay, loss, double, jitter, limit
        self.down_room = down_room
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._credit, self._credit_at = 1.0, 0.0
        self.questions = 0
        self.blocked = False
        self.at_server: list[bytes] = []
        self.at_client: list[bytes] = []
        self.links: list[PolledLink] = []
        numbers = CountedNumbers()
        self.server = PolledServer(self._reply, numbers, self._started)
        self.server.question(wire.hello(b"challeng"), -1, 1000, 0.0)
        self.server.question(wire.start(numbers.last, 0, down_room, stock, hold, 1), -1, 1000, 0.0)
        self.client = PolledClient(numbers.last, up_room, stock, hold, 0.0)

    @property
    def link(self) -> PolledLink:
        """The server's end."""
        return self.links[0]

    def _started(self, link: PolledLink, path: Any) -> bool:
        self.links.append(link)
        return True

    def _later(self, what: Callable[[], None]) -> None:
        copies = 1 + (self.random.random() < self.double)
        for _ in range(copies):
            if self.blocked or self.random.random() < self.loss:
                continue
            self._count += 1
            at = self.now + self.delay + self.random.random() * self.jitter
            heapq.heappush(self._events, (at, self._count, what))

    def _reply(self, path: Any, message: bytes | None) -> None:
        if path >= 0 and message is not None:
            assert len(message) <= self.down_room
            self._later(lambda: self.at_client.extend(self.client.answered(path, message, self.now)))

    def _ask(self) -> None:
        for number, message in self.client.questions(self.now):
            self.questions += 1
            if self.limit:
                self._credit = min(2.0, self._credit + (self.now - self._credit_at) * self.limit)
                self._credit_at = self.now
                if self._credit < 1:
                    continue
                self._credit -= 1

            def take(number: int = number, message: bytes = message) -> None:
                got = self.server.question(message, number, self.down_room, self.now)
                if got is not None:
                    self.at_server.extend(got[1])

            self._later(take)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> float:
        """Let time pass until ``done()`` or ``until``; the time then."""
        while not done():
            self._ask()
            self.link.flush(self.now)
            times = [until, self.link.deadline, *(event[0] for event in self._events[:1])]
            if (deadline := self.client.deadline) is not None:
                times.append(deadline)
            self.now = max(self.now, min(times))
            if self.now >= until:
                break
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if (deadline := self.client.deadline) is not None and deadline <= self.now:
                self.client.tick(self.now)
            if self.link.deadline <= self.now:
                self.link.tick(self.now)
        return self.now
