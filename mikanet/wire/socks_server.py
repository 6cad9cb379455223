"""Wire: the server's side of a SOCKS handshake, versions 5, 4 and 4a on one port. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.wire import socks
from mikanet.wire.reader import Parser, Reader
from mikanet.wire.socks import Command, Method, Rep

#: Longest message in bytes: user name and password (RFC 1929), or a SOCKS4a request with both its texts.
_LIMIT: Final = 8 + 2 * 256

#: Longest user id and host name of a SOCKS4 request in bytes, without the NUL (our choice, as for SOCKS5 names).
_MAX_TEXT_4: Final = 255


class State(enum.Enum):
    """What the handshake waits for."""

    VERSION = "the first byte, which is the version"
    METHODS = "the methods that the client offers"
    CREDENTIALS = "user name and password"
    REQUEST = "a SOCKS5 request"
    REQUEST_4 = "a SOCKS4 request"
    DONE = "nothing: the request is here"
    FAILED = "nothing: the handshake was refused"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for.

    :ivar version: 5, or 4 for SOCKS4 and 4a.
    """

    version: int
    command: Command
    address: Address


class SocksRefusedError(RemoteProtocolError):
    """The client's handshake cannot go on.

    :ivar answer: the bytes to send before closing; empty when what came is not SOCKS at all.
    :ivar bad_password: whether it failed for lack of the right user name and password.
    """

    def __init__(self, text: str, answer: bytes = b"", bad_password: bool = False) -> None:
        super().__init__(text)
        self.answer = answer
        self.bad_password = bad_password


class ServerHandshake:
    """From the first byte to the request.

    :param check: tells whether a user name and a password belong together; None when nobody has to give any.
    :ivar request: the request, once it is complete.
    """

    __slots__ = ("_check", "_reader", "request", "state")

    def __init__(self, check: Callable[[bytes, bytes], bool] | None = None) -> None:
        self._check = check
        self._reader = Reader(_LIMIT)
        self.state = State.VERSION
        self.request: Request | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client; answers what is to be sent to it now.

        :raises SocksRefusedError: when the client cannot be served.
        """
        if self.state in (State.DONE, State.FAILED):
            raise LocalProtocolError("the handshake is over")
        self._reader.feed(data)
        answer = b""
        try:
            while self.request is None:
                parse, act = _STEPS[self.state]
                message = self._reader.next(parse)
                if message is None:
                    break
                answer += act(self, message)
        except SocksRefusedError as refusal:
            self.state = State.FAILED
            refusal.answer = answer + refusal.answer
            raise
        except RemoteProtocolError as error:
            refused = _REFUSALS[self.state]
            self.state = State.FAILED
            raise SocksRefusedError(str(error), answer + refused) from None
        return answer

    def rest(self) -> bytes:
        """What the client sent behind its request."""
        return self._reader.rest()

    def reply(self, rep: Rep, bound: Address = socks.UNKNOWN) -> bytes:
        """The answer to the request, in the client's version of the protocol."""
        if self.request is None:
            raise LocalProtocolError("there is no request to answer")
        if self.request.version == socks.VERSION_4:
            return _reply_4(socks.REJECTED_4 if rep else socks.GRANTED_4)
        return _reply_5(rep, bound)

    # -- one method per state; each takes the parsed message and gives the answer

    def _version(self, version: int) -> bytes:
        if version == socks.VERSION_5:
            self.state = State.METHODS
        elif version == socks.VERSION_4:
            if self._check is not None:
                raise SocksRefusedError("SOCKS4 has no password", _reply_4(socks.REJECTED_4), bad_password=True)
            self.state = State.REQUEST_4
        else:
            raise SocksRefusedError("not SOCKS")
        return b""

    def _methods(self, offered: bytes) -> bytes:
        wanted = Method.NONE if self._check is None else Method.PASSWORD
        if wanted not in offered:
            refused = bytes((socks.VERSION_5, Method.UNACCEPTABLE))
            raise SocksRefusedError("no method in common", refused, bad_password=self._check is not None)
        self.state = State.REQUEST if self._check is None else State.CREDENTIALS
        return bytes((socks.VERSION_5, wanted))

    def _password(self, given: tuple[bytes, bytes]) -> bytes:
        if self._check is None or not self._check(*given):
            refused = bytes((socks.PASSWORD_VERSION, 1))
            raise SocksRefusedError("wrong user name or password", refused, bad_password=True)
        self.state = State.REQUEST
        return bytes((socks.PASSWORD_VERSION, 0))

    def _request(self, request: Request) -> bytes:
        self.request = request
        self.state = State.DONE
        return b""


