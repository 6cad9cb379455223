"""The server's listening ports for clients (P11): which ones are allowed, and what is accepted there."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory

from mikanet.address import parse_port
from mikanet.endpoint_strings import BACKLOG
from mikanet.errors import ConfigError
from mikanet.guard.targets import Place
from mikanet.pickaxe.wire import Status
from mikanet.relay import RelayEnd

#: Ports that one session may have open at the same time (our choice).
MAX_PORTS = 16

#: How many free ports are tried when any will do.
_TRIES = 32


@dataclass(frozen=True)
class ListenPolicy:
    """Where clients may listen.

    :ivar ranges: ports, first and last; none at all if empty. :ivar address: on which address of this machine.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    address: str = "127.0.0.1"

    def permits(self, port: int) -> bool:
        """Whether a client may listen there."""
        return any(first <= port <= last for first, last in self.ranges)

    def candidates(self, port: int) -> Sequence[int]:
        """The ports to try for a wish; 0 wishes for any."""
        if port:
            return [port] if self.permits(port) else []
        count = sum(last - first + 1 for first, last in self.ranges)
        return [self._nth(index) for index in random.sample(range(count), min(count, _TRIES))]

    def _nth(self, index: int) -> int:
        for first, last in self.ranges:
            if index <= last - first:
                return first + index
            index -= last - first + 1
        raise IndexError(index)


def parse_port_range(text: str) -> tuple[int, int]:
    """``PORT[-PORT]``.

    :raises ConfigError: if it is none.
    """
    first, dash, last = text.partition("-")
    low, high = parse_port(first), parse_port(last if dash else first)
    if low > high:
        raise ConfigError(f"{text!r}: the port range ends before it begins")
    return low, high


class AcceptFactory(Factory):
    """Makes an end for each connection to a port that a client listens on.

    :param accepted: called with each end as soon as it is connected.
    """

    noisy = False

    def __init__(self, accepted: Callable[[RelayEnd], None]) -> None:
        self._accepted = accepted

    def buildProtocol(self, addr: IAddress | None) -> RelayEnd:
        """An end that reports itself."""
        return _AcceptedEnd(self._accepted)


class _AcceptedEnd(RelayEnd):
    def __init__(self, accepted: Callable[[RelayEnd], None]) -> None:
        self._accepted = accepted

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self._accepted(self)


class PortTable:
    """The ports of one session, by port id.

    :param take: room for an open file, or None.
    """

    def __init__(self, reactor: Any, policy: ListenPolicy, take: Callable[[], Place | None]) -> None:
        self._reactor = reactor
        self._policy = policy
        self._take = take
        self._ports: dict[bytes, tuple[IListeningPort, Place]] = {}

    def listen(self, pid: bytes, port: int, accepted: Callable[[RelayEnd], None]) -> tuple[Status, int]:
        """Listen for a client: the outcome, and the port if it is good."""
        if pid in self._ports:
            return Status.FAILURE, 0
        if len(self._ports) >= MAX_PORTS:
            return Status.LIMIT, 0
        candidates = self._policy.candidates(port)
        if not candidates:
            return Status.POLICY, 0
        place = self._take()
        if place is None:
            return Status.LIMIT, 0
        factory = AcceptFactory(accepted)
        for each in candidates:
            try:
                listening = self._reactor.listenTCP(each, factory, backlog=BACKLOG, interface=self._policy.address)
            except error.CannotListenError:
                continue
            self._ports[pid] = listening, place
            return Status.OK, listening.getHost().port
        place.release()
        return Status.FAILURE, 0

    def give_up(self, port: int) -> bool:
        """Close a port by its number; whether it was open here."""
        for pid, (listening, _) in self._ports.items():
            if getattr(listening.getHost(), "port", None) == port:
                self.stop(pid)
                return True
        return False

    def stop(self, pid: bytes) -> None:
        """Close a port; an unknown one is no error."""
        found = self._ports.pop(pid, None)
        if found is not None:
            port, place = found
            port.stopListening()
            place.release()

    def stop_all(self) -> None:
        """Close every port."""
        for pid in list(self._ports):
            self.stop(pid)
