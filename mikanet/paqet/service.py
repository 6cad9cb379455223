"""paqet's services: a server on its port, and a client's tunnel with its front doors around it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.counters import Counters
from mikanet.egress import Egress, EgressPolicy
from mikanet.errors import ConfigError
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.sessions import KcpSessions
from mikanet.kcp.udp import UdpPackets
from mikanet.paqet.client import PaqetTunnel
from mikanet.paqet.config import PaqetConfig
from mikanet.paqet.connection import PaqetClientConfig
from mikanet.paqet.options import PaqetSetup, client_raw_settings, server_raw_settings, way_to
from mikanet.paqet.ports import IClientPort, RawClientPort, UdpClientPort
from mikanet.paqet.server import PaqetServerConfig, PaqetServerFactory
from mikanet.rawpackets.port import RawTcpPort
from mikanet.rawpackets.routes import other_interfaces
from mikanet.rawpackets.settings import RawSettings
from mikanet.rawpackets.watch import NetworkWatch
from mikanet.relay import MemoryBudget
from mikanet.service.counters_socket import CountersService
from mikanet.service.doors import FrontDoors, make_client
from mikanet.service.listening import DrainingService, fail_to_listen, fail_to_serve
from mikanet.service.reporting import ReportingService

_log = Logger()


@dataclass(frozen=True)
class PaqetServerSettings:
    """A server as its operator wants it.

    :ivar link: of the setup, with the limits of sessions. :ivar max_streams: with a target, in all sessions;
    :ivar max_per_session: the same in one. :ivar budget: what its relays share.
    """

    setup: PaqetSetup
    link: LinkSettings
    policy: EgressPolicy
    firewall: bool
    max_streams: int
    max_per_session: int
    budget: MemoryBudget
    drain_time: float
    log_destinations: bool = False


class PaqetServer(DrainingService):
    """A server: its port, its sessions, and the books.

    The port outlives the drain: sessions have no sockets of their own.

    :ivar counters: everything that is counted.
    """

    def __init__(self, reactor: Any, settings: PaqetServerSettings) -> None:
        self.counters = Counters()
        self._reactor = reactor
        self._settings = settings
        config = PaqetServerConfig(
            egress=Egress(reactor, settings.policy, verbose=settings.log_destinations),
            smux=replace(settings.setup.smux, max_streams=settings.max_per_session),
            dialects=settings.setup.config.dialects,
            max_streams=settings.max_streams,
            budget=settings.budget,
            counters=self.counters,
        )
        self._factory = PaqetServerFactory(reactor, config)
        self._port: Any = None
        self._watch: NetworkWatch | None = None
        self._sessions: KcpSessions | None = None
        super().__init__(reactor, self._factory.connections, settings.drain_time)
        for child in (
            ReportingService(reactor, self.counters),
            CountersService(reactor, "paqet-server", self.counters.snapshot, self, settings.budget),
        ):
            child.setServiceParent(self)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def privilegedStartService(self) -> None:
        """Open the port.

        :raises SystemExit: after one line for the user, if that cannot be done.
        """
        config = self._settings.setup.config
        try:
            port = self._make_port(config)
            self._sessions = KcpSessions(
                port,
                self._settings.link,
                self._factory,
                self._reactor,
                os.urandom,
                self.counters,
                self._factory.config.budget,
            )
            port.startListening()
        except error.CannotListenError as problem:
            fail_to_listen(f"udp port {config.port}", problem)
        except ConfigError as problem:
            fail_to_serve(f"paqet-server: {problem}")
        self._port = port
        _log.info("paqet server on {carrier} port {port}", carrier=config.carrier, port=config.port)
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def _make_port(self, config: PaqetConfig) -> Any:
        def received(peer: Any, packets: list[bytes]) -> bool:
            assert self._sessions is not None
            return self._sessions.packets_received(peer, packets)

        if config.carrier == "udp":
            return UdpPackets(self._reactor, config.port, _interface(config), received)
        settings = server_raw_settings(config, self._settings.firewall)
        _say_interface(config, settings, "the default route")
        port = RawTcpPort(self._reactor, settings, received, self.counters)

        def set_flags(client: IAddress, flags: tuple[int, ...]) -> None:
            port.set_flags((client.host, client.port), flags)  # type: ignore[attr-defined]  # an IP address

        self._factory.set_flags = set_flags
        self._watch = NetworkWatch(self._reactor, partial(self._look_again, port))
        return port

    def startService(self) -> None:
        """Follow the network, where the port depends on it."""
        super().startService()
        if self._watch is not None:
            self._watch.start()

    def _look_again(self, port: RawTcpPort) -> None:
        """The network has changed: go on with what the file leaves out as it is now."""
        settings = self._settings
        reactor = self._reactor
        looking = deferToThreadPool(
            reactor, reactor.getThreadPool(), server_raw_settings, settings.setup.config, settings.firewall
        )

        def found(now: RawSettings) -> None:
            if port.move(now):
                ours = " and ".join(str(path.source) for path in (now.ipv4, now.ipv6) if path is not None)
                _log.info("paqet server now on {interface}, {ours}", interface=now.interface, ours=ours)

        def not_found(failure: Failure) -> None:
            # Whatever it is, as links come and go between two questions to the kernel: the next change is looked at again.
            _log.warn("the network has changed: {problem}", problem=str(failure.value))

        looking.addCallback(found).addErrback(not_found)

    def stopService(self) -> Deferred[None]:
        """Fires when every stream has ended or was cut, and the port is closed."""
        if self._watch is not None:
            self._watch.stop()
        self._factory.draining = True
        return super().stopService().addCallback(lambda _: self._close())

    def _close(self) -> Deferred[None] | None:
        if self._sessions is not None:
            self._sessions.abort_all()
        if self._port is None:
            return None
        return maybeDeferred(self._port.stopListening).addCallback(lambda _: None)


def _interface(config: PaqetConfig) -> str:
    """The address that a UDP server binds: one family's, or all of one, or all of both."""
    ipv4, ipv6 = config.network.ipv4, config.network.ipv6
    if ipv6 is not None and ipv4 is not None:
        return "::"
    family = ipv6 or ipv4
    return (
        str(family.address) if family is not None and family.address is not None else "::" if ipv6 is not None else ""
    )


