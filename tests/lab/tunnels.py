"""Tunnels under test: how the processes of one are started, stopped, killed and measured.

An instrument knows only :class:`Tunnel`. A new system gets a subclass that says its two command lines.
"""

from __future__ import annotations

import datetime
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

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mikanet.cli import keygen
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.users import format_user
from tests.support.processes import TwistdProcess, cpu, fds, free_port, rss, wait_listening

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


#: Options that may be given several times.
_REPEATABLE = frozenset(
    f"--{name}"
    for name in [
        "carrier",
        "allow-egress",
        "deny-egress",
        "allow-listen",
        "socks",
        "http",
        "forward",
        "remote-forward",
        "realm",
        "server",
    ]
)


def changed(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command line with more options, in the place of those that can be given only once."""
    replaced = {option.partition("=")[0] for option in options} - _REPEATABLE
    return [*(word for word in words if word.partition("=")[0] not in replaced), *options]


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
            changed(self.server_args(), self.server_options),
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
            changed(self.client_args(), self.client_options),
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


class NitroSocksTunnel(Tunnel):
    """NitroSocks with a certificate of its own for ``localhost``, which the client knows.

    The laboratory's server may reach loopback, and takes as many unproven connections as come.
    """

    refusal_time = 2.0

    def prepare(self) -> None:
        """A certificate, a key pair and a token."""
        self.keys = self.folder / "keys"
        options = keygen.Options()
        options.parseOptions(["nitrosocks", str(self.keys)])
        keygen.nitrosocks(options)
        self.certificate = self.folder / "server.pem"
        self.authority = self.folder / "authority.pem"
        write_certificate(self.certificate, self.authority, "localhost")

    def server_args(self) -> list[str]:
        """nitrosocks-server on loopback."""
        return [
            "nitrosocks-server",
            f"--listen=tcp:{self.server_port}:interface=127.0.0.1:backlog=4096",
            f"--certificate={self.certificate}",
            f"--public-key={self.keys / 'server.pub'}",
            f"--tokens={self.keys / 'tokens'}",
            f"--state-dir={self.folder / 'server'}",
            "--allow-egress=127.0.0.0/8",
            f"--refusal-time={self.refusal_time}",
            "--max-unverified=100000",
            "--max-unverified-per-address=100000",
            "--drain-time=1",
        ]

    def client_args(self) -> list[str]:
        """nitrosocks-client with a SOCKS and an HTTP door on loopback."""
        return [
            "nitrosocks-client",
            f"--server=tcp:127.0.0.1:{self.through or self.server_port}",
            "--server-name=localhost",
            f"--private-key={self.keys / 'client.key'}",
            f"--token-file={self.keys / 'token'}",
            f"--tls-verify={self.authority}",
            f"--socks=tcp:{self.socks_port}:interface=127.0.0.1:backlog=4096",
            f"--http=tcp:{self.http_port}:interface=127.0.0.1",
            f"--state-dir={self.folder / 'client'}",
            "--max-connections=30000",
            "--drain-time=1",
        ]


class PickaxeTunnel(Tunnel):
    """Pickaxe over its plain TCP carrier.

    The laboratory's server may reach loopback, and takes as many unproven connections as come.

    :param carriers: the client's carrier URLs, if not the server's own port.
    """

    refusal_time = 2.0

    def __init__(
        self,
        *,
        carriers: Sequence[str] = (),
        through: int | None = None,
        server_options: Sequence[str] = (),
        client_options: Sequence[str] = (),
    ) -> None:
        self.carriers = list(carriers)
        super().__init__(through=through, server_options=server_options, client_options=client_options)

    def prepare(self) -> None:
        """A user with a fresh password."""
        self.password_file, self.users_file = self.folder / "password", self.folder / "users"
        password = secrets.token_urlsafe(32)
        line = format_user("alice", Secret.of_password(Kdf.MIKANET, "alice", password.encode()))
        for file, text in ((self.password_file, password), (self.users_file, line)):
            file.touch(0o600)
            file.write_text(text + "\n")

    def server_args(self) -> list[str]:
        """pickaxe-server on loopback."""
        return [
            "pickaxe-server",
            f"--users={self.users_file}",
            f"--carrier=tcp://127.0.0.1:{self.server_port}",
            f"--state-dir={self.folder / 'server'}",
            "--allow-egress=127.0.0.0/8",
            "--allow-egress=::1",
            f"--refusal-time={self.refusal_time}",
            "--max-unverified=100000",
            "--max-unverified-per-address=100000",
            "--max-connections=30000",
            "--drain-time=1",
        ]

    def client_args(self) -> list[str]:
        """pickaxe-client with a SOCKS and an HTTP door on loopback."""
        carriers = self.carriers or [f"tcp://127.0.0.1:{self.through or self.server_port}"]
        return [
            "pickaxe-client",
            "--user=alice",
            f"--password-file={self.password_file}",
            *(f"--carrier={url}" for url in carriers),
            f"--socks=tcp:{self.socks_port}:interface=127.0.0.1:backlog=4096",
            f"--http=tcp:{self.http_port}:interface=127.0.0.1",
            f"--state-dir={self.folder / 'client'}",
            "--max-connections=30000",
            "--drain-time=1",
        ]


class PaqetTunnel(Tunnel):
    """paqet over UDP, with the settings of its examples.

    The laboratory's server may reach loopback.
    """

    def prepare(self) -> None:
        """Both configuration files with a fresh key."""
        key = secrets.token_urlsafe(32)
        self.files = {}
        for role, where, port in (
            ("server", "listen", self.server_port),
            ("client", "server", self.through or self.server_port),
        ):
            self.files[role] = file = self.folder / f"{role}.yaml"
            file.touch(0o600)
            file.write_text(
                f'role: "{role}"\n{where}: {{addr: "127.0.0.1:{port}"}}\n'
                f'transport:\n  protocol: kcp\n  kcp:\n    key: "{key}"\n    block: aes-128-gcm\n'
                "mikanet:\n  carrier: udp\n"
            )

    def server_args(self) -> list[str]:
        """paqet-server on loopback."""
        return [
            "paqet-server",
            f"--config={self.files['server']}",
            f"--state-dir={self.folder / 'server'}",
            "--allow-egress=127.0.0.0/8",
            "--drain-time=1",
        ]

    def client_args(self) -> list[str]:
        """paqet-client with a SOCKS and an HTTP door on loopback."""
        return [
            "paqet-client",
            f"--config={self.files['client']}",
            f"--socks=tcp:{self.socks_port}:interface=127.0.0.1:backlog=4096",
            f"--http=tcp:{self.http_port}:interface=127.0.0.1",
            f"--state-dir={self.folder / 'client'}",
            "--max-connections=30000",
            "--drain-time=1",
        ]

    def start_server(self, env: dict[str, str] | None = None, before: str = "") -> TwistdProcess:
        """Start the server and wait until it listens."""
        (self.folder / "server").mkdir(exist_ok=True)
        self.server = TwistdProcess(
            changed(self.server_args(), self.server_options), cwd=self.folder / "server", env=env, before=before
        )
        wait_listening(self.server_port, udp=True, process=self.server)
        return self.server


def write_certificate(pem: Path, public: Path, name: str) -> None:
    """A certificate for ``name`` that signs itself: key and certificate in ``pem``, the certificate alone in ``public``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    text = certificate.public_bytes(serialization.Encoding.PEM)
    public.write_bytes(text)
    pem.touch(0o600)
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + text
    )


#: Tunnels by the name that the commands know them by.
TUNNELS: dict[str, type[Tunnel]] = {"mika": MikaTunnel, "nitrosocks": NitroSocksTunnel, "pickaxe": PickaxeTunnel}

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
