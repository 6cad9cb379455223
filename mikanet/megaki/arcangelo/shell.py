"""Arcangelo for Python: runs a file that defines ``on_handle(request: bytes) -> bytes``.

``on_init()`` is called once, ``on_start()`` and ``on_stop()`` around each request; all three may be missing. The module
``arca`` tells a script who asks: ``client_ip``, ``client_port``, ``token`` and ``guid``, and has ``log(text)``.

``python -I shell.py SCRIPT``, with requests on descriptor 3 and answers on 4. All integers are in host order. Answers carry
the number of their request, and nobody but this process gives any: what it forks or starts has no channel.
"""

import importlib.machinery
import ipaddress
import os
import runpy
import signal
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
NUMBERED = 0x80
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
        self._owner = os.getpid()
        self._closed = False

    def keep_to_ourselves(self) -> None:
        """Neither programs that are started from here nor forks get the channel."""
        for descriptor in (IN, OUT):
            os.set_inheritable(descriptor, False)
        os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        """In a child: what it says is nobody's answer."""
        self._answers.clear()
        if self._closed:
            return  # a child's child, in which these numbers may be files of the script's own
        self._closed = True
        for descriptor in (IN, OUT):
            os.close(descriptor)

    def leave_if_child(self) -> None:
        """The end of a child that comes back from the script: it is not the one who answers."""
        if os.getpid() != self._owner:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

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

    def put(self, kind: bytes, *parts: bytes) -> None:
        """An answer to the request whose number is ``arca.guid``."""
        self._answers += (bytes([kind[0] | NUMBERED]), arca.guid, *parts)

    def put_sign_of_life(self) -> None:
        """The answer to a probe, which has no number."""
        self._answers.append(bytes([PROBE]))

    def flush(self) -> None:
        """Send what was put."""
        self.leave_if_child()
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


def guarded(pipe: Pipe, call: Callable[[], None]) -> bool:
    """Whether ``call`` came back without an exception; one is logged."""
    try:
        call()
    except Exception:  # noqa: BLE001 - whatever the script does, the worker goes on
        log(traceback.format_exc().rstrip())
        return False
    finally:
        pipe.leave_if_child()
    return True


def stop_alarms() -> None:
    """One request's alarms do not ring in a later one."""
    signal.alarm(0)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)


class FreshLoader(importlib.machinery.SourceFileLoader):
    """Reads a module's source each time: bytecode of a file changed within a second, with its size kept, is not its own."""

    def get_code(self, fullname: str) -> types.CodeType:
        """Compile what is there now."""
        path = self.get_filename(fullname)
        code: types.CodeType = self.source_to_code(self.get_data(path), path)
        return code


def load_modules_anew(folder: str) -> None:
    """Modules from ``folder``, the script's own, are compiled from their source; everybody else's come as ever."""
    machinery = importlib.machinery
    find = machinery.FileFinder.path_hook(
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES), (FreshLoader, machinery.SOURCE_SUFFIXES)
    )

    def hook(path: str) -> Any:
        if path != folder and not path.startswith(folder.rstrip("/") + "/"):
            raise ImportError("not the script's")
        return find(path)

    sys.path_hooks.insert(0, hook)
    sys.path.insert(0, folder)


def serve(pipe: Pipe, script: dict[str, Any]) -> None:
    """Requests until the server closes the pipe."""

    def nothing() -> None:
        """What a script that leaves a function out gets."""

    started = False
    on_start, on_stop, on_handle = script.get("on_start", nothing), script.get("on_stop", nothing), script["on_handle"]
    while True:
        kind = pipe.take(1)[0]
        if kind == PROBE:
            pipe.put_sign_of_life()
            continue
        arca.guid = pipe.take(8)
        if kind == START:
            read_context(pipe.take(pipe.number()))
            started = guarded(pipe, on_start)
            pipe.put(START_OK if started else START_FAILED)
        elif kind == HANDLE:
            handle(pipe, pipe.take(pipe.number()), on_handle if started else None)
        elif kind == QUIT:
            if started:
                guarded(pipe, on_stop)
            started = False
            stop_alarms()
            pipe.put(QUIT_OK)
        else:
            log(f"unknown request type {kind}")
            raise SystemExit(1)


def handle(pipe: Pipe, request: bytes, on_handle: Callable[[bytes], Any] | None) -> None:
    """One request."""
    answers: list[Any] = []
    if on_handle is not None and guarded(pipe, lambda: answers.append(on_handle(request))):
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
    load_modules_anew(os.path.dirname(path))
    arca.client_ip, arca.client_port, arca.token, arca.guid, arca.log = "255.255.255.255", 0, bytes(16), bytes(8), log
    sys.modules["arca"] = arca
    pipe = Pipe()
    pipe.keep_to_ourselves()
    script = runpy.run_path(path)
    pipe.leave_if_child()
    if not callable(script.get("on_handle")):
        log(f"{path} defines no function on_handle(request)")
        raise SystemExit(1)
    if "on_init" in script:
        script["on_init"]()
        pipe.leave_if_child()
    try:
        serve(pipe, script)
    finally:
        pipe.flush()  # if the script exits, an answer that was given before that counts


if __name__ == "__main__":
    main()
