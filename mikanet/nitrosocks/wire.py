"""NitroSocks on the wire: packets with masked headers, and the text of a challenge. Plain Python, no I/O.

Each direction begins with 16 random bytes, its salt. Then come packets: a header of 3 bytes (length of the body as u16,
big-endian, and type) under a key stream that only holders of the public half can make, and the body.
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from mikanet.errors import LocalProtocolError, RemoteProtocolError

SALT: Final = 16
HEADER: Final = 3

#: Size of every secret, signature and random value inside packets, in bytes.
SECRET: Final = 32

#: Largest body, in bytes, and largest one before a session stands.
MAX_BODY: Final = 16_400
MAX_HANDSHAKE_BODY: Final = 1024

#: Smallest and largest body of an obfuscation packet.
MIN_JUNK: Final = 16
MAX_JUNK: Final = 1024

#: Size of the encrypted part of a CHALLENGE, and the most random bytes behind it.
CHALLENGE_BLOCK: Final = 256
MAX_CHALLENGE_PAD: Final = 255

#: The bit of the type that says which of two keys a packet is under.
PHASE: Final = 0x80

#: The one version that there is.
VERSION: Final = 1

#: Header masks that are made at a time.
_BATCH: Final = 32


class Type(enum.IntEnum):
    """What a packet is."""

    CHALLENGE = 0x01
    RESPONSE = 0x02
    SESSION = 0x03
    DATA = 0x04
    REFRESH = 0x05
    RECONNECT = 0x06
    RECOVERY = 0x07
    HEARTBEAT = 0x08
    HEARTBEAT_REPLY = 0x09
    DISCONNECT = 0x0A
    DISCONNECT_ACK = 0x0B
    CONFIRM = 0x0C


class EncryptType(enum.IntEnum):
    """Which cipher the challenge asks for; there are no others. The values are those on the wire."""

    AES_128_GCM = 1
    AES_256_GCM = 2

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return 16 * self


class Direction(enum.Enum):
    """Who sends; the value goes into keys and tags."""

    CLIENT = b"c"
    SERVER = b"s"


class HeaderMask:
    """The key stream over the headers of one direction: 3 bytes for each packet, as a number.

    :param key: 32 bytes, for one salt only.
    """

    __slots__ = ("_masks", "_stream")

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
        self._masks: list[int] = []  # the next one last

    def next(self) -> int:
        """The mask of the next packet."""
        if not self._masks:
            stream = self._stream.update(bytes(HEADER * _BATCH))
            self._masks = [int.from_bytes(stream[at - HEADER : at], "big") for at in range(HEADER * _BATCH, 0, -HEADER)]
        return self._masks.pop()


def header(packet_type: int, length: int) -> int:
    """A header in clear, as a number.

    :raises LocalProtocolError: if no packet is that long.
    """
    if not 0 < length <= MAX_BODY:
        raise LocalProtocolError(f"a body of {length} bytes; 1 to {MAX_BODY} are possible")
    return length << 8 | packet_type


def mask_header(number: int, mask: HeaderMask) -> bytes:
    """A header as it travels."""
    return (number ^ mask.next()).to_bytes(HEADER, "big")


class Packet:
    """One packet as it came.

    :ivar header: in clear, as a number. :ivar body: still sealed. :ivar type: with its phase bit taken off.
    :ivar phase: 0 or ``PHASE``.
    """

    __slots__ = ("body", "header", "phase", "type")

    def __init__(self, number: int, body: memoryview | bytes) -> None:
        self.header = number
        self.type = number & 0x7F
        self.phase = number & PHASE
        self.body = body


class PacketReader:
    """Cuts one direction of a connection into packets. At most one packet and what was fed last is kept.

    :ivar salt: the peer's, once it is here. :ivar mask: to be set when the salt is; without it no packet is read.
    :ivar limit: largest body that is taken now.
    """

    __slots__ = ("_at", "_data", "_number", "_pieces", "_size", "limit", "mask", "salt")

    def __init__(self, limit: int = MAX_HANDSHAKE_BODY) -> None:
        self.limit = limit
        self.salt: bytes | None = None
        self.mask: HeaderMask | None = None
        self._data = b""
        self._at = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._number: int | None = None

    def feed(self, data: bytes) -> None:
        """Bytes of the stream. Packets are taken with :meth:`next` afterwards."""
        self._pieces.append(data)
        self._size += len(data)

    def next(self) -> Packet | None:
        """The next packet, None until it is all here. With the salt read and no mask set: None.

        :raises RemoteProtocolError: for a length that is not possible now; nothing can be read afterwards.
        """
        if self.mask is None:
            if self.salt is None:
                if not self._gather(SALT):
                    return None
                self.salt = self._take(SALT)
            return None
        number = self._number
        if number is None:
            if len(self._data) - self._at < HEADER and not self._gather(HEADER):
                return None
            at = self._at
            self._at = at + HEADER
            number = int.from_bytes(self._data[at : at + HEADER], "big") ^ self.mask.next()
            if not 0 < number >> 8 <= self.limit:
                raise RemoteProtocolError("a packet of an impossible length")
        length = number >> 8
        if len(self._data) - self._at < length and not self._gather(length):
            self._number = number
            return None
        self._number = None
        at = self._at
        self._at = at + length
        return Packet(number, memoryview(self._data)[at : at + length])

    def _take(self, size: int) -> bytes:
        at = self._at
        self._at = at + size
        return self._data[at : at + size]

    def _gather(self, size: int) -> bool:
        """Whether ``size`` more bytes are here; if so, they are in one piece."""
        left = len(self._data) - self._at
        if left >= size:
            return True
        if left + self._size < size:
            return False
        pieces, self._pieces = self._pieces, []
        if left:
            pieces.insert(0, self._data[self._at :])
        self._data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._at = 0
        self._size = 0
        return True


# -- the text of a challenge


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the server sends under the public half.

    :ivar r1: 32 random bytes of this connection. :ivar token_temp: the key of the handshake.
    :ivar version: None where the field is absent, which means 1.
    """

    r1: bytes = field(repr=False)
    token_temp: bytes = field(repr=False)
    encrypt_type: EncryptType = EncryptType.AES_256_GCM
    version: int | None = VERSION


