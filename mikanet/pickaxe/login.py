"""The server's side of logins: who may have a session, and the same behaviour for everybody (P6). Plain Python, no I/O.

An unknown name goes the same way as a known one: it gets a secret that nobody has, a session id, a nonce and a pending
login that no packet will ever prove. So does a login that comes too soon.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from mikanet.address import network_of
from mikanet.errors import RemoteProtocolError
from mikanet.guard.admission import address_group
from mikanet.pickaxe import wire
from mikanet.pickaxe.derivations import DerivationBudget
from mikanet.pickaxe.fragments import UnprovedFragments
from mikanet.pickaxe.keys import KEY_SIZE, Handshake, Kdf, Secret, SessionKeys

T = TypeVar("T")

#: Most pending logins, and how long one is kept, in seconds.
MAX_PENDING, PENDING_TIME = 4096, 10.0

#: Most of them from one network (our choice), so that one flood does not wash away everybody else's.
MAX_PENDING_PER_NETWORK = 256

#: In this time, in seconds, a name has so many fresh logins that prove nothing from one network, and so many from
#: everywhere (decision 0071). By the document's letter it is one from everywhere.
THROTTLE_TIME, MAX_PER_NETWORK, MAX_PER_NAME = 3.0, 3, 8

#: For so long, in seconds, a network from which a name has authenticated is known for it; there, each address has so many of
#: its own in THROTTLE_TIME, whatever comes from elsewhere (our choice).
KNOWN_TIME, MAX_PER_KNOWN_ADDRESS = 7 * 86400.0, 8

#: How long the id of a login that is over is remembered, in seconds: a copy that comes late is no new login.
SPENT_TIME = 60.0

#: Most names, names with networks, and ids of logins that are over, that are remembered.
_MAX_REMEMBERED = 65_536


class Throttle(Enum):
    """What is limited: logins of a name from one network, or, by the document's letter, of a name."""

    NETWORK = "network"
    NAME = "name"


@dataclass(slots=True)
class Pending:
    """A login that was answered and not proved.

    :ivar user: None if no session may come of it. :ivar slots: where the throttle counts it.
    :ivar fragments: of a packet that may prove it.
    """

    request: bytes
    response: bytes
    sid: bytes
    network: str
    made_at: float
    user: str | None
    handshake: Handshake
    secret: Secret
    slots: tuple[bytes, ...] = ()
    keys: SessionKeys | None = None
    fragments: UnprovedFragments = field(default_factory=UnprovedFragments)

    def session_keys(self) -> SessionKeys:
        """The keys, derived when the first packet asks for them and kept."""
        if self.keys is None:
            self.keys = self.secret.session_keys(self.handshake)
        return self.keys


