"""A connection that was reset must not look like one that was closed: the application would take half for the whole."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.lab.tunnels import MikaTunnel, NitroSocksTunnel, PickaxeTunnel, Tunnel
from tests.support.processes import free_port

COUNT = 60
HALF = b"half of a response without a length"


class ResettingServer:
    """On loopback: reads a request, answers half of a response, and resets while the client is still sending."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.recv(100)
            connection.sendall(HALF)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()


def how_it_ends(door: int, port: int) -> str:
    """Send to a target through a SOCKS5 door for as long as it takes: "refused" by the door, "reset", or "closed"."""
    with socket.create_connection(("127.0.0.1", door), timeout=20) as connection:
        connection.sendall(b"\x05\x01\x00")
        connection.recv(2)
        connection.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
        if connection.recv(10)[1:2] != b"\x00":
            return "refused"
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # One thread, and reading comes first: a socket says once that it was reset.
        try:
            while True:
                if not select.select([connection], [], [], 0)[0]:
                    connection.sendall(b"request ")
                elif not connection.recv(4096):
                    return "closed"
        except ConnectionError:
            return "reset"


class ResetTests(SynchronousTestCase):
    """Through each system, sixty times: the application sees a reset, never a clean end.

    paqet is not here: smux has one kind of end only.
    """

    def check(self, make: Callable[[], Tunnel]) -> None:
        """Targets that reset half-way, and targets that refuse."""
        server = ResettingServer()
        self.addCleanup(server.close)
        with make() as tunnel:
            self.assertEqual({how_it_ends(tunnel.socks_port, server.port) for _ in range(COUNT)}, {"reset"})
            refused = {how_it_ends(tunnel.socks_port, free_port()) for _ in range(COUNT)}
            self.assertLessEqual(refused, {"reset", "refused"})
            self.assertEqual(tunnel.unhandled(), [])

    def test_mika(self) -> None:
        """Mika."""
        self.check(MikaTunnel)

    def test_nitrosocks(self) -> None:
        """NitroSocks."""
        self.check(NitroSocksTunnel)

    def test_pickaxe(self) -> None:
        """Pickaxe over TCP."""
        self.check(PickaxeTunnel)
