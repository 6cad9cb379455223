"""Requests and responses of the polling carriers, plain Python: what stands in the bodies of their POSTs.

The shape is XEP-0124's (BOSH) with a binary body instead of an XML element: a client opens a carrier and is given its
``sid``; every further request has the next request id ``rid`` and is answered once, with what waited at the server; a
request whose response was lost is sent again with its ``rid`` and gets that same response. All integers are
little-endian. Attributes stand in the body, so that they are in no proxy's log.

======== ================================================================================================
open     ``00 | version u8 = 1 | hold u8 | wait u8 | rid u64 | padding``; ``rid`` is that of the first exchange
opened   ``00 | version u8 = 1 | hold u8 | wait u8 | sid 16 | padding``
exchange ``01 | sid 16 | rid u64 | ack u64 | flags u8 | batch``; ``ack`` is the last ``rid`` answered without a gap
answer   ``01 | rid u64 | flags u8 | batch``
======== ================================================================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from mikanet.errors import RemoteProtocolError

VERSION = 1
SID_SIZE = 16

#: Largest body either way, head included: what nginx takes if nobody told it otherwise.
MAX_BODY = 1_048_576

#: Largest body that a stranger may send (X3): one packet of any size and its head.
MAX_STRANGER_BODY = 70_000

#: Most requests that a server keeps open for a client, and the longest time, in seconds (proxies give up after 60).
MAX_HOLD, MAX_WAIT = 4, 50

#: Flags of an exchange and an answer: the sender ends the carrier; more is waiting where this came from.
END, MORE = 1, 2

_OPEN = struct.Struct("<BBBBQ")
_OPENED = struct.Struct(f"<BBBB{SID_SIZE}s")
_EXCHANGE = struct.Struct(f"<B{SID_SIZE}sQQB")
_ANSWER = struct.Struct("<BQB")

#: Bytes of the heads before a batch.
EXCHANGE_HEAD, ANSWER_HEAD = _EXCHANGE.size, _ANSWER.size

_MOST_RID = 2**63


@dataclass(frozen=True, slots=True)
class Open:
    """A client wants a carrier. :ivar hold: requests that the server may keep open. :ivar wait: for how many seconds."""

    hold: int
    wait: int
    rid: int

    def encode(self, padding: bytes = b"") -> bytes:
        """The body."""
        return _OPEN.pack(0, VERSION, self.hold, self.wait, self.rid) + padding


@dataclass(frozen=True, slots=True)
class Opened:
    """The server's answer, with what it really does."""

    hold: int
    wait: int
    sid: bytes

    def encode(self, padding: bytes = b"") -> bytes:
        """The body."""
        return _OPENED.pack(0, VERSION, self.hold, self.wait, self.sid) + padding

    @classmethod
    def decode(cls, body: bytes) -> Opened:
        """Read a body.

        :raises RemoteProtocolError: if it is none such.
        """
        if len(body) < _OPENED.size or body[:2] != bytes((0, VERSION)):
            raise RemoteProtocolError("not the answer of a tunnel")
        _, _, hold, wait, sid = _OPENED.unpack_from(body)
        if hold > MAX_HOLD or wait > MAX_WAIT:
            raise RemoteProtocolError("a server that holds for too long")
        return cls(hold, wait, sid)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, without its batch, which begins at :data:`EXCHANGE_HEAD`."""

    sid: bytes
    rid: int
    ack: int
    flags: int = 0

    def encode(self, batch: bytes = b"") -> bytes:
        """The body."""
        return _EXCHANGE.pack(1, self.sid, self.rid, self.ack, self.flags) + batch


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, without its batch, which begins at :data:`ANSWER_HEAD`."""

    rid: int
    flags: int = 0

    def encode(self, batch: bytes = b"") -> bytes:
        """The body."""
        return _ANSWER.pack(1, self.rid, self.flags) + batch

    @classmethod
    def decode(cls, body: bytes) -> Answer:
        """Read a body.

        :raises RemoteProtocolError: if it is none such.
        """
        if len(body) < ANSWER_HEAD or body[0] != 1:
            raise RemoteProtocolError("not the answer of a tunnel")
        _, rid, flags = _ANSWER.unpack_from(body)
        return cls(rid, flags)


def decode_request(body: bytes) -> Open | Exchange:
    """Read a request's body.

    :raises RemoteProtocolError: if it is none.
    """
    if len(body) >= _EXCHANGE.size and body[0] == 1:
        _, sid, rid, ack, flags = _EXCHANGE.unpack_from(body)
        if rid >= _MOST_RID:
            raise RemoteProtocolError("a request id that is too large")
        return Exchange(sid, rid, ack, flags)
    if len(body) >= _OPEN.size and body[:2] == bytes((0, VERSION)):
        _, _, hold, wait, rid = _OPEN.unpack_from(body)
        if not 0 < rid < _MOST_RID:
            raise RemoteProtocolError("a request id that is too large")
        return Open(hold, wait, rid)
    raise RemoteProtocolError("not a request of a tunnel")


def sid_of(start: bytes) -> bytes | None:
    """The ``sid`` in the first bytes of a body; None if there is none, or not yet."""
    return start[1 : 1 + SID_SIZE] if len(start) > SID_SIZE and start[0] == 1 else None
