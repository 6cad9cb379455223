"""What everybody else gets from the server's site: an ordinary web server's pages.

They are nginx's, byte for byte and in the order of their fields, because that is the most common one. Whoever looks at
how the server takes HTTP that is broken can still tell that it is another: where that matters, a real nginx belongs in
front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.web import http, static
from twisted.web.http import datetimeToString
from twisted.web.resource import Resource, getChildForRequest
from twisted.web.server import NOT_DONE_YET

SERVER = b"nginx"

#: Files up to this size are sent from memory.
SMALL_FILE = 1_048_576

_ORDER = (
    b"Server",
    b"Date",
    b"Content-Type",
    b"Content-Length",
    b"Last-Modified",
    b"Location",
    b"Connection",
    b"ETag",
    b"Accept-Ranges",
)

_TITLES = {
    400: b"Bad Request",
    301: b"Moved Permanently",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Not Allowed",
    413: b"Request Entity Too Large",
    500: b"Internal Server Error",
}


#: The beginning of a URL, up to where its path or its query begins.
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?(?=[/?]|\Z)")
#: What is no percent-encoding, and the one that no file's name may hold.
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00|\x00")


def begin(request: Any) -> None:
    """The fields with which every answer begins."""
    headers = request.responseHeaders
    headers.setRawHeaders(b"Server", [SERVER])
    headers.setRawHeaders(b"Date", [datetimeToString()])


def order(fields: Iterable[tuple[bytes, list[bytes]]], persistent: bool) -> list[tuple[bytes, bytes]]:
    """Fields of an answer as nginx has them, with what it says about the connection."""
    known = dict(fields)
    known[b"Connection"] = [b"keep-alive" if persistent else b"close"]
    names = [name for name in _ORDER if name in known] + [name for name in known if name not in _ORDER]
    return [(name, value) for name in names for value in known[name]]


def origin_form(target: bytes) -> bytes:
    """The path of a request's target without its query; empty if it is neither a path nor a URL with a host."""
    if not target.startswith(b"/"):
        authority = _AUTHORITY.match(target)
        target = b"" if authority is None else target[authority.end() :]
        if authority is not None and not target.startswith(b"/"):
            return b"/"
    return target.partition(b"?")[0]


def segments(path: bytes) -> list[bytes] | None:
    """The names in a path, as nginx understands it: the last is empty for a folder. None if it is no path at all."""
    if not path.startswith(b"/") or _BAD_ESCAPE.search(path):
        return None
    names: list[bytes] = []
    last = b""
    for last in unquote_to_bytes(path)[1:].split(b"/"):
        if last == b"..":
            if not names:
                return None
            names.pop()
        elif last not in (b"", b"."):
            names.append(last)
    if last in (b"", b".", b".."):
        names.append(b"")
    return names


def page(request: Any, code: int) -> None:
    """Answer with a page that says what is wrong."""
    title = b"%d %s" % (code, _TITLES[code])
    body = (
        b"<html>\r\n<head><title>%s</title></head>\r\n<body>\r\n<center><h1>%s</h1></center>\r\n"
        b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n" % (title, title)
    )
    begin(request)
    request.setResponseCode(code, _TITLES[code])
    request.setHeader(b"Content-Type", b"text/html")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    if code in (http.BAD_REQUEST, http.REQUEST_ENTITY_TOO_LARGE):
        request.channel.persistent = False
    request.write(body)
    request.finish()


class Ordinary:
    """Answers requests that are not for the tunnel.

    :param folder: what is served; None for nothing at all.
    """

    def __init__(self, folder: str | None) -> None:
        self._root = None if folder is None else _File(folder)

    def respond(self, request: Any) -> None:
        """Answer a request."""
        parts = segments(request.path)
        if parts is None:
            page(request, http.BAD_REQUEST)
            return
        if request.method not in (b"GET", b"HEAD", b"POST"):
            page(request, http.NOT_ALLOWED)
            return
        if self._root is None:
            page(request, http.NOT_FOUND)
            return
        try:
            b"".join(parts).decode()
        except UnicodeDecodeError:
            page(request, http.NOT_FOUND)  # no file of ours has such a name
            return
        begin(request)
        request.prepath, request.postpath = [], parts
        request.render(getChildForRequest(self._root, request))


class _Page(Resource):
    isLeaf = True

    def __init__(self, code: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._code = code

    def render(self, request: Any) -> int:
        page(request, self._code)
        return NOT_DONE_YET


class _File(static.File):
    """A folder or file of the decoy, without lists of folders."""

    childNotFound: Any = _Page(http.NOT_FOUND)
    forbidden: Any = _Page(http.FORBIDDEN)

    def __init__(self, path: Any, defaultType: str = "text/plain", *args: Any) -> None:
        super().__init__(path, defaultType, *args)
        self.indexNames = ["index.html"]

    def directoryListing(self) -> Any:
        """None: as a server does that shows no folders."""
        return self.forbidden

    def redirect(self, request: Any) -> Any:
        """A folder without its slash."""
        host = request.requestHeaders.getRawHeaders(b"Host", [b"localhost"])[0]
        scheme = b"https" if request.isSecure() else b"http"
        request.setHeader(b"Location", scheme + b"://" + host + request.path + b"/")
        page(request, http.MOVED_PERMANENTLY)
        return NOT_DONE_YET

    def render_GET(self, request: Any) -> Any:
        """A file, at once if it is small."""
        self.restat(False)
        if self.isfile():
            changed = int(self.getModificationTime())
            request.setHeader(b"ETag", b'"%x-%x"' % (changed, self.getsize()))
            if self.getsize() <= SMALL_FILE and not request.requestHeaders.hasHeader(b"Range"):
                request.setHeader(b"Accept-Ranges", b"bytes")
                if request.setLastModified(changed) is http.CACHED:
                    return b""
                request.setHeader(b"Content-Type", self.content_type())
                return self.getContent()
        return super().render_GET(request)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def content_type(self) -> bytes:
        """By the file's name."""
        kind, _ = static.getTypeAndEncoding(self.basename(), self.contentTypes, self.contentEncodings, self.defaultType)
        return str(kind).encode()

    render_HEAD = render_GET

    def render_POST(self, request: Any) -> int:
        """A file takes no POST."""
        page(request, http.NOT_ALLOWED if self.exists() else http.NOT_FOUND)
        return NOT_DONE_YET
