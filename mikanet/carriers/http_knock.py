"""The knock: how a client shows, with its first request, that it may see the tunnel at all. Plain Python.

Without it a stranger who guesses the path finds the tunnel by speaking its protocol. With a key that both ends have
(``?key-file=FILE``) a WebSocket's handshake and a request that opens a polling carrier need a cookie that only who has the
key can make, and that works once, within half a minute; without it they get what any path gives.

The cookie is ``session=`` and, in URL-safe base64, ``nonce 16 | Unix time u64 | tag 18``. The tag is the begin of an HMAC-SHA256 over nonce and
time, whose key is HMAC-SHA256(key, "mikanet web knock"); with its 18 bytes the whole needs no padding and has one form.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest, digest

from mikanet.crypto.replay import ReplaySet

NAME = b"session"

#: Most knocks remembered; above, all are refused until half a minute has gone.
CAPACITY = 100_000

_NONCE_SIZE, _TAG_SIZE = 16, 18
_TIME = struct.Struct("<Q")
_SIZE = _NONCE_SIZE + _TIME.size + _TAG_SIZE
_LABEL = b"mikanet web knock"


def _tag(secret: bytes, said: bytes) -> bytes:
    return digest(digest(secret, _LABEL, sha256), said, sha256)[:_TAG_SIZE]


class Knock:
    """The client's side.

    :param wall_clock: Unix time.
    """

    def __init__(self, secret: bytes, wall_clock: Callable[[], float], random_bytes: Callable[[int], bytes]) -> None:
        self._secret = secret
        self._wall_clock = wall_clock
        self._random_bytes = random_bytes

    def __call__(self) -> bytes:
        """A new cookie, for one request."""
        said = self._random_bytes(_NONCE_SIZE) + _TIME.pack(int(self._wall_clock()))
        return NAME + b"=" + base64.urlsafe_b64encode(said + _tag(self._secret, said))


class Door:
    """The server's side: opens for each knock once.

    :param seen: the knocks that it has opened for; one that remembers over a restart keeps that promise over it.
    """

    def __init__(self, secret: bytes, wall_clock: Callable[[], float], seen: ReplaySet | None = None) -> None:
        self._secret = secret
        self._wall_clock = wall_clock
        self._seen = seen if seen is not None else ReplaySet(capacity=CAPACITY)

    def opens(self, cookies: bytes) -> bool:
        """Whether a Cookie field has a good knock in it."""
        for cookie in cookies.split(b";"):
            name, _, value = cookie.strip().partition(b"=")
            if name == NAME and len(value) == _SIZE * 4 // 3:
                return self._fits(value)
        return False

    def _fits(self, value: bytes) -> bool:
        try:
            knock = base64.b64decode(value, altchars=b"-_", validate=True)
        except binascii.Error:
            return False
        said, tag = knock[:-_TAG_SIZE], knock[-_TAG_SIZE:]
        if not compare_digest(tag, _tag(self._secret, said)):
            return False
        (moment,) = _TIME.unpack_from(said, _NONCE_SIZE)
        return self._seen.accept(said[:_NONCE_SIZE], moment, self._wall_clock())
