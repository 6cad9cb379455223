"""The near end of every benchmark: connections through a SOCKS5 port, and what is done with them."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.bench.target import BLOCK, ORDER

#: In the place of a target's port: the port of the proxy is a forward that leads to the target by itself.
STRAIGHT = 0


def connect(proxy: int, target: int) -> socket.socket:
    """A connection to the target on loopback through the SOCKS5 proxy, or the forward, on loopback."""
    sock = socket.create_connection(("127.0.0.1", proxy), timeout=60)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target == STRAIGHT:
            return sock
        sock.sendall(b"\x05\x01\x00")
        _exactly(sock, 2)
        sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + struct.pack("!H", target))
        reply = _exactly(sock, 10)
        if reply[1]:
            raise ConnectionError(f"the proxy answered {reply[1]}")
    except BaseException:
        sock.close()
        raise
    return sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("the connection ended early")
        data += piece
    return data


def download(proxy: int, target: int, size: int, piece: int = BLOCK) -> float:
    """Download ``size`` bytes over one connection; the seconds it took."""
    buffer = bytearray(piece)
    with connect(proxy, target) as sock:
        started = time.perf_counter()
        sock.sendall(ORDER.pack(b"D", size))
        while size:
            got = sock.recv_into(buffer, min(size, piece))
            if not got:
                raise ConnectionError("the download ended early")
            size -= got
        return time.perf_counter() - started


def upload(proxy: int, target: int, size: int, piece: int = BLOCK) -> float:
    """Upload ``size`` bytes over one connection, in writes of ``piece``; the seconds until the target had them all."""
    block = memoryview(os.urandom(piece))
    with connect(proxy, target) as sock:
        started = time.perf_counter()
        sock.sendall(ORDER.pack(b"U", size))
        while size:
            size -= sock.send(block[: min(size, piece)])
        _exactly(sock, 1)
        return time.perf_counter() - started


def parallel(transfer: Callable[[int, int, int], float], proxy: int, target: int, size: int, count: int) -> float:
    """``count`` transfers of equal parts at once; the seconds until all were done."""
    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: transfer(proxy, target, size // count), range(count)))
    return time.perf_counter() - started


def short_connections(proxy: int, target: int, count: int, workers: int = 8) -> float:
    """``count`` connections of one echoed byte each, ``workers`` at a time; the seconds they took."""

    def one(_: int) -> None:
        with connect(proxy, target) as sock:
            sock.sendall(ORDER.pack(b"E", 0) + b"x")
            _exactly(sock, 1)

    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(count)))
    return time.perf_counter() - started


def round_trips(proxy: int, target: int, count: int) -> list[float]:
    """The seconds of each of ``count`` echoes of 64 bytes over one connection, sorted."""
    data = os.urandom(64)
    times = []
    with connect(proxy, target) as sock:
        sock.sendall(ORDER.pack(b"E", 0))
        for _ in range(count):
            started = time.perf_counter()
            sock.sendall(data)
            _exactly(sock, len(data))
            times.append(time.perf_counter() - started)
    return sorted(times)


class Idle:
    """Connections that have echoed one byte and then do nothing."""

    def __init__(self, proxy: int, target: int, count: int) -> None:
        self._socks: list[socket.socket] = []
        lock = threading.Lock()

        def one(_: int) -> None:
            sock = connect(proxy, target)
            with lock:
                self._socks.append(sock)
            sock.sendall(ORDER.pack(b"E", 0) + b"x")
            _exactly(sock, 1)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(count)))

    def close(self) -> None:
        """End them all."""
        for sock in self._socks:
            sock.close()
