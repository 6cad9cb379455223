"""Packet ciphers: each packet sealed by itself, as kcp-go does. No I/O; nonces are passed in.

All but ``null`` and ``aes-128-gcm`` share one packet: ``nonce 16 random | crc32 4 little-endian | body``, which is then
encrypted as a whole. Nobody needs the nonce again, so it may as well be chosen as it goes on the wire: what is passed
in here are the first bytes of packets, and what of them a receiver decrypts is whatever it is.
Packets are sealed and opened in batches, because that is where the time goes: see :class:`CfbCipher`.

Source: kcp-go ``crypt.go`` and ``sess.go``.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mikanet.crypto.block_salsa20 import salsa20
from mikanet.crypto.block_tea import tea_encryptor, xtea_encryptor
from mikanet.crypto.block_twofish import twofish_encryptor
from mikanet.crypto.packet_keys import BLOCKS
from mikanet.errors import LocalProtocolError

try:
    from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5, Blowfish, TripleDES
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:  # pragma: no cover - cryptography before 47
    from cryptography.hazmat.decrepit.ciphers.algorithms import CAST5, Blowfish
    from cryptography.hazmat.primitives.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives.ciphers.modes import CFB

#: So many bytes of nonces, one after the other: random, or of :mod:`mikanet.crypto.packet_nonces`.
Nonces = Callable[[int], bytes]

NONCE_LENGTH = 16
HEADER_LENGTH = 20
_CRC = struct.Struct("<I")

#: The initial vector of every CFB packet; blocks of 8 bytes take its first half. The random nonce in front of the
#: plain text is what makes packets differ.
FIXED_IV = bytes.fromhex("a7734f9c12ac1b01a415f2c1fc78e66b")

#: Packets under one AES-GCM key with random nonces (NIST SP 800-38D), and when to warn (Q2).
GCM_MAX_PACKETS = 1 << 32
GCM_WARN_PACKETS = 1 << 30


class PacketCipher(Protocol):
    """Seals bodies into packets and opens packets.

    :ivar overhead: bytes that a packet is longer than its body.
    """

    overhead: int

    def seal(self, bodies: Sequence[bytes]) -> list[bytes]:
        """One packet for each body, in order."""

    def open(self, packets: Sequence[bytes]) -> list[bytes | None]:
        """The body of each packet, in order; None where a packet is too short or fails its check."""


class NullCipher:
    """No header, no check: packets are bodies."""

    overhead = 0

    def seal(self, bodies: Sequence[bytes]) -> list[bytes]:
        """The bodies themselves."""
        return list(bodies)

    def open(self, packets: Sequence[bytes]) -> list[bytes | None]:
        """The packets themselves."""
        return list(packets)


class GcmCipher:
    """AES-128-GCM: ``nonce 12 random, clear | cipher text | tag 16``, no associated data.

    :ivar sealed: packets sealed under this key so far.
    """

    overhead = 28

    def __init__(self, key: bytes, nonces: Nonces) -> None:
        self._aead = AESGCM(key)
        self._nonces = nonces
        self.sealed = 0

    def seal(self, bodies: Sequence[bytes]) -> list[bytes]:
        """As :class:`PacketCipher`.

        :raises LocalProtocolError: once the key has sealed as many packets as random nonces allow.
        """
        self.sealed += len(bodies)
        if self.sealed > GCM_MAX_PACKETS:
            raise LocalProtocolError("this aes-128-gcm key has sealed 2^32 packets: set a new key")
        nonces = self._nonces(12 * len(bodies))
        encrypt = self._aead.encrypt
        packets = []
        at = 0
        for body in bodies:
            nonce = nonces[at : at + 12]
            packets.append(nonce + encrypt(nonce, body, None))
            at += 12
        return packets

    def open(self, packets: Sequence[bytes]) -> list[bytes | None]:
        """As :class:`PacketCipher`."""
        decrypt = self._aead.decrypt
        bodies: list[bytes | None] = []
        for packet in packets:
            try:
                bodies.append(decrypt(packet[:12], packet[12:], None) if len(packet) >= 28 else None)
            except InvalidTag:
                bodies.append(None)
        return bodies


class FramedCipher:
    """The packet with nonce and CRC, and no cipher (block ``none``); subclasses encrypt the whole of it."""

    overhead = HEADER_LENGTH

    def __init__(self, nonces: Nonces) -> None:
        self._nonces = nonces

    def seal(self, bodies: Sequence[bytes]) -> list[bytes]:
        """As :class:`PacketCipher`."""
        nonces = self._nonces(NONCE_LENGTH * len(bodies))
        crc32, pack = zlib.crc32, _CRC.pack
        firsts = [nonces[at : at + NONCE_LENGTH] for at in range(0, len(nonces), NONCE_LENGTH)]
        return self._encrypt(firsts, [pack(crc32(body)) + body for body in bodies])

    def open(self, packets: Sequence[bytes]) -> list[bytes | None]:
        """As :class:`PacketCipher`."""
        crc32, unpack_from = zlib.crc32, _CRC.unpack_from
        bodies: list[bytes | None] = []
        for packet in self._decrypt(packets):
            if len(packet) < HEADER_LENGTH:
                bodies.append(None)
                continue
            body = packet[HEADER_LENGTH:]
            bodies.append(body if crc32(body) == unpack_from(packet, NONCE_LENGTH)[0] else None)
        return bodies

    def _encrypt(self, nonces: list[bytes], rests: list[bytes]) -> list[bytes]:
        """Packets that begin with the nonces as they are, and go on with the rests, encrypted."""
        return [nonce + rest for nonce, rest in zip(nonces, rests, strict=True)]

    def _decrypt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        return packets


class CfbCipher(FramedCipher):
    """Packets under a library block cipher in CFB with full-block feedback and the fixed initial vector.

    One long-lived context serves all packets of a direction, a whole batch in one call; making a context for each
    packet costs more than the cipher itself. CFB allows it:

    * Decrypting, what comes after a block depends on that block only. Feeding the initial vector as if it were
      cipher text puts the context into the state that each packet starts from.
    * Encrypting, the state that a packet finds is its predecessor's last block, encrypted. With that xored to it, the
      nonce comes out as it is; with blocks of 8 bytes its second half meets its first, encrypted. Padding puts each
      packet at the start of a block.
    """

    def __init__(self, algorithm: algorithms.AES | TripleDES, nonces: Nonces) -> None:
        super().__init__(nonces)
        size = algorithm.block_size // 8
        self._iv = FIXED_IV[:size]
        self._pads = [bytes(-length % size) for length in range(size)]
        self._mask = size - 1
        cipher = Cipher(algorithm, CFB(self._iv))
        self._encryptor: CipherContext = cipher.encryptor()
        self._decryptor: CipherContext = cipher.decryptor()
        self._blocks: CipherContext = Cipher(algorithm, modes.ECB()).encryptor()  # the block function
        self._state = self._blocks.update(self._iv)  # what the next block is xored with

    def _encrypt(self, nonces: list[bytes], rests: list[bytes]) -> list[bytes]:
        pads, mask, size = self._pads, self._mask, len(self._iv)
        encrypt, block, state = self._encryptor.update, self._blocks.update, self._state
        packets = []
        for nonce, rest in zip(nonces, rests, strict=True):
            if size < NONCE_LENGTH:
                state += block(nonce[:size])
            start = int.from_bytes(nonce, "little") ^ int.from_bytes(state, "little")
            length = NONCE_LENGTH + len(rest)
            sealed = encrypt(start.to_bytes(NONCE_LENGTH, "little") + rest + pads[length & mask])
            state = block(sealed[-size:])
            packets.append(sealed[:length])
        self._state = state
        return packets

    def _decrypt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        iv, pads, mask = self._iv, self._pads, self._mask
        parts = []
        for packet in packets:
            parts.append(iv)
            parts.append(packet)
            parts.append(pads[len(packet) & mask])
        opened = self._decryptor.update(b"".join(parts))
        at = len(iv)
        result = []
        for packet in packets:
            end = at + len(packet)
            result.append(opened[at:end])
            at = end + (-end & mask) + len(iv)
        return result


class PlainCfbCipher(FramedCipher):
    """The same for a block cipher in plain Python: a function that encrypts one block."""

    def __init__(self, encrypt_block: Callable[[bytes], bytes], size: int, nonces: Nonces) -> None:
        super().__init__(nonces)
        self._encrypt_block = encrypt_block
        self._size = size

    def _encrypt(self, nonces: list[bytes], rests: list[bytes]) -> list[bytes]:
        size = self._size
        return [
            nonce + self._run(rest, nonce[-size:], decrypting=False) for nonce, rest in zip(nonces, rests, strict=True)
        ]

    def _decrypt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        start = FIXED_IV[: self._size]
        return [self._run(packet, start, decrypting=True) for packet in packets]

    def _run(self, data: bytes, previous: bytes, decrypting: bool) -> bytes:
        size, encrypt_block = self._size, self._encrypt_block
        result = []
        for at in range(0, len(data), size):
            block = data[at : at + size]
            changed = _xor(block, encrypt_block(previous)[: len(block)])
            previous = block if decrypting else changed
            result.append(changed)
        return b"".join(result)


class Salsa20Cipher(FramedCipher):
    """The first 8 bytes stay clear and are the Salsa20 nonce; the rest is under the key stream from block 0."""

    def __init__(self, key: bytes, nonces: Nonces) -> None:
        super().__init__(nonces)
        self._key = key

    def _encrypt(self, nonces: list[bytes], rests: list[bytes]) -> list[bytes]:
        # The key stream's first 8 bytes belong to the second half of the nonce, which stands as it is.
        return [
            nonce + salsa20(self._key, nonce[:8], bytes(8) + rest)[8:]
            for nonce, rest in zip(nonces, rests, strict=True)
        ]

    def _decrypt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        key = self._key
        return [packet[:8] + salsa20(key, packet[:8], packet[8:]) if len(packet) > 8 else b"" for packet in packets]


class ChaCha20Cipher(FramedCipher):
    """Our reading of the listed ``chacha20``: as salsa20, with RFC 8439's 12-byte nonce and block counter from 0."""

    def __init__(self, key: bytes, nonces: Nonces) -> None:
        super().__init__(nonces)
        self._key = key

    def _encrypt(self, nonces: list[bytes], rests: list[bytes]) -> list[bytes]:
        return [nonce + self._run(nonce + rest)[NONCE_LENGTH:] for nonce, rest in zip(nonces, rests, strict=True)]

    def _decrypt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        return [self._run(packet) if len(packet) > 12 else b"" for packet in packets]

    def _run(self, packet: bytes) -> bytes:
        stream = Cipher(algorithms.ChaCha20(self._key, bytes(4) + packet[:12]), None).encryptor()
        return packet[:12] + stream.update(packet[12:])