class LoginDesk:
    """Answers logins.

    :param users: the secrets by name.
    :param server_secret: what unknown names' secrets are made of; drawn once per process.
    :param sid_taken: tells whether a session id is in use.
    :param table: send the document's own form of the response, without a field for the SID.
    """

    def __init__(
        self,
        users: Callable[[str], Secret | None],
        server_secret: bytes,
        random_bytes: Callable[[int], bytes],
        sid_taken: Callable[[bytes], bool],
        *,
        kdf: Kdf = Kdf.MIKANET,
        throttle: Throttle = Throttle.NETWORK,
        table: bool = False,
    ) -> None:
        self._users = users
        self._server_secret = server_secret
        self._random_bytes = random_bytes
        self._sid_taken = sid_taken
        self._kdf = kdf
        self._throttle = throttle
        self._table = table
        self._by_lid: OrderedDict[bytes, Pending] = OrderedDict()
        self._by_sid: dict[bytes, Pending] = {}
        self._by_network: dict[str, OrderedDict[bytes, Pending]] = {}
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._recent: OrderedDict[bytes, deque[float]] = OrderedDict()
        self._spent: OrderedDict[bytes, float] = OrderedDict()
        self._derivations = DerivationBudget()

    def __len__(self) -> int:
        return len(self._by_lid)

    def login(self, packet: bytes, host: str, now: float) -> bytes | None:
        """The response to a login; None for what is no login that could be answered.

        :param host: the address it came from.
        """
        self._expire(now)
        try:
            request = wire.decode_login(packet)
        except RemoteProtocolError:
            return None
        known = self._by_lid.get(request.lid)
        if known is not None:
            return known.response if known.request == packet else None
        if now - self._spent.get(request.lid, float("-inf")) <= SPENT_TIME:
            return None
        user = unicodedata.normalize("NFC", request.user)
        network = network_of(host)
        slots = self._take_slots(user, host, now)
        found = self._users(user)
        # Made for known names, too, so that both ways take the same time.
        invented = Secret(self._kdf, hmac.digest(self._server_secret, user.encode(), "sha256")[:KEY_SIZE])
        nonce = self._random_bytes(wire.NONCE_SIZE)
        sid = nonce[: wire.SID_SIZE] if self._table else self._random_bytes(wire.SID_SIZE)
        while sid in self._by_sid or self._sid_taken(sid):
            nonce = self._random_bytes(wire.NONCE_SIZE)
            sid = nonce[: wire.SID_SIZE] if self._table else self._random_bytes(wire.SID_SIZE)
        response = wire.LoginResponse(request.lid, wire.VERSION, sid, nonce, self._table)
        real = bool(slots) & (found is not None)  # and nothing is left out for some
        pending = Pending(
            request=packet,
            response=wire.encode_login_response(response),
            sid=sid,
            network=network,
            made_at=now,
            user=user if real else None,
            handshake=Handshake(user, request.version, response),
            secret=found if real and found is not None else invented,
            slots=slots,
        )
        self._remember(request.lid, pending)
        return pending.response

    def pending(self, sid: bytes, now: float) -> Pending | None:
        """The login that a packet with this SID could prove."""
        self._expire(now)
        return self._by_sid.get(sid)

    def may_derive(self, pending: Pending, now: float) -> bool:
        """Whether the login's keys are there, or cheap, or may be derived now although that costs much."""
        costs = pending.secret.kdf is Kdf.DRAFT and pending.keys is None
        return not costs or self._derivations.take(pending.network, now)

    def proved(self, pending: Pending) -> None:
        """The login has become a session: its response is no longer repeated, and the throttle does not count it."""
        self._derivations.proved(pending.network, pending.made_at)
        self._forget(pending)
        _put(self._spent, pending.handshake.response.lid, pending.made_at + PENDING_TIME)
        for slot in pending.slots:
            times = self._recent.get(slot)
            if times is not None and pending.made_at in times:
                times.remove(pending.made_at)
        if pending.user is not None:
            _put(self._known, _name(pending.user) + pending.network.encode(), pending.made_at)

    # --

    def _remember(self, lid: bytes, pending: Pending) -> None:
        mine = self._by_network.get(pending.network)
        if mine is not None and len(mine) >= MAX_PENDING_PER_NETWORK:
            self._forget(next(iter(mine.values())))
        elif len(self._by_lid) >= MAX_PENDING:
            self._forget(next(iter(self._by_lid.values())))
        self._by_lid[lid] = pending
        self._by_sid[pending.sid] = pending
        self._by_network.setdefault(pending.network, OrderedDict())[lid] = pending

    def _forget(self, pending: Pending) -> None:
        if self._by_sid.pop(pending.sid, None) is None:
            return
        lid = pending.handshake.response.lid
        del self._by_lid[lid]
        mine = self._by_network[pending.network]
        del mine[lid]
        if not mine:
            del self._by_network[pending.network]

    def _expire(self, now: float) -> None:
        while self._by_lid:
            oldest = next(iter(self._by_lid.values()))
            if now - oldest.made_at <= PENDING_TIME:
                return
            self._forget(oldest)
            _put(self._spent, oldest.handshake.response.lid, oldest.made_at + PENDING_TIME)

    def _limits(self, user: str, host: str, now: float) -> dict[bytes, tuple[int, bool]]:
        """Where a login may count, how many count there at most, and whether this one does.

        All places are named for every login: what is looked at takes time, which is to say nothing of the name (P6).
        """
        name, network = _name(user), network_of(host).encode()
        if self._throttle is Throttle.NAME:
            return {name: (1, True)}
        known = now - self._known.get(name + network, float("-inf")) <= KNOWN_TIME
        return {
            name + b"@" + address_group(host).encode(): (MAX_PER_KNOWN_ADDRESS, known),
            name + network: (MAX_PER_NETWORK, not known),
            name: (MAX_PER_NAME, not known),
        }

    def _take_slots(self, user: str, host: str, now: float) -> tuple[bytes, ...]:
        """Where this login is counted; nothing if it is too soon after others. Kept for unknown names just the same."""
        limits = self._limits(user, host, now)
        full = False
        for slot, (limit, counts) in limits.items():
            times = self._recent.get(slot)
            if times is None:
                times = deque()
            while times and now - times[0] >= THROTTLE_TIME:
                times.popleft()
            _put(self._recent, slot, times)
            full |= (len(times) >= limit) & counts
        if full:
            return ()
        slots = tuple(slot for slot, (_, counts) in limits.items() if counts)
        for slot in slots:
            self._recent[slot].append(now)
        return slots


def _name(user: str) -> bytes:
    return hashlib.sha256(user.encode()).digest()


def _put(table: OrderedDict[bytes, T], key: bytes, value: T) -> None:
    """Remember something, and forget the oldest if that is too much."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MAX_REMEMBERED:
        table.popitem(last=False)
