"""How often the keys of the draft are derived for logins that nobody has proved yet. Plain Python, no I/O.

The draft stretches the password anew for each session, tens of milliseconds that anybody's login and one packet behind it
would make the server spend. So networks have a budget each and one together, and networks from which somebody has proved a
login lately have one of their own together.
"""

from __future__ import annotations

from collections import OrderedDict

#: Derivations a second, and at once: of one network, and of all that are known or of all others (our choice).
NETWORK_RATE, NETWORK_BURST = 1.0, 3.0
TOTAL_RATE, TOTAL_BURST = 3.0, 6.0
#: How long a network is known after a login was proved from there, in seconds.
KNOWN_TIME = 3600.0
_MAX_NETWORKS = 4096


class DerivationBudget:
    """Tokens by network, and two buckets for all."""

    def __init__(self) -> None:
        self._networks: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (tokens, when)
        self._known: OrderedDict[str, float] = OrderedDict()
        self._totals = {True: (TOTAL_BURST, 0.0), False: (TOTAL_BURST, 0.0)}

    def take(self, network: str, now: float) -> bool:
        """Whether one more derivation for this network is all right; if so it counts."""
        known = self._known.get(network, now) > now
        total = _filled(self._totals[known], TOTAL_RATE, TOTAL_BURST, now)
        mine = _filled(self._networks.pop(network, (NETWORK_BURST, now)), NETWORK_RATE, NETWORK_BURST, now)
        allowed = total >= 1 and mine >= 1
        self._totals[known] = (total - allowed, now)
        self._networks[network] = (mine - allowed, now)
        if len(self._networks) > _MAX_NETWORKS:
            self._networks.popitem(last=False)
        return allowed

    def proved(self, network: str, now: float) -> None:
        """A login from this network was an honest one."""
        self._known[network] = now + KNOWN_TIME
        self._known.move_to_end(network)
        if len(self._known) > _MAX_NETWORKS:
            self._known.popitem(last=False)


def _filled(bucket: tuple[float, float], rate: float, burst: float, now: float) -> float:
    tokens, when = bucket
    return min(burst, tokens + (now - when) * rate)
