"""HTTP obfuscation: one HTTP head in front of each direction of a byte stream, as Mika's original link has it.

Each side puts a head before its first bytes and throws away everything up to the first empty line of what it receives.
The heads say nothing and are not checked; the obfuscation hides what follows from nobody who looks further. Lower side:
byte stream. Upper side: byte stream.

Source: ``docs/protocols/mika.rst``, section "obfs-http".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from urllib.parse import urlsplit

from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint, IStreamServerEndpoint

from mikanet.errors import ConfigError
from mikanet.filters.base import Filter, FilterClientEndpoint, FilterServerEndpoint

#: Longest head, in bytes (X3). What comes after that much without an empty line is taken for what should follow a head.
MAX_HEAD = 2048

_END = b"\r\n\r\n"


class _ObfsHttp(Filter):
    """Puts a head before the first write and takes one off the first bytes that arrive."""

    __slots__ = ("_head", "_searching", "_sent")

    def __init__(self, upper: IProtocol) -> None:
        super().__init__(upper)
        self._head: bytearray | None = bytearray()
        self._sent = False

    def make_head(self) -> bytes:
        """Our head, up to and with its empty line."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Pass on, behind our head if these are the first bytes; both in one write."""
        if self._sent:
            super().write(data)
        elif data:
            self._sent = True
            super().write(self.make_head() + data)

    def dataReceived(self, data: bytes) -> None:
        """Pass on what follows the peer's head."""
        if self._head is None:
            self.upper.dataReceived(data)
            return
        head = self._head
        before = len(head)
        head += data[: MAX_HEAD - before]
        found = head.find(_END, max(0, before - len(_END) + 1))
        if found >= 0:
            rest = data[found + len(_END) - before :]
        elif len(head) == MAX_HEAD:
            # No head: what follows goes up, where it is refused like any other input, and at the same pace.
            rest = data[MAX_HEAD - before :]
        else:
            return
        self._head = None
        if rest:
            self.upper.dataReceived(rest)


class ObfsHttpClient(_ObfsHttp):
    """The side that sends a request head."""

    __slots__ = ("_request_head",)

    def __init__(self, upper: IProtocol, request_head: bytes) -> None:
        super().__init__(upper)
        self._request_head = request_head

    def make_head(self) -> bytes:
        """A POST without a length, as the original's."""
        return self._request_head


class ObfsHttpServer(_ObfsHttp):
    """The side that sends a response head.

    :param wall_clock: Unix time, for the Date field.
    """

    __slots__ = ("_wall_clock",)

    def __init__(self, upper: IProtocol, wall_clock: Callable[[], float]) -> None:
        super().__init__(upper)
        self._wall_clock = wall_clock

    def make_head(self) -> bytes:
        """A response with neither length nor coding, as the original's."""
        date = formatdate(self._wall_clock(), usegmt=True)
        return f"HTTP/1.1 200 OK\r\nServer: bfe/1.0.8.18\r\nDate: {date}\r\nAccept: */*\r\n\r\n".encode()


def make_request_head(url: str) -> bytes:
    """The request head for an http URL.

    :raises ConfigError: if it is none.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.netloc or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{url!r} is not a URL like http://www.example.com/path")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "User-Agent: curl/7.54.0",
        "Accept: */*",
        "Content-Type: text/plain",
        "Connection: keep-alive",
    )
    head = "\r\n".join(lines).encode() + _END
    if len(head) > MAX_HEAD:
        raise ConfigError(f"the URL is too long: with it a head has {len(head)} of {MAX_HEAD} bytes")
    return head


def obfs_http_client(lower: IStreamClientEndpoint, url: str) -> IStreamClientEndpoint:
    """``lower`` with a request head in front.

    :raises ConfigError: if the URL cannot be used.
    """
    head = make_request_head(url)
    return FilterClientEndpoint(lower, lambda upper: ObfsHttpClient(upper, head))


def obfs_http_server(
    lower: IStreamServerEndpoint, wall_clock: Callable[[], float] = time.time
) -> IStreamServerEndpoint:
    """``lower`` with a response head in front."""
    return FilterServerEndpoint(lower, lambda upper: ObfsHttpServer(upper, wall_clock))
