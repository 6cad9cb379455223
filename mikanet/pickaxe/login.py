"""The server's side of logins: who may have a session, and the same behaviour for everybody (P6). Plain Python, no I/O.

An unknown name goes the same way as a known one: it gets a secret that nobody has, a session id, a nonce and a pending
login that no packet will ever prove. So does a login that comes too soon.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from mikanet.address import parse_ip
from mikanet.errors import RemoteProtocolError
from mikanet.pickaxe import wire
from mikanet.pickaxe.keys import KEY_SIZE, Handshake, Kdf, Secret, SessionKeys

T = TypeVar("T")

#: Most pending logins, and how long one is kept, in seconds.
MAX_PENDING, PENDING_TIME = 4096, 10.0

#: Most of them from one network (our choice), so that one flood does not wash away everybody else's.
MAX_PENDING_PER_NETWORK = 256

#: One fresh login per name and network in this time, in seconds, and so many per name from everywhere.
THROTTLE_TIME, MAX_PER_NAME = 3.0, 8

#: Most names, and names with networks, that the throttle remembers.
_MAX_REMEMBERED = 65_536


class Throttle(Enum):
    """What is limited: logins of a name from one network, or, by the document's letter, of a name."""

    NETWORK = "network"
    NAME = "name"


@dataclass(slots=True)
class Pending:
    """A login that was answered and not proved.

    :ivar user: None if no session may come of it.
    """

    request: bytes
    response: bytes
    sid: bytes
    network: str
    made_at: float
    user: str | None
    handshake: Handshake
    secret: Secret
    keys: SessionKeys | None = None

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
        self._by_network: dict[str, int] = {}
        self._last: OrderedDict[bytes, float] = OrderedDict()
        self._recent: OrderedDict[bytes, list[float]] = OrderedDict()

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
        user = unicodedata.normalize("NFC", request.user)
        network = network_of(host)
        allowed = self._may(user, network, now)
        found = self._users(user)
        # Made for known names, too, so that both ways take the same time.
        invented = Secret(self._kdf, hmac.digest(self._server_secret, user.encode(), "sha256")[:KEY_SIZE])
        nonce = self._random_bytes(wire.NONCE_SIZE)
        sid = nonce[: wire.SID_SIZE] if self._table else self._random_bytes(wire.SID_SIZE)
        while sid in self._by_sid or self._sid_taken(sid):
            nonce = self._random_bytes(wire.NONCE_SIZE)
            sid = nonce[: wire.SID_SIZE] if self._table else self._random_bytes(wire.SID_SIZE)
        response = wire.LoginResponse(request.lid, wire.VERSION, sid, nonce, self._table)
        real = found is not None and allowed
        pending = Pending(
            request=packet,
            response=wire.encode_login_response(response),
            sid=sid,
            network=network,
            made_at=now,
            user=user if real else None,
            handshake=Handshake(user, request.version, response),
            secret=found if found is not None and real else invented,
        )
        self._remember(request.lid, pending)
        return pending.response

    def pending(self, sid: bytes, now: float) -> Pending | None:
        """The login that a packet with this SID could prove."""
        self._expire(now)
        return self._by_sid.get(sid)

    def proved(self, pending: Pending) -> None:
        """The login has become a session. Its response is no longer repeated."""
        self._forget(pending)

    # --

    def _remember(self, lid: bytes, pending: Pending) -> None:
        counts = self._by_network
        if counts.get(pending.network, 0) >= MAX_PENDING_PER_NETWORK:
            self._forget(next(each for each in self._by_lid.values() if each.network == pending.network))
        elif len(self._by_lid) >= MAX_PENDING:
            self._forget(next(iter(self._by_lid.values())))
        self._by_lid[lid] = pending
        self._by_sid[pending.sid] = pending
        counts[pending.network] = counts.get(pending.network, 0) + 1

    def _forget(self, pending: Pending) -> None:
        if self._by_sid.pop(pending.sid, None) is None:
            return
        del self._by_lid[pending.handshake.response.lid]
        left = self._by_network[pending.network] - 1
        if left:
            self._by_network[pending.network] = left
        else:
            del self._by_network[pending.network]

    def _expire(self, now: float) -> None:
        while self._by_lid:
            oldest = next(iter(self._by_lid.values()))
            if now - oldest.made_at <= PENDING_TIME:
                return
            self._forget(oldest)

    def _may(self, user: str, network: str, now: float) -> bool:
        """Whether this login is not too soon after others; kept for unknown names just the same."""
        name = hashlib.sha256(user.encode()).digest()
        key = name if self._throttle is Throttle.NAME else name + network.encode()
        last = self._last.get(key)
        recent = [each for each in self._recent.get(name, ()) if now - each < THROTTLE_TIME]
        if (last is not None and now - last < THROTTLE_TIME) or len(recent) >= MAX_PER_NAME:
            return False
        recent.append(now)
        _put(self._last, key, now)
        _put(self._recent, name, recent)
        return True


def _put(table: OrderedDict[bytes, T], key: bytes, value: T) -> None:
    """Remember something, and forget the oldest if that is too much."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MAX_REMEMBERED:
        table.popitem(last=False)


def network_of(host: str) -> str:
    """What counts as one network: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    ip = parse_ip(host.partition("%")[0])
    if ip is None:
        return host
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.packed[: 3 if ip.version == 4 else 6].hex()
