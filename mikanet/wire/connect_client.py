"""Wire: the client's side of HTTP CONNECT (RFC 9110, section 9.3.6). No I/O."""

from __future__ import annotations

import base64

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.wire.socks_client import CredentialsRefusedError, Reply

#: Longest head of an answer that is read, in bytes (our choice).
MAX_HEAD = 16 * 1024

_NOWHERE = Address("0.0.0.0", 0)


class ConnectHandshake:
    """One request and its answer.

    :param username: with the password for Basic authentication (RFC 7617); None to offer none.
    :ivar reply: as a SOCKS proxy's, for :class:`~mikanet.filters.proxy_client.ProxyClient`; 0 for any 2xx.
    :raises LocalProtocolError: if the user name has a colon in it, or the host is none.
    """

    __slots__ = ("_buffer", "_request", "reply")

    def __init__(self, destination: Address, username: str | None = None, password: str | None = None) -> None:
        authority = str(destination)
        if not authority.isprintable() or " " in authority:
            raise LocalProtocolError("not a host name")
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if username is not None:
            if ":" in username:
                raise LocalProtocolError("a user name for Basic authentication has no colon in it")
            token = base64.b64encode(f"{username}:{password or ''}".encode()).decode("ascii")
            lines.append(f"Proxy-Authorization: Basic {token}")
        self._request = "\r\n".join([*lines, "", ""]).encode()
        self._buffer = bytearray()
        self.reply: Reply | None = None

    def start(self) -> bytes:
        """The request."""
        return self._request

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the answer; there is never anything to send.

        :raises CredentialsRefusedError: for 407 and 401.
        :raises RemoteProtocolError: for any other answer than 2xx, and for what is none.
        """
        if self.reply is not None:
            raise LocalProtocolError("the handshake is over")
        buffer = self._buffer
        buffer += data
        start = b"HTTP/1."
        if buffer[: len(start)] != start[: len(buffer)]:
            raise RemoteProtocolError("the proxy does not speak HTTP")
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if len(buffer) > MAX_HEAD:
                raise RemoteProtocolError("the head of the proxy's answer does not end")
            return b""
        line = bytes(buffer[: buffer.index(b"\r\n")]).decode("ascii", "replace")
        words = line.split(" ", 2)
        if len(words) < 2 or len(words[1]) != 3 or not (words[1].isascii() and words[1].isdigit()):
            raise RemoteProtocolError("the proxy's answer has no status")
        status = int(words[1])
        if status in (401, 407):  # the first is wrong, and what some proxies say
            raise CredentialsRefusedError(f"the proxy wants a user name and a password, or other ones ({status})")
        if not 200 <= status <= 299:
            text = "".join(each for each in " ".join(words[1:]) if each.isprintable())[:100]
            raise RemoteProtocolError(f"the proxy answered {text}")
        del buffer[: end + 4]
        self.reply = Reply(0, _NOWHERE)
        return b""

    def rest(self) -> bytes:
        """What the proxy sent behind its answer, which comes from the destination."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
