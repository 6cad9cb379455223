"""``mikanet speedtest``: how fast a tunnel is, through any client's front door.

One end serves, where the tunnel's server can reach it; the other measures through the client's SOCKS door: latency, download,
upload, and the loss of datagrams where the tunnel carries them.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TextIO

from mikanet.address import Address, parse_address
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.service.options import Options as BaseOptions
from mikanet.wire import socks

#: First bytes of a connection: what it is, and for how many milliseconds.
_MAGIC = b"mikanet speedtest\n"
_ASK = struct.Struct("!cI")
_ECHO, _DOWN, _UP = b"e", b"d", b"u"

#: The longest measurement that a serving end takes part in, in seconds, and how many at a time.
_LONGEST, _MOST = 60.0, 8

_BLOCK = 256 * 1024
_PINGS, _DATAGRAMS = 20, 100
_DATAGRAM_SIZE = 400


class Options(BaseOptions):
    """Options of ``mikanet speedtest``."""

    command = "mikanet speedtest"
    synopsis = "[options] --serve HOST:PORT | --socks HOST:PORT --target HOST:PORT"
    longdesc = (
        "Measures a tunnel through a client's SOCKS door: latency, download, upload, lost datagrams. The other end is this "
        "command with --serve, on the tunnel's server, which must permit it: --allow-egress 127.0.0.1:5201."
    )
    example = "mikanet speedtest --socks 127.0.0.1:1080 --target 127.0.0.1:5201"
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["serve", None, None, "be the other end, at this address of the tunnel's server, as 127.0.0.1:5201"],
        ["socks", None, None, "the client's SOCKS door, as 127.0.0.1:1080"],
        ["target", None, None, "where the other end is, as the tunnel's server reaches it"],
        ["seconds", None, "5", "how long each direction is measured"],
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [["json", None, "one JSON object at the end, and no progress"]]

    where: Address
    door: Address
    seconds: float

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self.seconds = self.number("seconds", 0.2, _LONGEST, float)
        self.where = parse_address(self.required("serve") if self["serve"] else self.required("target"))
        if not self["serve"]:
            self.door = parse_address(self.required("socks"))


def run(options: Options) -> int:
    """Serve until stopped, or measure."""
    if options["serve"]:
        return serve(options.where)
    try:
        results = Meter(options.door, options.where, options.seconds, None if options["json"] else sys.stdout).measure()
    except (ConnectionResetError, BrokenPipeError):
        text = "the connection was reset: is mikanet speedtest --serve running at the target, and does the server permit it?"
        raise SystemExit(f"{options.command}: {text}") from None
    except (OSError, RemoteProtocolError, ConfigError) as problem:
        text = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        raise SystemExit(f"{options.command}: {text}") from None
    if options["json"]:
        import json

        print(json.dumps(results))
    return 0


# -- the end that serves


def serve(where: Address) -> int:
    """Take part in measurements until Ctrl-C."""
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    try:
        listener = socket.create_server((where.host, where.port), family=family)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        datagrams.bind(listener.getsockname()[:2])
    except OSError as problem:
        raise SystemExit(f"mikanet speedtest: cannot listen on {where}: {problem.strerror or problem}") from None
    threading.Thread(target=_echo_datagrams, args=(datagrams,), daemon=True).start()
    port = listener.getsockname()[1]
    print(f"serving measurements on {where.host}:{port}; Ctrl-C ends it", flush=True)
    places = threading.Semaphore(_MOST)
    try:
        while True:
            connection, _ = listener.accept()
            if not places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=_take_part, args=(connection, places), daemon=True).start()
    except KeyboardInterrupt:
        return 0


def _echo_datagrams(datagrams: socket.socket) -> None:
    while True:
        data, peer = datagrams.recvfrom(2048)
        datagrams.sendto(data, peer)


def _take_part(connection: socket.socket, places: threading.Semaphore) -> None:
    try:
        with connection:
            connection.settimeout(10)
            head = _read(connection, len(_MAGIC) + _ASK.size)
            if not head.startswith(_MAGIC):
                return
            what, milliseconds = _ASK.unpack(head[len(_MAGIC) :])
            until = time.monotonic() + min(milliseconds / 1000, _LONGEST)
            if what == _DOWN:
                block = os.urandom(_BLOCK)
                while time.monotonic() < until:
                    connection.sendall(block)
            elif what == _UP:
                got = 0
                while data := connection.recv(_BLOCK):
                    got += len(data)
                connection.sendall(struct.pack("!Q", got))
            else:
                while time.monotonic() < until and (data := connection.recv(64)):
                    connection.sendall(data)
    except (OSError, RemoteProtocolError):
        pass
    finally:
        places.release()


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise RemoteProtocolError("the other end has closed the connection: is it mikanet speedtest --serve?")
        data += piece
    return data


# -- the end that measures


class Meter:
    """Measures through a SOCKS door.

    :param out: where progress goes, or None.
    """

    def __init__(self, door: Address, target: Address, seconds: float, out: TextIO | None) -> None:
        self._door = door
        self._target = target
        self._seconds = seconds
        self._out = out

    def measure(self) -> dict[str, Any]:
        """Everything, in milliseconds, megabits a second and per cent; None for loss where no datagrams are carried."""
        results: dict[str, Any] = {}
        times = self._latency()
        results["latency_ms"], results["latency_worst_ms"] = round(times[len(times) // 2], 1), round(times[-1], 1)
        self._show("latency", f"{results['latency_ms']} ms (worst {results['latency_worst_ms']} ms)", end=True)
        for name, direction in (("down", self._down), ("up", self._up)):
            rate = 0.0
            for rate in direction():
                self._show(name, f"{rate:,.1f} Mbit/s")
            results[f"{name}_mbit_s"] = round(rate, 1)
            self._show(name, f"{rate:,.1f} Mbit/s", end=True)
        loss = self._loss()
        results["loss_percent"] = loss
        self._show("loss", "no datagrams through this tunnel" if loss is None else f"{loss:g} %", end=True)
        return results

    def _show(self, name: str, text: str, end: bool = False) -> None:
        if self._out is None or not (end or self._out.isatty()):
            return
        start = "\r\x1b[K" if self._out.isatty() else ""
        self._out.write(f"{start}{name:<9}{text}{chr(10) if end else ''}")
        self._out.flush()

    def _open(self, what: bytes, seconds: float) -> socket.socket:
        connection = socket.create_connection((self._door.host, self._door.port), 10)
        try:
            connection.settimeout(20)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _socks_request(connection, b"\x01", self._target)
            connection.sendall(_MAGIC + _ASK.pack(what, int(seconds * 1000)))
        except BaseException:
            connection.close()
            raise
        return connection

    def _latency(self) -> list[float]:
        times = []
        with self._open(_ECHO, _LONGEST) as connection:
            for number in range(_PINGS + 1):
                began = time.perf_counter()
                connection.sendall(number.to_bytes(8, "big"))
                _read(connection, 8)
                times.append((time.perf_counter() - began) * 1000)
        return sorted(times[1:])  # the first one has the connection's beginning in it

    def _down(self) -> Iterator[float]:
        with self._open(_DOWN, self._seconds) as connection:
            yield from _rates(lambda: len(connection.recv(_BLOCK)), None)

    def _up(self) -> Iterator[float]:
        block = os.urandom(_BLOCK)
        with self._open(_UP, self._seconds) as connection:
            began = time.monotonic()
            yield from _rates(lambda: connection.send(block), self._seconds)
            connection.shutdown(socket.SHUT_WR)
            (got,) = struct.unpack("!Q", _read(connection, 8))
            yield got * 8 / 1e6 / (time.monotonic() - began)  # what has arrived counts, not what was sent

    def _loss(self) -> float | None:
        with socket.create_connection((self._door.host, self._door.port), 10) as control:
            control.settimeout(10)
            try:
                host, port = _socks_request(control, b"\x03", Address("0.0.0.0", 0))
            except RemoteProtocolError:
                return None
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
                datagrams.settimeout(1.0)
                header = b"\0\0\0" + socks.encode_address(self._target)
                got: set[bytes] = set()
                for number in range(_DATAGRAMS):
                    body = number.to_bytes(4, "big")
                    datagrams.sendto(header + body + bytes(_DATAGRAM_SIZE - 4), (host, port))
                    time.sleep(0.01)
                until = time.monotonic() + 2.0
                while len(got) < _DATAGRAMS and time.monotonic() < until:
                    try:
                        data = datagrams.recv(2048)
                    except TimeoutError:
                        break
                    got.add(data[-_DATAGRAM_SIZE:][:4])
        return round(100 * (_DATAGRAMS - len(got)) / _DATAGRAMS, 1)


def _rates(step: Callable[[], int], seconds: float | None) -> Iterator[float]:
    """Megabits a second so far, a few times a second, until ``step`` brings nothing or the time is over."""
    began = shown = time.monotonic()
    total = 0
    while seconds is None or time.monotonic() - began < seconds:
        size = step()
        if not size:
            break
        total += size
        now = time.monotonic()
        if now - shown > 0.2:
            shown = now
            yield total * 8 / 1e6 / (now - began)
    yield total * 8 / 1e6 / max(1e-9, time.monotonic() - began)


def _socks_request(connection: socket.socket, command: bytes, to: Address) -> tuple[str, int]:
    """Ask a SOCKS5 door for something; the address that it answers with.

    :raises RemoteProtocolError: if it refuses.
    """
    connection.sendall(b"\x05\x01\x00")
    if _read(connection, 2) != b"\x05\x00":
        raise RemoteProtocolError("the door wants a password, or is no SOCKS5 door")
    connection.sendall(b"\x05" + command + b"\x00" + socks.encode_address(to))
    answer = _read(connection, 4)
    if answer[1]:
        raise RemoteProtocolError(
            f"the door refuses, with SOCKS code {answer[1]}: {_CODES.get(answer[1], 'see its log')}"
        )
    size = {1: 4, 4: 16}.get(answer[3])
    if size is None:
        raise RemoteProtocolError("the door answers with a name")
    packed = _read(connection, size + 2)
    host = socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, packed[:size])
    return host, int.from_bytes(packed[size:], "big")


_CODES = {
    1: "the tunnel's server cannot be used; the client's log says why",
    2: "the tunnel's server does not permit this target: start it with --allow-egress for it",
    4: "the target's name has no address",
    5: "nothing listens at the target: run mikanet speedtest --serve there",
    7: "this tunnel carries no datagrams",
}
