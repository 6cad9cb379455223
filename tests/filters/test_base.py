"""The filter base by itself: a filter that changes nothing."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, succeed
from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from mikanet.filters.base import Filter, FilterClientEndpoint, FilterServerEndpoint
from tests.filters.contract import FilterContractTests, Upper
from tests.support.transports import LOST, MemoryTransport


class PlainFilterTests(FilterContractTests, SynchronousTestCase):
    """The base class keeps its own contract."""

    def make_filter(self, upper: Any) -> Filter:
        """The base class."""
        return Filter(upper)

    def test_passes_bytes(self) -> None:
        """What goes in comes out, both ways."""
        upper, filter_, transport = self.opened()
        transport.receive(b"down")
        filter_.write(b"up")
        self.assertEqual((upper.received, transport.written), ([b"down"], [b"up"]))

    def test_half_close_and_addresses_pass(self) -> None:
        """Our end, socket options and addresses are the lower transport's."""
        _, filter_, transport = self.opened()
        filter_.setTcpNoDelay(True)
        filter_.setTcpKeepAlive(True)
        filter_.loseWriteConnection()
        self.assertTrue(transport.fin and transport.no_delay and transport.keep_alive)
        self.assertEqual((filter_.getPeer(), filter_.getHost()), (transport.getPeer(), transport.getHost()))


class Waiting(Filter):
    """A filter whose upper protocol waits for the byte ``!``."""

    def connectionMade(self) -> None:
        """Not yet."""

    def dataReceived(self, data: bytes) -> None:
        """The handshake."""
        if data == b"!":
            self.establish()
        else:
            super().dataReceived(data)


class HandshakeTests(SynchronousTestCase):
    """Filters whose upper protocol is connected later."""

    def connect(self) -> tuple[Any, Upper, MemoryTransport]:
        """A connecting endpoint, its upper protocol, and the transport."""
        upper, transport = Upper(), MemoryTransport()

        class Lower:
            def connect(self, factory: Any) -> Any:
                return succeed(transport.connect(factory.buildProtocol(None)))

        class UpperFactory:
            def buildProtocol(self, addr: object) -> Upper:
                return upper

        return FilterClientEndpoint(Lower(), Waiting).connect(UpperFactory()), upper, transport

    def test_connect_waits_for_the_handshake(self) -> None:
        """``connect`` fires when the handshake is done, not before."""
        connecting, upper, transport = self.connect()
        self.assertNoResult(connecting)
        self.assertEqual(upper.made, 0)
        transport.receive(b"!")
        self.assertIs(self.successResultOf(connecting), upper)

    def test_loss_before_the_handshake_fails_the_connect(self) -> None:
        """The upper protocol, never connected, is not told of a loss."""
        connecting, upper, transport = self.connect()
        transport.lose(LOST)
        self.failureResultOf(connecting, ConnectionLost)
        self.assertEqual(upper.lost, [])

    def test_cancelling_aborts(self) -> None:
        """Cancelling the connect resets the lower transport."""
        connecting, _, transport = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertTrue(transport.aborted)

    def test_a_half_close_before_the_handshake_closes(self) -> None:
        """A peer that ends before the handshake is not waited for."""
        _, _, transport = self.connect()
        transport.receive_fin()
        self.assertTrue(transport.closed)


class ServerEndpointTests(SynchronousTestCase):
    """The server side."""

    def test_listens_below_with_filters_above(self) -> None:
        """The lower endpoint listens for the filtered factory."""
        upper = Upper()
        seen: list[Any] = []

        class Lower:
            def listen(self, factory: Any) -> Any:
                seen.append(factory.buildProtocol(None))
                return succeed("port")

        class UpperFactory:
            def buildProtocol(self, addr: object) -> Upper:
                return upper

        listening = FilterServerEndpoint(Lower(), Filter).listen(UpperFactory())
        self.assertEqual(self.successResultOf(listening), "port")
        self.assertIsInstance(seen[0], Filter)
        self.assertIs(seen[0].upper, upper)
