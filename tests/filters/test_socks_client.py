"""Tests of mikanet.filters.socks_client. Expected bytes are written out from RFC 1928 and RFC 1929."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mikanet.address import Address
from mikanet.errors import DestinationError, LocalProtocolError, Reason
from mikanet.filters.socks_client import Socks5Client, Socks5ClientEndpoint
from mikanet.wire.socks_client import ClientHandshake
from tests.filters.contract import FilterContractTests
from tests.support.feeding import fragmentations, mutations
from tests.support.memory import MemoryTransport

DESTINATION = Address("example.com", 443)
REQUEST = bytes.fromhex("05 01 00 03 0b") + b"example.com" + bytes.fromhex("01bb")
SUCCESS = bytes.fromhex("05 00 00 01 00000000 0000")


class Upper(Protocol):
    """The protocol above: writes early bytes, keeps what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def connectionMade(self) -> None:
        self.transport.write(b"hello")  # type: ignore[union-attr]  # it is connected

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


@implementer(IStreamClientEndpoint)
class Proxy:
    """An endpoint in memory that leads to a proxy, which the test plays."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure
        self.transport = MemoryTransport()

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        made: Deferred[IProtocol] = Deferred()
        if self._failure is not None:
            made.errback(self._failure)
            return made
        protocol = protocolFactory.buildProtocol(self.transport.peer)
        assert protocol is not None
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        made.callback(protocol)
        return made


class Socks5ClientTests(FilterContractTests, SynchronousTestCase):
    """Once the handshake is done, it keeps the contract of every filter."""

    def make_filter(self, upper: Any) -> Any:
        """One without a password."""
        return Socks5Client(upper, ClientHandshake(DESTINATION), Clock())

    def open_filter(self, filter_: Any, transport: Any) -> None:
        """The proxy grants the request."""
        transport.receive(b"\x05\x00" + SUCCESS)


class Socks5ClientEndpointTests(SynchronousTestCase):
    """A destination behind a proxy."""

    def connect(self, *credentials: str, failure: Exception | None = None) -> Deferred[Any]:
        """Begin to connect."""
        self.clock = Clock()
        proxy = Proxy(failure)
        self.transport = proxy.transport
        endpoint = Socks5ClientEndpoint(proxy, DESTINATION, *credentials, clock=self.clock, timeout=30)
        verifyObject(IStreamClientEndpoint, endpoint)
        return endpoint.connect(Factory.forProtocol(Upper))

    def assert_fails(self, connecting: Deferred[Any], reason: Reason) -> None:
        """It failed with the reason, the proxy's connection is aborted, no timer is left."""
        problem = self.failureResultOf(connecting, DestinationError).value
        assert isinstance(problem, DestinationError)
        self.assertEqual(problem.reason, reason)
        self.assertNotEqual(self.transport.outcome, "open")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_handshake(self) -> None:
        """However the proxy's bytes are cut, the protocol is connected after the reply and gets what follows it."""
        for pieces in fragmentations(b"\x05\x00" + SUCCESS + b"banner"):
            connecting = self.connect()
            self.assertEqual(self.transport.read(), b"\x05\x01\x00")
            for piece in pieces:
                self.transport.deliver(piece)
            upper = self.successResultOf(connecting)
            self.assertEqual(upper.received, b"banner")
            self.assertEqual(self.transport.read(), REQUEST + b"hello")
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_before_the_reply(self) -> None:
        """Nothing is connected before."""
        connecting = self.connect()
        self.transport.deliver(b"\x05\x00" + SUCCESS[:-1])
        self.assertNoResult(connecting)
        self.transport.lose(error.ConnectionDone())
        self.assert_fails(connecting, Reason.FAILURE)

    def test_password(self) -> None:
        """User name and password are given if asked for."""
        connecting = self.connect("alice", "secret")
        self.assertEqual(self.transport.read(), b"\x05\x02\x00\x02")
        self.transport.deliver(b"\x05\x02")
        self.assertEqual(self.transport.read(), b"\x01\x05alice\x06secret")
        self.transport.deliver(b"\x01\x00")
        self.assertEqual(self.transport.read(), REQUEST)
        self.transport.deliver(SUCCESS)
        self.successResultOf(connecting)

    def test_flow_and_end(self) -> None:
        """After the handshake bytes and the end pass unchanged."""
        connecting = self.connect()
        self.transport.deliver(b"\x05\x00" + SUCCESS)
        upper = self.successResultOf(connecting)
        self.transport.deliver(b"down")
        self.transport.lose(error.ConnectionLost())
        self.assertEqual(upper.received, b"down")
        assert upper.lost is not None
        upper.lost.trap(error.ConnectionLost)

    def test_reply_codes(self) -> None:
        """Each reply code fails with its reason."""
        reasons = {1: "FAILURE", 2: "POLICY", 3: "NETWORK_UNREACHABLE", 4: "HOST_UNREACHABLE", 5: "REFUSED"}
        reasons |= {6: "TIMEOUT", 7: "UNSUPPORTED", 8: "UNSUPPORTED", 200: "FAILURE"}
        for rep, name in reasons.items():
            connecting = self.connect()
            self.transport.deliver(b"\x05\x00" + bytes((5, rep, 0, 1, 0, 0, 0, 0, 0, 0)))
            self.assert_fails(connecting, Reason[name])

    def test_refused_credentials(self) -> None:
        """Refused credentials are a matter of policy."""
        for answer in (b"\x05\xff", b"\x05\x02\x01\x01"):
            connecting = self.connect("alice", "wrong")
            self.transport.deliver(answer)
            self.assert_fails(connecting, Reason.POLICY)

    def test_not_a_proxy(self) -> None:
        """Something else than SOCKS5 fails, whatever it sends after."""
        connecting = self.connect()
        self.transport.deliver(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assert_fails(connecting, Reason.FAILURE)

    def test_half_closing_proxy(self) -> None:
        """A proxy that ends its direction before the reply fails."""
        connecting = self.connect()
        self.transport.deliver_end()
        self.assert_fails(connecting, Reason.FAILURE)

    def test_timeout(self) -> None:
        """A proxy that takes too long fails with a time-out."""
        connecting = self.connect()
        self.transport.deliver(b"\x05")
        self.clock.advance(30)
        self.assert_fails(connecting, Reason.TIMEOUT)

    def test_cancel(self) -> None:
        """Cancelling aborts the proxy's connection."""
        connecting = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertEqual(self.transport.outcome, "aborted")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lost_at_once(self) -> None:
        """A proxy that is lost before its endpoint has said so fails too."""
        proxy = Proxy()
        self.patch(proxy.transport, "write", lambda data: proxy.transport.lose(error.ConnectionLost()))
        connecting = Socks5ClientEndpoint(proxy, DESTINATION, clock=Clock()).connect(Factory.forProtocol(Upper))
        self.failureResultOf(connecting, DestinationError)

    def test_unreachable_proxy(self) -> None:
        """A proxy that cannot be reached fails as its endpoint does."""
        connecting = self.connect(failure=error.ConnectionRefusedError())
        self.failureResultOf(connecting, error.ConnectionRefusedError)

    def test_what_has_no_form_is_refused(self) -> None:
        """Names and passwords that SOCKS5 cannot carry are refused when the endpoint is made."""
        for arguments in ((Address("x" * 256, 1),), (DESTINATION, "", "x"), (DESTINATION, "x", "x" * 256)):
            self.assertRaises(LocalProtocolError, Socks5ClientEndpoint, Proxy(), *arguments, clock=Clock())

    def test_mutations(self) -> None:
        """10,000 mutated answers end in a connection, a DestinationError, or wait for the deadline."""
        for data in mutations([b"\x05\x00" + SUCCESS + b"data"], 10_000, seed=1081):
            connecting = self.connect()
            self.transport.deliver(data)
            outcomes: list[Any] = []
            connecting.addBoth(outcomes.append)
            if not outcomes:
                self.clock.advance(30)
            if isinstance(outcomes[0], Failure):
                outcomes[0].trap(DestinationError)
            self.assertEqual(self.clock.getDelayedCalls(), [])
