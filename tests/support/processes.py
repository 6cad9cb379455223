"""Real processes for tests: starting them, waiting until they listen, reading what they cost, stopping them by pid.

Output goes to a file that the test can read at any time, so that a chatty child never blocks on a full pipe. Waiting
for a port reads the kernel's socket table: a server under test sees no connection that the test did not mean to make.
"""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

#: The checkout: children import mikanet and its plugins from here, installed or not.
ROOT = Path(__file__).resolve().parents[2]

#: Below the range from which the kernel takes ports for outgoing connections, so that none of those is in the way.
_PORTS = range(20000, 32000)
_LISTEN = "0A"
_running: set[Process] = set()
_port_choice = random.Random(os.getpid() * 1_000_003 ^ time.time_ns())


def free_port() -> int:
    """A port that is free for TCP and UDP on every address, from outside the kernel's own range."""
    for _ in range(1000):
        port = _port_choice.choice(_PORTS)
        if _bindable(socket.SOCK_STREAM, port) and _bindable(socket.SOCK_DGRAM, port):
            return port
    raise RuntimeError("no free port found")


def _bindable(kind: int, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def listening(port: int, udp: bool = False, pid: int | None = None) -> bool:
    """Whether some socket of this machine (of the network namespace of ``pid``) listens on ``port``."""
    tables = ("udp", "udp6") if udp else ("tcp", "tcp6")
    for table in tables:
        path = Path(f"/proc/{pid or 'self'}/net/{table}")
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and (udp or fields[3] == _LISTEN):
                return True
    return False


def wait_listening(port: int, timeout: float = 20.0, udp: bool = False, process: Process | None = None) -> None:
    """Return when ``port`` is listened on; with ``process``, stop waiting when that one has ended.

    :raises TimeoutError: if nobody listens in time, with the output of ``process``.
    """
    deadline = time.monotonic() + timeout
    while not listening(port, udp, process.pid if process is not None and process.alive else None):
        ended = process is not None and not process.alive
        if ended or time.monotonic() > deadline:
            what = "ended before it listened" if ended else f"did not listen within {timeout:g} s"
            output = process.output if process is not None else ""
            raise TimeoutError(f"port {port}: {what}\n{output}")
        time.sleep(0.02)


def wait_for(condition: Callable[[], object], timeout: float = 20.0, what: str = "the condition") -> None:
    """Return when ``condition()`` is true.

    :raises TimeoutError: if it does not come true in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {timeout:g} s")
        time.sleep(0.02)


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fds(pid: int) -> int:
    """Number of open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu(pid: int) -> float:
    """CPU seconds that a process has used, user and system."""
    # The command's name is in brackets and may contain anything; the fields that count come after the last bracket.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A child process, started at once and ended at the latest when the test program ends.

    Use as a context manager, or call :meth:`stop`.

    :ivar pid: its process id.
    :ivar args: its command line.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        timeout: float = 20.0,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """:param env: variables on top of our own environment.
        :param ports: TCP ports to wait for before the constructor returns, ``timeout`` seconds at most.
        """
        self.args = list(args)
        self._output = tempfile.NamedTemporaryFile(prefix="mikanet-test-", suffix=".log")  # noqa: SIM115
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._child = subprocess.Popen(
            self.args,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
        )
        self.pid = self._child.pid
        _running.add(self)
        try:
            for port in ports:
                wait_listening(port, timeout, process=self)
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status (negative: the signal that ended it), None while it runs."""
        return self._child.poll()

    @property
    def output(self) -> str:
        """All that it has written to stdout and stderr so far."""
        return Path(self._output.name).read_text(errors="replace") if not self._output.closed else self._last_output

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its own end; its exit status.

        :raises subprocess.TimeoutExpired: if it goes on for longer.
        """
        return self._child.wait(timeout)

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.alive:
            self._child.send_signal(number)

    def stop(self, timeout: float = 10.0) -> int:
        """End it with SIGTERM, after ``timeout`` seconds with SIGKILL; its exit status."""
        self.signal(signal.SIGTERM)
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        return self._ended()

    def kill(self) -> int:
        """End it with SIGKILL, so that it can clean nothing up."""
        self.signal(signal.SIGKILL)
        self._child.wait()
        return self._ended()

    def _ended(self) -> int:
        _running.discard(self)
        if not self._output.closed:
            self._last_output = self.output
            self._output.close()
        return self._child.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(timeout=3.0)


class TwistdProcess(Process):
    """``twistd -n PLUGIN ...`` from the checkout, with this Python: ``TwistdProcess(["mika-server", "--listen", ...])``.

    Its working folder is a fresh one unless ``cwd`` is given, so that it finds nothing left by another.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        ports: Sequence[int] = (),
        timeout: float = 20.0,
        before: str = "",
    ) -> None:
        """:param before: Python code that runs before anything of Twisted is imported."""
        self._folder = None if cwd is not None else tempfile.TemporaryDirectory(prefix="mikanet-run-")
        run = f"{before}\nimport sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
        command = [sys.executable, "-c", run, "--nodaemon", "--pidfile=", *args]
        super().__init__(command, cwd=cwd or self._folder.name, env=env, ports=ports, timeout=timeout)  # type: ignore[union-attr]  # one of both is there

    def _ended(self) -> int:
        if self._folder is not None:
            self._folder.cleanup()
        return super()._ended()


@atexit.register
def _end_all() -> None:
    for process in list(_running):
        process.kill()
