"""The client's logins at work: one at a time, by every carrier that is open, until a server proves that it knows the secret.

While a session is there, a login goes on beside it when a new carrier brings no answer to the session's question: a server
that answers the login, and not what was asked before it on the same carrier, has forgotten the session (P8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mikanet.errors import Reason
from mikanet.interfaces import ICarrier
from mikanet.pickaxe import wire
from mikanet.pickaxe.client_link import ClientLink
from mikanet.pickaxe.client_login import ClientLogin
from mikanet.pickaxe.keys import Secret
from mikanet.pickaxe.session import Session

#: A login is repeated after this time, and given up for a new one when nothing is proved after so much (P7), times a
#: factor between these, drawn for each: two clients behind one address do not always come in the same order.
LOGIN_REPEAT, LOGIN_TIME = 1.0, 5.0
_SOONEST, _LATEST = 0.7, 1.6

#: Why there is no session although a carrier is open.
NOT_PROVED = (
    Reason.FAILURE,
    "answers the login, and then says nothing more: the user or the password is not the same there, which cannot be told"
    " apart, or too many logins of this name come from this network: compare --user, --password-file and --kdf with the"
    " server's users file",
)
NOT_ANSWERED = (
    Reason.TIMEOUT,
    "does not answer the login: is a Pickaxe server there, or something else on that port?",
)


class LoginUser(Protocol):
    """For whom the logins are."""

    @property
    def login(self) -> tuple[str, Secret]:
        """The user's name and secret."""

    def candidate(self, session: Session) -> ClientLink:
        """A link for a session that a server offers."""

    def count(self, what: str) -> None:
        """Count something that happened."""


class Logins:
    """The login that goes on, if one does.

    :param clock: the reactor's time.
    """

    def __init__(self, clock: Any, user: LoginUser, random_bytes: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._user = user
        self._random_bytes = random_bytes
        self._login: ClientLogin | None = None
        self._sent = self._until = 0.0
        self._candidates: list[ClientLink] = []

    @property
    def trouble(self) -> tuple[Reason, str]:
        """Why the login that goes on has brought no session yet: its reason, and words that follow the server's name."""
        return NOT_PROVED if self._login is not None and self._login.answered else NOT_ANSWERED

    def log_in_by(self, carrier: ICarrier) -> None:
        """Send the login by ``carrier``; a new one if there is none."""
        if self._login is None:
            self._begin()
        assert self._login is not None
        carrier.send([self._login.packet])

    def _begin(self) -> None:
        self.over()
        now = self._clock.seconds()
        name, secret = self._user.login
        self._login = ClientLogin(name, secret, self._random_bytes, now)
        self._sent = now
        drawn = int.from_bytes(self._random_bytes(2), "big") / 65_535
        self._until = now + LOGIN_TIME * (_SOONEST + (_LATEST - _SOONEST) * drawn)
        self._user.count("logins")

    def tend(self, carriers: Sequence[ICarrier]) -> None:
        """Time has passed: repeat the login by ``carriers``, or begin a new one."""
        now = self._clock.seconds()
        login = self._login
        if login is not None:
            if now >= self._until:
                self._begin()
            elif now - self._sent < LOGIN_REPEAT or login.answered:
                return
        self._sent = now
        for carrier in carriers:
            self.log_in_by(carrier)

    def packet(self, carrier: ICarrier, packet: bytes) -> None:
        """An answer to a login, or what a candidate's server sends."""
        if packet[:1] == bytes([wire.LOGIN_RESPONSE]):
            session = None if self._login is None else self._login.response(packet)
            if session is not None:
                candidate = self._user.candidate(session)
                self._candidates.append(candidate)
                candidate.propose(carrier)
            return
        for candidate in self._candidates:
            if candidate.session.sid == packet[1:5]:
                candidate.packets_received(carrier, [packet])
                break

    def detach(self, carrier: ICarrier) -> None:
        """A carrier is gone."""
        for candidate in self._candidates:
            candidate.detach(carrier)

    def over(self, chosen: ClientLink | None = None) -> None:
        """No login goes on any more; all candidates but ``chosen`` end."""
        self._login = None
        candidates, self._candidates = self._candidates, []
        for candidate in candidates:
            if candidate is not chosen:
                candidate.end()

    def __bool__(self) -> bool:
        return self._login is not None
