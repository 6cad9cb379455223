"""The golden vectors of NitroSocks, and links whose randomness is theirs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mikanet.nitrosocks.client_link import ClientLinkConfig
from mikanet.nitrosocks.keys import decrypt_challenge, encrypt_challenge, frame_key
from mikanet.nitrosocks.link import Token
from mikanet.nitrosocks.realm import Realm
from mikanet.nitrosocks.server_link import ServerLinkConfig
from mikanet.nitrosocks.wire import EncryptType
from tests.support.vectors import load

FILE = load("nitrosocks/handshake.json")
PRIVATE: Any = load_pem_private_key(FILE["private_key"].encode(), None)
PUBLIC: Any = PRIVATE.public_key()
K0 = frame_key(PUBLIC)
TOKEN = Token("alice", FILE["token"].encode())
UNIX_TIME = float(FILE["unix_time"])


class Script:
    """Randomness that was written down: each draw must be of the size of the next value."""

    def __init__(self, values: Iterable[bytes]) -> None:
        self._values = list(values)

    def __call__(self, size: int) -> bytes:
        """The next value."""
        value = self._values.pop(0)
        assert len(value) == size, f"{size} bytes were wanted, {len(value)} are next"
        return value

    @property
    def used_up(self) -> bool:
        """Whether every value was drawn."""
        return not self._values


def number(value: int) -> bytes:
    """What ``random_below`` makes ``value`` of."""
    return value.to_bytes(8, "big")


def realm(clock: Any = lambda: UNIX_TIME) -> Realm:
    """A realm with the one token."""
    return Realm("", [TOKEN], clock)


def server_config(random_bytes: Any, **changes: Any) -> ServerLinkConfig:
    """A server's link, with our key pair."""
    values: dict[str, Any] = {
        "k0": K0,
        "encrypt": partial(encrypt_challenge, PUBLIC),
        "authority": realm(),
        "random_bytes": random_bytes,
        **changes,
    }
    return ServerLinkConfig(**values)


def client_config(random_bytes: Any, **changes: Any) -> ClientLinkConfig:
    """A client's link, with our key pair."""
    values: dict[str, Any] = {
        "k0": K0,
        "decrypt": partial(decrypt_challenge, PRIVATE),
        "token": Token("", TOKEN.secret),
        "random_bytes": random_bytes,
        "wall_clock": lambda: UNIX_TIME,
        "least_type": EncryptType.AES_128_GCM,
        **changes,
    }
    return ClientLinkConfig(**values)
