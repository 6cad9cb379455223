"""What one session key does: sealing and opening messages, and remembering them. No I/O; randomness is passed in.

Megaki uses one key for AES-256-CBC and HMAC-SHA256, in both directions, and its MAC covers neither type nor length. So
both ends keep the MACs of everything that was sent and accepted under a key, and refuse what has one of those (K4): that
stops replay, reflection and a change of type without changing a byte on the wire.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from mikanet.errors import AuthenticationError, LocalProtocolError
from mikanet.megaki.wire import AES_BLOCK, KEY, TOKEN, Kind, Message, encode_message

#: Requests under one key, after which the session has to be resumed (K4).
MAX_MESSAGES = 4096

#: How much of a MAC is remembered, in bytes.
_MARK = 8

RandomBytes = Callable[[int], bytes]

_CBC = modes.CBC(bytes(AES_BLOCK))


def mix(first: bytes, second: bytes) -> bytes:
    """``(NOT first) XOR second``: how Megaki makes a key from two contributions of 32 bytes."""
    return (~int.from_bytes(first) & _ONES ^ int.from_bytes(second)).to_bytes(KEY)


_ONES = (1 << KEY * 8) - 1


def tag(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes."""
    return hmac.digest(key, data, "sha256")


def tagger(key: bytes) -> Callable[[bytes], bytes]:
    """HMAC-SHA256 with one key again and again: the hashes of both paddings are made once (RFC 2104, section 4)."""
    block = key.ljust(_HASH_BLOCK, b"\0")
    inner, outer = sha256(block.translate(_INNER)), sha256(block.translate(_OUTER))

    def tag(data: bytes) -> bytes:
        first, second = inner.copy(), outer.copy()
        first.update(data)
        second.update(first.digest())
        return second.digest()

    return tag


_HASH_BLOCK = 64
_INNER, _OUTER = (bytes(byte ^ padding for byte in range(256)) for padding in (0x36, 0x5C))


def check_tag(key: bytes, data: bytes, mac: bytes) -> None:
    """Compare in constant time.

    :raises AuthenticationError: if ``mac`` is not the tag of ``data``.
    """
    if not hmac.compare_digest(hmac.digest(key, data, "sha256"), mac):
        raise AuthenticationError("wrong MAC")


def cbc_encrypt(key: bytes, iv: bytes, padded: bytes) -> bytes:
    """IV and ciphertext of whole blocks."""
    return iv + Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor().update(padded)


def cbc_decrypt(key: bytes, sealed: bytes) -> bytes:
    """Plaintext blocks of IV and ciphertext."""
    return Cipher(algorithms.AES(key), modes.CBC(sealed[:AES_BLOCK])).decryptor().update(sealed[AES_BLOCK:])


class SessionKey:
    """A master key with its cipher contexts and its memory.

    Setting up a context costs ten times as much as a short message does, so that each direction has one for good, from
    its first message on: the keys of a resumption on its way see one message at most. For decryption the IV is simply fed as
    a first block whose result is dropped. For encryption the context's last block is taken out of the first plaintext
    block, and the IV put in.

    :ivar key: the 32 bytes.
    """

    __slots__ = ("_chain", "_decryptor", "_encryptor", "_seen", "_tag", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._tag: Callable[[bytes], bytes] | None = None
        self._encryptor: CipherContext | None = None
        self._decryptor: CipherContext | None = None
        self._chain = 0
        self._seen: set[bytes] = set()

    @property
    def remembered(self) -> int:
        """Number of MACs kept, 40 to 80 bytes of memory each."""
        return len(self._seen)

    @property
    def spent(self) -> bool:
        """Whether the key has carried as many requests as it may."""
        return len(self._seen) >= 2 * MAX_MESSAGES

    def rest(self) -> None:
        """Nobody uses the key for now: give back what can be made again, some kilobytes."""
        self._tag = self._encryptor = self._decryptor = None
        self._chain = 0

    def tag(self, data: bytes) -> bytes:
        """The MAC of IV and ciphertext."""
        if self._tag is None:
            self._tag = tagger(self.key)
        return self._tag(data)

    def seal(self, kind: Kind, token: bytes, plain: bytes, random_bytes: RandomBytes) -> bytes:
        """A message packet. IV and padding are one draw of random bytes, IV first."""
        length = len(plain)
        fresh = random_bytes(AES_BLOCK + -length % AES_BLOCK)
        iv, padded = fresh[:AES_BLOCK], plain + fresh[AES_BLOCK:]
        sealed = iv
        if padded:
            first = int.from_bytes(padded[:AES_BLOCK]) ^ int.from_bytes(iv) ^ self._chain
            if self._encryptor is None:
                self._encryptor = Cipher(algorithms.AES(self.key), _CBC).encryptor()
            ciphertext = self._encryptor.update(first.to_bytes(AES_BLOCK) + padded[AES_BLOCK:])
            self._chain = int.from_bytes(ciphertext[-AES_BLOCK:])
            sealed = iv + ciphertext
        mac = self.tag(sealed)
        self._seen.add(mac[:_MARK])
        return encode_message(kind, length, token, mac, sealed)

    def open(self, message: Message, token: bytes) -> bytes:
        """The plaintext of a message for this session.

        :raises AuthenticationError: if token or MAC are wrong, or the MAC was there before; nothing changes then.
        """
        mac = message.mac
        if not hmac.compare_digest(message.token, token):
            raise AuthenticationError("another session's token")
        if not hmac.compare_digest(self.tag(message.sealed), mac):
            raise AuthenticationError("wrong MAC")
        mark = mac[:_MARK]
        if mark in self._seen:
            raise AuthenticationError("a MAC that was there before")
        self._seen.add(mark)
        if self._decryptor is None:
            self._decryptor = Cipher(algorithms.AES(self.key), _CBC).decryptor()
        return self._decryptor.update(message.sealed)[AES_BLOCK : AES_BLOCK + message.length]


class SavedSession:
    """What a client keeps to resume a session: token and master key, 48 bytes as the original stores them."""

    __slots__ = ("master", "token")

    def __init__(self, token: bytes, master: bytes) -> None:
        self.token = token
        self.master = master

    def __repr__(self) -> str:
        return "<SavedSession>"

    def to_bytes(self) -> bytes:
        """Token (16), then master key (32). A secret."""
        return self.token + self.master

    @classmethod
    def from_bytes(cls, data: bytes) -> SavedSession:
        """What :meth:`to_bytes` made.

        :raises LocalProtocolError: if it has not 48 bytes.
        """
        if len(data) != TOKEN + KEY:
            raise LocalProtocolError("a saved session has 48 bytes")
        return cls(data[:TOKEN], data[TOKEN:])
