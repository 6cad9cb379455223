"""The state folder: what must survive a restart, kept apart for each listening address (X12)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twisted.logger import Logger

from mikanet.crypto.replay import ENTRY, TIME_WINDOW, ReplaySet
from mikanet.errors import ConfigError
from mikanet.service.secret_files import TEMPORARY, read_own_file, write_private_file

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
            self._check_owner()
            probe = self.path / f".probe-{os.getpid()}"
            write_private_file(probe, b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot write the state folder {self.path}: {error.strerror or error}; give another with --state-dir"
            ) from None

    def _check_owner(self) -> None:
        status = os.lstat(self.path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others may write there, or it is a link")

    def lock(self) -> None:
        """Keep other processes out of this folder until this one ends: two servers would spoil each other's journal.

        :raises ConfigError: if another process is in.
        """
        if self.path in _locked:
            return
        try:
            descriptor = os.open(self.path / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot open {self.path}/lock: {error.strerror or error}; it may be another user's: "
                "remove it, or give another folder with --state-dir"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise ConfigError(
                f"the state folder {self.path} is in use: another server listens there already; "
                "stop it, or give this one another --listen or --state-dir"
            ) from None
        _locked[self.path] = descriptor
        for left in self.path.glob(f".*{TEMPORARY}"):
            left.unlink(missing_ok=True)  # of a process that was killed while it wrote

    def refusal_time(self, uniform: Callable[[], float]) -> float:
        """This server's refusal time in seconds: drawn once, then always the same (X2)."""
        file = self.path / "refusal-time"
        try:
            stored = float(read_own_file(file) or b"")
        except (OSError, ValueError):
            stored = 0.0
        if not REFUSAL_BASE <= stored <= REFUSAL_BASE + REFUSAL_SPREAD:
            stored = REFUSAL_BASE + REFUSAL_SPREAD * uniform()
            write_private_file(file, repr(stored).encode())
        return stored

    def open_replays(
        self, now: float, name: str = "replay", boot: Boot | None = None
    ) -> tuple[ReplaySet, ReplayJournal]:
        """The replay set of this server at Unix time ``now``, with everything an earlier process accepted.

        Whatever an earlier process may have accepted without our knowing is refused by its time (M3): what was recorded
        before a journal was lost, or in the last moments before the machine went down.

        :param name: of the journal, for servers with several. :param boot: the machine's, if not this one's.
        :raises ConfigError: if the journal cannot be read or written.
        """
        path = self.path / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}.journal"
        journal = ReplayJournal(path, boot or Boot.of_this_machine(now))
        try:
            stored = journal.load()
            # The mark tells a journal that was lost from one that there never was.
            mark = path.with_suffix(".known")
            is_new = not mark.exists() and not path.exists()
            floor = _floor(stored, journal.boot, now, is_new)
            if floor >= now:
                _log.warn(
                    "{path} is missing or damaged: clients are refused for {time:.0f} s, so that nothing can be replayed",
                    path=str(path),
                    time=floor - now + 1,
                )
            replays = ReplaySet(journal.append, floor=floor)
            replays.restore(stored.entries)
            journal.attach(replays, now)
            if not mark.exists():
                write_private_file(mark, b"")
        except OSError as error:
            raise ConfigError(f"cannot use {path}: {error.strerror or error}") from None
        return replays, journal


@dataclass(frozen=True)
class Boot:
    """Which start of the machine this is.

    :ivar ident: 16 bytes. :ivar time: when it was, in Unix seconds.
    """

    ident: bytes
    time: float

    @classmethod
    def of_this_machine(cls, now: float) -> Boot:
        """The kernel's own number; without one, every start of the program counts as one of the machine."""
        try:
            ident = bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""))
            up = time.clock_gettime(time.CLOCK_BOOTTIME)
        except (OSError, ValueError):
            return cls(os.urandom(16), now)
        return cls(ident, now - up)


@dataclass(frozen=True)
class Stored:
    """What was in a journal. :ivar entries: 24 bytes each. :ivar boot: of the machine that wrote it; None if it is unsound."""

    entries: bytes = b""
    boot: bytes | None = None


def _floor(stored: Stored, boot: Boot, now: float, is_new: bool) -> int:
    """Up to which id everything is refused at the start of a server."""
    if stored.boot == boot.ident:
        return -1
    if stored.boot is not None:
        # What was not on the disk yet when the machine went down had an id of at most the window ahead of that.
        return int(min(now, boot.time)) + TIME_WINDOW
    return int(now) - 1 if is_new else int(now) + TIME_WINDOW


#: How a journal begins, before the 16 bytes of its boot.
_MAGIC = b"mikanet replays\n"
_HEADER_SIZE = len(_MAGIC) + 16


class ReplayJournal:
    """An append-only file of accepted entries. Each is written before its target is opened.

    It begins with a magic number and the kernel's number of this start of the machine. What ``os.write`` took survives a
    kill of this process; a crash of the whole machine may lose the last moments, which the number tells.
    """

    def __init__(self, path: Path, boot: Boot) -> None:
        self._path = path
        self.boot = boot
        self._descriptor: int | None = None
        self._entries = 0
        self._compact_at = _COMPACT_AT
        self._complained_at = -_REPEAT
        self._replays: ReplaySet | None = None

    def load(self) -> Stored:
        """The stored entries; a journal that is not whole counts as none.

        :raises OSError: if it cannot be read, or others can write to it.
        """
        content = read_own_file(self._path) or b""
        if not content.startswith(_MAGIC) or (len(content) - _HEADER_SIZE) % ENTRY.size or len(content) < _HEADER_SIZE:
            return Stored()
        return Stored(content[_HEADER_SIZE:], content[len(_MAGIC) : _HEADER_SIZE])

    def attach(self, replays: ReplaySet, now: float) -> None:
        """Write the journal anew with what ``replays`` still needs, and go on from there."""
        self._replays = replays
        self._rewrite(now)

    def _rewrite(self, now: float) -> None:
        assert self._replays is not None
        entries = list(self._replays.entries(now))
        write_private_file(self._path, b"".join([_MAGIC, self.boot.ident, *entries]))
        self.close()
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
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
                os.ftruncate(
                    self._descriptor, _HEADER_SIZE + self._entries * ENTRY.size
                )  # a torn entry would shift all later ones
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
