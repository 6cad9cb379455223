"""DNS messages (RFC 1035, RFC 6891): the general codec, and short cuts for one question with its answer. No I/O.

Names are kept as on the wire and uncompressed: labels with their lengths, ended by an empty one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mikanet.errors import LocalProtocolError, RemoteProtocolError

A, NS, CNAME, SOA, NULL, MX, TXT, AAAA, OPT = 1, 2, 5, 6, 10, 15, 16, 28, 41
#: Types by the names that users write.
TYPES = {"A": A, "NS": NS, "CNAME": CNAME, "SOA": SOA, "NULL": NULL, "MX": MX, "TXT": TXT, "AAAA": AAAA, "OPT": OPT}
TYPE_NAMES = {number: name for name, number in TYPES.items()}
IN = 1

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

#: Flags of the header's second word.
QR, AA, TC, RD, RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080

MAX_NAME, MAX_LABEL = 255, 63
#: Most pointers of one name, which has at most so many labels that they could stand between (our choice: without it each
#: record could point to the one before, at the price of all of them).
MAX_POINTERS = 127
#: What a message over UDP may hold if its asker says nothing (RFC 1035, section 4.2.1).
PLAIN_SIZE = 512
#: Most records of a message that are looked at; our own messages stay far below.
MAX_RECORDS = 512
#: An EDNS option for local use (RFC 6891, section 9): upstream data beyond the name, where the path lets it through.
DATA_OPTION = 65001

_HEADER = struct.Struct("!6H")
_WORD = struct.Struct("!H")
_TWO = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")


def name_of(text: str) -> bytes:
    """A name on the wire.

    :raises LocalProtocolError: if a label or the whole is too long, or empty within.
    """
    stripped = text.rstrip(".")
    if not stripped:
        return b"\0"
    try:
        labels = stripped.encode("ascii").split(b".")
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{text!r} is not a DNS name of plain letters") from None
    return join_labels(labels)


def join_labels(labels: Iterable[bytes]) -> bytes:
    """A name of labels.

    :raises LocalProtocolError: as :func:`name_of`.
    """
    made = bytearray()
    for label in labels:
        if not 0 < len(label) <= MAX_LABEL:
            raise LocalProtocolError("a label of a DNS name has 1 to 63 characters")
        made.append(len(label))
        made += label
    made.append(0)
    if len(made) > MAX_NAME:
        raise LocalProtocolError("a DNS name has at most 255 characters")
    return bytes(made)


def labels_of(name: bytes) -> list[bytes]:
    """The labels of an uncompressed name."""
    labels, at = [], 0
    while length := name[at]:
        labels.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return labels


def text_of(name: bytes) -> str:
    """A name for people to read; strange bytes are escaped as in zone files."""
    shown = (
        "".join(chr(c) if 0x21 <= c <= 0x7E and c not in b'."\\;()@$' else f"\\{c:03d}" for c in label)
        for label in labels_of(name)
    )
    return ".".join(shown) + "."


def read_name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name at an offset, uncompressed, and the offset behind it.

    :raises RemoteProtocolError: if it runs out of the message, is too long, points anywhere but back, or that too often.
    """
    made = bytearray()
    after = -1
    limit = at
    pointers = 0
    try:
        while length := message[at]:
            if length < 0x40:
                made += message[at : at + 1 + length]
                at += 1 + length
            elif length >= 0xC0:
                target = (length & 0x3F) << 8 | message[at + 1]
                if after < 0:
                    after = at + 2
                if target >= limit:
                    raise RemoteProtocolError("a DNS name points forward")
                pointers += 1
                if pointers > MAX_POINTERS:
                    raise RemoteProtocolError("a DNS name of too many pointers")
                at = limit = target
            else:
                raise RemoteProtocolError("a DNS label of an unknown kind")
            if len(made) >= MAX_NAME:
                raise RemoteProtocolError("a DNS name is too long")
    except IndexError:
        raise RemoteProtocolError("a DNS name runs out of its message") from None
    if at > len(message):
        raise RemoteProtocolError("a DNS name runs out of its message")
    made.append(0)
    return bytes(made), at + 1 if after < 0 else after


