"""NitroSocks' keys: everything that is derived, signed, sealed and opened. Plain Python; randomness is passed in.

``K0`` masks headers and comes from the public half, TokenTemp seals the handshake, SessionKeys seal the rest; these last
need the token as well, so that who broke RSA still has nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mikanet.crypto.totp import totp
from mikanet.errors import AuthenticationError, RemoteProtocolError
from mikanet.nitrosocks.wire import Direction, EncryptType

#: Size of an AEAD tag and nonce, in bytes.
TAG: Final = 16
NONCE: Final = 12

#: What every tag covers first.
_LABEL: Final = b"NS1"

#: Size of a locator, in bytes.
LOCATOR: Final = 16

#: Digits of the one-time password.
DIGITS: Final = 8

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


def sha256(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF with SHA-256 (RFC 5869); an empty salt is 32 zero bytes, as there."""
    return hkdf_expand(hmac.digest(salt or bytes(32), secret, "sha256"), info, length)


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """The second half of HKDF."""
    out = block = b""
    counter = 1
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes((counter,)), "sha256")
        out += block
        counter += 1
    return out[:length]


# -- the key pair


def frame_key(public: rsa.RSAPublicKey) -> bytes:
    """K0, from the public half: what tells a holder's view of the headers from everybody else's."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hkdf(sha256(der), _LABEL, b"frame", 32)


def length_key(k0: bytes, salt: bytes, direction: Direction) -> bytes:
    """The key of the header mask of one direction of one connection."""
    return hkdf(k0, salt, b"len " + direction.value, 32)


def mask_challenge(block: bytes, k0: bytes, salt: bytes) -> bytes:
    """A challenge's block as it travels, or back: RSA's own output is below the modulus, which shows in its first byte.

    :param salt: the server's.
    """
    mask = hkdf(k0, salt, b"challenge", len(block))
    return (int.from_bytes(block, "big") ^ int.from_bytes(mask, "big")).to_bytes(len(block), "big")


def encrypt_challenge(public: rsa.RSAPublicKey, text: bytes) -> bytes:
    """A challenge's text under the public half: 256 bytes."""
    return public.encrypt(text, _OAEP)


def decrypt_challenge(private: rsa.RSAPrivateKey, block: bytes) -> bytes:
    """A challenge's text.

    :raises RemoteProtocolError: if the block is not good; why is not said.
    """
    try:
        return private.decrypt(block, _OAEP)
    except ValueError:
        raise RemoteProtocolError("a challenge that cannot be decrypted") from None


# -- proofs


def one_time_password(token: bytes, step: int) -> bytes:
    """TOTP(Token) of a time step."""
    return totp(token, step, DIGITS).encode()


def sign(token: bytes, r1: bytes, password: bytes) -> bytes:
    """The client's signature: Sha256(Sha256(Token, R1 as salt) + TOTP(Token))."""
    return sha256(sha256(token + r1) + password)


def server_proof(token: bytes, transcript: bytes, signature: bytes) -> bytes:
    """What SESSION and RECOVERY carry inside their tag: that the server knows the token too (N5)."""
    return hmac.digest(token, b"ns1 server" + transcript + signature, "sha256")


def make_transcript(client_salt: bytes, server_salt: bytes, challenge_body: bytes, binding: bytes = b"") -> bytes:
    """What ties keys to one connection.

    :param binding: the TLS exporter's value where both ends ask for that (N11).
    """
    return sha256(client_salt + server_salt + challenge_body + binding)


def locator_of(session_key: bytes) -> bytes:
    """By which a server finds the session of a RECONNECT; tells nothing of the key."""
    return hkdf(session_key, b"", b"locator", LOCATOR)


# -- sealing


class PacketKey:
    """The key of one direction under one secret: seals or opens packets, each with the next sequence number.

    :ivar sequence: how many packets have been under it.
    """

    __slots__ = ("_aead", "_iv", "_prefix", "sequence")

    def __init__(self, key_and_iv: bytes, direction: Direction) -> None:
        self._aead = AESGCM(key_and_iv[:-NONCE])
        self._iv = int.from_bytes(key_and_iv[-NONCE:], "big")
        self._prefix = _LABEL + direction.value
        self.sequence = 0

    def seal(self, header: int, plain: bytes, proof: bytes = b"") -> bytes:
        """A body. ``proof`` is covered by the tag and not sent."""
        number = self.sequence
        self.sequence = number + 1
        nonce = (self._iv ^ number).to_bytes(NONCE, "big")
        # The sequence number in 8 bytes, then the header in 3.
        covered = self._prefix + (number << 24 | header).to_bytes(11, "big")
        return self._aead.encrypt(nonce, plain, covered + proof if proof else covered)

    def open(self, header: int, body: bytes | memoryview, proof: bytes = b"") -> bytes:
        """The content of a body.

        :raises AuthenticationError: if its tag is not right; the sequence number stays as it is then.
        """
        number = self.sequence
        nonce = (self._iv ^ number).to_bytes(NONCE, "big")
        covered = self._prefix + (number << 24 | header).to_bytes(11, "big")
        try:
            plain = self._aead.decrypt(nonce, body, covered + proof if proof else covered)
        except (InvalidTag, ValueError):  # ValueError: shorter than a tag
            raise AuthenticationError("a packet that does not verify") from None
        self.sequence = number + 1
        return plain


class KeyRing:
    """Makes the packet keys of one connection.

    :param r1: of this connection's challenge. :param transcript: of this connection.
    """

    __slots__ = ("_encrypt_type", "_r1", "transcript")

    def __init__(self, encrypt_type: EncryptType, r1: bytes, transcript: bytes) -> None:
        self._encrypt_type = encrypt_type
        self._r1 = r1
        self.transcript = transcript

    def handshake(self, token_temp: bytes, direction: Direction) -> PacketKey:
        """Under TokenTemp."""
        return self._packet_key(hmac.digest(sha256(self._r1), token_temp, "sha256"), direction)

    def session(self, session_key: bytes, token: bytes, direction: Direction) -> PacketKey:
        """Under a SessionKey, and the token (N6)."""
        return self._packet_key(hmac.digest(sha256(token + self._r1), session_key, "sha256"), direction)

    def _packet_key(self, prk: bytes, direction: Direction) -> PacketKey:
        size = self._encrypt_type.key_size + NONCE
        return PacketKey(hkdf_expand(prk, b"ns1 " + direction.value + self.transcript, size), direction)


class KeyChain:
    """The session keys with which a reconnection may begin: the last one whose use the peer has shown, and its successor.

    A key retires only when a packet under a later one verifies (N8), so neither a lost REFRESH nor a lost RECOVERY is a
    dead end.
    """

    __slots__ = ("confirmed", "pending")

    def __init__(self, key: bytes) -> None:
        self.confirmed = key
        self.pending: bytes | None = None

    def offer(self, key: bytes) -> None:
        """A new key has been sent, or has come."""
        self.pending = key

    def confirm(self) -> None:
        """A packet under the newest key verified: the old one is forgotten."""
        if self.pending is not None:
            self.confirmed, self.pending = self.pending, None

    def newest_first(self) -> list[bytes]:
        """Both, the newest first."""
        return [self.confirmed] if self.pending is None else [self.pending, self.confirmed]

    def take(self, key: bytes) -> None:
        """The peer began a reconnection with this key, which is one of both: later ones were never used."""
        if key == self.pending:
            self.confirm()
        self.pending = None
