"""Arcangelo (the archangel, nearest to the user's code): the shell that runs inside a worker process.

``shell.php`` and ``shell.py`` wait for requests on file descriptor 3, run the user's script, and answer on descriptor 4,
so that nothing which a script prints can come between answers. ``launch.py`` goes before them: it takes rights and
resources away from the process and then becomes the worker (K9). All three run outside this program and import nothing
of it. This module says how they are called.
"""

from __future__ import annotations

import enum
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mikanet.errors import ConfigError

_HERE = Path(__file__).parent

#: What a worker may use (K9): address space in bytes, open files; the number of processes and threads beside it.
MEMORY, FILES, PROCESSES = 256 * 1024 * 1024, 64, 0

#: How long PHP may take to read a script, in seconds.
_CHECK_TIME = 5.0

#: What a worker sees of the environment: nothing of ours but these.
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ")


class Kind(enum.Enum):
    """Which shell runs a worker's code."""

    PHP = "php"
    PYTHON = "python"
    EXEC = "exec"


@dataclass(frozen=True)
class WorkerCommand:
    """How a worker is started.

    :ivar arguments: the program, and what it is given. :ivar folder: where it runs. :ivar uid: as whom; None for our
        own user.
    :ivar memory: bytes of address space; 0 for no limit. :ivar variables: of its environment, besides a few of ours.
    """

    kind: Kind
    arguments: Sequence[str]
    folder: str
    uid: int | None = None
    memory: int = MEMORY
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_shell(self) -> bool:
        """Whether Arcangelo runs it: then the protocol is on descriptors 3 and 4, takes whole exchanges and probes."""
        return self.kind is not Kind.EXEC

    def command_line(self) -> list[str]:
        """All arguments, :file:`launch.py` before them."""
        uid = -1 if self.uid is None else self.uid
        # A program of the user's own may want to start others.
        processes = PROCESSES if self.is_shell else -1
        limits = f"{uid},{self.memory},{FILES},{processes},{os.getpid()}"
        return [sys.executable, "-I", "-S", str(_HERE / "launch.py"), limits, *self.arguments]

    def environment(self) -> dict[str, str]:
        """A clean environment (K9)."""
        return {name: os.environ[name] for name in _KEPT if name in os.environ} | dict(self.variables)


def parse_variable(text: str) -> tuple[str, str]:
    """``NAME=VALUE``, or ``NAME`` for the value that it has here.

    :raises ConfigError: if it is neither.
    """
    name, equals, value = text.partition("=")
    if not name or not name.isascii() or not name.isprintable() or any(char in name for char in " =") or "\0" in value:
        raise ConfigError(f"--worker-env is NAME or NAME=VALUE, not {text!r}")
    if not equals:
        if name not in os.environ:
            raise ConfigError(f"--worker-env {name}: the server's environment has no such variable")
        value = os.environ[name]
    return name, value


def parse_worker(
    text: str, uid: int | None = None, memory: int = MEMORY, variables: Mapping[str, str] | None = None
) -> WorkerCommand:
    """A worker in the user's words: ``php:FILE``, ``python:FILE`` or ``exec:COMMAND``.

    :raises ConfigError: if it is none, or its file or program cannot be found.
    """
    given = dict(variables or {})
    word, colon, rest = text.partition(":")
    kind = {each.value: each for each in Kind}.get(word)
    if kind is None or not colon or not rest:
        raise ConfigError(f"a worker is php:FILE, python:FILE or exec:COMMAND, not {text!r}")
    if kind is Kind.EXEC:
        try:
            words = shlex.split(rest)
        except ValueError as problem:
            raise ConfigError(f"cannot read the command of {text!r}: {problem}") from None
        if not words:
            raise ConfigError("exec: needs a command")
        return WorkerCommand(kind, [find_program(words[0]), *words[1:]], os.getcwd(), uid, memory, given)
    script = os.path.abspath(rest)
    if not os.access(script, os.R_OK) or not os.path.isfile(script):
        raise ConfigError(f"cannot read the worker's script {rest}")
    if kind is Kind.PHP:
        php = find_program("php")
        _check_php(php, script)
        arguments = [php, "-d", "display_errors=stderr", str(_HERE / "shell.php"), script]
    else:
        _check_python(script)
        arguments = [sys.executable, "-I", str(_HERE / "shell.py"), script]
    return WorkerCommand(kind, arguments, os.path.dirname(script), uid, memory, given)


def _check_php(php: str, script: str) -> None:
    """Ask PHP whether it can read a script, so that its author is told once, and not by every worker.

    :raises ConfigError: if it cannot.
    """
    try:
        done = subprocess.run(
            [php, "-n", "-l", script], capture_output=True, timeout=_CHECK_TIME, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return  # the workers will say what is wrong
    if done.returncode:
        lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
        why = next((line for line in lines if " error: " in line), "it is no PHP")
        raise ConfigError(f"the worker's script cannot run: {why}: correct it, and start again")


def _check_python(script: str) -> None:
    """The same for Python.

    :raises ConfigError: if it cannot be read.
    """
    try:
        compile(Path(script).read_bytes(), script, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as problem:
        where = f" line {problem.lineno}" if isinstance(problem, SyntaxError) and problem.lineno else ""
        why = problem.msg if isinstance(problem, SyntaxError) else str(problem)
        raise ConfigError(
            f"the worker's script cannot run: {script}{where}: {why}: correct it, and start again"
        ) from None


def find_program(name: str) -> str:
    """The path of a program.

    :raises ConfigError: if there is none.
    """
    path = shutil.which(name)
    if path is None:
        hint = "; Debian has it in the package php-cli" if name == "php" else ""
        raise ConfigError(f"the program {name} is not here{hint}")
    return os.path.abspath(path)
