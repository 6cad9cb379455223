"""The front doors of a client as services: one listening service each, all before the same tunnel."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.frontdoors.credentials import Credentials
from mikanet.frontdoors.door import DoorFactory, DoorSettings
from mikanet.frontdoors.doors import UdpForward, forward_factory, http_factory, socks_factory
from mikanet.interfaces import ITunnel
from mikanet.relay import MemoryBudget
from mikanet.service.counters_socket import CountersService
from mikanet.service.listening import Abortable, DrainingService, ListeningService, fail_to_listen
from mikanet.service.options import ClientOptions, server_endpoint
from mikanet.service.reporting import ReportingService

_log = Logger()


@dataclasses.dataclass(frozen=True)
class FrontDoors:
    """The doors that a user asked for.

    :ivar doors: (kind, endpoint in the user's words, endpoint), kind being ``socks`` or ``http``.
    :ivar forwards: (endpoint in the user's words, endpoint, destination).
    :ivar udp_forwards: (listening address, destination).
    :ivar credentials: who may use the SOCKS and HTTP doors; None lets everyone in.
    :ivar own_doors: doors as ``doors`` that have credentials of their own, or are open, whatever ``credentials`` says.
    :ivar name: what the client is called where its counters are shown.
    """

    doors: tuple[tuple[str, str, IStreamServerEndpoint], ...]
    forwards: tuple[tuple[str, IStreamServerEndpoint, Address], ...]
    udp_forwards: tuple[tuple[Address, Address], ...]
    credentials: Credentials | None
    drain_time: float
    max_connections: int
    budget: MemoryBudget
    name: str = "client"
    own_doors: tuple[tuple[str, str, IStreamServerEndpoint, Credentials | None], ...] = ()

    @classmethod
    def from_options(cls, reactor: Any, options: ClientOptions) -> FrontDoors:
        """The doors of a command line.

        :raises ConfigError: if something is wrong with them.
        """
        options.check_doors()
        return cls(
            doors=tuple((kind, text, server_endpoint(reactor, kind, text)) for kind, text in options.doors),
            forwards=tuple((text, server_endpoint(reactor, "forward", text), to) for text, to in options.forwards),
            udp_forwards=tuple(options.udp_forwards),
            credentials=None if options.credentials is None else Credentials(options.credentials),
            drain_time=options.number("drain-time", 0, 3600, float),
            max_connections=options.number("max-connections", 1, 10_000_000),
            budget=options.budget(reactor),
            name=options.command,
        )


def make_client(reactor: Any, tunnel: ITunnel, front: FrontDoors, counters: Counters) -> DrainingService:
    """A service that is all the front doors of a tunnel."""
    connections = _AllConnections()
    service = DrainingService(reactor, connections, front.drain_time)
    settings = DoorSettings(
        reactor=reactor,
        counters=counters,
        budget=front.budget,
        max_connections=front.max_connections,
    )
    children: list[IService] = [
        ReportingService(reactor, counters),
        CountersService(reactor, front.name, counters.snapshot, service, front.budget),
    ]
    for kind, text, endpoint, credentials in (*((*door, front.credentials) for door in front.doors), *front.own_doors):
        guarded = dataclasses.replace(settings, credentials=credentials)
        factory = (socks_factory if kind == "socks" else http_factory)(tunnel, guarded)
        connections.add(factory)
        is_open = credentials is None
        children.append(ListeningService(text, endpoint, factory, f"{kind} front door", warn_beyond_loopback=is_open))
    for text, endpoint, destination in front.forwards:
        factory = forward_factory(tunnel, destination, settings)
        connections.add(factory)
        children.append(ListeningService(text, endpoint, factory, f"forward to {destination}"))
    for local, destination in front.udp_forwards:
        children.append(_UdpForwardService(reactor, local, UdpForward(tunnel, destination, settings)))
    for child in children:
        child.setServiceParent(service)
    return service


class _AllConnections(Collection[Abortable]):
    """The connections of several factories as one collection that changes with them."""

    def __init__(self) -> None:
        self._factories: list[DoorFactory] = []

    def add(self, factory: DoorFactory) -> None:
        self._factories.append(factory)

    def __len__(self) -> int:
        return sum(len(factory.connections) for factory in self._factories)

    def __iter__(self) -> Iterator[Abortable]:
        for factory in self._factories:
            yield from factory.connections

    def __contains__(self, item: object) -> bool:
        return any(item in factory.connections for factory in self._factories)


class _UdpForwardService(Service):
    """A UDP port for datagrams to one destination."""

    def __init__(self, reactor: Any, local: Address, protocol: UdpForward) -> None:
        self._reactor = reactor
        self._local = local
        self._protocol = protocol
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Open the port.

        :raises SystemExit: after one line for the user, if that cannot be done.
        """
        local = self._local
        try:
            self._port = self._reactor.listenUDP(local.port, self._protocol, interface=local.host, maxPacketSize=65536)
        except error.CannotListenError as problem:
            fail_to_listen(f"udp {local}", problem)
        _log.info("udp forward on {address}", address=str(local))

    def stopService(self) -> Deferred[None]:
        """Close the port."""
        super().stopService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        if self._port is None:
            return succeed(None)
        return maybeDeferred(self._port.stopListening).addCallback(lambda _: None)
