"""The client's handshake over ICMP: a challenge, probes of sizes, the start. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.polled_asks import FIRST_TIMEOUT, Ask, Asks
from mikanet.wire import icmp

#: Largest message: an Ethernet frame less the headers of IPv4 and ICMP and our mark.
MAX_SIZE = 1500 - 20 - icmp.HEADER_SIZE - icmp.MARK_SIZE
#: Messages of these sizes are tried both ways: Ethernet, PPPoE and tunnels, IPv6's least, and small ones.
_SIZES = (MAX_SIZE, 1430, 1300, 1180, 500, 100)
_PROBE_TRIES = 4


class IcmpHandshake:
    """Everything before a link.

    :param random_bits: gives so many random bits. :param size: largest message to try.
    :param stock: and :param hold: as the start's.
    :ivar size: of messages, once the link has started.
    """

    def __init__(
        self, random_bits: Callable[[int], int], now: float, size: int = MAX_SIZE, stock: int = 8, hold: float = 3.0
    ) -> None:
        self._random_bits = random_bits
        self._challenge = random_bits(8 * wire.CHALLENGE_SIZE).to_bytes(wire.CHALLENGE_SIZE, "big")
        self._sizes = sorted({size, *(smaller for smaller in _SIZES if smaller < size)}, reverse=True)
        self._asks: Asks[Ask] = Asks()
        self._numbers: dict[int, Ask] = {}
        self._number = 0
        self._stage = "hello"
        self._ends_at = 0.0
        self._chosen = 0
        self.stock, self.hold = stock, hold
        self.connection: int | None = None
        self.size: int | None = None
        self._asks.all.append(Ask("hello", wire.hello(self._challenge), now))

    @property
    def rtt(self) -> float:
        """The least round-trip time seen, in seconds."""
        return min(self._asks.rtts, default=FIRST_TIMEOUT)

    @property
    def deadline(self) -> float:
        """When something is to be asked."""
        times = [] if (due := self._asks.deadline) is None else [due]
        if self._stage == "probes":
            times.append(self._ends_at)
        return min(times, default=0.0)

    def questions(self, now: float) -> list[tuple[int, bytes]]:
        """What to ask now, as pairs of number and message."""
        if self._stage == "probes":
            self._judge(now)
        made = []
        for ask in self._asks.take_due(now):
            self._number = (self._number + 1) & 0xFFFF
            self._numbers[self._number] = ask
            made.append((self._number, ask.message))
        return made

    def received(self, number: int, message: bytes, now: float) -> None:
        """An answer came."""
        ask = self._numbers.get(number)
        if ask is None or not ask.open or ask not in self._asks.all:
            return
        if self._stage == "hello":
            self.connection = wire.read_welcome(message, self._challenge)
            if self.connection is not None:
                self._asks.answered(ask, message, now)
                self._begin_probes(self.connection, now)
        elif self._stage == "probes":
            if wire.read_probed(message, ask.message) is not None:
                self._asks.answered(ask, message, now)
                self._judge(now)
        elif message == wire.STARTED:
            self._asks.answered(ask, message, now)
            self.size = self._chosen

    def _begin_probes(self, connection: int, now: float) -> None:
        self._stage = "probes"
        self._ends_at = now + 5 * self._asks.timeout
        self._asks.all = [
            Ask("probe", wire.probe(connection, size, self._random_bits(16), size), now, _PROBE_TRIES)
            for size in self._sizes
        ]

    def _judge(self, now: float) -> None:
        """Start with the largest size that passes, once no larger one can be hoped for."""
        for ask in self._asks.all:
            if ask.answer is not None:
                assert self.connection is not None
                self._chosen = len(ask.message)
                self._stage = "start"
                message = wire.start(self.connection, 0, self._chosen, self.stock, self.hold, self._random_bits(16))
                self._asks.all = [Ask("start", message, now)]
                return
            if ask.open and now < self._ends_at:
                return
        self._ends_at = now + self._asks.timeout  # nothing passed: whatever comes first now is taken
