"""Where a message hides in DNS: upstream in the question's name, downstream in records of many types. No I/O.

==========  =================================================================================================
type        the message in the answer
==========  =================================================================================================
NULL        the record's data
TXT         strings of up to 255 bytes, as they are
CNAME       one name below the zone, base32
MX          names below the zone, base32; preferences 10, 20, ... give their order
A, AAAA     length (2 bytes), message and padding in pieces of 3 and 14 bytes; an address begins with 64 + its
            number, or with 2a and its number, so that it looks public
==========  =================================================================================================
"""

from __future__ import annotations

import struct

from mikanet.errors import RemoteProtocolError
from mikanet.wire import dns
from mikanet.wire.base32 import decode, encode

#: Types that carry messages, the best first.
CARRYING = (dns.NULL, dns.TXT, dns.CNAME, dns.MX, dns.AAAA, dns.A)

#: A pointer to the name of the question, which begins behind the header.
_POINTER = b"\xc0\x0c"
_RECORD = struct.Struct("!2sHHIH")
_RECORD_SIZE = _RECORD.size
_A_FIRST, _A_PIECE = 64, 3
_AAAA_FIRST, _AAAA_PIECE = 0x2A, 14
#: Records of one answer that carry addresses or mail servers.
_MOST_RECORDS = 60


def name_room(zone: bytes, limit: int = dns.MAX_NAME) -> int:
    """Bytes of a message that fit into a name of at most ``limit`` bytes that ends in ``zone``."""
    characters = limit - len(zone)
    characters -= -(-characters // (dns.MAX_LABEL + 1))
    return max(0, characters * 5 // 8)


def to_labels(message: bytes) -> bytes:
    """A message as labels, each with its length."""
    text = encode(message)
    size = len(text)
    if size <= dns.MAX_LABEL:
        return bytes((size,)) + text
    return b"".join(
        bytes((min(dns.MAX_LABEL, size - at),)) + text[at : at + dns.MAX_LABEL] for at in range(0, size, dns.MAX_LABEL)
    )


def from_labels(labels: list[bytes]) -> bytes:
    """The message in labels.

    :raises RemoteProtocolError: if they are not base32.
    """
    return decode(labels[0] if len(labels) == 1 else b"".join(labels))


def records_room(kind: int, room: int, zone: bytes) -> int:
    """Bytes of a message that fit into ``room`` bytes of answer records."""
    if kind == dns.NULL:
        return max(0, room - _RECORD_SIZE)
    if kind == dns.TXT:
        strings = max(0, room - _RECORD_SIZE)
        return strings - -(-strings // 256)
    names = name_room(zone)
    whole_name = dns.MAX_NAME - len(zone) + 2
    if kind == dns.CNAME:
        return min(names, name_room(zone, room - _RECORD_SIZE - 2 + len(zone)))
    if kind == dns.MX:
        return min(_MOST_RECORDS, room // (_RECORD_SIZE + 2 + whole_name)) * names
    piece = _AAAA_PIECE if kind == dns.AAAA else _A_PIECE
    record = _RECORD_SIZE + (16 if kind == dns.AAAA else 4)
    return max(0, min(_MOST_RECORDS, room // record) * piece - 2)


def to_records(kind: int, message: bytes, zone: bytes, zone_at: int) -> tuple[int, bytes]:
    """A message as answer records: how many, and their bytes.

    :param zone_at: where in the answer the zone's name stands, for names to point at.
    """
    if kind == dns.NULL:
        return 1, _RECORD.pack(_POINTER, kind, dns.IN, 0, len(message)) + message
    if kind == dns.TXT:
        strings = b"".join(
            bytes((min(255, len(message) - at),)) + message[at : at + 255] for at in range(0, len(message), 255)
        )
        return 1, _RECORD.pack(_POINTER, kind, dns.IN, 0, len(strings)) + strings
    end = (0xC000 | zone_at).to_bytes(2, "big")
    if kind == dns.CNAME:
        pieces = [to_labels(message) + end]
    elif kind == dns.MX:
        step = name_room(zone)
        pieces = [
            (10 * number + 10).to_bytes(2, "big") + to_labels(message[at : at + step]) + end
            for number, at in enumerate(range(0, len(message), step))
        ]
    else:
        pieces = _addresses(kind, message)
    return len(pieces), b"".join(_RECORD.pack(_POINTER, kind, dns.IN, 0, len(data)) + data for data in pieces)


def _addresses(kind: int, message: bytes) -> list[bytes]:
    whole = len(message).to_bytes(2, "big") + message
    if kind == dns.A:
        step, heads = _A_PIECE, [bytes((_A_FIRST + number,)) for number in range(_MOST_RECORDS)]
    else:
        step, heads = _AAAA_PIECE, [bytes((_AAAA_FIRST, number)) for number in range(_MOST_RECORDS)]
    return [heads[at // step] + whole[at : at + step].ljust(step, b"\0") for at in range(0, len(whole), step)]


def from_answer(answer: bytes, kind: int, section_size: int, zone: bytes) -> bytes:
    """The message in an answer.

    :param section_size: bytes of the question in it.
    :raises RemoteProtocolError: if there is none.
    """
    at = 12 + section_size
    if kind in (dns.NULL, dns.TXT) and answer[at : at + 2] == _POINTER and answer[6:8] == b"\0\1":
        if len(answer) < at + _RECORD_SIZE:
            raise RemoteProtocolError("a DNS record runs out of its message")
        _, found, _, _, size = _RECORD.unpack_from(answer, at)
        at += _RECORD_SIZE
        if found == kind and len(answer) >= at + size:
            data = answer[at : at + size]
            return data if kind == dns.NULL else _strings(data)
    message = dns.Message.decode(answer)
    records = [record.data for record in message.answers if record.type == kind]
    if not records:
        raise RemoteProtocolError("a DNS answer without a record")
    if kind == dns.NULL:
        return records[0]
    if kind == dns.TXT:
        return _strings(records[0])
    if kind == dns.CNAME:
        return _from_name(records[0], zone)
    if kind == dns.MX:
        return b"".join(_from_name(data[2:], zone) for data in sorted(records))
    return _from_addresses(kind, records)


def _strings(data: bytes) -> bytes:
    pieces, at = [], 0
    while at < len(data):
        end = at + 1 + data[at]
        pieces.append(data[at + 1 : end])
        at = end
    if at != len(data):
        raise RemoteProtocolError("a TXT record with a broken string")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _from_name(name: bytes, zone: bytes) -> bytes:
    labels = dns.labels_of(name)
    ours = len(dns.labels_of(zone))
    if dns.join_labels(labels[len(labels) - ours :]).lower() != zone.lower() or len(labels) <= ours:
        raise RemoteProtocolError("a name in a DNS answer that is not below the zone")
    return from_labels(labels[: len(labels) - ours])


def _from_addresses(kind: int, records: list[bytes]) -> bytes:
    head = 1 if kind == dns.A else 2
    whole = b"".join(data[head:] for data in sorted(set(records)))
    size = int.from_bytes(whole[:2], "big")
    if size > len(whole) - 2:
        raise RemoteProtocolError("addresses are missing from a DNS answer")
    return whole[2 : 2 + size]