def _say_interface(config: PaqetConfig, settings: RawSettings, found_by: str) -> None:
    """Which interface was taken and why, where there was a choice."""
    others = other_interfaces(settings.interface)
    ours = " and ".join(str(path.source) for path in (settings.ipv4, settings.ipv6) if path is not None)
    why = "as the file says" if config.network.interface else f"by {found_by}"
    choice = f"; not on {', '.join(others[:8])} (network.interface names another)" if others else ""
    _log.info(
        "raw packets on {name} with {ours}, {why}{choice}", name=settings.interface, ours=ours, why=why, choice=choice
    )


def client_ports(reactor: Any, setup: PaqetSetup, firewall: bool, counters: Counters, count: int) -> list[IClientPort]:
    """The ports of a client's connections.

    :raises ConfigError: if something cannot be found that the file leaves out.
    """
    config = setup.config
    assert config.server is not None
    if config.carrier == "udp":
        return [UdpClientPort(reactor, config.server) for _ in range(count)]
    settings, peer = client_raw_settings(config, firewall)
    _say_interface(config, settings, f"the way to {peer.host}")
    look = partial(way_to, config, firewall)
    return [RawClientPort(reactor, settings, peer, config.server, counters, look) for _ in range(count)]


def client_config(setup: PaqetSetup, counters: Counters, **more: Any) -> PaqetClientConfig:
    """What a tunnel needs, of a file."""
    config = setup.config
    flags = config.network.remote_flags if config.carrier == "raw" else ()
    return PaqetClientConfig(setup.link, setup.smux, config.dialects, flags, counters=counters, **more)


class PaqetClient(MultiService):
    """A client: its tunnel, and the doors in front of it. The tunnel outlives the drain of the doors."""

    def __init__(self, reactor: Any, setup: PaqetSetup, front: FrontDoors, firewall: bool, verbose: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._reactor = reactor
        self._setup = setup
        self._front = front
        self._firewall = firewall
        self._verbose = verbose
        self._tunnel: PaqetTunnel | None = None
        self._watch: NetworkWatch | None = None
        self.counters = Counters()

    def privilegedStartService(self) -> None:
        """Open raw sockets and doors.

        :raises SystemExit: after one line for the user, if that cannot be done.
        """
        setup, counters = self._setup, self.counters
        try:
            ports = client_ports(self._reactor, setup, self._firewall, counters, setup.config.connections)
            config = client_config(setup, counters, log_destinations=self._verbose)
            tunnel = self._tunnel = PaqetTunnel(self._reactor, ports, config, str(setup.config.server))
            tunnel.start_ports()
        except ConfigError as problem:
            fail_to_serve(f"paqet-client: {problem}")
        doors = make_client(self._reactor, tunnel, self._front, counters)
        doors.setServiceParent(self)  # type: ignore[no-untyped-call]  # untyped in Twisted
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def startService(self) -> None:
        """Begin the sessions."""
        super().startService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        assert self._tunnel is not None
        self._tunnel.start()
        self._watch = NetworkWatch(self._reactor, self._tunnel.network_changed)
        self._watch.start()

    def stopService(self) -> Deferred[None]:
        """Fires when doors and ports are closed."""
        if self._watch is not None:
            self._watch.stop()
        stopping: Deferred[Any] = maybeDeferred(super().stopService)
        tunnel = self._tunnel
        stop: Callable[[Any], Any] = lambda _: tunnel.stop() if tunnel is not None else None  # noqa: E731
        return stopping.addCallback(stop)
