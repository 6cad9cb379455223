"""Pickaxe's wire format: every message of the document, exactly. Plain Python, no I/O.

All integers are little-endian. A packet of a session is ``T | SID 4 | C 3 | M 8 | body``; login and its response are
``T | body``; a fragment is ``0xff | SID 4 | C 3 | total 2 | offset 2 | bytes``. Bit 0 of T says who sends: 0 the client,
1 the server. Numbers of types below are those that the client sends, or the only one that exists.

Source: the Pickaxe document, "Basic packet format" and "Message types".
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from mikanet.address import Address, parse_ip
from mikanet.errors import Reason, RemoteProtocolError

# -- the types of messages, field T

LOGIN, LOGIN_RESPONSE = 0, 1
CONNECT, CONNECT_RESPONSE = 2, 3
LISTEN, LISTEN_RESPONSE, STOP_LISTEN, ACCEPT = 4, 5, 6, 7
CLOSE, DATA, ECHO = 8, 10, 12  # +1 from the server
DISCONNECT = 126  # +1 from the server

#: The bit that the document reserves, and what we put there: a fragment of a packet (P2b).
RESERVED_BIT = 0x80
FRAGMENT = 0xFF

#: Types whose number is the same from either end, but for bit 0.
SYMMETRIC = frozenset({CLOSE, DATA, ECHO, DISCONNECT})

# -- kinds of T=12/13

KEEP_ALIVE, ECHO_REQUEST, ECHO_REPLY, CREDIT = 0, 1, 2, 3

# -- sizes, in bytes

HEADER_SIZE = 16
MAC_SIZE = 8
LID_SIZE = PID_SIZE = EID_SIZE = NONCE_SIZE = 16
SID_SIZE = CID_SIZE = 4
MAX_PACKET = 65_535
MAX_DATA = MAX_PACKET - HEADER_SIZE - CID_SIZE
MAX_USER = 255
MAX_ECHO_DATA = 1024

#: What a packet of data carries besides the data.
DATA_OVERHEAD = HEADER_SIZE + CID_SIZE

#: The version that we speak, and the only one.
VERSION = (1, 0)

#: How a Connect names its target. The last is our extension: 1 byte length, then a name for the server to look up.
PROTO_IPV4, PROTO_IPV6, PROTO_NAME = 4, 6, 3

#: How a Listen asks for its port.
ANY_PORT, GIVEN_PORT = 0, 1

#: How many bits of the packet number are sent.
COUNTER_BITS = 24
COUNTER_MASK = (1 << COUNTER_BITS) - 1

_HEADER = struct.Struct("<B4sHB8s")
_MAC_INPUT = struct.Struct("<B4sQ")
_FRAGMENT = struct.Struct("<B4sHBHH")
_CREDIT = struct.Struct("<B4sQ")
_U64 = struct.Struct("<Q")
_U16 = struct.Struct("<H")

FRAGMENT_OVERHEAD = _FRAGMENT.size

#: Least bytes of the packet in a fragment that is not its last (our choice; the narrowest carriers take 110 bytes): crumbs
#: cost their receiver more than their sender.
MIN_FRAGMENT = 32


class Status(IntEnum):
    """How a request or a connection ended. Values above 7 are our choice; the document leaves all of them open."""

    OK = 0
    FAILURE = 1
    POLICY = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    TIMEOUT = 6
    BAD_PROTO = 7
    LIMIT = 8
    STALLED = 9
    STOPPED = 10

    @classmethod
    def of(cls, reason: Reason) -> Status:
        """The status that says why a destination could not be reached."""
        return _STATUS_OF.get(reason, cls.FAILURE)

    @property
    def reason(self) -> Reason:
        """Why a destination could not be reached, for front doors."""
        return _REASON_OF.get(self, Reason.FAILURE)


_STATUS_OF = {
    Reason.POLICY: Status.POLICY,
    Reason.NETWORK_UNREACHABLE: Status.NETWORK_UNREACHABLE,
    Reason.HOST_UNREACHABLE: Status.HOST_UNREACHABLE,
    Reason.REFUSED: Status.REFUSED,
    Reason.TIMEOUT: Status.TIMEOUT,
    Reason.UNSUPPORTED: Status.BAD_PROTO,
    Reason.LIMIT: Status.LIMIT,
}
_REASON_OF = {status: reason for reason, status in _STATUS_OF.items()}


def status_of(value: int) -> Status:
    """A status byte; one that we do not know is a failure."""
    return Status(value) if value <= Status.STOPPED else Status.FAILURE


# -- login (no SID, C, M)


@dataclass(frozen=True, slots=True)
class Login:
    """T=0: LID 16, V 2, UID UTF-8."""

    lid: bytes
    version: tuple[int, int]
    user: str


@dataclass(frozen=True, slots=True)
class LoginResponse:
    """T=1: LID 16, V 2, SID 4, nonce 16.

    The document's own table has no SID; that form is read, and written if ``table`` says so, with the first four bytes
    of the nonce as the SID.
    """

    lid: bytes
    version: tuple[int, int]
    sid: bytes
    nonce: bytes
    table: bool = False


def encode_login(login: Login) -> bytes:
    """A whole packet."""
    return bytes([LOGIN]) + login.lid + bytes(login.version) + login.user.encode()


def decode_login(packet: bytes) -> Login:
    """A packet of type 0.

    :raises RemoteProtocolError: if it is too short, or its user is empty, too long or no UTF-8.
    """
    if not 1 + LID_SIZE + 2 + 1 <= len(packet) <= 1 + LID_SIZE + 2 + MAX_USER or packet[0] != LOGIN:
        raise RemoteProtocolError("a login has a user of 1 to 255 bytes")
    try:
        user = packet[19:].decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("a login's user is UTF-8") from None
    return Login(packet[1:17], (packet[17], packet[18]), user)


def encode_login_response(response: LoginResponse) -> bytes:
    """A whole packet."""
    sid = b"" if response.table else response.sid
    return bytes([LOGIN_RESPONSE]) + response.lid + bytes(response.version) + sid + response.nonce


def decode_login_response(packet: bytes) -> LoginResponse:
    """A packet of type 1, in either form.

    :raises RemoteProtocolError: if it has neither's length.
    """
    size = len(packet) - 1 - LID_SIZE - 2
    if packet[:1] != bytes([LOGIN_RESPONSE]) or size not in (NONCE_SIZE, SID_SIZE + NONCE_SIZE):
        raise RemoteProtocolError("a login response has a nonce of 16 bytes")
    lid, version = packet[1:17], (packet[17], packet[18])
    if size == NONCE_SIZE:
        nonce = packet[19:]
        return LoginResponse(lid, version, nonce[:SID_SIZE], nonce, table=True)
    return LoginResponse(lid, version, packet[19:23], packet[23:])


# -- packets of a session


def header(kind: int, sid: bytes, counter: int, mac: bytes) -> bytes:
    """T, SID, C and M."""
    return _HEADER.pack(kind, sid, counter & 0xFFFF, counter >> 16 & 0xFF, mac)


def mac_input(kind: int, sid: bytes, counter: int) -> bytes:
    """What M covers before the body: T, SID, and all 64 bits of C."""
    return _MAC_INPUT.pack(kind, sid, counter)


def sid_of(packet: bytes) -> bytes:
    """The SID of a packet of a session, or of a fragment of one; short if the packet is."""
    return packet[1:5]


def low_counter(packet: bytes) -> int:
    """The 24 bits of C that a packet of a session carries."""
    return packet[5] | packet[6] << 8 | packet[7] << 16


def nearest_counter(low: int, expected: int) -> int:
    """The number nearest to ``expected`` whose low 24 bits are ``low``; below 1 if there is no positive one (P2)."""
    half = 1 << COUNTER_BITS - 1
    return expected + ((low - expected + half) & COUNTER_MASK) - half


# -- fragments, decision P2b


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a packet whose SID and C stand in the clear, and whose whole length is ``total``."""

    sid: bytes
    counter: int
    total: int
    offset: int
    data: bytes


