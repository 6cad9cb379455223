"""Mika's services: a server, and a client's tunnel with its front doors around it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IStreamServerEndpoint

from mikanet.counters import Counters
from mikanet.egress import Egress, EgressPolicy
from mikanet.guard.admission import AdmissionLimits
from mikanet.mika.protocol import MikaServerConfig, MikaServerFactory
from mikanet.mika.session import Keys
from mikanet.relay import MemoryBudget
from mikanet.service.counters_socket import CountersService
from mikanet.service.listening import DrainingService, ListeningService
from mikanet.service.reporting import ReportingService
from mikanet.service.state import ReplayJournal, StateFolder


@dataclass(frozen=True)
class MikaServerSettings:
    """A server as its operator wants it.

    :ivar listen: the listening endpoint in the operator's words. :ivar refusal_time: seconds (X2).
    :ivar budget: what its relays share. :ivar drain_time: seconds (X9).
    """

    listen: str
    endpoint: IStreamServerEndpoint
    keys: Keys
    policy: EgressPolicy
    limits: AdmissionLimits
    state: StateFolder
    refusal_time: float
    budget: MemoryBudget
    drain_time: float
    log_destinations: bool = False


def make_server(reactor: Any, settings: MikaServerSettings) -> DrainingService:
    """A service that is a Mika server."""
    replays, journal = settings.state.open_replays(time.time())
    counters = Counters()
    config = MikaServerConfig(
        keys=settings.keys,
        egress=Egress(reactor, settings.policy, verbose=settings.log_destinations),
        replays=replays,
        refusal_time=settings.refusal_time,
        limits=settings.limits,
        budget=settings.budget,
        counters=counters,
    )
    factory = MikaServerFactory(reactor, config)
    service = DrainingService(reactor, factory.verified, settings.drain_time)
    for child in (
        ListeningService(settings.listen, settings.endpoint, factory, "mika server"),
        ReportingService(reactor, counters),
        CountersService(reactor, "mika-server", counters.snapshot, service, config.budget),
        _JournalService(journal),
    ):
        child.setServiceParent(service)  # type: ignore[no-untyped-call]  # untyped in Twisted
    return service


class _JournalService(Service):
    """Closes the journal when nothing can be accepted any more."""

    def __init__(self, journal: ReplayJournal) -> None:
        self._journal = journal

    def stopService(self) -> None:
        """Close the file."""
        super().stopService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._journal.close()