_TEXT = re.compile(rb"([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{8})(?:\.([0-9a-f]{8}))?")


def encode_challenge(challenge: Challenge) -> bytes:
    """``R1.TokenTemp.encryptType[.NSVersion]``: two values in base64url without padding, one or two of 8 hex digits."""
    text = b"%s.%s.%08x" % (_to_text(challenge.r1), _to_text(challenge.token_temp), challenge.encrypt_type)
    return text if challenge.version is None else text + b".%08x" % challenge.version


def decode_challenge(text: bytes) -> Challenge:
    """A challenge from its text.

    :raises RemoteProtocolError: if it is none, or one of a version or cipher that there is not.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise RemoteProtocolError("not the text of a challenge")
    version = None if match[4] is None else int(match[4], 16)
    if version not in (None, VERSION):
        raise RemoteProtocolError(f"a server of version {version}; we speak {VERSION}")
    try:
        encrypt_type = EncryptType(int(match[3], 16))
    except ValueError:
        raise RemoteProtocolError(f"a cipher of unknown number {int(match[3], 16)}") from None
    return Challenge(_from_text(match[1]), _from_text(match[2]), encrypt_type, version)


def _to_text(value: bytes) -> bytes:
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def _from_text(text: bytes) -> bytes:
    try:
        value = base64.urlsafe_b64decode(text + b"=")
    except binascii.Error:
        raise RemoteProtocolError("not base64url") from None
    if _to_text(value) != text:
        raise RemoteProtocolError("base64url with stray bits")
    return value
