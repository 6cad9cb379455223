"""The worker protocol, from the server's side: one START, HANDLE and QUIT for each request. No I/O.

All integers are in host order, structures are packed. Source: the protocol page; the original's Pegasus. What Arcangelo's
shells can do beyond it, programs behind ``exec:`` are not asked for: to take a whole exchange at once, and to answer a
probe. Shells number their answers: a type with the bit ``NUMBERED``, then the number of the request that is answered;
programs may. So the late answer of a process that a handler left behind reaches nobody.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from mikanet.address import parse_ip
from mikanet.errors import RemoteProtocolError
from mikanet.megaki.wire import MAX_MESSAGE

START, QUIT, HANDLE, PROBE = 1, 2, 3, 16
START_OK, START_FAILED, QUIT_OK, HANDLE_OK, HANDLE_FAILED = 1, 2, 3, 4, 5

#: This bit in an answer's type says that the number of its request follows: 8 bytes.
NUMBERED = 0x80

_AF_INET, _AF_INET6 = 2, 10
_GUID = struct.Struct("=BQ")
_SIZED = struct.Struct("=BQI")
_SIZE = struct.Struct("=I")
_NUMBER = struct.Struct("=Q")

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

    :param at_once: send everything without waiting for the answers in between; they must be numbered.
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
            head = self._check(buffer)
            size = None if head is None else self._content_size(buffer, head)
            if head is None or size is None or len(buffer) < size:
                break
            content = bytes(buffer[head + _SIZE.size : size])
            following += self._answered(buffer[0] & ~NUMBERED, content)
            del buffer[:size]
        if self.done and buffer:
            raise RemoteProtocolError("more bytes than an answer has")
        return following

    def _check(self, buffer: bytearray) -> int | None:
        """Size of type and number at the start of the buffer, which are right; None while they are not all here."""
        kind = buffer[0] & ~NUMBERED
        if kind not in _DUE[self._expected]:
            raise RemoteProtocolError(f"answer {kind} to request {self._expected}")
        if not buffer[0] & NUMBERED:
            if self._at_once:
                raise RemoteProtocolError("an answer without a number")
            return 1
        if len(buffer) < 1 + _NUMBER.size:
            return None
        if _NUMBER.unpack_from(buffer, 1)[0] != self._guid:
            raise RemoteProtocolError("an answer to another request")
        return 1 + _NUMBER.size

    @staticmethod
    def _content_size(buffer: bytearray, head: int) -> int | None:
        """Size of the whole answer, whose content may not be here yet; None while its size is not."""
        if buffer[0] & ~NUMBERED != HANDLE_OK:
            return head
        if len(buffer) < head + _SIZE.size:
            return None
        (size,) = _SIZE.unpack_from(buffer, head)
        if size > MAX_MESSAGE:
            raise RemoteProtocolError("an answer of more than 1 MiB")
        return head + _SIZE.size + int(size)

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
