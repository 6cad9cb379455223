"""``mikanet demo``: a Mika server and client on loopback, and a measured download through both.

Everything in between is real: the password file, the services that twistd would run, the sockets. Only the web server
at the far end belongs to the demonstration.
"""

from __future__ import annotations

import hashlib
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import react
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.cli.genkey import new_secret
from mikanet.filters.socks_client import Socks5ClientEndpoint
from mikanet.mika import tap_client, tap_server
from mikanet.service.options import Options as BaseOptions
from mikanet.service.secret_files import write_private_file

_BLOCK = bytes(range(256)) * 256


class Options(BaseOptions):
    """Options of ``mikanet demo``."""

    command = "mikanet demo"
    longdesc = "Starts a server and a client on this machine, downloads through them, and says what to try next."

    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["once", None, "end after the download instead of waiting for Ctrl-C"],
    ]
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["megabytes", None, "256", "how much to download"],
    ]

    megabytes: int

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self.megabytes = self.number("megabytes", 1, 100_000)


def run(options: Options) -> int:
    """Run the demonstration until it ends or the user ends it."""
    with tempfile.TemporaryDirectory(prefix="mikanet-demo-") as folder:
        try:
            react(_demo, (Path(folder), options.megabytes, bool(options["once"])))
        except SystemExit as end:
            if isinstance(end.code, str):
                raise
            return end.code or 0


async def _demo(reactor: Any, folder: Path, megabytes: int, once: bool) -> None:
    """The demonstration itself."""
    password_file = folder / "password"
    write_private_file(password_file, new_secret().encode() + b"\n")
    size = megabytes * 1_000_000
    web = _Web(size)
    server_port, socks_port = _free_port(), _free_port()
    server = _start(
        tap_server,
        reactor,
        ["--listen", f"tcp:{server_port}:interface=127.0.0.1", "--password-file", str(password_file)]
        + ["--state-dir", str(folder / "state"), "--allow-egress", "127.0.0.0/8", "--drain-time", "0"],
    )
    client = _start(
        tap_client,
        reactor,
        ["--server", f"tcp:127.0.0.1:{server_port}", "--password-file", str(password_file)]
        + ["--socks", f"tcp:{socks_port}:interface=127.0.0.1", "--drain-time", "0"],
    )
    print("A Mika server and a Mika client run on this machine now, with a fresh password.")
    web_port = int(web.server_address[1])
    await _measure(reactor, socks_port, web_port, size)
    print()
    print("Try it yourself:")
    print(f"  curl --socks5-hostname 127.0.0.1:{socks_port} http://127.0.0.1:{web_port}/ --output /dev/null")
    print(f"In a browser: SOCKS v5 host 127.0.0.1, port {socks_port}, and let it resolve names through the proxy.")
    print("For a way out through a server of yours, see the two commands in README.rst.")
    if once:
        print("\nThat was the whole demonstration.")
    else:
        print("\nCtrl-C ends the demonstration.")
        sys.stdout.flush()
        await _until_stopped(reactor)
    for service in (client, server):
        await cast(Deferred[None], service.stopService())
    web.shutdown()
    web.server_close()


def _start(tap: Any, reactor: Any, arguments: list[str]) -> IService:
    """A service as twistd would start it from its command line."""
    options = tap.Options()
    options.parseOptions(arguments)
    service: IService = tap.makeService(options, reactor)
    service.privilegedStartService()
    service.startService()
    return service


async def _measure(reactor: Any, socks_port: int, web_port: int, size: int) -> None:
    """Download through the client's SOCKS door, check the bytes, and print how fast they came."""
    proxy = TCP4ClientEndpoint(reactor, "127.0.0.1", socks_port)
    endpoint = Socks5ClientEndpoint(proxy, Address("127.0.0.1", web_port))
    started, cpu = time.monotonic(), time.process_time()
    download = cast(_Download, await endpoint.connect(Factory.forProtocol(lambda: _Download(size))))
    got, digest = await download.done
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    expected = _expected_digest(size)
    if got != size or digest != expected:
        raise SystemExit(f"mikanet demo: {got} of {size} bytes came through, or they were not the same ones")
    print(f"\r{size / 1e6:.0f} MB came through the tunnel in {seconds:.2f} s: {size / 1e6 / seconds:.0f} MB/s.", end="")
    print(f" Every byte was right (SHA-256 {digest[:16]}...).")
    print(
        f"Web server, tunnel server, tunnel client and checking took {cpu / size * 1e9:.1f} CPU seconds per GB together."
    )


class _Download(Protocol):
    """Asks for the page and counts what comes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._head: bytes | None = b""
        self._got = 0
        self._shown = 0
        self._hash = hashlib.sha256()
        self.done: Deferred[tuple[int, str]] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        if self._head is not None:
            head, end, body = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            self._head, data = None, body
        self._hash.update(data)
        self._got += len(data)
        percent = self._got * 100 // self._size
        if sys.stdout.isatty() and percent >= self._shown + 5:
            self._shown = percent
            print(f"\rdownloading: {percent:3d} %", end="", flush=True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback((self._got, self._hash.hexdigest()))


class _Web(socketserver.ThreadingTCPServer):
    """A web server with one page of a given size; on threads, because a server's own reactor's ports are not for its clients."""

    daemon_threads = True

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(("127.0.0.1", 0), _Page)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Page(socketserver.StreamRequestHandler):
    """One request, and the page."""

    def handle(self) -> None:
        """Read the request's head, then write."""
        web = cast(_Web, self.server)
        while self.rfile.readline(4096).strip():
            pass
        left = web.size
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n"
        try:
            self.request.sendall(head.encode())
            while left:
                self.request.sendall(_BLOCK[:left])
                left -= min(left, len(_BLOCK))
        except ConnectionError:
            pass  # whoever asked has seen enough


def _expected_digest(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // len(_BLOCK)):
        digest.update(_BLOCK)
    digest.update(_BLOCK[: size % len(_BLOCK)])
    return digest.hexdigest()


def _free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _until_stopped(reactor: Any) -> None:
    stopped: Deferred[None] = Deferred()
    reactor.addSystemEventTrigger("before", "shutdown", stopped.callback, None)
    await stopped
