"""KCP's congestion window, used only when a mode has ``nc`` 0. No I/O."""

from __future__ import annotations

_INITIAL_SSTHRESH = 2
_MIN_SSTHRESH = 2


class CongestionWindow:
    """The window in segments (``cwnd``), and in bytes for its slow growth (``incr``).

    It starts at 0: the first flush sends nothing and sets it to 1. Source: kcp-go ``Input`` and ``flush``.
    """

    __slots__ = ("_mss", "cwnd", "incr", "ssthresh")

    def __init__(self, mss: int) -> None:
        self._mss = mss
        self.cwnd = 0
        self.incr = 0
        self.ssthresh = _INITIAL_SSTHRESH

    def acknowledged(self, rmt_wnd: int) -> None:
        """A datagram moved ``una`` forward."""
        if self.cwnd >= rmt_wnd:
            return
        mss = self._mss
        if self.cwnd < self.ssthresh:
            self.cwnd += 1
            self.incr += mss
        else:
            self.incr = max(self.incr, mss)
            self.incr += mss * mss // self.incr + mss // 16
            if (self.cwnd + 1) * mss <= self.incr:
                self.cwnd = (self.incr + mss - 1) // mss
        if self.cwnd > rmt_wnd:
            self.cwnd = rmt_wnd
            self.incr = rmt_wnd * mss

    def flushed(self, resent: int, timed_out: int, in_flight: int, window: int, resend: int) -> None:
        """A full flush sent ``resent`` segments again early and ``timed_out`` after their timeout.

        :param in_flight: segments between ``snd_una`` and ``snd_nxt``.
        :param window: what the flush was allowed to have in flight.
        """
        if resent:
            self.ssthresh = max(in_flight // 2, _MIN_SSTHRESH)
            self.cwnd = self.ssthresh + resend
            self.incr = self.cwnd * self._mss
        if timed_out:
            self.ssthresh = max(window // 2, _MIN_SSTHRESH)
            self.cwnd = 0
        if self.cwnd < 1:
            self.cwnd = 1
            self.incr = self._mss
