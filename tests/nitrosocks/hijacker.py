"""A hijacker: a relay that ends TLS with a certificate of its own and begins it anew towards the server, in threads.

What passes in clear on both sides is kept for the test to look at.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path


class Hijacked:
    """One connection.

    :ivar up: what the client said inside TLS. :ivar down: what the server said.
    """

    def __init__(self, near: ssl.SSLSocket, far: ssl.SSLSocket) -> None:
        self.up = bytearray()
        self.down = bytearray()
        self._socks = (near, far)
        for source, sink, kept in ((near, far, self.up), (far, near, self.down)):
            threading.Thread(target=self._pump, args=(source, sink, kept), daemon=True).start()

    def _pump(self, source: ssl.SSLSocket, sink: ssl.SSLSocket, kept: bytearray) -> None:
        try:
            while data := source.recv(65536):
                if len(kept) < 1 << 20:
                    kept += data
                sink.sendall(data)
        except OSError:
            pass
        self.cut()

    def cut(self) -> None:
        """End it, without a goodbye of TLS."""
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Hijacker:
    """Listens on a port of loopback.

    :param pem: its own key and certificate. :param server: the port of the real server.
    :ivar connections: all that there were.
    """

    def __init__(self, pem: Path, server: int) -> None:
        self.connections: list[Hijacked] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._towards = ssl.create_default_context()
        self._towards.check_hostname = False
        self._towards.verify_mode = ssl.CERT_NONE
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(sock,), daemon=True).start()

    def _relay(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near = self._context.wrap_socket(sock, server_side=True)
            plain = socket.create_connection(("127.0.0.1", self._server), timeout=20)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far = self._towards.wrap_socket(plain, server_hostname="localhost")
            far.settimeout(None)
        except OSError:
            sock.close()
            return
        self.connections.append(Hijacked(near, far))

    def close(self) -> None:
        """Stop, and cut everything."""
        self._listener.close()
        for each in self.connections:
            each.cut()
