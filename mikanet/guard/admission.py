"""Admission: how many connections may be inside before they have proved anything, and how many after (X3).

Plain Python: time and randomness are passed in. A flood of silent connections meets random early drop, as in OpenSSH's
MaxStartups; a single address meets its own cap. Both spare an address from which somebody has proved lately to know the
secret, so that neither a wrong password nor a stranger's flood locks a household out; only the full cap stops everybody.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from mikanet.address import parse_ip

#: Connections younger than this, in seconds, are not counted: honest peers prove themselves at once.
GRACE = 2.0

#: How long, in seconds, a verified connection exempts its address from random drop and from the cap per address.
TRUST_TIME = 600.0

#: Most addresses remembered as trusted (our choice); the oldest is forgotten first.
MAX_TRUSTED = 100_000

#: Drop probability where random early drop begins.
EARLY_DROP = 0.3


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The caps.

    :ivar unverified: unverified connections at which every further one is dropped; random drop starts at a tenth.
    :ivar unverified_per_address: the same for one IPv4 address or IPv6 /64.
    :ivar connections: verified connections in all.
    :ivar per_user: verified connections of one user.
    """

    unverified: int = 1000
    unverified_per_address: int = 32
    connections: int = 10_000
    per_user: int = 1000


class Admission:
    """Counts connections and says who may come in.

    :param limits: the caps.
    :param uniform: returns a random float in [0, 1).
    """

    def __init__(self, limits: AdmissionLimits, uniform: Callable[[], float] = random.random) -> None:
        self._limits = limits
        self._uniform = uniform
        self._young: OrderedDict[Hashable, tuple[float, str]] = OrderedDict()
        self._old: dict[Hashable, str] = {}
        self._old_by_group: Counter[str] = Counter()
        self._trusted: OrderedDict[str, float] = OrderedDict()
        self._verified = 0
        self._verified_by_user: Counter[Hashable] = Counter()

    @property
    def unverified(self) -> int:
        """Unverified connections that count now."""
        return len(self._old)

    @property
    def verified(self) -> int:
        """Verified connections now."""
        return self._verified

    def admit(self, connection: Hashable, host: str, now: float) -> bool:
        """Whether a new connection from ``host`` may stay; if so it counts as unverified from now on."""
        self._age(now)
        group = address_group(host)
        if self._drop(group, now):
            return False
        self._young[connection] = (now, group)
        return True

    def _drop(self, group: str, now: float) -> bool:
        count, full = len(self._old), self._limits.unverified
        if count >= full:
            return True
        if now - self._trusted.get(group, -TRUST_TIME - 1) <= TRUST_TIME:
            return False
        start = full // 10
        if count >= start and self._uniform() < EARLY_DROP + (1 - EARLY_DROP) * (count - start) / (full - start):
            return True
        return self._old_by_group[group] >= self._limits.unverified_per_address

    def verify(self, connection: Hashable, host: str, now: float, user: Hashable = None) -> bool:
        """The connection's peer proved itself. False when the caps of verified connections are reached.

        After True the connection is to be reported to :meth:`leave_verified`; after False to nobody.
        """
        self.leave(connection)
        group = address_group(host)
        self._trusted[group] = now
        self._trusted.move_to_end(group)
        if len(self._trusted) > MAX_TRUSTED:
            self._trusted.popitem(last=False)
        limits = self._limits
        if self._verified >= limits.connections or self._verified_by_user[user] >= limits.per_user:
            return False
        self._verified += 1
        self._verified_by_user[user] += 1
        return True

    def leave(self, connection: Hashable) -> None:
        """An unverified connection is gone; an unknown one is no error."""
        if self._young.pop(connection, None) is not None:
            return
        group = self._old.pop(connection, None)
        if group is not None:
            _decrease(self._old_by_group, group)

    def leave_verified(self, user: Hashable = None) -> None:
        """A verified connection is gone."""
        self._verified -= 1
        _decrease(self._verified_by_user, user)

    def _age(self, now: float) -> None:
        while self._young:
            connection, (since, group) = next(iter(self._young.items()))
            if now - since <= GRACE:
                return
            del self._young[connection]
            self._old[connection] = group
            self._old_by_group[group] += 1


def address_group(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 one (as its first 8 bytes in hex)."""
    if ":" not in host:
        return host
    ip = parse_ip(host.partition("%")[0])
    if ip is None or ip.version == 4:
        return host
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return ip.packed[:8].hex()


def _decrease(counts: Counter[Any], key: Hashable) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]