def fragment(packet: bytes, size: int) -> Iterator[bytes]:
    """Cut a packet of a session into fragments that are packets of at most ``size`` bytes.

    :raises ValueError: if that leaves no room for :data:`MIN_FRAGMENT` bytes.
    """
    step = size - FRAGMENT_OVERHEAD
    if step < MIN_FRAGMENT:
        raise ValueError("too small for a fragment")
    sid, low = sid_of(packet), low_counter(packet)
    for offset in range(0, len(packet), step):
        head = _FRAGMENT.pack(FRAGMENT, sid, low & 0xFFFF, low >> 16, len(packet), offset)
        yield head + packet[offset : offset + step]


def decode_fragment(packet: bytes) -> Fragment:
    """A packet that begins with 0xff.

    :raises RemoteProtocolError: if it holds nothing, something beyond its total, or less than :data:`MIN_FRAGMENT` bytes
        that are not the packet's last.
    """
    if len(packet) <= FRAGMENT_OVERHEAD or packet[0] != FRAGMENT:
        raise RemoteProtocolError("not a fragment")
    _, sid, low, high, total, offset = _FRAGMENT.unpack_from(packet)
    data = packet[FRAGMENT_OVERHEAD:]
    if total < HEADER_SIZE or offset + len(data) > total:
        raise RemoteProtocolError("a fragment of an impossible packet")
    if len(data) < MIN_FRAGMENT and offset + len(data) < total:
        raise RemoteProtocolError("a fragment that is too small")
    return Fragment(sid, high << 16 | low, total, offset, data)


