"""A hijacker: a relay that ends TLS with a certificate of its own and begins it anew towards the server, in a thread.

What passes in clear on both sides is kept for the test to look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from pathlib import Path

#: Bytes of each direction that are kept.
KEPT = 1 << 20


class Hijacked:
    """One connection.

    :ivar up: what the client said inside TLS. :ivar down: what the server said.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, writers: tuple[asyncio.StreamWriter, ...]) -> None:
        self.up = bytearray()
        self.down = bytearray()
        self._loop = loop
        self._writers = writers

    def cut(self) -> None:
        """End it, without a goodbye of TLS."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.cut_here)

    def cut_here(self) -> None:
        """The same, in the loop's thread."""
        for writer in self._writers:
            writer.transport.abort()


class Hijacker:
    """Listens on a port of loopback.

    :param pem: its own key and certificate. :param server: the port of the real server.
    :ivar connections: all that there were.
    """

    def __init__(self, pem: Path, server: int) -> None:
        self.connections: list[Hijacked] = []
        self._server = server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._towards = ssl.create_default_context()
        self._towards.check_hostname = False
        self._towards.verify_mode = ssl.CERT_NONE
        for context in (self._context, self._towards):  # as inspecting proxies do, which want HTTP
            context.set_alpn_protocols(["h2", "http/1.1"])
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda loop, context: None)  # cuts are what we are here for
        self._loop.run_until_complete(asyncio.start_server(self._relay, sock=listener, ssl=self._context))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._server, ssl=self._towards, server_hostname="localhost"
            )
        except OSError:
            writer.transport.abort()
            return
        connection = Hijacked(self._loop, (writer, far_writer))
        self.connections.append(connection)
        await asyncio.gather(
            self._pump(reader, far_writer, connection.up, connection),
            self._pump(far_reader, writer, connection.down, connection),
        )

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray, connection: Hijacked
    ) -> None:
        try:
            while data := await source.read(65536):
                kept += data[: max(0, KEPT - len(kept))]
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        connection.cut_here()

    def close(self) -> None:
        """Stop, and cut everything."""
        for each in self.connections:
            each.cut()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