@dataclass(frozen=True)
class Question:
    """What is asked."""

    name: bytes
    type: int
    cls: int = IN


@dataclass(frozen=True)
class Record:
    """A resource record; names inside the data of NS, CNAME, SOA and MX are uncompressed."""

    name: bytes
    type: int
    data: bytes
    ttl: int = 0
    cls: int = IN


@dataclass(frozen=True)
class Message:
    """A whole message. :ivar flags: the header's second word, with opcode and response code."""

    ident: int
    flags: int = 0
    questions: Sequence[Question] = ()
    answers: Sequence[Record] = ()
    authority: Sequence[Record] = ()
    additional: Sequence[Record] = field(default=())

    @property
    def rcode(self) -> int:
        """The response code, without EDNS' extension."""
        return self.flags & 15

    @property
    def edns_size(self) -> int | None:
        """What its sender takes over UDP, if an OPT record says so."""
        return next((record.cls for record in self.additional if record.type == OPT), None)

    def encode(self) -> bytes:
        """The message on the wire, without compression."""
        sections = (self.answers, self.authority, self.additional)
        made = bytearray(_HEADER.pack(self.ident, self.flags, len(self.questions), *map(len, sections)))
        for question in self.questions:
            made += question.name + _TWO.pack(question.type, question.cls)
        for section in sections:
            for record in section:
                made += record.name + _RECORD.pack(record.type, record.cls, record.ttl, len(record.data)) + record.data
        return bytes(made)

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Read a message; bytes behind its end are ignored.

        :raises RemoteProtocolError: if it is none.
        """
        if len(data) < 12:
            raise RemoteProtocolError("a DNS message is shorter than its header")
        ident, flags, *counts = _HEADER.unpack_from(data)
        if sum(counts) > MAX_RECORDS:
            raise RemoteProtocolError("a DNS message with too many records")
        at = 12
        questions = []
        for _ in range(counts[0]):
            name, at = read_name(data, at)
            if at + 4 > len(data):
                raise RemoteProtocolError("a DNS question runs out of its message")
            questions.append(Question(name, *_TWO.unpack_from(data, at)))
            at += 4
        sections: list[list[Record]] = []
        for count in counts[1:]:
            section: list[Record] = []
            for _ in range(count):
                record, at = _read_record(data, at)
                section.append(record)
            sections.append(section)
        return cls(ident, flags, questions, *sections)


def _read_record(data: bytes, at: int) -> tuple[Record, int]:
    name, at = read_name(data, at)
    if at + 10 > len(data):
        raise RemoteProtocolError("a DNS record runs out of its message")
    kind, cls, ttl, length = _RECORD.unpack_from(data, at)
    at += 10
    end = at + length
    if end > len(data):
        raise RemoteProtocolError("a DNS record runs out of its message")
    return Record(name, kind, _read_data(data, kind, at, end), ttl, cls), end


def _read_data(data: bytes, kind: int, at: int, end: int) -> bytes:
    """A record's data with names in it uncompressed."""
    if kind in (NS, CNAME):
        found, behind = read_name(data, at)
    elif kind == MX:
        name, behind = read_name(data, at + 2)
        found = data[at : at + 2] + name
    elif kind == SOA:
        master, behind = read_name(data, at)
        mailbox, behind = read_name(data, behind)
        found = master + mailbox + data[behind : behind + 20]
        behind += 20
    else:
        return data[at:end]
    if behind != end:
        raise RemoteProtocolError("a name in a DNS record has another length than the record")
    return found


def opt(size: int, options: Sequence[tuple[int, bytes]] = ()) -> Record:
    """An OPT record that says what its sender takes over UDP."""
    data = b"".join(_TWO.pack(code, len(value)) + value for code, value in options)
    return Record(b"\0", OPT, data, 0, size)


