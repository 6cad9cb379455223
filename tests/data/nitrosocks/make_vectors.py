"""Makes handshake.json from the protocol page alone: hashlib, hmac and the primitives of ``cryptography``, nothing of ours.

Run once: ``python make_vectors.py > handshake.json``. The RSA pair and the OAEP blocks are random, so a second run gives
other, equally good vectors.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

TOKEN = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
UNIX_TIME = 1_700_000_012


def digest(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def filled(first: int, size: int) -> bytes:
    """Bytes that count up."""
    return bytes((first + index) % 256 for index in range(size))


def password(key: bytes, unix_time: int) -> bytes:
    """TOTP with SHA-256 and eight digits (RFC 6238)."""
    mac = hmac.new(key, struct.pack(">Q", unix_time // 30), hashlib.sha256).digest()
    offset = mac[-1] & 15
    number = struct.unpack(">I", mac[offset : offset + 4])[0] & 0x7FFFFFFF
    return b"%08d" % (number % 100_000_000)


class Masked:
    """The headers of one direction."""

    def __init__(self, k0: bytes, salt: bytes, info: bytes) -> None:
        key = HKDF(hashes.SHA256(), 32, salt, info).derive(k0)
        self.stream = Cipher(algorithms.AES(key), modes.CTR(b"\0" * 16)).encryptor()
        self.out = bytearray(salt)

    def packet(self, kind: int, body: bytes) -> None:
        """One packet with its body as it is."""
        clear = struct.pack(">HB", len(body), kind)
        self.out += self.stream.update(clear) + body


class Keys:
    """One direction under one secret."""

    def __init__(self, secret: bytes, salt: bytes, way: bytes, transcript: bytes, size: int) -> None:
        prk = hmac.new(salt, secret, hashlib.sha256).digest()
        both = HKDFExpand(hashes.SHA256(), size + 12, b"ns1 " + way + transcript).derive(prk)
        self.key, self.iv, self.way, self.count = both[:size], both[size:], way, 0

    def seal(self, kind: int, plain: bytes, proof: bytes = b"", before: bytes = b"") -> bytes:
        """A body; ``before`` stands in clear before the sealed part."""
        clear = struct.pack(">HB", len(before) + len(plain) + 16, kind)
        sequence = struct.pack(">Q", self.count)
        self.count += 1
        nonce = bytes(a ^ b for a, b in zip(self.iv, b"\0" * 4 + sequence, strict=True))
        return before + AESGCM(self.key).encrypt(nonce, plain, b"NS1" + self.way + sequence + clear + proof)


def connection(pair: rsa.RSAPrivateKey, first: int, encrypt_type: int, version: bool) -> dict[str, bytes]:
    """What both connections of a vector have in common."""
    der = pair.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    values = {
        "k0": HKDF(hashes.SHA256(), 32, b"NS1", b"frame").derive(digest(der)),
        "client_salt": filled(first, 16),
        "server_salt": filled(first + 16, 16),
        "r1": filled(first + 32, 32),
        "token_temp": filled(first + 64, 32),
        "pad": filled(first + 96, 7),
        "junk": filled(first + 103, 40),
    }
    text = b".".join(base64.urlsafe_b64encode(values[name]).rstrip(b"=") for name in ("r1", "token_temp"))
    text += b".%08x" % encrypt_type + (b".00000001" if version else b"")
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    values["challenge_text"] = text
    values["challenge_block"] = pair.public_key().encrypt(text, oaep)
    mask = HKDF(hashes.SHA256(), 256, values["server_salt"], b"challenge").derive(values["k0"])
    values["challenge_masked"] = bytes(a ^ b for a, b in zip(values["challenge_block"], mask, strict=True))
    challenge = values["challenge_masked"] + values["pad"]
    values["transcript"] = digest(values["client_salt"] + values["server_salt"] + challenge)
    values["signature"] = digest(digest(TOKEN + values["r1"]) + password(TOKEN, UNIX_TIME))
    values["proof"] = hmac.new(
        TOKEN, b"ns1 server" + values["transcript"] + values["signature"], hashlib.sha256
    ).digest()
    return values


def vector(pair: rsa.RSAPrivateKey, encrypt_type: int, version: bool) -> dict[str, object]:
    """A login with data, refresh and heartbeat, a reconnection, and a release."""
    size = 16 * encrypt_type
    keys = {"session_key_0": filled(1, 32), "session_key_1": filled(2, 32), "session_key_2": filled(3, 32)}
    old, new, recovered = keys.values()
    r2, r3 = filled(4, 32), filled(5, 32)

    one = connection(pair, 10, encrypt_type, version)
    client = Masked(one["k0"], one["client_salt"], b"len c")
    server = Masked(one["k0"], one["server_salt"], b"len s")
    temp_salt, key_salt = digest(one["r1"]), digest(TOKEN + one["r1"])
    client.packet(0xA5, one["junk"])
    server.packet(1, one["challenge_masked"] + one["pad"])
    client.packet(2, Keys(one["token_temp"], temp_salt, b"c", one["transcript"], size).seal(2, one["signature"]))
    up, down = (Keys(old, key_salt, way, one["transcript"], size) for way in (b"c", b"s"))
    begin = Keys(one["token_temp"], temp_salt, b"s", one["transcript"], size)
    server.packet(3, begin.seal(3, old, one["proof"]))
    client.packet(4, up.seal(4, b"ping"))
    server.packet(4, down.seal(4, b"pong"))
    server.packet(5, down.seal(5, new))
    up, down = (Keys(new, key_salt, way, one["transcript"], size) for way in (b"c", b"s"))
    client.packet(0x88, up.seal(0x88, r3))
    server.packet(0x89, down.seal(0x89, digest(r3)))
    client.packet(0x84, up.seal(0x84, b"more"))
    first = {"client": bytes(client.out), "server": bytes(server.out), **one}

    two = connection(pair, 150, encrypt_type, version)
    client = Masked(two["k0"], two["client_salt"], b"len c")
    server = Masked(two["k0"], two["server_salt"], b"len s")
    key_salt = digest(TOKEN + two["r1"])
    locator = HKDF(hashes.SHA256(), 16, None, b"locator").derive(new)
    client.packet(0x5A, two["junk"])
    server.packet(1, two["challenge_masked"] + two["pad"])
    up, down = (Keys(new, key_salt, way, two["transcript"], size) for way in (b"c", b"s"))
    client.packet(6, up.seal(6, two["signature"], before=locator))
    server.packet(7, down.seal(7, recovered, two["proof"]))
    up, down = (Keys(recovered, key_salt, way, two["transcript"], size) for way in (b"c", b"s"))
    server.packet(4, down.seal(4, b"again"))
    client.packet(4, up.seal(4, b"here"))
    client.packet(0x0A, up.seal(0x0A, b""))
    server.packet(0x0B, down.seal(0x0B, r2))
    client.packet(0x0C, up.seal(0x0C, digest(r2)))
    second = {"client": bytes(client.out), "server": bytes(server.out), "locator": locator, **two}
    return {
        "encrypt_type": encrypt_type,
        "version_field": version,
        "secrets": {name: value.hex() for name, value in {**keys, "r2": r2, "r3": r3}.items()},
        "login": {name: value.hex() for name, value in first.items()},
        "reconnection": {name: value.hex() for name, value in second.items()},
    }


def main() -> None:
    """Print the file."""
    pair = rsa.generate_private_key(65537, 2048)
    pem = pair.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    print(
        json.dumps(
            {
                "origin": "make_vectors.py beside this file, from the protocol page",
                "private_key": pem.decode(),
                "token": TOKEN.decode(),
                "unix_time": UNIX_TIME,
                "one_time_password": password(TOKEN, UNIX_TIME).decode(),
                "vectors": [vector(pair, 2, True), vector(pair, 1, False)],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
