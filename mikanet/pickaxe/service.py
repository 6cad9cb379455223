"""Pickaxe's services: a server with its carriers, and a client's session with its front doors around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.carriers.urls import shown
from mikanet.counters import Counters
from mikanet.interfaces import IServerCarrier
from mikanet.pickaxe.client import PickaxeClient
from mikanet.pickaxe.server import PickaxeServer, PickaxeServerConfig
from mikanet.pickaxe.tunnel import PickaxeTunnel
from mikanet.service.counters_socket import CountersService
from mikanet.service.doors import FrontDoors, make_client
from mikanet.service.listening import DrainingService, fail_to_listen
from mikanet.service.reporting import ReportingService

_log = Logger()


@dataclass(frozen=True)
class PickaxeServerSettings:
    """A server as its operator wants it.

    :ivar drain_time: seconds (X9).
    """

    carriers: Sequence[IServerCarrier]
    config: PickaxeServerConfig
    drain_time: float


class CarrierService(Service):
    """Takes carriers from before privileges are dropped until it is stopped."""

    def __init__(self, carrier: IServerCarrier, server: PickaxeServer) -> None:
        self._carrier = carrier
        self._server = server
        self._starting = True
        self._problem: BaseException | None = None

    def privilegedStartService(self) -> None:
        """Open the port or socket.

        :raises SystemExit: after one line for the user on stderr, if that cannot be done.
        """
        maybeDeferred(self._carrier.listen, self._server.accept).addCallbacks(self._listening, self._failed)
        self._starting = False
        if self._problem is not None:
            fail_to_listen(shown(self._carrier.name), self._problem)

    def _listening(self, _: None) -> None:
        _log.info("pickaxe server on {carrier}", carrier=shown(self._carrier.name))

    def _failed(self, failure: Failure) -> None:
        if self._starting:
            self._problem = failure.value
        else:
            _log.critical(
                "cannot listen on {where}: {problem}", where=shown(self._carrier.name), problem=str(failure.value)
            )

    def stopService(self) -> Deferred[None]:
        """Take no more carriers; those that are there live on."""
        super().stopService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        return maybeDeferred(self._carrier.stop)


class _ServerService(DrainingService):
    """A server, which tells its clients when it stops."""

    def __init__(self, reactor: Any, server: PickaxeServer, drain_time: float) -> None:
        super().__init__(reactor, server.busy, drain_time)
        self.server = server

    def stopService(self) -> Deferred[None]:
        """Fires when every connection has ended or was cut, and every client was told."""
        return super().stopService().addCallback(lambda _: self.server.stop())


def make_server(reactor: Any, settings: PickaxeServerSettings) -> DrainingService:
    """A service that is a Pickaxe server."""
    server = PickaxeServer(reactor, settings.config)
    service = _ServerService(reactor, server, settings.drain_time)
    counters = settings.config.counters
    for child in (
        *(CarrierService(carrier, server) for carrier in settings.carriers),
        ReportingService(reactor, counters),
        CountersService(reactor, "pickaxe-server", counters.snapshot, service, settings.config.budget),
    ):
        child.setServiceParent(service)
    return service


class ClientService(MultiService):
    """A client's front doors, and its session, which ends after the last connection."""

    def __init__(self, client: PickaxeClient, doors: Service) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._client = client
        doors.setServiceParent(self)

    def startService(self) -> None:
        """Open the carriers."""
        super().startService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._client.start()

    def stopService(self) -> Deferred[None]:
        """Fires when the connections have ended and the server was told."""
        return maybeDeferred(super().stopService).addCallback(lambda _: self._client.stop())


def make_pickaxe_client(reactor: Any, tunnel: PickaxeTunnel, front: FrontDoors, counters: Counters) -> ClientService:
    """A service that is a client with its front doors."""
    return ClientService(tunnel.client, make_client(reactor, tunnel, front, counters))
