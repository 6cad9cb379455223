"""Mika's two ends as state machines: bytes in, bytes out. No I/O; time, randomness and memory are passed in."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import CipherContext

from mikanet.crypto.kdf import evp_bytes_to_key, scrypt_key
from mikanet.crypto.replay import ReplaySet
from mikanet.crypto.streams import cfb_decryptor, cfb_encryptor
from mikanet.errors import AuthenticationError, ConfigError
from mikanet.mika.wire import (
    IV_SIZE,
    ChunkReader,
    ChunkWriter,
    DatagramReader,
    Header,
    Kind,
    decode_header,
    encode_datagram,
    encode_header,
    shaped_sizes,
)


class Profile(enum.Enum):
    """Which Mika is spoken.

    ``SPEC`` is the document's: two keys from the two parts of the password. ``GO`` is the original program's: one key
    and one key stream for both directions, so that it protects less; it exists to talk to that program.
    """

    SPEC = "spec"
    GO = "go"


#: Methods by name, with their key sizes in bytes. Profile ``spec`` always uses the last.
METHODS = {"aes-128-cfb": 16, "aes-192-cfb": 24, "aes-256-cfb": 32}

#: Most data bytes that we put into one chunk (M4): the original program refuses more than 4096.
_SENT_CHUNK = {Profile.SPEC: 16384, Profile.GO: 4096}


@dataclass(frozen=True, slots=True)
class Keys:
    """Everything that both ends derive from the password, once.

    :ivar up: key from client to server. :ivar down: key from server to client.
    """

    profile: Profile
    up: bytes = field(repr=False)
    down: bytes = field(repr=False)

    @property
    def http_address(self) -> bool:
        """Whether an HTTP header carries an address."""
        return self.profile is Profile.GO


def derive_keys(password: bytes, profile: Profile = Profile.SPEC, method: str = "aes-256-cfb") -> Keys:
    """The keys of a password (M1). Takes about 0.2 s in profile ``spec``.

    :raises ConfigError: if the method is unknown, or not one of the profile's.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}: use one of {', '.join(METHODS)}")
    if profile is Profile.GO:
        key = evp_bytes_to_key(password, METHODS[method])
        return Keys(profile, key, key)
    if method != "aes-256-cfb":
        raise ConfigError(f"method {method!r} belongs to the profile go: give --profile go, or leave --method out")
    half = (len(password) + 1) // 2
    return Keys(profile, scrypt_key(password[:half], b"mika up"), scrypt_key(password[half:], b"mika down"))


class ClientSession:
    """The client's end of one connection.

    :param iv: 16 random bytes, new for each session.
    :param random_below: a random whole number below its argument; None sends without shaping.
    """

    __slots__ = ("_cipher", "_datagrams", "_down", "_header", "_iv", "_keys", "_writer", "ended")

    def __init__(self, keys: Keys, header: Header, iv: bytes, random_below: Callable[[int], int] | None = None) -> None:
        shaped = shaped_sizes(random_below) if random_below is not None and header.kind is not Kind.UDP else None
        self._keys = keys
        self._header = header
        self._iv = iv
        self._writer = ChunkWriter(iv, header.moment, _SENT_CHUNK[keys.profile], shaped)
        self._cipher = cfb_encryptor(keys.up, iv)
        self._down = cfb_decryptor(keys.down, iv)
        self._datagrams = DatagramReader() if header.kind is Kind.UDP else None
        self.ended = False

    def open(self) -> bytes:
        """The first bytes: IV and header. To be sent before, and in one write with, the first data."""
        return self._iv + self._cipher.update(encode_header(self._header, self._iv, self._keys.up))

    def send(self, data: bytes) -> bytes:
        """Stream data as bytes for the wire."""
        return self._cipher.update(self._writer.write(data)) if data else b""

    def send_datagram(self, data: bytes) -> bytes:
        """One datagram, 1 to 65507 bytes, as bytes for the wire."""
        return self._cipher.update(self._writer.write_one(data))

    def end(self) -> bytes:
        """The end of our direction; nothing on the second call."""
        if self.ended:
            return b""
        self.ended = True
        return self._cipher.update(self._writer.end())

    def receive(self, data: bytes) -> bytes:
        """Stream data from the server."""
        return self._down.update(data)

    def receive_datagrams(self, data: bytes) -> list[bytes]:
        """The datagrams from the server that ``data`` completes."""
        assert self._datagrams is not None
        return self._datagrams.feed(self._down.update(data))


class ServerSession:
    """The server's end of one connection.

    :param replays: what has been accepted before.
    :param wall_clock: Unix time in seconds.
    :ivar header: the request, once it is accepted.
    """

    __slots__ = ("_cipher", "_down", "_head", "_iv", "_keys", "_reader", "_replays", "_wall_clock", "header")

    def __init__(self, keys: Keys, replays: ReplaySet, wall_clock: Callable[[], float]) -> None:
        self._keys = keys
        self._replays = replays
        self._wall_clock = wall_clock
        self._iv = b""
        self._head: bytearray | None = bytearray()
        self._cipher: CipherContext | None = None
        self._down: CipherContext | None = None
        self._reader: ChunkReader | None = None
        self.header: Header | None = None

    @property
    def ended(self) -> bool:
        """Whether the client said that it sends no more."""
        return self._reader is not None and self._reader.ended

    @property
    def unfinished_chunk(self) -> int | None:
        """The id of the chunk that has begun and not ended."""
        reader = self._reader
        return reader.next_id if reader is not None and reader.incomplete else None

    def receive(self, data: bytes) -> list[bytes]:
        """The payloads that ``data`` completes; before the header is accepted, none.

        :raises RemoteProtocolError: on anything that the protocol does not allow; the session is unusable then.
        """
        if self._reader is not None:
            assert self._cipher is not None
            return self._reader.feed(self._cipher.update(data))
        if self._cipher is None:
            missing = IV_SIZE - len(self._iv)
            self._iv += data[:missing]
            if len(self._iv) < IV_SIZE:
                return []
            data = data[missing:]
            self._cipher = cfb_decryptor(self._keys.up, self._iv)
        assert self._head is not None
        self._head += self._cipher.update(data)
        decoded = decode_header(self._head, self._iv, self._keys.up, self._keys.http_address)
        if decoded is None:
            return []
        header, end = decoded
        if not self._replays.accept(self._iv, header.moment, self._wall_clock()):
            raise AuthenticationError("too old, too new, or seen before")
        rest = bytes(self._head[end:])
        self._head = None
        self.header = header
        self._down = cfb_encryptor(self._keys.down, self._iv)
        self._reader = ChunkReader(self._iv, header.moment)
        return self._reader.feed(rest)

    def send(self, data: bytes) -> bytes:
        """Stream data as bytes for the wire."""
        assert self._down is not None
        return self._down.update(data)

    def send_datagram(self, data: bytes) -> bytes:
        """One datagram as bytes for the wire."""
        return self.send(encode_datagram(data))
