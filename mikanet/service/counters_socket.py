"""The counters of running services on a Unix socket (X10): one JSON object for each connection, then the end.

Sockets live in one folder for each user, named after the service and its process, readable by that user alone.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from mikanet.relay import MemoryBudget
from mikanet.service.listening import DrainingService
from mikanet.service.state import default_state_dir

#: Most bytes of an answer, and how many seconds a reader waits for one (our choice).
MAX_ANSWER, PATIENCE = 1 << 20, 2.0

_log = Logger()


def runtime_dir() -> Path:
    """Where sockets live: what the service manager or the session gives, ``/run`` for root, else the state folder.

    A service that was started as root and has given its rights up can use none of these; it has a folder in ``/tmp``.
    """
    given = os.environ.get("RUNTIME_DIRECTORY")
    if given:
        return Path(given.split(":")[0])
    session = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0:
        return Path(session) / "mikanet" if session else Path("/run/mikanet")
    folder = Path(session) / "mikanet" if session else default_state_dir() / "run"
    return folder if _is_ours(folder) else _DROPPED.with_name(f"{_DROPPED.name}{os.geteuid()}")


#: What the folders of services that have given up root's rights are called, before the number of their user.
_DROPPED = Path(tempfile.gettempdir(), "mikanet-uid-")


def _is_ours(folder: Path) -> bool:
    """Whether we can make sockets in a folder, which may not be there yet, and nobody else can."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
    except PermissionError:
        return False  # in root's home, whose HOME a service keeps when it gives root's rights up
    return os.access(folder, os.W_OK | os.X_OK)


def readable_dirs() -> list[Path]:
    """The folders in which the sockets of services are that this user may ask: root may ask all."""
    folders = [runtime_dir()]
    if os.geteuid() == 0:
        folders += (each for each in sorted(_DROPPED.parent.glob(f"{_DROPPED.name}*")) if _is_of_its_user(each))
    return folders


def _is_of_its_user(folder: Path) -> bool:
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and str(status.st_uid) == folder.name.removeprefix(_DROPPED.name)


def _make_folder(folder: Path) -> None:
    """Make the folder, and see that it is ours alone: in ``/tmp`` anybody may have made one of that name.

    :raises OSError: if it is not.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write there")


class CountersService(Service):
    """Answers each connection to its socket with the service's name, its process and its counters.

    That the socket cannot be made is no reason not to serve: it is logged, and that is all.

    :param name: the service, as the user calls it: ``mika-server``.
    :param snapshot: gives the counters now.
    :param connections: knows how many connections there are. :param budget: knows what relays have carried.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        snapshot: Callable[[], Mapping[str, int]],
        connections: DrainingService | None = None,
        budget: MemoryBudget | None = None,
        folder: Path | None = None,
    ) -> None:
        self._connections = connections
        self._budget = budget
        self._began = reactor.seconds()
        self._reactor = reactor
        self._name = name
        self._snapshot = snapshot
        self._folder = folder
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Make the socket: after root's rights were given up, so that it can be removed at the end."""
        super().startService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        folder = self._folder or runtime_dir()
        path = folder / f"{self._name}-{os.getpid()}.sock"
        try:
            _make_folder(folder)
            self._port = self._reactor.listenUNIX(str(path), _AnswerFactory(self._answer), mode=0o600)
        except (OSError, error.CannotListenError) as problem:
            _log.info("no counters on {path}: {problem}", path=str(path), problem=str(problem))

    def _answer(self) -> bytes:
        said: dict[str, Any] = {"service": self._name, "pid": os.getpid()}
        said["uptime"] = round(self._reactor.seconds() - self._began)
        if self._connections is not None:
            said["connections"] = self._connections.open_connections
        if self._budget is not None:
            said["bytes_up"], said["bytes_down"] = self._budget.up, self._budget.down
        return json.dumps({**said, "counters": dict(self._snapshot())}).encode()

    def stopService(self) -> Deferred[None]:
        """Remove the socket."""
        super().stopService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return maybeDeferred(port.stopListening).addCallback(lambda _: None)


class _Answer(Protocol):
    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._text = answer

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._text())
        self.transport.loseConnection()


class _AnswerFactory(Factory):
    noisy = False

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self._answer = answer

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Answer(self._answer)


def read_all(folder: Path) -> Iterator[Mapping[str, Any]]:
    """What every running service of this user says; sockets whose process is gone are removed.

    Each is a mapping with ``service``, ``pid``, ``counters``, ``uptime`` in seconds, and where there are any ``connections``
    (now) and ``bytes_up`` and ``bytes_down`` (of streams, since start).
    """
    try:
        paths = sorted(folder.glob("*.sock"))
    except OSError:
        return
    for path in paths:
        try:
            if not stat.S_ISSOCK(path.stat().st_mode):
                continue
            found = json.loads(_read(path))
            if _is_sound(found):
                yield found
        except ConnectionRefusedError:
            if folder == runtime_dir():  # in other users' folders a path may lead elsewhere by now
                path.unlink(missing_ok=True)
        except (OSError, ValueError) as problem:
            _log.debug("{path}: {problem}", path=str(path), problem=str(problem))


def _is_sound(found: object) -> bool:
    """Whether an answer has the form of ours: root reads those of other users, who may say anything."""
    if not isinstance(found, dict) or not isinstance(found.get("service"), str) or type(found.get("pid")) is not int:
        return False
    counters = found.get("counters")
    numbers = [found.get(name, 0) for name in ("uptime", "connections", "bytes_up", "bytes_down")]
    return (
        isinstance(counters, dict)
        and all(isinstance(name, str) and type(count) is int for name, count in counters.items())
        and all(type(number) is int for number in numbers)
    )


def _read(path: Path) -> bytes:
    until = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        answer = bytearray()
        while len(answer) < MAX_ANSWER and (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(65536)
            if not data:
                break
            answer += data
        return bytes(answer)
