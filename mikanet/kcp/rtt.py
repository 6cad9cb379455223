"""KCP's estimate of the round trip and of the retransmission timeout. No I/O, whole milliseconds."""

from __future__ import annotations

INITIAL_RTO_MS = 200
MAX_RTO_MS = 60_000
#: Smallest timeouts: with nodelay 0, and above.
MIN_RTO_MS = (100, 30)


class RttEstimator:
    """Smoothed round trip, its variance, and the timeout made of both.

    Source: kcp-go ``update_ack``; the shifts are arithmetic, as there.
    """

    __slots__ = ("_interval", "_min_rto", "rto", "rttvar", "srtt")

    def __init__(self, interval_ms: int, nodelay: int) -> None:
        self._interval = interval_ms
        self._min_rto = MIN_RTO_MS[1 if nodelay else 0]
        self.srtt = 0
        self.rttvar = 0
        self.rto = INITIAL_RTO_MS

    def sample(self, rtt: int) -> None:
        """Take one measured round trip, 0 or more."""
        if self.srtt == 0:
            self.srtt = rtt
            self.rttvar = rtt >> 1
        else:
            delta = rtt - self.srtt
            self.srtt += delta >> 3
            delta = abs(delta)
            # Below what the variance explains, it grows slower: a sudden quick answer is no sign of jitter.
            self.rttvar += (delta - self.rttvar) >> (5 if rtt < self.srtt - self.rttvar else 2)
        rto = self.srtt + max(self._interval, self.rttvar << 2)
        self.rto = min(max(rto, self._min_rto), MAX_RTO_MS)