class XorCipher(FramedCipher):
    """The packet xored with a fixed table of 1500 bytes."""

    TABLE_LENGTH = 1500

    def __init__(self, key: bytes, nonces: Nonces) -> None:
        super().__init__(nonces)
        table = hashlib.pbkdf2_hmac("sha1", key, b"sH3CIVoF#rWLtJo6", 32, self.TABLE_LENGTH)
        self._table = int.from_bytes(table, "little")

    def _encrypt(self, nonces: list[bytes], rests: list[bytes]) -> list[bytes]:
        return [nonce + self._run(nonce + rest)[NONCE_LENGTH:] for nonce, rest in zip(nonces, rests, strict=True)]

    def _decrypt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        return [self._run(packet) if len(packet) <= self.TABLE_LENGTH else b"" for packet in packets]

    def _run(self, packet: bytes) -> bytes:
        length = len(packet)
        table = self._table & ((1 << (8 * length)) - 1)
        return (int.from_bytes(packet, "little") ^ table).to_bytes(length, "little")


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


_LIBRARY = {
    "aes": algorithms.AES,
    "aes-128": algorithms.AES,
    "aes-192": algorithms.AES,
    "blowfish": Blowfish,
    "cast5": CAST5,
    "3des": TripleDES,
    "sm4": algorithms.SM4,
}
_PLAIN = {"tea": (tea_encryptor, 8), "xtea": (xtea_encryptor, 8), "twofish": (twofish_encryptor, 16)}
_STREAMS: dict[str, Callable[[bytes, Nonces], PacketCipher]] = {
    "salsa20": Salsa20Cipher,
    "chacha20": ChaCha20Cipher,
    "xor": XorCipher,
    "aes-128-gcm": GcmCipher,
}


def packet_cipher(name: str, key: bytes, nonces: Nonces) -> PacketCipher:
    """The cipher for the block called ``name`` (see :data:`~mikanet.crypto.packet_keys.BLOCKS`).

    :param key: at least as many bytes as the block takes; the first of them are used.
    """
    key = key[: BLOCKS[name].key_length]
    if name == "null":
        return NullCipher()
    if name == "none":
        return FramedCipher(nonces)
    if name in _LIBRARY:
        return CfbCipher(_LIBRARY[name](key), nonces)  # type: ignore[abstract, arg-type]  # a union of classes
    if name in _PLAIN:
        encryptor, size = _PLAIN[name]
        return PlainCfbCipher(encryptor(key), size, nonces)
    return _STREAMS[name](key, nonces)
