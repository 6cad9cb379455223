"""Foreign children: where the server is process 1, as in a container, whatever loses its parent becomes its child.

Twisted reaps the processes that it started; these would stay as zombies.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from typing import Any

from twisted.internet import process
from twisted.internet.interfaces import IDelayedCall

#: How often foreign children are looked for, in seconds.
INTERVAL = 5.0


def reap_foreign(known: Collection[int]) -> int:
    """Reap every child that has ended and is not ``known``; how many that were."""
    count = 0
    for pid in _ended_children():
        if pid not in known:
            with contextlib.suppress(ChildProcessError):
                count += os.waitpid(pid, os.WNOHANG)[0] == pid
    return count


def _ended_children() -> list[int]:
    found = []
    own = os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just gone
            if fields[0] == b"Z" and int(fields[1]) == own:
                found.append(int(entry))
    return found


class Reaper:
    """Looks from time to time, if this is process 1."""

    def __init__(self, reactor: Any, needed: bool | None = None) -> None:
        self._reactor = reactor
        self._needed = os.getpid() == 1 if needed is None else needed
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin."""
        if self._needed:
            self._call = self._reactor.callLater(INTERVAL, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        reap_foreign(process.reapProcessHandlers)
        self._call = self._reactor.callLater(INTERVAL, self._look)
