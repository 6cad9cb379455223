"""Front doors: who may use them. No I/O."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping


class Credentials:
    """Users and their passwords; the passwords themselves are not kept, and nothing of them is in the ``repr``.

    Both an unknown user and a wrong password take the same steps and so the same time.
    """

    __slots__ = ("_digests",)

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._digests = {user.encode("utf-8"): _digest(word.encode("utf-8")) for user, word in passwords.items()}

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether ``user`` is known and has this password."""
        # Digests of equal length, so that the comparison does not tell the length of the password either.
        expected = self._digests.get(user, _NO_DIGEST)
        return hmac.compare_digest(_digest(password), expected)

    def __repr__(self) -> str:
        return f"<Credentials of {len(self._digests)} users>"


def _digest(password: bytes) -> bytes:
    return hashlib.sha256(password).digest()


#: What no password has as its digest, for all that anyone knows.
_NO_DIGEST = bytes(32)
