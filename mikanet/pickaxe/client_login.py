"""The client's side of a login (P6, P7). Plain Python, no I/O.

Anybody on the way can answer a login, so each answer only makes a candidate; the first whose server proves that it knows
the user's secret is the session.
"""

from __future__ import annotations

from collections.abc import Callable

from mikanet.errors import RemoteProtocolError
from mikanet.pickaxe import wire
from mikanet.pickaxe.keys import Handshake, Secret
from mikanet.pickaxe.session import Role, Session

#: Answers to one login that are followed up.
MAX_CANDIDATES = 4


class ClientLogin:
    """One login: the same packet may go by several carriers, and be repeated.

    :ivar packet: what to send. :ivar answered: whether anybody has answered. :ivar made_at: when it began.
    """

    def __init__(self, user: str, secret: Secret, random_bytes: Callable[[int], bytes], now: float) -> None:
        self._user = user
        self._secret = secret
        self._random_bytes = random_bytes
        self._lid = random_bytes(wire.LID_SIZE)
        self._seen: set[bytes] = set()
        self.packet = wire.encode_login(wire.Login(self._lid, wire.VERSION, user))
        self.made_at = now

    @property
    def answered(self) -> bool:
        """Whether anybody has answered."""
        return bool(self._seen)

    def response(self, packet: bytes) -> Session | None:
        """A new candidate, if the packet answers this login and says something new."""
        try:
            response = wire.decode_login_response(packet)
        except RemoteProtocolError:
            return None
        if response.lid != self._lid or response.version != wire.VERSION:
            return None
        if packet in self._seen or len(self._seen) >= MAX_CANDIDATES:
            return None
        self._seen.add(packet)
        keys = self._secret.session_keys(Handshake(self._user, wire.VERSION, response))
        return Session(Role.CLIENT, response.sid, keys, self._random_bytes)
