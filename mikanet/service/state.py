"""The state folder: what must survive a restart, kept apart for each listening address (X12)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from mikanet.crypto.replay import ENTRY, TIME_WINDOW, ReplaySet
from mikanet.errors import ConfigError
from mikanet.service.secret_files import write_private_file

#: What X2's refusal time is made of, in seconds: the least, and how much is drawn on top of it once per server.
REFUSAL_BASE, REFUSAL_SPREAD = 60.0, 30.0

#: A journal longer than this many entries is written anew with only those still in time.
_COMPACT_AT = 100_000

#: Least time, in seconds, between two messages about a journal that cannot be written.
_REPEAT = 60.0

# The folders that this process has locked. The descriptors stay open, and the kernel lets go when the process ends.
_locked: dict[Path, int] = {}

_log = Logger()


def default_state_dir() -> Path:
    """The user's state folder, or the current one where there is no user."""
    base = os.environ.get("XDG_STATE_HOME")
    home = os.environ.get("HOME")
    if base:
        return Path(base) / "mikanet"
    return Path(home) / ".local" / "state" / "mikanet" if home else Path("mikanet-state")


class StateFolder:
    """The state of one server.

    :param base: the folder of all servers of this user.
    :param server: the plugin's name and the listening address, which tell servers apart.
    :raises ConfigError: if the folder cannot be written.
    """

    def __init__(self, base: Path, server: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9]+", "-", server).strip("-")[:40]
        digest = hashlib.sha256(server.encode()).hexdigest()[:8]
        self.path = base / f"{readable}-{digest}"
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.path / f".probe-{os.getpid()}"
            write_private_file(probe, b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot write the state folder {self.path}: {error.strerror or error}; give another with --state-dir"
            ) from None

    def lock(self) -> None:
        """Keep other processes out of this folder until this one ends: two servers would spoil each other's journal.

        :raises ConfigError: if another process is in.
        """
        if self.path in _locked:
            return
        descriptor = os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise ConfigError(
                f"the state folder {self.path} is in use: another server listens there already; "
                "stop it, or give this one another --listen or --state-dir"
            ) from None
        _locked[self.path] = descriptor

    def refusal_time(self, uniform: Callable[[], float]) -> float:
        """This server's refusal time in seconds: drawn once, then always the same (X2)."""
        file = self.path / "refusal-time"
        try:
            stored = float(file.read_text())
        except (OSError, ValueError):
            stored = 0.0
        if not REFUSAL_BASE <= stored <= REFUSAL_BASE + REFUSAL_SPREAD:
            stored = REFUSAL_BASE + REFUSAL_SPREAD * uniform()
            write_private_file(file, repr(stored).encode())
        return stored

    def open_replays(self, now: float) -> tuple[ReplaySet, ReplayJournal]:
        """The replay set of this server at Unix time ``now``, with everything an earlier process accepted.

        Without a journal nobody knows what was accepted, so ids from before this second are refused.

        :raises ConfigError: if the journal cannot be read or written.
        """
        journal = ReplayJournal(self.path / "replay.journal")
        try:
            stored = journal.load()
            replays = ReplaySet(journal.append, floor=-1 if stored is not None else int(now) - 1)
            if stored:
                replays.restore(stored)
            journal.attach(replays, now)
        except OSError as error:
            raise ConfigError(f"cannot use {self.path}/replay.journal: {error.strerror or error}") from None
        return replays, journal


class ReplayJournal:
    """An append-only file of accepted entries. Each is written before its target is opened.

    What ``os.write`` took survives a kill of this process; a crash of the whole machine may lose the last second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._entries = 0
        self._compact_at = _COMPACT_AT
        self._complained_at = -_REPEAT
        self._replays: ReplaySet | None = None

    def load(self) -> bytes | None:
        """The stored entries; None if there is no journal."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def attach(self, replays: ReplaySet, now: float) -> None:
        """Write the journal anew with what ``replays`` still needs, and go on from there."""
        self._replays = replays
        self._rewrite(now)

    def _rewrite(self, now: float) -> None:
        assert self._replays is not None
        entries = list(self._replays.entries(now))
        write_private_file(self._path, b"".join(entries))
        self.close()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._entries = len(entries)

    def append(self, entry: bytes) -> None:
        """Write one entry.

        :raises OSError: if it could not be written whole; the caller then refuses.
        """
        if self._descriptor is None:
            raise OSError("the replay journal is closed")
        if self._entries >= self._compact_at and self._replays is not None:
            # The entry's own time is at most the window ahead of ours.
            self._compact(ENTRY.unpack(entry)[1] - TIME_WINDOW)
        try:
            if os.write(self._descriptor, entry) != ENTRY.size:
                os.ftruncate(self._descriptor, self._entries * ENTRY.size)  # a torn entry would shift all later ones
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError as error:
            self._complain(error)
            raise
        self._entries += 1

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _REPEAT:
            self._complained_at = now
            _log.critical(
                "clients are refused: {path} cannot be written: {problem}",
                path=str(self._path),
                problem=error.strerror or str(error),
            )

    def _compact(self, now: float) -> None:
        assert self._replays is not None
        if len(self._replays) * 2 < self._entries:
            try:
                self._rewrite(now)
            except OSError:
                # The folder was opened before privileges were dropped, or the disk is full: the old file still serves.
                pass
        self._compact_at = max(_COMPACT_AT, 2 * self._entries)

    def close(self) -> None:
        """Close the file; nothing can be accepted afterwards."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
