"""What can be set about a KCP session, and the named modes. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from mikanet.errors import ConfigError
from mikanet.kcp.segment import HEADER_LENGTH

#: Largest packet that kcp-go's buffers hold, over all layers.
MAX_PACKET = 1500
#: Largest window that we take (Q6 has 1,024 as its default limit; paqet's files allow this much).
MAX_WINDOW = 32768
#: Bounds that kcp-go puts on the flush interval, in milliseconds.
MIN_INTERVAL_MS, MAX_INTERVAL_MS = 10, 5000


@dataclass(frozen=True, slots=True)
class Mode:
    """How eager a session is.

    :ivar nodelay: 1 lowers the smallest retransmission timeout from 100 to 30 ms and slows its growth.
    :ivar interval_ms: time between flushes.
    :ivar resend: how many later acknowledgements make a segment be sent again; 0 never.
    :ivar nc: 1 switches congestion control off.
    :ivar write_delay: a write waits for the next flush.
    :ivar ack_no_delay: each datagram is acknowledged at once.
    """

    nodelay: int = 0
    interval_ms: int = 30
    resend: int = 2
    nc: int = 1
    write_delay: bool = False
    ack_no_delay: bool = False


#: paqet's modes. ``fast3-document`` is fast3 as paqet's document has it, with congestion control.
MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "normal": Mode(0, 40, 2, 1, write_delay=True),
        "fast": Mode(0, 30, 2, 1, write_delay=True),
        "fast2": Mode(1, 20, 2, 1, ack_no_delay=True),
        "fast3": Mode(1, 10, 2, 1, ack_no_delay=True),
        "fast3-document": Mode(1, 10, 2, 0, ack_no_delay=True),
    }
)

#: kcptun's: the same four rows, writes never delayed, acknowledgements always.
KCPTUN_MODES: Mapping[str, Mode] = MappingProxyType(
    {name: replace(mode, write_delay=False, ack_no_delay=False) for name, mode in MODES.items()}
)


@dataclass(frozen=True, slots=True)
class ArqSettings:
    """What one end of a session is set to; the peer need not agree.

    :ivar mtu: largest KCP datagram in bytes, below FEC and cipher headers.
    :ivar base_mtu: the size to begin with where the path may not carry ``mtu``, and to try larger ones from; 0: ``mtu``.
    :ivar snd_wnd: most segments in flight.
    :ivar rcv_wnd: most segments held for the application.
    :ivar stream: join writes into full segments; otherwise each write is a message of its own.
    :raises ConfigError: if a number is out of range.
    """

    mode: Mode = MODES["fast"]
    mtu: int = 1326
    snd_wnd: int = 1024
    rcv_wnd: int = 1024
    stream: bool = True
    base_mtu: int = 0

    def __post_init__(self) -> None:
        if not HEADER_LENGTH < self.mtu <= MAX_PACKET:
            raise ConfigError(
                f"a KCP MTU of {self.mtu} leaves no room: give one of {HEADER_LENGTH + 1} to {MAX_PACKET}"
            )
        for name, window in (("send", self.snd_wnd), ("receive", self.rcv_wnd)):
            if not 1 <= window <= MAX_WINDOW:
                raise ConfigError(f"a {name} window of {window} packets is not in 1 to {MAX_WINDOW}")

    @property
    def mss(self) -> int:
        """Data bytes of a full segment."""
        return self.mtu - HEADER_LENGTH

    @property
    def interval_ms(self) -> int:
        """The flush interval, within kcp-go's bounds."""
        return min(max(self.mode.interval_ms, MIN_INTERVAL_MS), MAX_INTERVAL_MS)
