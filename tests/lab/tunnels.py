"""Tunnels under test: how the processes of one are started, stopped, killed and measured.

An instrument knows only :class:`Tunnel`. A new system gets a subclass that says its two command lines.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import TwistdProcess, cpu, fds, free_port, rss

#: What no log of a tunnel may ever hold.
_UNHANDLED = re.compile(r"Unhandled|Traceback \(most recent call last\)|UnhandledInDeferred|exceptions must|ERROR")

#: Open files that a server with ten thousand tunnels needs, and more.
OPEN_FILES = 65536


def raise_file_limit(count: int = OPEN_FILES) -> None:
    """Let this process and its children open ``count`` files, as far as that is permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Tunnel:
    """A client and a server of one system on loopback, as a context manager.

    Subclasses give :meth:`server_args` and :meth:`client_args`.

    :ivar server_port: where the server listens. :ivar server_address: where the client is told that it does: another
        port if a wire stands between.
    :ivar socks_port: the client's SOCKS door, ``http_port`` its HTTP door.
    :ivar folder: for keys and state; lives as long as the tunnel.
    """

    def __init__(
        self, *, through: int | None = None, server_options: Sequence[str] = (), client_options: Sequence[str] = ()
    ) -> None:
        """:param through: the port of a wire in front of the server, to which the client connects."""
        raise_file_limit()
        self.server_port = free_port()
        self.through = through
        self.socks_port = free_port()
        self.http_port = free_port()
        self.server_options = list(server_options)
        self.client_options = list(client_options)
        self._temporary = tempfile.TemporaryDirectory(prefix="mikanet-tunnel-")
        self.folder = Path(self._temporary.name)
        self.server: TwistdProcess | None = None
        self.client: TwistdProcess | None = None
        self._past_logs: list[str] = []
        self.prepare()

    # -- what a system says

    def prepare(self) -> None:
        """Write keys and the like into ``folder``."""

    def server_args(self) -> list[str]:
        """The server's plugin and options."""
        raise NotImplementedError

    def client_args(self) -> list[str]:
        """The client's plugin and options."""
        raise NotImplementedError

    # -- running it

    def start_server(self, env: dict[str, str] | None = None, before: str = "") -> TwistdProcess:
        """Start the server and wait until it listens."""
        (self.folder / "server").mkdir(exist_ok=True)
        self.server = TwistdProcess(
            [*self.server_args(), *self.server_options],
            cwd=self.folder / "server",
            ports=[self.server_port],
            env=env,
            before=before,
        )
        return self.server

    def start_client(self, env: dict[str, str] | None = None, before: str = "") -> TwistdProcess:
        """Start the client and wait until it listens."""
        (self.folder / "client").mkdir(exist_ok=True)
        self.client = TwistdProcess(
            [*self.client_args(), *self.client_options],
            cwd=self.folder / "client",
            ports=[self.socks_port],
            env=env,
            before=before,
        )
        return self.client

    def kill_server(self) -> None:
        """SIGKILL."""
        assert self.server is not None
        self.server.kill()
        self._past_logs.append(self.server.output)

    def kill_client(self) -> None:
        """SIGKILL."""
        assert self.client is not None
        self.client.kill()
        self._past_logs.append(self.client.output)

    def close(self) -> None:
        """End both and remove the folder."""
        for process in (self.client, self.server):
            if process is not None and process.alive:
                process.stop(timeout=5)
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start_server()
            self.start_client()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- measuring it

    @property
    def server_pid(self) -> int:
        """Of the running server."""
        assert self.server is not None
        return self.server.pid

    @property
    def client_pid(self) -> int:
        """Of the running client."""
        assert self.client is not None
        return self.client.pid

    def usage(self) -> dict[str, float]:
        """Memory (bytes), open files and CPU seconds of both, now."""
        out: dict[str, float] = {}
        for name, pid in (("server", self.server_pid), ("client", self.client_pid)):
            out |= {f"{name} rss": rss(pid), f"{name} fds": fds(pid), f"{name} cpu": cpu(pid)}
        return out

    def unhandled(self) -> list[str]:
        """Every line of any log of this tunnel, past processes included, that says that something was not handled."""
        logs = [*self._past_logs]
        logs += [process.output for process in (self.server, self.client) if process is not None]
        return [line for log in logs for line in log.splitlines() if _UNHANDLED.search(line)]


class MikaTunnel(Tunnel):
    """Mika, in profile ``spec`` unless the options say otherwise.

    The laboratory's server may reach loopback, and takes as many unproven connections as come.
    """

    def __init__(
        self,
        *,
        refusal_time: float = 2.0,
        through: int | None = None,
        server_options: Sequence[str] = (),
        client_options: Sequence[str] = (),
    ) -> None:
        self.refusal_time = refusal_time
        super().__init__(through=through, server_options=server_options, client_options=client_options)

    def prepare(self) -> None:
        """A fresh password."""
        self.password_file = self.folder / "password"
        self.password_file.touch(0o600)
        self.password_file.write_text(secrets.token_urlsafe(32) + "\n")

    @property
    def password(self) -> bytes:
        """The password, for a peer that the test itself plays."""
        return self.password_file.read_bytes().strip()

    def server_args(self) -> list[str]:
        """mika-server on loopback."""
        return [
            "mika-server",
            f"--listen=tcp:{self.server_port}:interface=127.0.0.1:backlog=4096",
            f"--password-file={self.password_file}",
            f"--state-dir={self.folder / 'server'}",
            "--allow-egress=127.0.0.0/8",
            f"--refusal-time={self.refusal_time}",
            "--max-unverified=100000",
            "--max-unverified-per-address=100000",
            "--max-connections=30000",
            "--drain-time=1",
        ]

    def client_args(self) -> list[str]:
        """mika-client with a SOCKS and an HTTP door on loopback."""
        return [
            "mika-client",
            f"--server=tcp:127.0.0.1:{self.through or self.server_port}",
            f"--password-file={self.password_file}",
            f"--socks=tcp:{self.socks_port}:interface=127.0.0.1:backlog=4096",
            f"--http=tcp:{self.http_port}:interface=127.0.0.1",
            f"--state-dir={self.folder / 'client'}",
            "--max-connections=30000",
            "--drain-time=1",
        ]


#: Tunnels by the name that the commands know them by.
TUNNELS: dict[str, type[Tunnel]] = {"mika": MikaTunnel}

#: Environment variable with the path of a file of eight bytes, a little-endian float: how far the clock is off.
CLOCK_FILE = "MIKANET_LAB_CLOCK"

#: Code to run before a tunnel: its wall clock is the real one plus what the clock file says, from import on.
SHIFTED_CLOCK = f"""
import mmap, os, struct, time
_map = mmap.mmap(os.open(os.environ["{CLOCK_FILE}"], os.O_RDWR), 8)
_real = time.time
time.time = lambda: _real() + struct.unpack_from("<d", _map)[0]
"""


def set_clock(path: str | os.PathLike[str], seconds: float) -> None:
    """Let the wall clocks that follow the file ``path`` be ``seconds`` ahead."""
    with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
        file.write(struct.pack("<d", seconds))