# -- replies


def _reply_5(rep: Rep, bound: Address = socks.UNKNOWN) -> bytes:
    encoded = _UNKNOWN if bound is socks.UNKNOWN else socks.encode_address(bound)
    return bytes((socks.VERSION_5, rep, 0)) + encoded


#: Encoded once, as nearly every reply carries it.
_UNKNOWN: Final = socks.encode_address(socks.UNKNOWN)


def _reply_4(code: int) -> bytes:
    return bytes((0, code, 0, 0, 0, 0, 0, 0))


# -- parsers


def _parse_version(buffer: bytearray, at: int) -> tuple[int, int] | None:
    return (buffer[at], at + 1) if len(buffer) > at else None


def _parse_methods(buffer: bytearray, at: int) -> tuple[bytes, int] | None:
    if len(buffer) <= at:
        return None
    end = at + 1 + buffer[at]
    return (bytes(buffer[at + 1 : end]), end) if len(buffer) >= end else None


def _parse_password(buffer: bytearray, at: int) -> tuple[tuple[bytes, bytes], int] | None:
    if len(buffer) > at and buffer[at] != socks.PASSWORD_VERSION:
        raise RemoteProtocolError("not a user name and password")
    pieces = []
    end = at + 1
    for _ in range(2):
        if len(buffer) <= end:
            return None
        start, end = end + 1, end + 1 + buffer[end]
        if len(buffer) < end:
            return None
        pieces.append(bytes(buffer[start:end]))
    return (pieces[0], pieces[1]), end


def _parse_request(buffer: bytearray, at: int) -> tuple[Request, int] | None:
    if len(buffer) > at and buffer[at] != socks.VERSION_5:
        raise RemoteProtocolError("not a request")
    if len(buffer) < at + 3:
        return None
    if buffer[at + 2]:
        raise RemoteProtocolError("the reserved byte of a request is not 0")
    try:
        command = Command(buffer[at + 1])
    except ValueError:
        raise SocksRefusedError("unknown command", _reply_5(Rep.COMMAND_NOT_SUPPORTED)) from None
    try:
        found = socks.decode_address(buffer, at + 3)
    except socks.UnknownAtypError as error:
        raise SocksRefusedError(str(error), _reply_5(Rep.ATYP_NOT_SUPPORTED)) from None
    if found is None:
        return None
    address, end = found
    return Request(socks.VERSION_5, command, address), end


def _parse_request_4(buffer: bytearray, at: int) -> tuple[Request, int] | None:
    """Behind the version: command (1), port (2), IPv4 (4), user id and NUL; with 4a a host name and NUL."""
    if len(buffer) < at + 7:
        return None
    if buffer[at] not in (Command.CONNECT, Command.BIND):
        raise RemoteProtocolError("unknown command")
    port = buffer[at + 1] << 8 | buffer[at + 2]
    ip = bytes(buffer[at + 3 : at + 7])
    end = _text_end(buffer, at + 7)
    if end is None:
        return None
    host = ".".join(map(str, ip))
    if ip[:3] == b"\x00\x00\x00" and ip[3]:
        start, end = end + 1, _text_end(buffer, end + 1)
        if end is None:
            return None
        host = socks.decode_name(buffer[start:end])
    return Request(socks.VERSION_4, Command(buffer[at]), Address(host, port)), end + 1


def _text_end(buffer: bytearray, start: int) -> int | None:
    end = buffer.find(0, start, start + _MAX_TEXT_4 + 1)
    if end >= 0:
        return end
    if len(buffer) > start + _MAX_TEXT_4:
        raise RemoteProtocolError("a text of the request does not end")
    return None


_STEPS: Final[dict[State, tuple[Parser[Any], Callable[[ServerHandshake, Any], bytes]]]] = {
    State.VERSION: (_parse_version, ServerHandshake._version),
    State.METHODS: (_parse_methods, ServerHandshake._methods),
    State.CREDENTIALS: (_parse_password, ServerHandshake._password),
    State.REQUEST: (_parse_request, ServerHandshake._request),
    State.REQUEST_4: (_parse_request_4, ServerHandshake._request),
}

#: What each state answers to bytes that are none of its messages.
_REFUSALS: Final[dict[State, bytes]] = {
    State.VERSION: b"",
    State.METHODS: bytes((socks.VERSION_5, Method.UNACCEPTABLE)),
    State.CREDENTIALS: bytes((socks.PASSWORD_VERSION, 1)),
    State.REQUEST: _reply_5(Rep.GENERAL_FAILURE),
    State.REQUEST_4: _reply_4(socks.REJECTED_4),
}
