"""Megaki's packets: layouts and a reader. No I/O, no cryptography but the hash inside SYN.

Every packet begins with five bytes of magic and a type byte; numbers are big-endian. Source: the protocol page, and the
structures of the original's ``megaki.h``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from mikanet.crypto.rsa_oaep import BLOCK, MAX_PLAIN, RAW_PUBLIC
from mikanet.errors import RemoteProtocolError

MAGIC = bytes.fromhex("4d474baaca")
VERSION = bytes.fromhex("0aff")

#: Sizes in bytes: header (magic and type), token, MAC, keys and augments, AES block and IV.
HEADER, TOKEN, MAC, KEY, AES_BLOCK = 6, 16, 32, 32, 16

#: Most plaintext bytes of a message that we send or take (K1), which is the original client's limit.
MAX_MESSAGE = 1024 * 1024

#: In place of the token in the plaintext of SYNACK: an error code stands where the key would.
ERROR_TOKEN = b"\xee" * TOKEN


class Kind(enum.IntEnum):
    """The type byte."""

    SYN = 1
    SYNACK = 2
    ACK = 3
    MSG = 4
    MSG_RSTOR = 5
    RSTORACK = 6
    REQ_REHS = 7
    ACKACK = 8


class ErrorCode(enum.IntEnum):
    """First byte of the 32 of an error code; the original fills the rest with zeros, or with 0xff after the first."""

    INCOMPATIBLE_VERSION = 1
    SERVICE_UNAVAILABLE = 2
    BLACKLISTED = 3


class Syn(NamedTuple):
    """SHA-256 of the plaintext, and two blocks under the server's key."""

    digest: bytes
    blocks: bytes


class SynAck(NamedTuple):
    """MAC over the block, the token in clear, and one block under the client's key."""

    mac: bytes
    token: bytes
    block: bytes


class Ack(NamedTuple):
    """MAC over ``sealed``, the token in clear, and IV with 48 bytes of ciphertext."""

    mac: bytes
    token: bytes
    sealed: bytes


class Message(NamedTuple):
    """MSG, MSG_RSTOR or RSTORACK: ``length`` plaintext bytes, and IV with ciphertext in ``sealed``."""

    kind: Kind
    length: int
    token: bytes
    mac: bytes
    sealed: bytes


class Bare(NamedTuple):
    """ACKACK or REQ_REHS: a header and nothing else."""

    kind: Kind


Packet = Syn | SynAck | Ack | Message | Bare

_MESSAGE = struct.Struct("!5sBI16s32s")
_MESSAGE_HEAD = _MESSAGE.size + AES_BLOCK
_FIXED = {Kind.SYN: 550, Kind.SYNACK: 310, Kind.ACK: 118, Kind.ACKACK: HEADER, Kind.REQ_REHS: HEADER}
_AUGMENTED = frozenset({Kind.MSG_RSTOR, Kind.RSTORACK})
_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


def encode_bare(kind: Kind) -> bytes:
    """ACKACK or REQ_REHS."""
    return MAGIC + bytes([kind])


def encode_syn(plain: bytes, encrypt: Callable[[bytes], bytes]) -> bytes:
    """SYN from its 294 plaintext bytes. ``encrypt`` makes 256 bytes under the server's key from at most 214."""
    blocks = b"".join(encrypt(piece) for piece in chain_blocks(plain))
    return MAGIC + bytes([Kind.SYN]) + sha256(plain).digest() + blocks


def syn_plain(raw_public: bytes, ephemeral: bytes, version: bytes = VERSION) -> bytes:
    """The plaintext of SYN: the client's key (260 bytes), the ephemeral key (32) and the version (2)."""
    return raw_public + ephemeral + version


def open_syn(syn: Syn, decrypt: Callable[[bytes], bytes]) -> tuple[bytes, bytes, bytes]:
    """The client's raw key, the ephemeral key and the version in a SYN.

    :raises RemoteProtocolError: if it is not whole, or its hash is another.
    """
    first, second = decrypt(syn.blocks[:BLOCK]), decrypt(syn.blocks[BLOCK:])
    plain = first + _xor(second, first)
    if len(first) != MAX_PLAIN or len(plain) != RAW_PUBLIC + KEY + len(VERSION) or sha256(plain).digest() != syn.digest:
        raise RemoteProtocolError("SYN's content is not what its hash says")
    return plain[:RAW_PUBLIC], plain[RAW_PUBLIC : RAW_PUBLIC + KEY], plain[RAW_PUBLIC + KEY :]


