"""Pickaxe's keys: from a password to the two keys of a session (P1). Plain Python, no I/O.

A password is stretched once and for all: the server keeps only the result, the client computes it once. From that each
login derives its session's keys, which costs next to nothing, so that a flood of logins costs the server little, and a
guess at a password costs the guesser all of it.

Source: the Pickaxe document, "Sessions, authentication": U, P, LID, SID and nonce go in.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass
from enum import Enum

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from mikanet.errors import ConfigError
from mikanet.pickaxe import wire

#: PBKDF2's iterations: ours (OWASP's figure for HMAC-SHA256), and the draft's.
ITERATIONS = 600_000
DRAFT_ITERATIONS = 123_456

KEY_SIZE = 32


class Kdf(Enum):
    """How keys come from a password: our way, or that of the author's draft."""

    MIKANET = "mikanet"
    DRAFT = "draft"


@dataclass(frozen=True)
class SessionKeys:
    """The MAC keys of both directions."""

    client: bytes
    server: bytes

    def __repr__(self) -> str:
        return "SessionKeys(...)"


@dataclass(frozen=True)
class Handshake:
    """What a login and its response say, all of which goes into the keys."""

    user: str
    requested: tuple[int, int]
    response: wire.LoginResponse


def normal_user(user: str) -> str:
    """A user's name as it goes over the wire: NFC, 1 to 255 bytes.

    :raises ConfigError: if it is empty, too long, or has unprintable characters.
    """
    name = unicodedata.normalize("NFC", user)
    if not name or len(name.encode()) > wire.MAX_USER or not name.isprintable():
        raise ConfigError("a user's name has 1 to 255 bytes, all of them printable characters")
    return name


def stretch(user: str, password: bytes) -> bytes:
    """The secret that the users file keeps instead of the password; takes about a tenth of a second."""
    salt = hashlib.sha256(b"pickaxe" + user.encode()).digest()
    return hashlib.pbkdf2_hmac("sha256", password, salt, ITERATIONS, KEY_SIZE)


def derive(stretched: bytes, handshake: Handshake) -> SessionKeys:
    """The keys of one session. What a peer says of its version goes in, so nobody can talk it down."""
    response = handshake.response
    versions = bytes(handshake.requested) + bytes(response.version)
    salt = response.lid + response.sid + response.nonce
    info = b"pickaxe" + versions + handshake.user.encode()
    key = HKDF(SHA256(), KEY_SIZE, salt, info).derive(stretched)
    client, server = (HKDFExpand(SHA256(), KEY_SIZE, label).derive(key) for label in (b"client mac", b"server mac"))
    return SessionKeys(client, server)


def derive_draft(user: str, password: bytes, response: wire.LoginResponse, iterations: int = DRAFT_ITERATIONS) -> bytes:
    """The key of one session in the author's draft, one for both directions; takes tens of milliseconds."""
    salt = response.lid + response.sid + response.nonce + user.encode()
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations, KEY_SIZE)


@dataclass(frozen=True)
class Secret:
    """What one user's sessions are derived from.

    :ivar value: the stretched password, or for :attr:`Kdf.DRAFT` the password itself.
    """

    kdf: Kdf
    value: bytes

    def __repr__(self) -> str:
        return f"Secret({self.kdf}, ...)"

    @classmethod
    def of_password(cls, kdf: Kdf, user: str, password: bytes) -> Secret:
        """From a password; stretches it if that is the way."""
        return cls(kdf, password if kdf is Kdf.DRAFT else stretch(user, password))

    def session_keys(self, handshake: Handshake) -> SessionKeys:
        """The keys of one session."""
        if self.kdf is Kdf.DRAFT:
            key = derive_draft(handshake.user, self.value, handshake.response)
            return SessionKeys(key, key)
        return derive(self.value, handshake)


class Mac:
    """M for one direction: the first 8 bytes of HMAC-SHA256.

    Two keyed hashes that are copied for each packet take half of the time of an HMAC object for small packets.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(each ^ 0x36 for each in block))
        self._outer = hashlib.sha256(bytes(each ^ 0x5C for each in block))

    def tag(self, head: bytes, *body: bytes | memoryview) -> bytes:
        """M over ``head`` and ``body``."""
        inner = self._inner.copy()
        inner.update(head)
        for part in body:
            inner.update(part)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()[: wire.MAC_SIZE]

    def matches(self, tag: bytes, head: bytes, body: bytes | memoryview) -> bool:
        """Whether ``tag`` is right, in a time that does not depend on where it is wrong."""
        return hmac.compare_digest(tag, self.tag(head, body))
