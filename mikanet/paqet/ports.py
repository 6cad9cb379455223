"""Where a paqet client's sessions send their packets: UDP or raw TCP packets, behind one contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from zope.interface import Interface, implementer

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.kcp.udp import UdpPackets
from mikanet.net.resolve import resolve_first
from mikanet.rawpackets.port import RawTcpPort
from mikanet.rawpackets.settings import RawSettings

#: Takes the packets that the server sent.
Received = Callable[[list[bytes]], None]


class OpenPort(NamedTuple):
    """What a session sends through: the IPacketPort, the peer on it, and what to call when the session is over."""

    port: Any
    peer: Any
    close: Callable[[], None]


class IClientPort(Interface):
    """The port of one connection; its sessions follow one another."""

    def start() -> None:
        """Take what needs privileges.

        :raises ConfigError: in one line, if that cannot be done.
        """

    def open(received: Received) -> Deferred[OpenPort]:  # noqa: N805  # interfaces have no self
        """For a new session; ``received`` gets what comes from now on."""

    def stop() -> Deferred[None]:
        """Nothing more will be opened."""


@implementer(IClientPort)
class UdpClientPort:
    """A new UDP socket for each session, to wherever the server's name leads then."""

    def __init__(self, reactor: Any, server: Address) -> None:
        self._reactor = reactor
        self._server = server

    def start(self) -> None:
        """Nothing: UDP needs no privileges."""

    def open(self, received: Received) -> Deferred[OpenPort]:
        """As :class:`IClientPort`."""

        def resolved(host: str) -> OpenPort:
            peer = (host, self._server.port)
            interface = "::" if ":" in host else ""
            port = UdpPackets(self._reactor, 0, interface, lambda _, packets: received(packets), peer)
            port.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
            return OpenPort(port, peer, lambda: _stop(port))

        return resolve_first(self._reactor, self._server.host).addCallback(resolved)

    def stop(self) -> Deferred[None]:
        """As :class:`IClientPort`."""
        return succeed(None)


def _stop(port: UdpPackets) -> None:
    port.stopListening()  # type: ignore[no-untyped-call]  # untyped in Twisted


@implementer(IClientPort)
class RawClientPort:
    """One raw port for all sessions: it can only be opened while there are privileges."""

    def __init__(self, reactor: Any, settings: RawSettings, server: Address, counters: Counters) -> None:
        self._received: Received | None = None
        self._peer = (server.host, server.port)
        self._port = RawTcpPort(reactor, replace(settings, only=self._peer), self._packets_received, counters)

    def start(self) -> None:
        """As :class:`IClientPort`."""
        self._port.startListening()

    def open(self, received: Received) -> Deferred[OpenPort]:
        """As :class:`IClientPort`."""
        self._received = received
        return succeed(OpenPort(self._port, self._peer, lambda: None))

    def stop(self) -> Deferred[None]:
        """As :class:`IClientPort`."""
        self._received = None
        return maybeDeferred(self._port.stopListening).addCallback(lambda _: None)

    def _packets_received(self, _: Any, packets: list[bytes]) -> None:
        if self._received is not None:
            self._received(packets)
