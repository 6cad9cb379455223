"""The worker protocol, from the server's side: one START, HANDLE and QUIT for each request. No I/O.

All integers are in host order, structures are packed. Source: the protocol page; the original's Pegasus. What Arcangelo's
shells can do beyond it, programs behind ``exec:`` are not asked for: to take a whole exchange at once, and to answer a
probe.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from mikanet.address import parse_ip
from mikanet.errors import RemoteProtocolError
from mikanet.megaki.wire import MAX_MESSAGE

START, QUIT, HANDLE, PROBE = 1, 2, 3, 16
START_OK, START_FAILED, QUIT_OK, HANDLE_OK, HANDLE_FAILED = 1, 2, 3, 4, 5

_AF_INET, _AF_INET6 = 2, 10
_GUID = struct.Struct("=BQ")
_SIZED = struct.Struct("=BQI")
_SIZE = struct.Struct("=I")

#: One byte each way that asks whether a shell is alive.
PROBE_BYTES = bytes([PROBE])


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks.

    :ivar host: IPv4 or IPv6 address. :ivar token: the session's, 16 bytes.
    """

    host: str
    port: int
    token: bytes = field(repr=False)

    def encode(self) -> bytes:
        """A socket address as in memory on Linux (IPv4: 16 bytes, IPv6: 28), then the token."""
        ip = parse_ip(self.host.partition("%")[0])
        if ip is not None and ip.version == 6:
            ip = ip.ipv4_mapped or ip
        if ip is None or ip.version == 4:
            packed = ip.packed if ip is not None else bytes(4)
            address = struct.pack("=H", _AF_INET) + struct.pack("!H", self.port) + packed + bytes(8)
        else:
            address = struct.pack("=H", _AF_INET6) + struct.pack("!HI", self.port, 0) + ip.packed + bytes(4)
        return address + self.token


class Exchange:
    """One request to one worker.

    :param at_once: send everything without waiting for the answers in between.
    :ivar done: whether the worker has answered everything and is free again.
    :ivar answer: what it said; None if it said that it failed.
    """

    __slots__ = ("_at_once", "_buffer", "_expected", "_guid", "_request", "_start", "answer", "done")

    def __init__(self, guid: int, context: bytes, request: bytes, at_once: bool) -> None:
        self.done = False
        self.answer: bytes | None = None
        self._guid = guid
        self._start = _SIZED.pack(START, guid, len(context)) + context
        self._request = request
        self._at_once = at_once
        self._expected = START
        self._buffer = bytearray()

    def begin(self) -> bytes:
        """The first bytes for the worker."""
        return self._start + self._handle() + self._quit() if self._at_once else self._start

    def _handle(self) -> bytes:
        return _SIZED.pack(HANDLE, self._guid, len(self._request)) + self._request

    def _quit(self) -> bytes:
        return _GUID.pack(QUIT, self._guid)

    def feed(self, data: bytes) -> bytes:
        """Bytes from the worker; what it is to be sent next.

        :raises RemoteProtocolError: for anything but the answers that are due. The worker is to be killed: nobody
            knows what else it would say.
        """
        buffer = self._buffer
        buffer += data
        following = b""
        while buffer and not self.done:
            size = self._answer_size(buffer)
            if size is None:
                break
            following += self._answered(buffer[0], bytes(buffer[_SIZE.size + 1 : size]))
            del buffer[:size]
        if self.done and buffer:
            raise RemoteProtocolError("more bytes than an answer has")
        return following

    def _answer_size(self, buffer: bytearray) -> int | None:
        """Size of the answer at the start of the buffer; None while that is not all here."""
        if buffer[0] not in _DUE[self._expected]:
            raise RemoteProtocolError(f"answer {buffer[0]} to request {self._expected}")
        if buffer[0] != HANDLE_OK:
            return 1
        if len(buffer) < 1 + _SIZE.size:
            return None
        (size,) = _SIZE.unpack_from(buffer, 1)
        if size > MAX_MESSAGE:
            raise RemoteProtocolError("an answer of more than 1 MiB")
        whole = 1 + _SIZE.size + int(size)
        return whole if len(buffer) >= whole else None

    def _answered(self, kind: int, content: bytes) -> bytes:
        if kind == QUIT_OK:
            self.done = True
            return b""
        if kind == HANDLE_OK:
            self.answer = content
        if kind == START_FAILED and not self._at_once:
            self.done = True  # nothing was started, so there is nothing to end
            return b""
        self._expected = HANDLE if self._expected == START else QUIT
        if self._at_once:
            return b""
        return self._handle() if self._expected == HANDLE else self._quit()


_DUE = {
    START: (START_OK, START_FAILED),
    HANDLE: (HANDLE_OK, HANDLE_FAILED),
    QUIT: (QUIT_OK,),
}
