"""Wire: SOCKS addresses, messages and constants, versions 5, 4 and 4a. No I/O.

Source: RFC 1928 (SOCKS5), RFC 1929 (its user name and password), and the SOCKS4 and SOCKS4A descriptions by Ying-Da Lee.
The handshakes that use these are in :mod:`mikanet.wire.socks_server` and :mod:`mikanet.wire.socks_client`.

Parsers work on a buffer from an offset; they answer (value, offset behind it), or None for "more bytes needed".
"""

from __future__ import annotations

import enum
import ipaddress
from typing import Final

from mikanet.address import MAX_HOST_LENGTH, Address, parse_ip
from mikanet.errors import LocalProtocolError, Reason, RemoteProtocolError

VERSION_5: Final = 5
VERSION_4: Final = 4
#: Version of the user name and password exchange (RFC 1929 section 2).
PASSWORD_VERSION: Final = 1

#: Longest encoded address in bytes: type, length, name, port.
MAX_ADDRESS: Final = 1 + 1 + MAX_HOST_LENGTH + 2

#: The address that says nothing; replies carry it where the true one is not known.
UNKNOWN: Final = Address("0.0.0.0", 0)


class Method(enum.IntEnum):
    """How the client proves who it is (RFC 1928 section 3)."""

    NONE = 0
    PASSWORD = 2
    UNACCEPTABLE = 0xFF


