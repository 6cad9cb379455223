"""The recorded transcripts, and random bytes that are what the recorded programs drew.

``tests/data/megaki/vectors.json`` was made by the original C client against the original daemon, with every key.
"""

from __future__ import annotations

from typing import Any

from mikanet.crypto import rsa_oaep
from tests.support.vectors import load

VECTORS: dict[str, Any] = load("megaki/vectors.json")
STEPS: dict[str, Any] = {step["name"]: step for step in reversed(VECTORS["steps"])}
ERRORS: list[dict[str, Any]] = VECTORS["server_errors_and_tolerances"]

SERVER_KEY = rsa_oaep.load_private(VECTORS["server_private_key_pem_clear"].encode(), "vectors")
CLIENT_KEY = rsa_oaep.load_private(VECTORS["client_private_key_pem"].encode(), "vectors")

HANDSHAKE = STEPS["handshake"]
MASTER = bytes.fromhex(HANDSHAKE["master"])
TOKEN = bytes.fromhex(HANDSHAKE["token"])


def packets(step: dict[str, Any]) -> list[bytes]:
    """The packets of a step in order."""
    return [bytes.fromhex(packet["bytes"]) for packet in step["packets"]]


def hexed(step: dict[str, Any], name: str) -> bytes:
    """A field of a step."""
    return bytes.fromhex(step[name])


class Draws:
    """A source of random bytes that gives what it was told to, in order, and nothing else."""

    def __init__(self, *draws: bytes) -> None:
        self._left = list(draws)

    def __call__(self, size: int) -> bytes:
        """The next draw, which has to have that size."""
        draw = self._left.pop(0)
        assert len(draw) == size, (len(draw), size)
        return draw

    @property
    def empty(self) -> bool:
        """Whether all were taken."""
        return not self._left
