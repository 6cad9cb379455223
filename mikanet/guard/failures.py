"""Failed authentications in the log: one line each with the address, in a form for fail2ban, at a bounded rate.

``authentication failed from ADDRESS (SYSTEM)`` is a contract: ``docs/howto/fail2ban-mikanet.conf`` matches it. A failure
is a peer that sent something wrong before it proved itself; who sends nothing, or comes while a limit is reached, has
failed at nothing. Only addresses that have taken part in a handshake are named: a forged one would have somebody else banned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mikanet.address import parse_ip

#: Lines in a minute, of one address and of all: more than it takes to ban one, and little for a log (our choice).
LINES_PER_ADDRESS, LINES = 10, 60

#: Over how long that is counted, in seconds.
MINUTE = 60.0

_log = Logger()


class FailureLog:
    """The failed authentications of one server.

    :param clock: the reactor's time. :param system: as the line names it: ``mika``.
    :param write: takes a line; the default logs it.
    """

    def __init__(self, clock: IReactorTime, system: str, write: Callable[[str], None] | None = None) -> None:
        self._clock = clock
        self._system = system
        self._write = write or (lambda text: _log.info("{text}", text=text))
        self._since = float("-inf")
        self._lines: Counter[str] = Counter()
        self._unwritten = 0

    def note(self, host: str) -> None:
        """A peer from ``host`` has failed; what is no address, such as a socket's path, gets no line."""
        address = parse_ip(host)
        if address is None:
            return
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        self._turn()
        shown = str(address)
        if self._lines[shown] >= LINES_PER_ADDRESS or self._lines.total() >= LINES:
            self._unwritten += 1
            if self._unwritten == 1:
                self._clock.callLater(self._since + MINUTE - self._clock.seconds(), self._turn)
            return
        self._lines[shown] += 1
        self._write(f"authentication failed from {shown} ({self._system})")

    def _turn(self) -> None:
        """Begin a new minute, if it is time for that, with what had no line in the last one."""
        now = self._clock.seconds()
        if now - self._since < MINUTE:
            return
        unwritten, self._unwritten = self._unwritten, 0
        self._since = now
        self._lines.clear()
        if unwritten:
            self._write(f"{unwritten} more authentications failed in a minute ({self._system})")
