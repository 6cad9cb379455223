"""Tests of mikanet.filters.connect_client and proxy_client: a destination behind an HTTP proxy."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import DestinationError, LocalProtocolError, Reason
from mikanet.filters.connect_client import ConnectClientEndpoint
from mikanet.filters.proxy_client import HANDSHAKE_TIMEOUT, ProxyClient
from mikanet.net.endpoint import TcpEndpoint
from mikanet.wire.connect_client import ConnectHandshake
from tests.filters.contract import FilterContractTests, Upper
from tests.support.transports import MemoryTransport

TARGET = Address("example.com", 443)


class ProxyClientTests(FilterContractTests, SynchronousTestCase):
    """Once the proxy has granted the connection, it keeps the contract of every filter."""

    def make_filter(self, upper: Any) -> Any:
        """One without a password."""
        return ProxyClient(upper, ConnectHandshake(TARGET), Clock())

    def open_filter(self, filter_: Any, transport: Any) -> None:
        """The proxy grants the request."""
        transport.receive(b"HTTP/1.1 200 OK\r\n\r\n")


class EndpointTests(SynchronousTestCase):
    """The endpoint."""

    def setUp(self) -> None:
        """A connection to a proxy, asked for."""
        from twisted.internet.protocol import Factory

        self.reactor: Any = MemoryReactorClock()
        proxy = TcpEndpoint(self.reactor, Address("192.0.2.1", 3128))
        endpoint = ConnectClientEndpoint(proxy, TARGET, clock=self.reactor)
        self.opened = endpoint.connect(Factory.forProtocol(Upper))
        self.transport = MemoryTransport()
        self.transport.connect(self.reactor.tcpClients[0][2].buildProtocol(None))

    def test_granted(self) -> None:
        """Fires with the protocol when the proxy grants."""
        self.transport.receive(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        self.assertEqual(self.successResultOf(self.opened).received, [b"first"])

    def test_silence(self) -> None:
        """A proxy that says nothing has its time."""
        self.reactor.advance(HANDSHAKE_TIMEOUT)
        self.transport.settle()
        self.assertEqual(self.failureResultOf(self.opened, DestinationError).value.reason, Reason.TIMEOUT)

    def test_mistakes_come_early(self) -> None:
        """A destination that has no form is refused before anything is opened."""
        with self.assertRaises(LocalProtocolError):
            ConnectClientEndpoint(TcpEndpoint(self.reactor, TARGET), Address("a b", 1), clock=self.reactor)
