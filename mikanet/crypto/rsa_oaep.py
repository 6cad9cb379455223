"""Crypto: RSA-2048 with OAEP (SHA-1, MGF1-SHA-1, empty label), and the key files that hold such keys.

Plain functions over ``cryptography``. A private operation takes some hundred microseconds of one core and runs without
the interpreter's lock, so that threads may share them out.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from mikanet.errors import ConfigError, RemoteProtocolError

#: Size of a modulus and of an encrypted block, in bytes.
BLOCK = 256

#: Most bytes in one block: 256 - 2 * 20 - 2.
MAX_PLAIN = 214

#: Size of an exponent on the wire, in bytes.
EXPONENT = 4

#: A public key as raw bytes: modulus, then exponent, both big-endian and padded on the left.
RAW_PUBLIC = BLOCK + EXPONENT

# SHA-1 inside OAEP is no weakness that is known: OAEP does not rest on collisions being hard to find.
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)

PrivateKey = rsa.RSAPrivateKey
PublicKey = rsa.RSAPublicKey


def encrypt(key: PublicKey, plain: bytes) -> bytes:
    """One block of 256 bytes from at most 214."""
    return key.encrypt(plain, _OAEP)


def decrypt(key: PrivateKey, block: bytes) -> bytes:
    """The content of one block of 256 bytes.

    :raises RemoteProtocolError: if it is not a good one; why is not said.
    """
    try:
        return key.decrypt(block, _OAEP)
    except ValueError:
        raise RemoteProtocolError("a block that cannot be decrypted") from None


def generate(exponent: int = 65537) -> PrivateKey:
    """A new key of 2048 bits. Takes some tenths of a second."""
    return rsa.generate_private_key(public_exponent=exponent, key_size=BLOCK * 8)


def public_from_raw(raw: bytes) -> PublicKey:
    """A public key from its 260 bytes.

    :raises RemoteProtocolError: if the modulus is not odd with exactly 2048 bits, or the exponent not odd from 3 on.
    """
    modulus, exponent = int.from_bytes(raw[:BLOCK]), int.from_bytes(raw[BLOCK:RAW_PUBLIC])
    if len(raw) != RAW_PUBLIC or modulus.bit_length() != BLOCK * 8 or not modulus & 1:
        raise RemoteProtocolError("not a modulus of 2048 bits")
    if exponent < 3 or not exponent & 1:
        raise RemoteProtocolError("not a public exponent")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise RemoteProtocolError("not a public key") from None


def public_to_raw(key: PublicKey) -> bytes:
    """The 260 bytes of a public key."""
    numbers = key.public_numbers()
    return numbers.n.to_bytes(BLOCK) + numbers.e.to_bytes(EXPONENT)


def load_private(content: bytes, name: str, passphrase: bytes | None = None) -> PrivateKey:
    """A private key from PEM: traditional (with a passphrase or without) or PKCS#8.

    :param name: the file's name, for messages.
    :raises ConfigError: if it is none that can be used.
    """
    try:
        key = serialization.load_pem_private_key(content, passphrase)
    except TypeError:
        what = "has a passphrase: give its file with --passphrase-file" if passphrase is None else "has no passphrase"
        raise ConfigError(f"the key in {name} {what}") from None
    except (ValueError, UnsupportedAlgorithm):
        why = "wrong passphrase, or no private key in PEM" if passphrase is not None else "no private key in PEM"
        raise ConfigError(f"cannot use {name}: {why}") from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != BLOCK * 8:
        raise ConfigError(f"the key in {name} is not RSA with 2048 bits")
    if key.public_key().public_numbers().e >= 1 << EXPONENT * 8:
        raise ConfigError(f"the key in {name} has an exponent of more than 4 bytes")
    return key


def load_public(content: bytes, name: str) -> PublicKey:
    """A public key from its 260 raw bytes, or from PEM.

    :raises ConfigError: if it is none that can be used.
    """
    try:
        if len(content) == RAW_PUBLIC and not content.startswith(b"-----"):
            return public_from_raw(content)
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm, RemoteProtocolError):
        raise ConfigError(f"{name} is neither 260 raw bytes (server.cert) nor a public key in PEM") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != BLOCK * 8:
        raise ConfigError(f"the key in {name} is not RSA with 2048 bits")
    return key


def private_to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """The traditional PEM form of a key; with a passphrase 1766 bytes under AES-256-CBC."""
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, lock)


def public_to_pem(key: PublicKey) -> bytes:
    """The PEM form of a public key."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
