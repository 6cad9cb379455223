"""A server's way to its targets, in memory."""

from __future__ import annotations

import ipaddress
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from mikanet.address import Address, IPAddress
from mikanet.guard.targets import Place, TargetLimits, Targets
from tests.support.transports import MemoryTransport


class FakeEgress:
    """Targets in memory; each dial waits until the test lets it through.

    :ivar dialled: the destinations asked for. :ivar resolved: the same for datagrams.
    """

    def __init__(self) -> None:
        self.dialled: list[Address] = []
        self.resolved: list[Address] = []
        self.waiting: list[tuple[Deferred[Any], Any]] = []
        self.cancelled = 0
        self.refuse: Exception | None = None

    def connect(self, destination: Address, factory: Any, user: Any = None) -> Deferred[Any]:
        """Note the dial."""
        self.dialled.append(destination)
        if self.refuse is not None:
            return fail(self.refuse)

        def cancel(_: object) -> None:
            self.cancelled += 1

        deferred: Deferred[Any] = Deferred(cancel)
        self.waiting.append((deferred, factory))
        return deferred

    def take(self, user: object, files: int = 1) -> Place | None:
        """There is always room."""
        return Targets(TargetLimits(files, files)).take(None, files)

    def let_through(self) -> MemoryTransport:
        """Connect the oldest waiting dial; returns the target's transport."""
        deferred, factory = self.waiting.pop(0)
        transport = MemoryTransport("93.184.216.34")
        transport.connect(factory.buildProtocol(None))
        deferred.callback(transport.protocol)
        return transport

    def find(self, destination: Address, user: Any = None) -> Deferred[list[IPAddress]]:
        """An address for every name."""
        self.resolved.append(destination)
        if self.refuse is not None:
            return fail(self.refuse)
        return succeed([ipaddress.ip_address("93.184.216.34")])
