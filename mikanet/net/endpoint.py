"""TCP to a host, whether it is given as an address or as a name."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from mikanet.address import Address
from mikanet.dial import CONNECT_TIMEOUT, Dialer, Racing
from mikanet.net.resolve import resolver_of


@implementer(IStreamClientEndpoint)
class TcpEndpoint:
    """TCP to an address; to all addresses of a name in the way of happy eyeballs (RFC 8305).

    The name is looked up anew for each connection, as far as the resolver does not remember it.

    :param timeout: seconds that each attempt may take.
    """

    def __init__(self, reactor: Any, address: Address, timeout: float = CONNECT_TIMEOUT) -> None:
        self._dialer = Dialer(reactor, timeout)
        self._racing = Racing(self._dialer)
        self._address = address

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect. The Deferred fails with one of Twisted's connection errors or a DestinationError."""
        host, port = self._address.host, self._address.port
        if self._address.ip is not None:
            return self._dialer.connect(host, port, protocolFactory)
        resolving = resolver_of(self._dialer.reactor).resolve(host)
        return resolving.addCallback(lambda addresses: self._racing.connect(addresses, port, protocolFactory))