# -- bodies


@dataclass(frozen=True, slots=True)
class Connect:
    """T=2. ``host`` is an IP address, or with our extension a name."""

    pid: bytes
    target: Address


@dataclass(frozen=True, slots=True)
class ConnectResponse:
    """T=3."""

    pid: bytes
    cid: bytes
    status: int


@dataclass(frozen=True, slots=True)
class Listen:
    """T=4. ``port`` 0 asks for any."""

    pid: bytes
    port: int


@dataclass(frozen=True, slots=True)
class ListenResponse:
    """T=5."""

    pid: bytes
    status: int
    port: int


@dataclass(frozen=True, slots=True)
class StopListen:
    """T=6."""

    pid: bytes
    status: int = 0


@dataclass(frozen=True, slots=True)
class Accept:
    """T=7."""

    pid: bytes
    cid: bytes
    status: int = 0


def encode_connect(pid: bytes, target: Address) -> bytes:
    """A Connect's body. A host that is no IP address goes as a name, for the server to look up (our extension).

    :raises ValueError: if the host cannot be written.
    """
    ip = parse_ip(target.host)
    if ip is not None:
        return pid + bytes([PROTO_IPV4 if ip.version == 4 else PROTO_IPV6]) + ip.packed + _U16.pack(target.port)
    name = target.host.encode("utf-8")
    if not 1 <= len(name) <= 255:
        raise ValueError("a name has 1 to 255 bytes")
    return pid + bytes([PROTO_NAME, len(name)]) + name + _U16.pack(target.port)


class UnknownProtoError(RemoteProtocolError):
    """A Connect names its target in a way that we do not know; the client is told so.

    :ivar pid: of the Connect.
    """

    def __init__(self, pid: bytes) -> None:
        super().__init__("an unknown kind of target")
        self.pid = pid


def decode_connect(body: bytes) -> Connect:
    """A Connect.

    :raises UnknownProtoError: for a target of a kind that we do not know.
    :raises RemoteProtocolError: for any other fault.
    """
    if len(body) < PID_SIZE + 1:
        raise RemoteProtocolError("a short Connect")
    pid, proto, rest = body[:PID_SIZE], body[PID_SIZE], body[PID_SIZE + 1 :]
    if proto in (PROTO_IPV4, PROTO_IPV6):
        size = 4 if proto == PROTO_IPV4 else 16
        if len(rest) != size + 2:
            raise RemoteProtocolError("a Connect of a wrong length")
        return Connect(pid, Address(ip_text(rest[:size]), _U16.unpack_from(rest, size)[0]))
    if proto != PROTO_NAME:
        raise UnknownProtoError(pid)
    if not rest or not rest[0] or len(rest) != 1 + rest[0] + 2:
        raise RemoteProtocolError("a Connect of a wrong length")
    try:
        name = rest[1:-2].decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("a name that is no UTF-8") from None
    if not name.isprintable() or " " in name:
        raise RemoteProtocolError("a name that is none")
    return Connect(pid, Address(name, _U16.unpack(rest[-2:])[0]))


