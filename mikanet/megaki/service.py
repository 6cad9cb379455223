"""Megaki's services: a server with its pool of workers, and a client behind an HTTP gateway."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.logger import Logger

from mikanet.counters import Counters
from mikanet.crypto.rsa_oaep import PrivateKey, PublicKey
from mikanet.guard.admission import AdmissionLimits
from mikanet.megaki.arcangelo import WorkerCommand
from mikanet.megaki.gateway import Gateway
from mikanet.megaki.gateway_site import GatewaySite
from mikanet.megaki.harness import PoolSettings
from mikanet.megaki.limits import RsaThreads
from mikanet.megaki.pegasus import Pool
from mikanet.megaki.reaper import Reaper
from mikanet.megaki.sazukari import Sazukari
from mikanet.megaki.stable import WorkerProcess
from mikanet.megaki.warm import WarmSessions
from mikanet.megaki.yugi import YugiConfig, YugiFactory
from mikanet.relay import MemoryBudget
from mikanet.service.counters_socket import CountersService
from mikanet.service.listening import DrainingService, ListeningService
from mikanet.service.reporting import ReportingService

_log = Logger()


@dataclass(frozen=True)
class MegakiServerSettings:
    """A server as its operator wants it.

    :ivar listen: the listening endpoint in the operator's words. :ivar refusal_time: seconds (X2).
    :ivar memory: bytes that unfinished requests may use. :ivar drain_time: seconds (X9).
    :ivar idle_time: seconds that a session may say nothing. :ivar syn_rate: SYNs a second of one network, and
    :ivar resume_rate: resumptions.
    :ivar verbose: whether each session is logged.
    """

    listen: str
    endpoint: IStreamServerEndpoint
    key: PrivateKey = field(repr=False)
    worker: WorkerCommand
    pool: PoolSettings
    limits: AdmissionLimits
    refusal_time: float
    memory: int
    drain_time: float
    idle_time: float
    syn_rate: float
    resume_rate: float
    verbose: bool = False


def make_server(reactor: Any, settings: MegakiServerSettings) -> MegakiServerService:
    """A service that is a Megaki server."""
    counters = Counters()
    pool = Pool(reactor, partial(WorkerProcess, reactor, settings.worker), settings.pool, counters)
    threads = RsaThreads(reactor)
    config = YugiConfig(
        key=settings.key,
        pool=pool,
        threads=threads,
        refusal_time=settings.refusal_time,
        limits=settings.limits,
        counters=counters,
        budget=MemoryBudget(settings.memory),
        idle_time=settings.idle_time,
        syn_rate=settings.syn_rate,
        resume_rate=settings.resume_rate,
        verbose=settings.verbose,
    )
    factory = YugiFactory(reactor, config)
    service = MegakiServerService(reactor, factory, pool, threads, settings.drain_time)
    for child in (
        ListeningService(settings.listen, settings.endpoint, factory, "megaki server"),
        ReportingService(reactor, counters),
        CountersService(reactor, "megaki-server", counters.snapshot, service),
    ):
        child.setServiceParent(service)  # type: ignore[no-untyped-call]  # untyped in Twisted
    return service


class MegakiServerService(DrainingService):
    """Pool first, ports after it; at the end the other way round, so that no request is lost.

    SIGHUP loads the workers' script anew, SIGUSR2 logs the pool's figures.
    """

    reloads = True

    def __init__(self, reactor: Any, factory: YugiFactory, pool: Pool, threads: RsaThreads, drain_time: float) -> None:
        super().__init__(reactor, factory.connections, drain_time)
        self.pool = pool
        self._reactor = reactor
        self._factory = factory
        self._threads = threads
        self._restore: Callable[[], None] = _nothing
        self._reaper = Reaper(reactor)

    def startService(self) -> None:
        """Start workers and threads."""
        self._restore = _take_signals(self._reactor, {signal.SIGUSR2: self._log_status})
        self._threads.start()
        self._reaper.start()
        self.pool.start()
        super().startService()

    def hang_up(self) -> None:
        """SIGHUP: load the workers' script anew."""
        self._reactor.callFromThread(self.pool.reload)

    def _log_status(self) -> None:
        _log.info(
            "workers: {status}; connections {count}", status=self.pool.status, count=len(self._factory.connections)
        )

    def stopService(self) -> Deferred[None]:
        """Fires when ports, connections and workers are gone."""
        self._factory.drain()
        return super().stopService().addCallback(lambda _: self.pool.stop()).addCallback(lambda _: self._stopped())

    def _stopped(self) -> None:
        self._threads.stop()
        self._reaper.stop()
        self._restore()


def _nothing() -> None:
    """What there is to restore before the start."""


def _take_signals(reactor: Any, calls: dict[signal.Signals, Callable[[], None]]) -> Callable[[], None]:
    """Call these in the reactor when their signals come, until the returned function is called."""
    old: dict[int, Any] = {}
    try:
        for number, call in calls.items():
            old[number] = signal.signal(number, lambda *_, call=call: reactor.callFromThread(call))
    except ValueError:
        return _nothing  # not in the main thread

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    return restore


@dataclass(frozen=True)
class MegakiClientSettings:
    """A gateway as its user wants it.

    :ivar server: the server's endpoint. :ivar server_name: the same in the user's words. :ivar listen: where HTTP
        requests come in, and :ivar listen_text: the same in the user's words.
    :ivar request_time: seconds that a request may take. :ivar warm: sessions kept ready. :ivar most: most sessions.
    :ivar verbose: whether each request is logged. :ivar hosts: names that the gateway is known by.
    """

    server: IStreamClientEndpoint
    server_name: str
    server_key: PublicKey
    listen: IStreamServerEndpoint
    listen_text: str
    drain_time: float
    request_time: float
    warm: int
    most: int
    verbose: bool = False
    hosts: tuple[str, ...] = ()


def make_client(reactor: Any, settings: MegakiClientSettings) -> DrainingService:
    """A service that is an HTTP gateway to a Megaki server."""
    counters = Counters()
    client = Sazukari(reactor, settings.server, settings.server_key, request_time=settings.request_time)
    sessions = WarmSessions(reactor, client, settings.warm, settings.most, settings.server_name, settings.request_time)
    gateway = Gateway(sessions.ask, counters, settings.verbose, settings.hosts)
    service = _ClientService(reactor, gateway.running, settings.drain_time, sessions)
    site = GatewaySite(reactor, gateway)
    for child in (
        ListeningService(settings.listen_text, settings.listen, site, "megaki gateway"),
        ReportingService(reactor, counters),
        CountersService(reactor, "megaki-client", counters.snapshot, service),
    ):
        child.setServiceParent(service)  # type: ignore[no-untyped-call]  # untyped in Twisted
    return service


class _ClientService(DrainingService):
    """The sessions end after the requests."""

    def __init__(self, reactor: Any, running: Any, drain_time: float, sessions: WarmSessions) -> None:
        super().__init__(reactor, running, drain_time)
        self._sessions = sessions

    def startService(self) -> None:
        """Make the first sessions."""
        super().startService()
        self._sessions.start()

    def stopService(self) -> Deferred[None]:
        """Fires when everything is gone."""
        return super().stopService().addCallback(lambda _: Deferred.fromCoroutine(self._sessions.stop()))
