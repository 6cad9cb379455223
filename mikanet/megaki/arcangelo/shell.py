"""Arcangelo for Python: runs a file that defines ``on_handle(request: bytes) -> bytes``.

``on_init()`` is called once, ``on_start()`` and ``on_stop()`` around each request; all three may be missing. The module
``arca`` tells a script who asks: ``client_ip``, ``client_port``, ``token`` and ``guid``, and has ``log(text)``.

``python -I shell.py SCRIPT``, with requests on descriptor 3 and answers on 4. All integers are in host order.
"""

import ipaddress
import os
import runpy
import struct
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

IN, OUT = 3, 4
START, QUIT, HANDLE, PROBE = 1, 2, 3, 16
START_OK, START_FAILED, QUIT_OK, HANDLE_OK, HANDLE_FAILED = b"\1", b"\2", b"\3", b"\4", b"\5"
MAX_ANSWER = 1024 * 1024
READ_SIZE = 256 * 1024

arca: Any = types.ModuleType("arca")


def log(text: str) -> None:
    """A line for the server's log."""
    print(f"[ARCA {time.strftime('%d/%b/%Y:%H:%M:%S %z')}] {text}", file=sys.stderr, flush=True)  # noqa: T201


class Pipe:
    """Both descriptors. Answers leave when there is nothing left to read, so that one exchange is one write."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answers: list[bytes] = []

    def take(self, size: int) -> bytes:
        """Exactly so many bytes; the end of the process when there are no more."""
        while len(self._buffer) < size:
            self.flush()
            data = os.read(IN, READ_SIZE)
            if not data:
                raise SystemExit(0)
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def number(self) -> int:
        """A 32-bit number."""
        return int(struct.unpack("=I", self.take(4))[0])

    def put(self, *parts: bytes) -> None:
        """Part of an answer."""
        self._answers += parts

    def flush(self) -> None:
        """Send what was put."""
        data = memoryview(b"".join(self._answers))
        self._answers.clear()
        while data:
            data = data[os.write(OUT, data) :]


def read_context(data: bytes) -> None:
    """The content of START: a socket address as in memory (IPv4: 16 bytes, IPv6: 28), then the token."""
    (arca.client_port,) = struct.unpack_from("!H", data, 2)
    packed = data[4:8] if len(data) == 32 else data[8:24]
    arca.client_ip = str(ipaddress.ip_address(packed))
    arca.token = data[-16:]


def guarded(call: Callable[[], None]) -> bool:
    """Whether ``call`` came back without an exception; one is logged."""
    try:
        call()
    except Exception:  # noqa: BLE001 - whatever the script does, the worker goes on
        log(traceback.format_exc().rstrip())
        return False
    return True


def serve(pipe: Pipe, script: dict[str, Any]) -> None:
    """Requests until the server closes the pipe."""

    def nothing() -> None:
        """What a script that leaves a function out gets."""

    started = False
    on_start, on_stop, on_handle = script.get("on_start", nothing), script.get("on_stop", nothing), script["on_handle"]
    while True:
        kind = pipe.take(1)[0]
        if kind == PROBE:
            pipe.put(bytes([PROBE]))
            continue
        arca.guid = pipe.take(8)
        if kind == START:
            read_context(pipe.take(pipe.number()))
            started = guarded(on_start)
            pipe.put(START_OK if started else START_FAILED)
        elif kind == HANDLE:
            handle(pipe, pipe.take(pipe.number()), on_handle if started else None)
        elif kind == QUIT:
            if started:
                guarded(on_stop)
            started = False
            pipe.put(QUIT_OK)
        else:
            log(f"unknown request type {kind}")
            raise SystemExit(1)


def handle(pipe: Pipe, request: bytes, on_handle: Callable[[bytes], Any] | None) -> None:
    """One request."""
    answers: list[Any] = []
    if on_handle is not None and guarded(lambda: answers.append(on_handle(request))):
        answer = b"" if answers[0] is None else answers[0]
        if isinstance(answer, (bytes, bytearray, memoryview)) and len(answer) <= MAX_ANSWER:
            pipe.put(HANDLE_OK, struct.pack("=I", len(answer)), bytes(answer))
            return
        log("on_handle must return bytes, at most 1 MiB of them")
    pipe.put(HANDLE_FAILED)


def main() -> None:
    """Load the script, then serve."""
    path = sys.argv[1]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a file; the log is to be in time
    sys.path.insert(0, os.path.dirname(path))
    arca.client_ip, arca.client_port, arca.token, arca.guid, arca.log = "255.255.255.255", 0, bytes(16), bytes(8), log
    sys.modules["arca"] = arca
    script = runpy.run_path(path)
    if not callable(script.get("on_handle")):
        log(f"{path} defines no function on_handle(request)")
        raise SystemExit(1)
    if "on_init" in script:
        script["on_init"]()
    pipe = Pipe()
    try:
        serve(pipe, script)
    finally:
        pipe.flush()  # if the script exits, an answer that was given before that counts


if __name__ == "__main__":
    main()
