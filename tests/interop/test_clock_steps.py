"""Open streams while the wall clock of one end steps by an hour, as NTP and laptops that wake up do it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.tunnels import (
    CLOCK_FILE,
    SHIFTED_CLOCK,
    MikaTunnel,
    NitroSocksTunnel,
    PaqetTunnel,
    PickaxeTunnel,
    Tunnel,
    set_clock,
)
from tests.support.peers import require_root
from tests.support.processes import free_port

#: Seconds ahead, one after the other; each is a step from the one before.
STEPS = (3600.0, 0.0, -3600.0, 0.0)

#: How long a stream may pause, in seconds.
LONGEST_PAUSE = 1.0

#: Time between a step and the next, in seconds: longer than the longest interval of a timer that matters here.
BETWEEN = 2.0


class EchoServer:
    """Echoes on loopback, a thread for each connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()


def through_socks(door: int, port: int) -> socket.socket:
    """A connection to a port of loopback through a SOCKS5 door."""
    connection = socket.create_connection(("127.0.0.1", door), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"\x05\x01\x00")
    assert connection.recv(2) == b"\x05\x00"
    connection.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
    answer = connection.recv(10)
    assert answer[:2] == b"\x05\x00", answer
    return connection


class Ticker:
    """Sends a number, waits for its echo, 20 times a second; notes the longest round trip."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(30)
        self.longest = 0.0
        self.fault: BaseException | None = None
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                sent, began = self.count.to_bytes(1024, "big"), time.monotonic()
                self._connection.sendall(sent)
                received = b""
                while len(received) < len(sent):
                    piece = self._connection.recv(len(sent) - len(received))
                    if not piece:
                        raise ConnectionResetError("the stream ended")
                    received += piece
                assert received == sent
                self.longest = max(self.longest, time.monotonic() - began)
                self.count += 1
                time.sleep(0.05)
        except (OSError, AssertionError) as problem:
            self.fault = problem

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(30)
        self._connection.close()


class StepTests(SynchronousTestCase):
    """Nothing is lost, and nothing pauses for longer than a second, in every system and at either end."""

    def test_every_system(self) -> None:
        """The clocks of the clients step, then those of the servers, while a stream ticks through each tunnel."""
        require_root()  # for ICMP
        with ExitStack() as stack:
            echo = EchoServer()
            stack.callback(echo.close)
            running = {name: self._start(make(), echo, stack) for name, make in TUNNELS.items()}
            time.sleep(1)
            for end in ("client", "server"):
                for seconds in STEPS:
                    before = {name: ticker.count for name, (_, ticker) in running.items()}
                    for tunnel, _ in running.values():
                        set_clock(_clock_file(tunnel, end), seconds)
                    time.sleep(BETWEEN)
                    for name, (_, ticker) in running.items():
                        where = f"{name}, {end} at {seconds:+g} s"
                        self.assertIsNone(ticker.fault, where)
                        self.assertGreater(ticker.count, before[name] + 1, f"{where}: the stream stands still")
            for name, (tunnel, ticker) in running.items():
                self.assertLess(ticker.longest, LONGEST_PAUSE, name)
                self.assertEqual(tunnel.unhandled(), [], name)

    def _start(self, tunnel: Tunnel, echo: EchoServer, stack: ExitStack) -> tuple[Tunnel, Ticker]:
        stack.callback(tunnel.close)
        for end in ("server", "client"):
            set_clock(_clock_file(tunnel, end), 0.0)
        tunnel.start_server({CLOCK_FILE: os.fspath(_clock_file(tunnel, "server"))}, SHIFTED_CLOCK)
        tunnel.start_client({CLOCK_FILE: os.fspath(_clock_file(tunnel, "client"))}, SHIFTED_CLOCK)
        ticker = Ticker(through_socks(tunnel.socks_port, echo.port))
        stack.callback(ticker.stop)
        return tunnel, ticker


def _clock_file(tunnel: Tunnel, end: str) -> Path:
    return tunnel.folder / f"{end}-clock"


class _MikaOverKcp(MikaTunnel):
    def server_args(self) -> list[str]:
        return [
            f"--listen=kcp:{self.server_port}:interface=127.0.0.1" if word.startswith("--listen") else word
            for word in super().server_args()
        ]

    def client_args(self) -> list[str]:
        return [
            f"--server=kcp:127.0.0.1:{self.server_port}" if word.startswith("--server") else word
            for word in super().client_args()
        ]

    start_server = PaqetTunnel.start_server


def _pickaxe_web(scheme: str) -> PickaxeTunnel:
    port = free_port()
    return PickaxeTunnel(
        carriers=[f"{scheme}://127.0.0.1:{port}/tunnel"],
        server_options=[f"--carrier=http://127.0.0.1:{port}/tunnel"],
    )


class _PickaxeIcmp(PickaxeTunnel):
    def __init__(self) -> None:
        super().__init__(carriers=["icmp://127.0.0.1"], server_options=["--carrier=icmp://127.0.0.1"])


#: What is tried, by name.
TUNNELS: dict[str, Callable[[], Tunnel]] = {
    "Mika": MikaTunnel,
    "Mika over KCP": _MikaOverKcp,
    "NitroSocks": NitroSocksTunnel,
    "Pickaxe": PickaxeTunnel,
    "Pickaxe over HTTP": lambda: _pickaxe_web("http"),
    "Pickaxe over WebSocket": lambda: _pickaxe_web("ws"),
    "Pickaxe over ICMP": _PickaxeIcmp,
    "paqet": PaqetTunnel,
}
