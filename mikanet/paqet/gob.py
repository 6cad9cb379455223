"""The gob encoding of one struct: paqet's messages up to alpha.19. No I/O.

Go's gob sends, in front of each value, what its types are, and a receiver matches fields by name. So the writer here is
a constant and a value, while the reader takes whatever a Go program may describe: other type numbers and names, fields
in any order, fields it does not know. It is no general decoder: nothing but numbers, texts, flags, lists and structs is
built, all of it bounded by the bytes of one message.

The struct, with the Go names that travel::

    Proto { Type uint8; Addr *Addr; TCPF []TCPF }    Addr { Host string; Port int }    TCPF { FIN, SYN, ... bool }

Source: Go's ``encoding/gob`` documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mikanet.errors import RemoteProtocolError

#: Longest message, type descriptions included, in bytes (Q1).
MAX_MESSAGE = 4096
#: The flags of TCPF, in the order of the struct and of their bits.
FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "NS")

_BOOL, _INT, _UINT, _FLOAT, _BYTES, _STRING, _COMPLEX = range(1, 8)
_PROTO, _ADDR, _TCPF, _TCPF_LIST = 64, 65, 66, 67
#: How deep types may stand in one another; the struct itself is three deep.
_MAX_DEPTH = 8


class GobError(RemoteProtocolError):
    """Not a gob of the struct."""


@dataclass(frozen=True, slots=True)
class Proto:
    """One message: ``flags`` are bit masks, ``host`` and ``port`` are empty and 0 where nothing was said."""

    type: int
    host: str = ""
    port: int = 0
    flags: tuple[int, ...] = ()


# -- writing


def _uint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes((256 - len(digits),)) + digits


def _int(value: int) -> bytes:
    return _uint(value << 1 if value >= 0 else ~value << 1 | 1)


def _string(text: str) -> bytes:
    data = text.encode()
    return _uint(len(data)) + data


def _struct(fields: dict[int, bytes]) -> bytes:
    """Fields by number from 0, each as the distance to the one before; those that are zero are left out."""
    out, last = b"", -1
    for number, value in sorted(fields.items()):
        out += _uint(number - last) + value
        last = number
    return out + b"\0"


def _message(type_id: int, content: bytes) -> bytes:
    body = _int(type_id) + content
    return _uint(len(body)) + body


def _struct_type(type_id: int, name: str, fields: list[tuple[str, int]]) -> bytes:
    common = _struct({0: _string(name), 1: _int(type_id)} if name else {1: _int(type_id)})
    listed = _uint(len(fields)) + b"".join(_struct({0: _string(field), 1: _int(kind)}) for field, kind in fields)
    return _message(-type_id, _struct({2: _struct({0: common, 1: listed})}))


def _slice_type(type_id: int, name: str, element: int) -> bytes:
    return _message(
        -type_id, _struct({1: _struct({0: _struct({0: _string(name), 1: _int(type_id)}), 1: _int(element)})})
    )


#: What the original writes in front of every value.
DESCRIPTORS = (
    _struct_type(_PROTO, "Proto", [("Type", _UINT), ("Addr", _ADDR), ("TCPF", _TCPF_LIST)])
    + _struct_type(_ADDR, "Addr", [("Host", _STRING), ("Port", _INT)])
    + _slice_type(_TCPF_LIST, "[]conf.TCPF", _TCPF)
    + _struct_type(_TCPF, "TCPF", [(name, _BOOL) for name in FLAG_NAMES])
)


def encode(proto: Proto, has_address: bool) -> bytes:
    """A message with its type descriptions."""
    fields = {0: _uint(proto.type)}
    if has_address:
        address = {0: _string(proto.host)} if proto.host else {}
        fields[1] = _struct(address | ({1: _int(proto.port)} if proto.port else {}))
    if proto.flags:
        fields[2] = _uint(len(proto.flags)) + b"".join(
            _struct({bit: b"\1" for bit in range(len(FLAG_NAMES)) if mask >> bit & 1}) for mask in proto.flags
        )
    return DESCRIPTORS + _message(_PROTO, _struct(fields))


# -- reading


class _Cursor:
    """Reads the parts of one message, which is there as a whole."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def uint(self) -> int:
        first = self.take(1)[0]
        if first < 128:
            return first
        if first < 248:
            raise GobError("a number is longer than numbers are")
        return int.from_bytes(self.take(256 - first), "big")

    def sint(self) -> int:
        value = self.uint()
        return ~(value >> 1) if value & 1 else value >> 1

    def string(self) -> str:
        try:
            return self.take(self.uint()).decode()
        except UnicodeDecodeError:
            raise GobError("a text is not UTF-8") from None

    def take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise GobError("a message ends too early")
        self._at += count
        return data

    def count(self) -> int:
        """The number of elements to come; each takes at least a byte."""
        count = self.uint()
        if count > len(self._data) - self._at:
            raise GobError("a list is longer than its message")
        return count

    def fields(self) -> Iterator[int]:
        """The numbers of the fields of a struct; the caller reads each value before it asks for the next."""
        number = -1
        while delta := self.uint():
            number += delta
            yield number


