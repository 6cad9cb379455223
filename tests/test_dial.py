"""Outgoing connections without wrappers."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError, NoProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.dial import TcpEndpoint, connect_ip
from tests.support.transports import MemoryTransport


class ConnectTests(SynchronousTestCase):
    """Connections to an address."""

    def setUp(self) -> None:
        """A reactor in memory."""
        self.reactor = MemoryReactorClock()

    def connect(self, factory: Any = None) -> Any:
        """An attempt."""
        factory = factory or Factory.forProtocol(Protocol)
        connecting = connect_ip(self.reactor, "192.0.2.1", 80, factory, 7)
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 80))
        self.assertEqual(self.reactor.tcpClients[0][3], 7)
        return connecting, self.reactor.tcpClients[0][2]

    def test_nothing_stays_around_the_protocol(self) -> None:
        """The transport's protocol is the real one, and the Deferred fires with it once it is connected."""
        connecting, factory = self.connect()
        transport = MemoryTransport()
        self.assertNoResult(connecting)
        transport.connect(factory.buildProtocol(None))
        protocol = self.successResultOf(connecting)
        self.assertIs(transport.protocol, protocol)
        self.assertIs(protocol.transport, transport)
        self.assertIs(type(protocol), Protocol)

    def test_failure(self) -> None:
        """What the network says is the outcome."""
        connecting, factory = self.connect()
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.failureResultOf(connecting, ConnectionRefusedError)

    def test_refusing_factory(self) -> None:
        """A factory that wants no connection fails the attempt."""

        class Refusing:
            def buildProtocol(self, addr: object) -> None:
                return None

        connecting, factory = self.connect(Refusing())
        self.assertIsNone(factory.buildProtocol(None))
        self.failureResultOf(connecting, NoProtocol)

    def test_cancel(self) -> None:
        """Cancelling stops the attempt."""
        connecting, _ = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting, ConnectingCancelledError)
        self.assertTrue(self.reactor.connectors[0].stoppedConnecting)

    def test_cancel_while_being_connected(self) -> None:
        """A protocol whose connectionMade brings a cancellation is left alone."""
        outcome: list[Any] = []

        class Hasty(Protocol):
            def connectionMade(self) -> None:
                outcome[0].cancel()

        connecting, factory = self.connect(Factory.forProtocol(Hasty))
        outcome.append(connecting)
        MemoryTransport().connect(factory.buildProtocol(None))
        self.failureResultOf(connecting)
        self.assertFalse(self.reactor.connectors[0].stoppedConnecting)

    def test_endpoint(self) -> None:
        """An address is dialled as it is."""
        TcpEndpoint(self.reactor, Address("192.0.2.1", 80)).connect(Factory.forProtocol(Protocol))
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 80))
