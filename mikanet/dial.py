"""Outgoing TCP connections: straight to an address, or to a name with happy eyeballs. Nothing is left around a protocol
once it is connected."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address

#: How long a connection attempt may take, in seconds (our choice; the original programs wait 8 s to for ever).
CONNECT_TIMEOUT = 15.0


@implementer(IStreamClientEndpoint)
class TcpEndpoint:
    """TCP to an address; to all addresses of a name in the way of happy eyeballs (RFC 8305).

    :param timeout: seconds that each attempt may take.
    """

    def __init__(self, reactor: Any, address: Address, timeout: float = CONNECT_TIMEOUT) -> None:
        self._reactor = reactor
        self._address = address
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        host, port = self._address.host, self._address.port
        if self._address.ip is None:
            return HostnameEndpoint(self._reactor, host, port, timeout=self._timeout).connect(protocolFactory)
        return connect_ip(self._reactor, host, port, protocolFactory, self._timeout)


def connect_ip(
    reactor: Any, host: str, port: int, factory: IProtocolFactory, timeout: float = CONNECT_TIMEOUT
) -> Deferred[IProtocol]:
    """Connect to an IP address; fires with the connected protocol. Cancelling ends the attempt."""
    connection = _OneConnection(factory)
    try:
        connection.connector = reactor.connectTCP(host, port, connection, timeout)
    except (ValueError, OverflowError, OSError):
        return fail(Failure())
    return connection.done


class _OneConnection(ClientFactory):
    """Connects the protocol of one connection and tells how that went."""

    noisy = False

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self.connector: IConnector | None = None
        self._connected = False
        self.done: Deferred[IProtocol] = Deferred(self._cancel)

    def _cancel(self, done: Deferred[IProtocol]) -> None:
        connector = self.connector
        # Once the transport is there it belongs to the protocol, which can abort it.
        if connector is not None and not self._connected:
            done.errback(error.ConnectingCancelledError(connector.getDestination()))
            connector.stopConnecting()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A stand-in for the real protocol until the transport is there; None if the factory refuses."""
        self._connected = True
        protocol = self._factory.buildProtocol(cast(IAddress, addr))
        if protocol is None:
            self.done.errback(error.NoProtocol())
            return None
        return _StandIn(protocol, self.done)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        """Tell why there is no connection."""
        if not self.done.called:
            self.done.errback(reason)


class _StandIn(Protocol):
    """Takes the transport and gives it to the real protocol.

    Twisted's own endpoints leave a wrapper around the protocol for good; each byte passes it, and each idle connection
    pays for it.
    """

    def __init__(self, protocol: IProtocol, done: Deferred[IProtocol]) -> None:
        self._protocol = protocol
        self._done = done

    def makeConnection(self, transport: ITransport) -> None:
        """Hand over."""
        transport.protocol = self._protocol  # type: ignore[attr-defined]  # every TCP transport has one
        self._protocol.makeConnection(transport)
        if not self._done.called:
            self._done.callback(self._protocol)
