"""NitroSocks: what a server knows of one realm: its tokens, and the sessions that may be resumed. Plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from cryptography.hazmat.primitives.constant_time import bytes_eq

from mikanet.crypto.totp import step_of
from mikanet.nitrosocks.keys import locator_of, one_time_password, sha256, sign
from mikanet.nitrosocks.link import SessionKeys, Token

#: Most tokens of a realm (N1): each proof is compared with all of them.
MAX_TOKENS: Final = 1000

#: How far, in time steps, a client's clock may be off.
SKEW_STEPS: Final = 1


class Realm:
    """The tokens and sessions behind one key pair; what :class:`mikanet.nitrosocks.server_link.Authority` asks for.

    :param name: the server name that leads here; empty for the default.
    :param wall_clock: Unix time.
    """

    def __init__(self, name: str, tokens: Iterable[Token], wall_clock: Callable[[], float]) -> None:
        self.name = name
        self._wall_clock = wall_clock
        self._tokens: list[Token] = []
        self._by_locator: dict[bytes, tuple[SessionKeys, bytes]] = {}
        self._locators: dict[SessionKeys, list[bytes]] = {}
        self._passwords: dict[tuple[Token, int], bytes] = {}
        self.replace(tokens)

    # -- tokens

    def replace(self, tokens: Iterable[Token]) -> list[SessionKeys]:
        """From now on there are these tokens.

        :return: the sessions of tokens that are gone, by name or by secret; they cannot be resumed any more.
        """
        self._tokens = list(tokens)
        known = set(self._tokens)
        gone = [session for session in self._locators if session.token not in known]
        for session in gone:
            self.forget(session)
        return gone

    def match(self, signature: bytes, r1: bytes) -> Token | None:
        """See :meth:`Authority.match`. Every token is compared, so that time says nothing about which it was."""
        step = step_of(self._wall_clock())
        self._drop_passwords(step)
        found = None
        for token in self._tokens:
            inner = sha256(token.secret + r1)
            for each in range(step - SKEW_STEPS, step + SKEW_STEPS + 1):
                if bytes_eq(sha256(inner + self._password(token, each)), signature):
                    found = token
        return found

    def verify(self, token: Token, signature: bytes, r1: bytes) -> bool:
        """See :meth:`Authority.verify`."""
        if token not in self._tokens:
            return False
        step = step_of(self._wall_clock())
        good = False
        for each in range(step - SKEW_STEPS, step + SKEW_STEPS + 1):
            if bytes_eq(sign(token.secret, r1, one_time_password(token.secret, each)), signature):
                good = True
        return good

    def _password(self, token: Token, step: int) -> bytes:
        found = self._passwords.get((token, step))
        if found is None:
            found = self._passwords[token, step] = one_time_password(token.secret, step)
        return found

    def _drop_passwords(self, step: int) -> None:
        if len(self._passwords) > (2 * SKEW_STEPS + 2) * len(self._tokens):
            self._passwords = {key: each for key, each in self._passwords.items() if abs(key[1] - step) <= SKEW_STEPS}

    # -- sessions

    def find(self, locator: bytes) -> tuple[SessionKeys, bytes] | None:
        """See :meth:`Authority.find`."""
        return self._by_locator.get(locator)

    def remember(self, session: SessionKeys) -> None:
        """A session's keys are new, or others than before."""
        self.forget(session)
        locators = self._locators[session] = []
        for key in session.chain.newest_first():
            locator = locator_of(key)
            locators.append(locator)
            self._by_locator[locator] = (session, key)

    def forget(self, session: SessionKeys) -> None:
        """A session is over; an unknown one is no error."""
        for locator in self._locators.pop(session, ()):
            del self._by_locator[locator]

    def __len__(self) -> int:
        return len(self._locators)
