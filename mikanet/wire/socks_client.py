"""Wire: the client's side of a SOCKS5 handshake. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.wire import socks
from mikanet.wire.reader import Parser, Reader
from mikanet.wire.socks import Command, Method


class State(enum.Enum):
    """What the handshake waits for."""

    METHOD = "the method that the server chose"
    VERDICT = "the verdict on user name and password"
    REPLY = "the reply to the request"
    DONE = "nothing: the reply is here"
    FAILED = "nothing: the server broke the protocol"


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's reply to the request.

    :ivar rep: 0 for success; other codes are those of :class:`mikanet.wire.socks.Rep`, or unknown ones.
    """

    rep: int
    bound: Address


class CredentialsRefusedError(RemoteProtocolError):
    """The server wants other credentials than those that it was given, or any at all."""


class ClientHandshake:
    """From the greeting to the reply.

    :param username: 1..255 bytes in UTF-8, with a password of the same measure; None to offer no password.
    :ivar reply: the server's reply, once it is complete.
    :raises LocalProtocolError: if a name or password has no form on the wire.
    """

    __slots__ = ("_password", "_reader", "_request", "reply", "state")

    def __init__(
        self,
        destination: Address,
        username: str | None = None,
        password: str | None = None,
        command: Command = Command.CONNECT,
    ) -> None:
        self._request = bytes((socks.VERSION_5, command, 0)) + socks.encode_address(destination)
        self._password = None if username is None else _encode_password(username, password or "")
        self._reader = Reader(socks.MAX_ADDRESS + 3)
        self.state = State.METHOD
        self.reply: Reply | None = None

    def start(self) -> bytes:
        """The greeting, which goes first."""
        methods = (Method.NONE,) if self._password is None else (Method.NONE, Method.PASSWORD)
        return bytes((socks.VERSION_5, len(methods), *methods))

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the server; answers what is to be sent to it now.

        :raises CredentialsRefusedError: when the server refuses what it was offered.
        :raises RemoteProtocolError: when it does not speak SOCKS5.
        """
        if self.state in (State.DONE, State.FAILED):
            raise LocalProtocolError("the handshake is over")
        self._reader.feed(data)
        answer = b""
        try:
            while self.reply is None:
                parse, act = _STEPS[self.state]
                message = self._reader.next(parse)
                if message is None:
                    break
                answer += act(self, message)
        except RemoteProtocolError:
            self.state = State.FAILED
            raise
        return answer

    def rest(self) -> bytes:
        """What the server sent behind its reply."""
        return self._reader.rest()

    def _method(self, method: int) -> bytes:
        if method == Method.NONE:
            self.state = State.REPLY
            return self._request
        if method == Method.PASSWORD and self._password is not None:
            self.state = State.VERDICT
            return self._password
        if method == Method.UNACCEPTABLE:
            raise CredentialsRefusedError("the proxy accepts none of the offered methods")
        raise RemoteProtocolError("the proxy chose a method that was not offered")

    def _verdict(self, status: int) -> bytes:
        if status:
            raise CredentialsRefusedError("the proxy refused the user name or the password")
        self.state = State.REPLY
        return self._request

    def _take_reply(self, reply: Reply) -> bytes:
        self.reply = reply
        self.state = State.DONE
        return b""


def _encode_password(username: str, password: str) -> bytes:
    pieces = [bytes((socks.PASSWORD_VERSION,))]
    for text in (username, password):
        raw = text.encode("utf-8")
        if not 1 <= len(raw) <= 255:
            raise LocalProtocolError("a SOCKS5 user name and password have 1 to 255 bytes each")
        pieces += [bytes((len(raw),)), raw]
    return b"".join(pieces)


def _parse_method(buffer: bytearray, at: int) -> tuple[int, int] | None:
    if len(buffer) > at and buffer[at] != socks.VERSION_5:
        raise RemoteProtocolError("the proxy does not speak SOCKS5")
    return (buffer[at + 1], at + 2) if len(buffer) >= at + 2 else None


def _parse_verdict(buffer: bytearray, at: int) -> tuple[int, int] | None:
    # The version byte is not looked at: some servers send 5 here, against RFC 1929.
    return (buffer[at + 1], at + 2) if len(buffer) >= at + 2 else None


def _parse_reply(buffer: bytearray, at: int) -> tuple[Reply, int] | None:
    if len(buffer) > at and buffer[at] != socks.VERSION_5:
        raise RemoteProtocolError("the proxy's reply is not one")
    found = socks.decode_address(buffer, at + 3) if len(buffer) >= at + 4 else None
    if found is None:
        return None
    bound, end = found
    return Reply(buffer[at + 1], bound), end


_STEPS: Final[dict[State, tuple[Parser[Any], Callable[[ClientHandshake, Any], bytes]]]] = {
    State.METHOD: (_parse_method, ClientHandshake._method),
    State.VERDICT: (_parse_verdict, ClientHandshake._verdict),
    State.REPLY: (_parse_reply, ClientHandshake._take_reply),
}