def soa(master: bytes, mailbox: bytes, serial: int) -> bytes:
    """The data of a SOA record whose zone nobody keeps for long: a minimum TTL of 0."""
    return master + mailbox + struct.pack("!5I", serial, 3600, 600, 86400, 0)


# -- short cuts


@dataclass(slots=True)
class Query:
    """A query with one question, as a server sees it.

    :ivar section: the question as it came, to be sent back as it is. :ivar labels: in lower and upper case as they
        came. :ivar size: what the asker takes over UDP. :ivar edns: whether it said so by EDNS. :ivar data: of our own
        option.
    """

    ident: int
    flags: int
    section: bytes
    labels: list[bytes]
    type: int
    cls: int
    size: int
    edns: bool
    data: bytes


def read_query(message: bytes) -> Query:
    """Take a query apart.

    :raises RemoteProtocolError: if it is an answer, another operation than a query, or anything but one question.
    """
    if len(message) < 17:
        raise RemoteProtocolError("a DNS query is too short")
    ident, flags, questions, answers, authority, additional = _HEADER.unpack_from(message)
    if flags & 0xF800 or questions != 1 or answers or authority or additional > 4:
        raise RemoteProtocolError("not a plain DNS query")
    labels, at, end = [], 12, len(message)
    try:
        while length := message[at]:
            if length > MAX_LABEL:
                raise RemoteProtocolError("a DNS question with a compressed name")
            at += 1
            labels.append(message[at : at + length])
            at += length
    except IndexError:
        raise RemoteProtocolError("a DNS question runs out of its message") from None
    at += 5
    if at > end or at - 16 > MAX_NAME:
        raise RemoteProtocolError("a DNS question is too long")
    kind, cls = _TWO.unpack_from(message, at - 4)
    query = Query(ident, flags, message[12:at], labels, kind, cls, PLAIN_SIZE, False, b"")
    for _ in range(additional):
        record, at = _read_record(message, at)
        if record.type == OPT:
            query.edns = True
            query.size = max(PLAIN_SIZE, record.cls)
            query.data = _own_option(record.data)
    return query


def _own_option(options: bytes) -> bytes:
    at, end = 0, len(options)
    while at + 4 <= end:
        code, length = _TWO.unpack_from(options, at)
        at += 4
        if code == DATA_OPTION:
            return options[at : at + length]
        at += length
    return b""


_QUERY_HEAD = struct.Struct("!HHIHH")
_OPT_HEAD = struct.Struct("!BHHIH")


def build_query(ident: int, section: bytes, size: int | None, data: bytes = b"") -> bytes:
    """A query with recursion desired.

    :param section: name, type and class. :param size: for an OPT record, None for none. :param data: for our own option.
    """
    head = _QUERY_HEAD.pack(ident, RD, 0x10000, 0, size is not None)
    if size is None:
        return head + section
    if data:
        length = len(data)
        option = _OPT_HEAD.pack(0, OPT, size, 0, length + 4) + _TWO.pack(DATA_OPTION, length)
        return head + section + option + data
    return head + section + _OPT_HEAD.pack(0, OPT, size, 0, 0)


#: What we take over UDP, in our own OPT records: no fragments on any path that carries IPv6 (DNS flag day 2020).
OUR_SIZE = 1232
_OUR_OPT = _OPT_HEAD.pack(0, OPT, OUR_SIZE, 0, 0)
#: Bytes of an OPT record without options.
OPT_SIZE = len(_OUR_OPT)


def build_answer(query: Query, count: int, records: bytes, flags: int = AA, authority: int = 0) -> bytes:
    """An answer to ``query``.

    :param count: number of answer records in ``records``, followed by ``authority`` of the authority section.
    """
    head = _HEADER.pack(query.ident, QR | flags | query.flags & RD, 1, count, authority, query.edns)
    return head + query.section + records + (_OUR_OPT if query.edns else b"")


def answer_room(query: Query, limit: int) -> int:
    """Bytes for answer records in a message of ``limit`` bytes."""
    return limit - 12 - len(query.section) - (OPT_SIZE if query.edns else 0)
