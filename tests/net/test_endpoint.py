"""The TCP endpoint, on a reactor without sockets."""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import DestinationError
from mikanet.net.endpoint import TcpEndpoint
from tests.test_egress import Resolving

FACTORY = Factory.forProtocol(Protocol)


class EndpointTests(SynchronousTestCase):
    """:class:`TcpEndpoint`."""

    def test_an_address_is_dialled_as_it_is(self) -> None:
        """No resolver is asked; the timeout is passed on."""
        for host in ("192.0.2.1", "2001:db8::1"):
            reactor = MemoryReactorClock()
            TcpEndpoint(reactor, Address(host, 80), 7).connect(FACTORY)
            self.assertEqual(reactor.tcpClients[0][:2], (host, 80))
            self.assertEqual(reactor.tcpClients[0][3], 7)

    def test_a_name_is_looked_up_for_each_connection(self) -> None:
        """An address that has changed is found by the next one; a name without an address is an error."""
        reactor = Resolving(["192.0.2.1"], ["192.0.2.2"], [])
        endpoint = TcpEndpoint(reactor, Address("server.example", 8388))
        for expected in ("192.0.2.1", "192.0.2.2"):
            endpoint.connect(FACTORY)
            self.assertEqual(reactor.tcpClients[-1][:2], (expected, 8388))
        self.failureResultOf(endpoint.connect(FACTORY), DestinationError)