@dataclass(frozen=True, slots=True)
class _Slice:
    element: int
    key: int = 0  # of a map, which is a list of pairs


@dataclass(frozen=True, slots=True)
class _Struct:
    fields: tuple[tuple[str, int], ...]


_Type = _Slice | _Struct


class GobReader:
    """Takes the bytes of a stream until one value is there.

    :ivar used: bytes that belonged to it; the original throws away what came in the same read.
    """

    __slots__ = ("_data", "_types", "used")

    def __init__(self) -> None:
        self._data = b""
        self._types: dict[int, _Type] = {}
        self.used = 0

    def feed(self, data: bytes) -> Proto | None:
        """The value, when it is there.

        :raises GobError: for anything but a described value of the struct, and above :data:`MAX_MESSAGE`.
        """
        self._data += data
        while (body := self._next()) is not None:
            cursor = _Cursor(body)
            type_id = cursor.sint()
            if type_id < 0:
                self._types[-type_id] = _read_type(cursor)
            else:
                return self._read_proto(cursor, type_id)
        return None

    def _next(self) -> bytes | None:
        """The next length-prefixed message of the gob stream."""
        at, data = self.used, self._data
        if at >= len(data):
            return None
        first = data[at]
        digits = 0 if first < 128 else 256 - first
        if digits > 2:
            raise GobError("a message is longer than it may be")
        if len(data) < at + 1 + digits:
            return None
        length = int.from_bytes(data[at + 1 : at + 1 + digits], "big") if digits else first
        end = at + 1 + digits + length
        if end > MAX_MESSAGE or not length:
            raise GobError("a message is longer than it may be, or empty")
        if len(data) < end:
            return None
        self.used = end
        return data[end - length : end]

    # -- the struct, by the names of its fields

    def _read_proto(self, cursor: _Cursor, type_id: int) -> Proto:
        kind, host, port = 0, "", 0
        flags: tuple[int, ...] = ()
        for name, field in self._struct_fields(cursor, type_id):
            if name == "Type":
                _same_kind(field, _UINT)
                kind = cursor.uint()
            elif name == "Addr":
                host, port = self._read_address(cursor, field)
            elif name == "TCPF":
                flags = self._read_flags(cursor, field)
            else:
                self._skip(cursor, field, 1)
        return Proto(kind, host, port, flags)

    def _read_address(self, cursor: _Cursor, type_id: int) -> tuple[str, int]:
        host, port = "", 0
        for name, field in self._struct_fields(cursor, type_id):
            if name == "Host":
                _same_kind(field, _STRING)
                host = cursor.string()
            elif name == "Port":
                _same_kind(field, _INT)
                port = cursor.sint()
            else:
                self._skip(cursor, field, 2)
        return host, port

    def _read_flags(self, cursor: _Cursor, type_id: int) -> tuple[int, ...]:
        listed = self._types.get(type_id)
        if not isinstance(listed, _Slice) or listed.key:
            raise GobError("the flags are not described as a list")
        return tuple(self._read_mask(cursor, listed.element) for _ in range(cursor.count()))

    def _read_mask(self, cursor: _Cursor, type_id: int) -> int:
        mask = 0
        for name, field in self._struct_fields(cursor, type_id):
            if name in FLAG_NAMES:
                _same_kind(field, _BOOL)
                if cursor.uint():
                    mask |= 1 << FLAG_NAMES.index(name)
            else:
                self._skip(cursor, field, 3)
        return mask

    def _struct_fields(self, cursor: _Cursor, type_id: int) -> Iterator[tuple[str, int]]:
        """The (name, type) of each field that the struct at the cursor has; the caller reads or skips it."""
        found = self._types.get(type_id)
        if not isinstance(found, _Struct):
            raise GobError("a struct is not described as one")
        fields = found.fields
        for number in cursor.fields():
            if number >= len(fields):
                raise GobError("a field is not in the description")
            yield fields[number]

    def _skip(self, cursor: _Cursor, type_id: int, depth: int) -> None:
        """Pass over a value that nobody asked for."""
        if depth > _MAX_DEPTH:
            raise GobError("types stand too deep in one another")
        if type_id in (_BOOL, _INT, _UINT, _FLOAT):
            cursor.uint()
        elif type_id in (_BYTES, _STRING):
            cursor.take(cursor.uint())
        elif type_id == _COMPLEX:
            cursor.uint()
            cursor.uint()
        else:
            described = self._types.get(type_id)
            if isinstance(described, _Struct):
                for _, field in self._struct_fields(cursor, type_id):
                    self._skip(cursor, field, depth + 1)
            elif described is not None:
                for _ in range(cursor.count()):
                    if described.key:
                        self._skip(cursor, described.key, depth + 1)
                    self._skip(cursor, described.element, depth + 1)
            else:
                raise GobError("a type is not described")