def chain_blocks(plain: bytes) -> list[bytes]:
    """``plain`` in blocks of 214 bytes, each but the first XORed with the one before it."""
    blocks = [plain[:MAX_PLAIN]]
    for at in range(MAX_PLAIN, len(plain), MAX_PLAIN):
        blocks.append(_xor(plain[at : at + MAX_PLAIN], blocks[-1]))
    return blocks


def _xor(data: bytes, other: bytes) -> bytes:
    """``data`` XORed with as many bytes of ``other``, as far as that has so many."""
    padded = other[: len(data)].ljust(len(data), b"\0")
    return (int.from_bytes(data) ^ int.from_bytes(padded)).to_bytes(len(data))


def encode_synack(mac: bytes, token: bytes, block: bytes) -> bytes:
    """SYNACK."""
    return MAGIC + bytes([Kind.SYNACK]) + mac + token + block


def encode_ack(mac: bytes, token: bytes, sealed: bytes) -> bytes:
    """ACK."""
    return MAGIC + bytes([Kind.ACK]) + mac + token + sealed


def encode_message(kind: Kind, length: int, token: bytes, mac: bytes, sealed: bytes) -> bytes:
    """MSG, MSG_RSTOR or RSTORACK."""
    return _MESSAGE.pack(MAGIC, kind, length, token, mac) + sealed


def message_size(length: int) -> int:
    """Size of a whole message packet with ``length`` plaintext bytes."""
    return _MESSAGE_HEAD + length + -length % AES_BLOCK


class PacketReader:
    """Packets from a stream in any fragmentation.

    What cannot become a packet that is allowed now is refused as soon as it shows, and no packet above
    ``message_size(max_message)`` is ever waited for.

    :param max_message: most plaintext bytes of a message.
    """

    __slots__ = ("_buffer", "_max_message")

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._max_message = max_message

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes at the end."""
        self._buffer += data

    def next(self, allowed: frozenset[Kind]) -> Packet | None:
        """The next packet, or None while it is not all here.

        :raises RemoteProtocolError: for bytes that do not begin an allowed packet.
        """
        buffer = self._buffer
        if not buffer:
            return None
        size = self._size(buffer, allowed)
        if len(buffer) < size:
            return None
        if len(buffer) == size:
            packet = bytes(buffer)
            self._buffer = bytearray()
        else:
            packet = bytes(buffer[:size])
            del buffer[:size]
        return _decode(packet)

    def _size(self, buffer: bytearray, allowed: frozenset[Kind]) -> int:
        """How long the packet is as far as is known; never less than what it takes to know more."""
        if len(buffer) < HEADER:
            if not MAGIC.startswith(buffer[:HEADER]):
                raise RemoteProtocolError("wrong magic")
            if not allowed:
                raise RemoteProtocolError("nothing may come now")
            return HEADER
        kind = _KINDS.get(buffer[HEADER - 1])
        if not buffer.startswith(MAGIC) or kind not in allowed:
            raise RemoteProtocolError("wrong magic, or a packet of a type that may not come now")
        fixed = _FIXED.get(kind)
        if fixed is not None:
            return fixed
        if len(buffer) < HEADER + 4:
            return HEADER + 4
        length = int.from_bytes(buffer[HEADER : HEADER + 4])
        if kind in _AUGMENTED and length != KEY:
            raise RemoteProtocolError("an augment of another length than 32")
        if length > self._max_message:
            raise RemoteProtocolError("a message that is too long")
        return message_size(length)


def _decode(packet: bytes) -> Packet:
    """A whole packet; its size fits its type."""
    kind = _KINDS[packet[HEADER - 1]]
    if kind is Kind.MSG or kind in _AUGMENTED:
        _, _, length, token, mac = _MESSAGE.unpack_from(packet)
        return Message(kind, length, token, mac, packet[_MESSAGE.size :])
    if kind is Kind.SYN:
        return Syn(packet[6:38], packet[38:])
    if kind is Kind.SYNACK:
        return SynAck(packet[6:38], packet[38:54], packet[54:])
    if kind is Kind.ACK:
        return Ack(packet[6:38], packet[38:54], packet[54:])
    return Bare(kind)
