"""Front doors: what an HTTP proxy reads out of requests and changes in messages (RFC 9110, RFC 9112). No I/O."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from mikanet.address import MAX_HOST_LENGTH, Address, parse_ip
from mikanet.errors import Reason, RemoteProtocolError

Headers = list[tuple[bytes, bytes]]

#: Headers that concern one connection only (RFC 9110 section 7.6.1), or this proxy. Trailer goes with them because
#: trailers are not passed on, which section 6.5.1 leaves to us.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

_ABSOLUTE: Final = re.compile(rb"(?:http|ws)://([^/?#]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_AUTHORITY: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._~-]+))(?::([0-9]*))?")

#: Methods that may be sent again over a new connection when an idle one turns out to be dead (RFC 9110 section 9.2.2).
#: PUT and DELETE could be too, but are not worth the risk.
_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})

_STATUS_OF_REASON: Final = {
    Reason.POLICY: HTTPStatus.FORBIDDEN,
    Reason.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    Reason.LIMIT: HTTPStatus.SERVICE_UNAVAILABLE,
}


def status_of_reason(reason: Reason) -> HTTPStatus:
    """The status that tells a client why its destination cannot be had."""
    return _STATUS_OF_REASON.get(reason, HTTPStatus.BAD_GATEWAY)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as the destination gets it.

    :ivar repeatable: whether it may be sent again after a connection died without any answer.
    """

    destination: Address
    head: h11.Request
    repeatable: bool


def parse_authority(raw: bytes, default_port: int | None = None) -> Address:
    """``host[:port]`` or ``[IPv6][:port]``.

    :raises RemoteProtocolError: if it is neither, has user information, or has no port where none is the default.
    """
    match = _AUTHORITY.fullmatch(raw)
    if match is None:
        raise RemoteProtocolError("the destination is not HOST:PORT")
    ipv6, name, port = match.groups()
    host = (ipv6 or name).decode("ascii")
    if len(host) > MAX_HOST_LENGTH or (ipv6 and parse_ip(host) is None):
        raise RemoteProtocolError("the destination is not a host")
    if port:
        if len(port) > 5 or not 1 <= int(port) <= 65535:
            raise RemoteProtocolError("the destination's port is none")
        return Address(host, int(port))
    if default_port is None:
        raise RemoteProtocolError("the destination has no port")
    return Address(host, default_port)


def connect_destination(request: h11.Request) -> Address:
    """Where a CONNECT request goes.

    :raises RemoteProtocolError: if its target is not HOST:PORT, or it announces a body, which CONNECT does not have.
    """
    if has_body(request):
        raise RemoteProtocolError("a CONNECT request has no body")
    return parse_authority(request.target)


def outgoing(request: h11.Request) -> Outgoing:
    """What goes to the destination for a request with an absolute ``http://`` or ``ws://`` URL.

    The target becomes origin-form, Host is what the URL says (RFC 9112 section 3.2.2), headers of this connection go.

    :raises RemoteProtocolError: for any other target, and for a request whose length can be read in two ways.
    """
    match = _ABSOLUTE.fullmatch(request.target)
    if match is None:
        raise RemoteProtocolError("this is a proxy: ask it for http:// URLs, or use CONNECT")
    authority, path, query = match.groups()
    destination = parse_authority(authority, 80)
    # RFC 9112 section 3.2.4: the URL of the server as a whole.
    whole = b"*" if request.method == b"OPTIONS" and query is None else b"/"
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and b"content-length" in names:
        raise RemoteProtocolError("a request has Content-Length or Transfer-Encoding, not both")
    headers: Headers = [(b"Host", authority)]
    upgrade = wanted_upgrade(request)
    headers += (pair for pair in end_to_end(request, upgrading=upgrade is not None) if pair[0].lower() != b"host")
    if b"transfer-encoding" in names:
        headers.append((b"Transfer-Encoding", b"chunked"))
    if upgrade is not None:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    return Outgoing(
        destination,
        h11.Request(method=request.method, target=(path or whole) + (query or b""), headers=headers),
        request.method in _REPEATABLE and not has_body(request),
    )


def end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse, upgrading: bool = False) -> Headers:
    """The headers of a message that go on to the other side, spelled as they came.

    :param upgrading: keep those that ``Connection`` names: they belong to an upgrade that is passed on.
    """
    named = {token for name, value in message.headers if name == b"connection" for token in _tokens(value)}
    # What frames the body is not the peer's to have removed.
    dropped = _HOP_BY_HOP if upgrading else _HOP_BY_HOP | (named - {b"content-length"})
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in dropped]