def _same_kind(found: int, wanted: int) -> None:
    if found != wanted:
        raise GobError("a field is of another kind")


def _read_type(cursor: _Cursor) -> _Type:
    """A type description: exactly one of array, slice, struct and map."""
    described: list[_Type] = []
    for which in cursor.fields():
        if which in (0, 1):
            described.append(_Slice(_read_numbers(cursor).get(1, 0)))
        elif which == 2:
            described.append(_read_struct(cursor))
        elif which == 3:
            numbers = _read_numbers(cursor)
            described.append(_Slice(numbers.get(2, 0), numbers.get(1, 0)))
        else:
            raise GobError("a type of a kind that is not known")
    if len(described) != 1:
        raise GobError("a type is described not at all, or twice")
    return described[0]


def _read_numbers(cursor: _Cursor) -> dict[int, int]:
    """What stands behind the name in the description of an array (element, length), slice (element) or map (key, element)."""
    found = {}
    for number in cursor.fields():
        if number == 0:
            _read_common(cursor)
        else:
            found[number] = cursor.sint()
    return found


def _read_struct(cursor: _Cursor) -> _Struct:
    fields: list[tuple[str, int]] = []
    for number in cursor.fields():
        if number == 0:
            _read_common(cursor)
        elif number == 1:
            fields = [_read_common(cursor) for _ in range(cursor.count())]
        else:
            raise GobError("a struct is described in a way that is not known")
    return _Struct(tuple(fields))


def _read_common(cursor: _Cursor) -> tuple[str, int]:
    """A name and a type number: what a type and a field both have."""
    name, type_id = "", 0
    for number in cursor.fields():
        if number == 0:
            name = cursor.string()
        elif number == 1:
            type_id = cursor.sint()
        else:
            raise GobError("a name is followed by what is not known")
    return name, type_id
