"""Endpoints of byte streams over KCP over UDP."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.kcp.client import KcpClientSession
from mikanet.kcp.link import LinkSettings, RandomBytes, shared_sealer
from mikanet.kcp.sessions import KcpSessions
from mikanet.kcp.udp import UdpPackets, UdpPeer
from mikanet.kcp.voices import ClientVoice
from mikanet.net.resolve import resolve_first


@implementer(IStreamClientEndpoint)
class KcpClientEndpoint:
    """Connects by opening a UDP socket of its own; there is no handshake, so it knows nothing of the server yet."""

    def __init__(
        self, reactor: Any, host: str, port: int, settings: LinkSettings, random_bytes: RandomBytes = os.urandom
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._settings = settings
        self._random_bytes = random_bytes
        self._sealer = shared_sealer(settings, random_bytes, server=False)
        self._voice = ClientVoice(reactor, f"{host}:{port}")

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Fires with the protocol once the name is resolved and the socket is open."""
        return resolve_first(self._reactor, self._host).addCallback(lambda host: self._open(host, protocolFactory))

    def _open(self, host: str, factory: IProtocolFactory) -> IProtocol:
        peer: UdpPeer = (host, self._port)
        port = UdpPackets(
            self._reactor, 0, "::" if ":" in host else "", lambda _, packets: session.packets_received(packets), peer
        )
        address = port.address_of(peer)
        upper = factory.buildProtocol(address)
        if upper is None:
            raise ConfigError("the factory made no protocol")

        def over() -> None:
            if watching.active():
                watching.cancel()
            _stop(port)

        session = KcpClientSession(
            port, peer, upper, self._settings, self._sealer, self._reactor, self._random_bytes, over
        )
        watching = self._voice.watch(session)
        port.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
        session.start()
        return upper


@implementer(IStreamServerEndpoint)
class KcpServerEndpoint:
    """Listens on one UDP socket; each session has a protocol of the factory."""

    def __init__(
        self,
        reactor: Any,
        port: int,
        interface: str,
        settings: LinkSettings,
        random_bytes: RandomBytes = os.urandom,
        counters: Counters | None = None,
    ) -> None:
        self._reactor = reactor
        self._port = port
        self._interface = interface
        self._settings = settings
        self._random_bytes = random_bytes
        self._counters = counters or Counters()

    def with_proof(self) -> KcpServerEndpoint:
        """The same, holding each session's bytes back until its peer has proven to be live (Q4)."""
        settings = replace(self._settings, require_proof=True)
        return KcpServerEndpoint(
            self._reactor, self._port, self._interface, settings, self._random_bytes, self._counters
        )

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Fires with the port; stopping it ends its sessions."""
        return maybeDeferred(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        port = _ServerPort(self._reactor, self._port, self._interface)
        port.sessions = KcpSessions(
            port, self._settings, factory, cast(IReactorTime, self._reactor), self._random_bytes, self._counters
        )
        port.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
        return cast(IListeningPort, port)


class _ServerPort(UdpPackets):
    """The port of a server: stopping it ends its sessions."""

    sessions: KcpSessions

    def __init__(self, reactor: Any, port: int, interface: str) -> None:
        super().__init__(reactor, port, interface, lambda peer, packets: self.sessions.packets_received(peer, packets))

    def stopListening(self) -> Any:
        """As Port."""
        self.sessions.abort_all()
        return super().stopListening()  # type: ignore[no-untyped-call]  # untyped in Twisted


def _stop(port: UdpPackets) -> None:
    port.stopListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