_SPACE_BEFORE_COLON: Final = re.compile(rb"(\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]+:")
_FINAL: Final = re.compile(rb"(?:HTTP/[0-9.]+|ICY) +[2-9][0-9][0-9]\b")
_HEAD_END: Final = re.compile(rb"\n\r?\n")


class ResponseHead:
    """Gathers the head of a response, to see whether it is one of HTTP/1 and to make it readable.

    :param most: bytes that it may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._head = bytearray()

    @property
    def readable(self) -> bool:
        """Whether a client may make something of it that h11 cannot: ``ICY 200 OK``, or a head with odd lines.

        It has to be a final response; what begins in no such way is a server of another protocol.
        """
        return _FINAL.match(self._head) is not None

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; those behind the head, or None while it is not complete.

        :raises RemoteProtocolError: if it is too long, or begins as no head does.
        """
        already = len(self._head)
        self._head += data
        if not any(start.startswith(self._head[:4]) for start in (b"HTTP", b"ICY ")):
            raise RemoteProtocolError("this is no HTTP response")
        end = _HEAD_END.search(self._head, max(0, already - 2))
        if end is None:
            if len(self._head) > self._most:
                raise RemoteProtocolError("the head of a response is too long")
            return None
        rest = bytes(self._head[end.end() :])
        del self._head[end.end() :]
        return rest

    def tidied(self) -> bytes:
        """The head without spaces before its colons, which a proxy has to remove (RFC 9112, section 5.1)."""
        return _SPACE_BEFORE_COLON.sub(rb"\1:", self._head)

    def as_it_came(self) -> bytes:
        """The head for a client that is to read it itself, on a connection that ends with the response."""
        line, newline, rest = bytes(self._head).partition(b"\n")
        return line + newline + b"Connection: close\r\n" + rest


def response_headers(response: h11.Response | h11.InformationalResponse) -> Headers:
    """The headers of a response that go on to the client."""
    headers = end_to_end(response)
    if any(name == b"transfer-encoding" for name, _ in response.headers):
        # With both, Content-Length is wrong (RFC 9112 section 6.3).
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
    if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
        upgrade = [value for name, value in response.headers if name == b"upgrade"]
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b", ".join(upgrade))]
    return headers


def has_body(request: h11.Request) -> bool:
    """Whether a body follows."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and int(value)) for name, value in request.headers
    )


def wanted_upgrade(request: h11.Request) -> bytes | None:
    """The protocols that a request asks to go on with, WebSocket as a rule; None if it does not."""
    upgrade = [value for name, value in request.headers if name == b"upgrade"]
    asked = any(name == b"connection" and b"upgrade" in _tokens(value) for name, value in request.headers)
    if not asked or not upgrade or has_body(request) or request.http_version < b"1.1":
        return None
    return b", ".join(upgrade)


def authorized(request: h11.Request, check: Callable[[bytes, bytes], bool]) -> bool:
    """Whether the request brings a user name and password (``Proxy-Authorization: Basic``) that ``check`` accepts."""
    given = [value for name, value in request.headers if name == b"proxy-authorization"]
    if len(given) != 1:
        return False
    scheme, _, token = given[0].partition(b" ")
    if scheme.lower() != b"basic":
        return False
    try:
        user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except binascii.Error:
        return False
    return bool(colon) and check(user, password)


def refusal(status: HTTPStatus, text: str, close: bool, to_head: bool = False) -> tuple[h11.Response, bytes]:
    """A response of our own, and its body.

    :param close: whether the connection ends with it.
    :param to_head: whether it answers a HEAD request, and so has no body.
    """
    body = f"{status.value} {status.phrase}: {text}\n".encode()
    headers: Headers = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", b"%d" % len(body)),
    ]
    if status is HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        headers.append((b"Proxy-Authenticate", b'Basic realm="proxy"'))
    if close:
        headers.append((b"Connection", b"close"))
    response = h11.Response(status_code=status.value, reason=status.phrase.encode("ascii"), headers=headers)
    return response, b"" if to_head else body


def _tokens(value: bytes) -> Iterable[bytes]:
    return (token.strip().lower() for token in value.split(b","))