class Command(enum.IntEnum):
    """What the client asks for (RFC 1928 section 4; SOCKS4 has the first two)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class Atyp(enum.IntEnum):
    """Kind of an address (RFC 1928 section 5)."""

    IPV4 = 1
    NAME = 3
    IPV6 = 4


class Rep(enum.IntEnum):
    """Reply code (RFC 1928 section 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ATYP_NOT_SUPPORTED = 8


#: Reply codes of SOCKS4.
GRANTED_4: Final = 0x5A
REJECTED_4: Final = 0x5B

_REP_OF_REASON: Final = {
    Reason.FAILURE: Rep.GENERAL_FAILURE,
    Reason.POLICY: Rep.NOT_ALLOWED,
    Reason.NETWORK_UNREACHABLE: Rep.NETWORK_UNREACHABLE,
    Reason.HOST_UNREACHABLE: Rep.HOST_UNREACHABLE,
    Reason.REFUSED: Rep.CONNECTION_REFUSED,
    # The RFC has no code for a time-out; this one comes nearest and is what other servers send.
    Reason.TIMEOUT: Rep.TTL_EXPIRED,
    Reason.UNSUPPORTED: Rep.COMMAND_NOT_SUPPORTED,
    Reason.LIMIT: Rep.GENERAL_FAILURE,
}
_REASON_OF_REP: Final = {
    Rep.NOT_ALLOWED: Reason.POLICY,
    Rep.NETWORK_UNREACHABLE: Reason.NETWORK_UNREACHABLE,
    Rep.HOST_UNREACHABLE: Reason.HOST_UNREACHABLE,
    Rep.CONNECTION_REFUSED: Reason.REFUSED,
    Rep.TTL_EXPIRED: Reason.TIMEOUT,
    Rep.COMMAND_NOT_SUPPORTED: Reason.UNSUPPORTED,
    Rep.ATYP_NOT_SUPPORTED: Reason.UNSUPPORTED,
}


def rep_of_reason(reason: Reason) -> Rep:
    """The reply code that tells a client why its destination cannot be had."""
    return _REP_OF_REASON[reason]


def reason_of_rep(rep: int) -> Reason:
    """What a reply code other than success means; unknown codes mean ``FAILURE``."""
    return _REASON_OF_REP.get(rep, Reason.FAILURE)  # type: ignore[call-overload, no-any-return]  # an int finds its IntEnum


# -- addresses


def encode_address(address: Address) -> bytes:
    """``address`` as atyp (1 byte), IPv4 (4), IPv6 (16) or length (1) and name, then port (2, big-endian).

    An IPv6 address with a zone has no binary form, and travels as a name.

    :raises LocalProtocolError: if the name is empty, too long or has characters that no host name has, or the port is
        not 0..65535.
    """
    host, port = address.host, address.port
    if not 0 <= port <= 65535:
        raise LocalProtocolError(f"{port} is not a port number")
    tail = port.to_bytes(2, "big")
    ip = parse_ip(host)
    if isinstance(ip, ipaddress.IPv4Address):
        return b"\x01" + ip.packed + tail
    if ip is not None and ip.scope_id is None:
        return b"\x04" + ip.packed + tail
    if not _is_name(host):
        raise LocalProtocolError("a host name has characters that no host name has")
    name = host.encode("utf-8")
    if len(name) > MAX_HOST_LENGTH:
        raise LocalProtocolError(f"a host name has {len(name)} bytes; {MAX_HOST_LENGTH} is the most")
    return b"\x03" + len(name).to_bytes(1, "big") + name + tail


def address_length(buffer: bytes | bytearray, offset: int = 0) -> int | None:
    """How many bytes the address at ``offset`` takes, 7..259; None until its type and length are here.

    :raises RemoteProtocolError: for an unknown type or a name of length 0.
    """
    if len(buffer) < offset + 2:
        if len(buffer) == offset + 1 and buffer[offset] not in _ATYPS:
            raise UnknownAtypError
        return None
    atyp = buffer[offset]
    if atyp == Atyp.IPV4:
        return 7
    if atyp == Atyp.NAME:
        if not buffer[offset + 1]:
            raise RemoteProtocolError("a host name of length 0")
        return 4 + buffer[offset + 1]
    if atyp == Atyp.IPV6:
        return 19
    raise UnknownAtypError


def decode_address(buffer: bytes | bytearray, offset: int = 0) -> tuple[Address, int] | None:
    """The address at ``offset`` and the offset behind it; None while it is incomplete.

    :raises RemoteProtocolError: for an unknown type, or a name that is empty, not UTF-8, or has control characters or
        spaces.
    """
    length = address_length(buffer, offset)
    if length is None or len(buffer) < offset + length:
        return None
    end = offset + length
    port = buffer[end - 2] << 8 | buffer[end - 1]
    atyp = buffer[offset]
    if atyp == Atyp.IPV4:
        return Address(".".join(map(str, buffer[offset + 1 : offset + 5])), port), end
    if atyp == Atyp.IPV6:
        return Address(str(ipaddress.IPv6Address(bytes(buffer[offset + 1 : offset + 17]))), port), end
    return Address(decode_name(buffer[offset + 2 : end - 2]), port), end


def decode_name(raw: bytes | bytearray) -> str:
    """A host name as text.

    :raises RemoteProtocolError: if it is empty, too long, not UTF-8, or has control characters or spaces.
    """
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("a host name is not UTF-8") from None
    if not _is_name(name) or len(raw) > MAX_HOST_LENGTH:
        raise RemoteProtocolError("a host name has characters that no host name has")
    return name


def _is_name(name: str) -> bool:
    # isprintable() is false for control and format characters, lone surrogates, and all spaces but the plain one.
    return bool(name) and name.isprintable() and " " not in name


_ATYPS: Final = frozenset(Atyp)


class UnknownAtypError(RemoteProtocolError):
    """An address is of a kind that this protocol does not have."""

    def __init__(self) -> None:
        super().__init__("unknown address type")


# -- datagrams


def encode_udp_header(address: Address) -> bytes:
    """What stands before each datagram between client and relay: reserved (2), fragment (1, 0), address.

    Source: RFC 1928 section 7.
    """
    return b"\x00\x00\x00" + encode_address(address)


def split_udp(datagram: bytes) -> tuple[int, int]:
    """The fragment number of a relayed datagram, and the offset of its payload.

    The address between them, ``datagram[3:offset]``, may then be looked up as it is, or decoded.

    :raises RemoteProtocolError: if the header is cut short or is none.
    """
    length = address_length(datagram, 3)
    if length is None or len(datagram) < 3 + length or datagram[0] or datagram[1]:
        raise RemoteProtocolError("not a relayed datagram")
    return datagram[2], 3 + length
