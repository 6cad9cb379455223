"""The far end of every benchmark: sends, takes or echoes what its client asks for. ``python -m tests.bench.target PORT``.

A client's first 9 bytes say what it wants: a letter and a 64-bit big-endian size. ``D`` sends that many bytes, ``U`` takes
that many and answers one byte, ``E`` echoes until the client ends.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading

ORDER = struct.Struct("!cQ")
BLOCK = 1 << 18


def serve(connection: socket.socket) -> None:
    """One client, to its end."""
    with connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            order = b""
            while len(order) < ORDER.size:
                piece = connection.recv(ORDER.size - len(order))
                if not piece:
                    return
                order += piece
            what, size = ORDER.unpack(order)
            {b"D": send, b"U": take, b"E": echo}[what](connection, size)
        except OSError:
            pass  # a client may go whenever it likes


def send(connection: socket.socket, size: int) -> None:
    """Send ``size`` bytes."""
    block = memoryview(os.urandom(BLOCK))
    while size:
        size -= connection.send(block[: min(size, BLOCK)])
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)


def take(connection: socket.socket, size: int) -> None:
    """Take ``size`` bytes, then answer one."""
    buffer = bytearray(BLOCK)
    while size:
        got = connection.recv_into(buffer, min(size, BLOCK))
        if not got:
            return
        size -= got
    connection.sendall(b"!")
    connection.recv(1)


def echo(connection: socket.socket, size: int) -> None:
    """Send back what comes."""
    while data := connection.recv(65536):
        connection.sendall(data)


def main() -> None:
    """Listen until killed."""
    threading.stack_size(128 * 1024)
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
