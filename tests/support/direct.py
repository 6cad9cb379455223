"""The simplest tunnel: it dials the destination from right here. For tests of front doors against real programs."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import DatagramProtocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason
from mikanet.interfaces import IPacketTransport, ITunnel


@implementer(ITunnel)
class DirectTunnel:
    """Streams over TCP, datagrams over UDP; names are looked up for streams only.

    :ivar hosts: names that this tunnel knows, and their IP addresses.
    """

    def __init__(self, reactor: Any, hosts: dict[str, str] | None = None) -> None:
        self._reactor = reactor
        self.hosts = hosts or {}

    def stream_endpoint(self, destination: Address, http: bool = False) -> IStreamClientEndpoint:
        host = self.hosts.get(destination.host, destination.host)
        ip = Address(host, destination.port).ip
        kind = HostnameEndpoint if ip is None else TCP4ClientEndpoint if ip.version == 4 else TCP6ClientEndpoint
        return kind(self._reactor, host, destination.port)

    def datagram_endpoint(self, destination: Address) -> IStreamClientEndpoint:
        host = self.hosts.get(destination.host, destination.host)
        return DirectDatagramEndpoint(self._reactor, Address(host, destination.port))


@implementer(IStreamClientEndpoint)
class DirectDatagramEndpoint:
    """A UDP socket of its own for one destination, given as an IP address."""

    def __init__(self, reactor: Any, destination: Address) -> None:
        self._reactor = reactor
        self._destination = destination

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        ip = self._destination.ip
        if ip is None:
            return fail(DestinationError(Reason.HOST_UNREACHABLE))
        protocol = protocolFactory.buildProtocol(None)  # type: ignore[arg-type]  # there is no peer address yet
        assert protocol is not None
        transport = _DatagramTransport(protocol, self._destination)
        self._reactor.listenUDP(0, transport, interface="::" if ip.version == 6 else "", maxPacketSize=65536)
        return succeed(protocol)


@implementer(IPacketTransport)
class _DatagramTransport(DatagramProtocol):
    """A connected UDP socket as a packet transport."""

    max_packet_size = 65507

    def __init__(self, upper: IProtocol, destination: Address) -> None:
        self._upper = upper
        self._destination = destination
        self._open = True

    def startProtocol(self) -> None:
        assert self.transport is not None
        self.transport.connect(self._destination.host, self._destination.port)
        self._upper.makeConnection(self)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if self._open:
            self._upper.dataReceived(datagram)

    def connectionRefused(self) -> None:
        """A lost datagram, no more."""

    def write(self, data: bytes) -> None:
        if self._open and self.transport is not None and len(data) <= self.max_packet_size:
            self.transport.write(data)

    def writeSequence(self, iovec: Any) -> None:
        for data in iovec:
            self.write(data)

    def loseConnection(self) -> None:
        if self._open and self.transport is not None:
            self._open = False
            self.transport.stopListening()
            self._upper.connectionLost(Failure(connectionDone.value))

    abortConnection = loseConnection

    def getPeer(self) -> IAddress:
        assert self.transport is not None
        return self.transport.getHost()

    getHost = getPeer
