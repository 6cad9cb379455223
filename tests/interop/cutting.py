"""A TCP relay between a client and its server that tests can cut, freeze and take away."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

_LENGTH = struct.Struct("<I")


class Cutter:
    """A relay on loopback.

    :param packets: how many packets of Pickaxe's stream form each next connection passes on, both ways together, before
        it is cut; None or the end of it passes everything.
    :ivar port: where it listens. :ivar made: connections so far.
    """

    def __init__(self, target: int, packets: Iterator[int] | None = None) -> None:
        self._target = target
        self._packets = packets
        self._open: set[_Pair] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.made = 0
        self.frozen = False
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.listen()

    def listen(self) -> None:
        """Listen, again if it was stopped."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self.made += 1
            left = None if self._packets is None else next(self._packets, None)
            pair = _Pair(self, near, far, left)
            with self._lock:
                self._open.add(pair)
            pair.start()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            pairs, self._open = self._open, set()
        for pair in pairs:
            pair.reset()

    def stop(self) -> None:
        """Listen no more, and cut what is there."""
        if self._listener is not None:
            # A close alone would leave accept() waiting in its thread, and the port taken.
            try:
                self._listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._listener.close()
            self._listener = None
        self.cut()


class _Pair:
    """One connection through the relay."""

    def __init__(self, cutter: Cutter, near: socket.socket, far: socket.socket, packets: int | None) -> None:
        self._cutter = cutter
        self._ends = (near, far)
        self._left = packets
        self._lock = threading.Lock()

    def start(self) -> None:
        """Pass bytes on, both ways."""
        for source, sink in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        waiting = b""
        try:
            while data := source.recv(65536):
                while self._cutter.frozen:
                    time.sleep(0.01)
                if self._left is None:
                    sink.sendall(data)
                    continue
                waiting += data
                while len(waiting) >= 4 and len(waiting) >= 4 + _LENGTH.unpack_from(waiting)[0]:
                    size = 4 + _LENGTH.unpack_from(waiting)[0]
                    with self._lock:
                        if self._left <= 0:
                            self.reset()
                            return
                        self._left -= 1
                    sink.sendall(waiting[:size])
                    waiting = waiting[size:]
        except OSError:
            pass
        self.reset()

    def reset(self) -> None:
        """End both connections with a reset."""
        for end in self._ends:
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
                end.close()
            except OSError:
                pass
