"""NitroSocks' services: a server whose tokens can be loaded anew, and a client that releases its sessions at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger

from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.filters.base import FilterServerEndpoint
from mikanet.nitrosocks.client import NitroTunnel, Server
from mikanet.nitrosocks.client_protocol import NitroClientConfig
from mikanet.nitrosocks.options import read_tokens
from mikanet.nitrosocks.protocol import NitroServerConfig, NitroServerFactory, OpenStreams
from mikanet.nitrosocks.tls import TlsFilter
from mikanet.nitrosocks.tls_options import ServerTls
from mikanet.service.counters_socket import CountersService
from mikanet.service.doors import FrontDoors, make_client
from mikanet.service.listening import DrainingService, ListeningService
from mikanet.service.reporting import ReportingService
from mikanet.service.secret_files import read_private_file

_log = Logger()


@dataclass(frozen=True)
class NitroServerSettings:
    """A server as its operator wants it.

    :ivar listen: the listening endpoint in the operator's words. :ivar certificate: the file that ``tls`` is of.
    :ivar token_files: by the realm's name.
    :ivar drain_time: seconds (X9).
    """

    listen: str
    endpoint: IStreamServerEndpoint
    tls: ServerTls
    certificate: str
    config: NitroServerConfig
    token_files: dict[str, str]
    drain_time: float
    insecure_ok: bool


def make_server(reactor: Any, settings: NitroServerSettings) -> DrainingService:
    """A service that is a NitroSocks server."""
    factory = NitroServerFactory(reactor, settings.config)
    service = NitroServerService(reactor, factory, settings)
    tls = settings.tls
    endpoint = FilterServerEndpoint(settings.endpoint, lambda upper: TlsFilter(upper, tls))
    counters = settings.config.counters
    for child in (
        ListeningService(settings.listen, endpoint, factory, "nitrosocks server"),
        ReportingService(reactor, counters),
        CountersService(reactor, "nitrosocks-server", counters.snapshot, service, settings.config.budget),
    ):
        child.setServiceParent(service)  # type: ignore[no-untyped-call]  # untyped in Twisted
    return service


class NitroServerService(DrainingService):
    """SIGHUP loads certificate and tokens anew and ends the sessions of tokens that are gone. At the end every client is told."""

    reloads = True

    def __init__(self, reactor: Any, factory: NitroServerFactory, settings: NitroServerSettings) -> None:
        super().__init__(reactor, OpenStreams(factory), settings.drain_time)
        self._reactor = reactor
        self._factory = factory
        self._settings = settings

    def hang_up(self) -> None:
        """SIGHUP: load certificate and tokens anew, in the reactor."""
        self._reactor.callFromThread(self.reload)

    def reload(self) -> None:
        """Load the certificate and every tokens file anew; a file with a mistake changes nothing of what it is for."""
        path = self._settings.certificate
        try:
            self._settings.tls.replace(read_private_file(path), path)
        except ConfigError as problem:
            _log.error("the certificate stays as it was: {problem}", problem=str(problem))
        else:
            _log.info("certificate from {path}", path=path)
        for name, path in self._settings.token_files.items():
            realm = self._settings.config.realms[name].realm
            try:
                tokens = read_tokens(path, self._settings.insecure_ok)
            except ConfigError as problem:
                _log.error("the tokens stay as they were: {problem}", problem=str(problem))
                continue
            ended = self._factory.replace_tokens(realm, tokens)
            _log.info("{count} tokens from {path}; sessions ended: {ended}", count=len(tokens), path=path, ended=ended)

    def stopService(self) -> Deferred[None]:
        """Fires when streams have ended, or the time is over, and every client was told."""
        self._factory.draining = True
        return super().stopService().addCallback(lambda _: self._factory.end_parked())


def make_client_service(
    reactor: Any, servers: Sequence[Server], config: NitroClientConfig, front: FrontDoors, counters: Counters
) -> MultiService:
    """A service that is a NitroSocks client."""
    tunnel = NitroTunnel(reactor, servers, config)
    service = _ClientService(tunnel)
    make_client(reactor, tunnel, front, counters).setServiceParent(service)  # type: ignore[no-untyped-call]  # untyped in Twisted
    return service


class _ClientService(MultiService):
    """The front doors with their drain, then the release of the sessions (phase 6)."""

    def __init__(self, tunnel: NitroTunnel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._tunnel = tunnel

    def startService(self) -> None:
        """Listen, and make the first session."""
        super().startService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._tunnel.start()

    def stopService(self) -> Deferred[None]:
        """Fires when every connection has ended and every session is released."""
        stopping = maybeDeferred(super().stopService)
        return stopping.addCallback(lambda _: self._tunnel.stop())