def ip_text(packed: bytes) -> str:
    """The text of 4 or 16 bytes of address."""
    return str(ipaddress.ip_address(packed))


def encode_connect_response(pid: bytes, cid: bytes, status: int) -> bytes:
    """A Connect response's body."""
    return pid + cid + bytes([status])


def decode_connect_response(body: bytes) -> ConnectResponse:
    """T=3."""
    _expect(body, PID_SIZE + CID_SIZE + 1)
    return ConnectResponse(body[:16], body[16:20], body[20])


def encode_listen(pid: bytes, port: int) -> bytes:
    """A Listen's body."""
    return pid + bytes([GIVEN_PORT if port else ANY_PORT]) + _U16.pack(port)


def decode_listen(body: bytes) -> Listen:
    """T=4."""
    _expect(body, PID_SIZE + 3)
    if body[16] not in (ANY_PORT, GIVEN_PORT):
        raise RemoteProtocolError("a Listen of an unknown kind")
    port = _U16.unpack_from(body, 17)[0]
    if body[16] == GIVEN_PORT and not port:
        raise RemoteProtocolError("a Listen on port 0")
    return Listen(body[:16], port if body[16] == GIVEN_PORT else 0)


def encode_listen_response(pid: bytes, status: int, port: int) -> bytes:
    """A Listen response's body."""
    return pid + bytes([status]) + _U16.pack(port)


def decode_listen_response(body: bytes) -> ListenResponse:
    """T=5."""
    _expect(body, PID_SIZE + 3)
    return ListenResponse(body[:16], body[16], _U16.unpack_from(body, 17)[0])


def encode_stop_listen(pid: bytes) -> bytes:
    """A Stop listen's body; its status is 0."""
    return pid + b"\0"


def decode_stop_listen(body: bytes) -> StopListen:
    """T=6."""
    _expect(body, PID_SIZE + 1)
    return StopListen(body[:16], body[16])


def encode_accept(pid: bytes, cid: bytes) -> bytes:
    """An Accept's body; its status is 0."""
    return pid + cid + b"\0"


def decode_accept(body: bytes) -> Accept:
    """T=7."""
    _expect(body, PID_SIZE + CID_SIZE + 1)
    return Accept(body[:16], body[16:20], body[20])


def decode_close(body: bytes) -> tuple[bytes, int]:
    """T=8/9: CID and status."""
    _expect(body, CID_SIZE + 1)
    return body[:4], body[4]


def encode_credit(cid: bytes, total: int) -> bytes:
    """The body of a T=12/13 of type 3: the peer may send ``total`` bytes in all on ``cid`` (P10)."""
    return _CREDIT.pack(CREDIT, cid, total)


def decode_credit(body: bytes) -> tuple[bytes, int]:
    """CID and total."""
    _expect(body, _CREDIT.size)
    _, cid, total = _CREDIT.unpack(body)
    return cid, total


def encode_echo(kind: int, eid: bytes, data: bytes) -> bytes:
    """The body of an echo request or reply."""
    return bytes([kind]) + eid + data


def decode_echo(body: bytes) -> tuple[bytes, bytes]:
    """EID and data of an echo request or reply.

    :raises RemoteProtocolError: if it is too short or too long.
    """
    if not 1 + EID_SIZE <= len(body) <= 1 + EID_SIZE + MAX_ECHO_DATA:
        raise RemoteProtocolError("an echo of a wrong length")
    return body[1:17], body[17:]


def encode_progress(processed: int, held: bytes = b"") -> bytes:
    """An echo request's data: the highest number that the sender of it has processed (P4).

    :param held: bit i says that number ``processed + 2 + i`` is there, too, and waits for its turn.
    """
    return _U64.pack(processed) + held


def decode_progress(data: bytes) -> tuple[int, bytes] | None:
    """What :func:`encode_progress` wrote; None for data of another implementation's."""
    return (_U64.unpack_from(data)[0], data[8:]) if len(data) >= 8 else None


def _expect(body: bytes, size: int) -> None:
    if len(body) != size:
        raise RemoteProtocolError("a message of a wrong length")
