"""Tests of mikanet.frontdoors.forward."""

from __future__ import annotations

from twisted.internet import error

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason
from mikanet.frontdoors.credentials import Credentials
from mikanet.frontdoors.door import DoorFactory, DoorSettings
from mikanet.frontdoors.doors import UdpForward, forward_factory
from tests.frontdoors.support import DoorTestCase, UdpPort

DESTINATION = Address("192.0.2.9", 5432)


class ForwardTests(DoorTestCase):
    """A TCP forward."""

    def make_factory(self, settings: DoorSettings) -> DoorFactory:
        """Of forwards."""
        return forward_factory(self.tunnel, DESTINATION, settings)

    def test_relay(self) -> None:
        """A connection is dialled at once; early bytes go with the tunnel's first; no password is asked."""
        client = self.open(credentials=Credentials({"alice": "secret"}))
        client.deliver(b"early ")
        (dialled,) = self.tunnel.dialled
        self.assertEqual((dialled.destination, dialled.http), (DESTINATION, False))
        far = dialled.accept()
        self.assertEqual(far.read(), b"early ")
        client.deliver(b"late")
        far.deliver(b"answer")
        self.assertEqual((far.read(), client.read()), (b"late", b"answer"))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_failure(self) -> None:
        """A destination that cannot be had is a reset."""
        client = self.open()
        self.tunnel.dialled[0].reject(DestinationError(Reason.REFUSED))
        self.assertEqual(client.outcome, "aborted")
        self.assertEqual(self.counted("frontdoor.forward.failed.refused"), 1)
        self.assert_nothing_left()

    def test_dial_deadline(self) -> None:
        """So is a tunnel that takes too long; it is cancelled."""
        client = self.open(dial_timeout=5)
        self.reactor.advance(5)
        self.assertEqual(client.outcome, "aborted")
        self.assertTrue(self.tunnel.dialled[0].cancelled)

    def test_half_closed_client(self) -> None:
        """A client that ends its input early still gets its answer."""
        client = self.open()
        client.deliver(b"request")
        client.deliver_end()
        far = self.tunnel.dialled[0].accept()
        self.assertEqual((far.read(), far.half_closed), (b"request", True))
        far.deliver(b"answer")
        far.deliver_end()
        self.assertEqual((client.read(), client.outcome), (b"answer", "closed"))
        self.assert_nothing_left()

    def test_client_gone(self) -> None:
        """A client that is lost has its dial cancelled."""
        self.open().lose(error.ConnectionLost())
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assert_nothing_left()

    def test_synchronous_tunnel(self) -> None:
        """A tunnel that connects inside connect() is as good."""
        self.tunnel.accept_at_once = True
        client = self.open()
        client.deliver(b"bytes")
        self.assertEqual(self.tunnel.dialled[0].transport.read(), b"bytes")


class UdpForwardTests(DoorTestCase):
    """A UDP forward."""

    def start(self, **settings: object) -> UdpPort:
        """A forward on a port in memory."""
        self.settings = DoorSettings(reactor=self.reactor, **settings)  # type: ignore[arg-type]  # by name
        return self.reactor.listenUDP(53, UdpForward(self.tunnel, DESTINATION, self.settings), "127.0.0.1", 65536)

    def test_flow_per_source(self) -> None:
        """Each source has its own flow and gets its own answers."""
        port = self.start()
        sources = [("127.0.0.1", 1111), ("127.0.0.1", 2222), ("127.0.0.2", 1111)]
        for number, source in enumerate(sources):
            port.protocol.datagramReceived(b"%d" % number, source)
            port.protocol.datagramReceived(b"more", source)
        self.assertEqual([each.destination for each in self.tunnel.dialled], [DESTINATION] * 3)
        for number, dialled in enumerate(self.tunnel.dialled):
            flow = dialled.accept()
            self.assertEqual(flow.packets, [b"%d" % number, b"more"])
            flow.deliver(b"answer %d" % number)
        self.assertEqual(port.sent, [(b"answer %d" % number, source) for number, source in enumerate(sources)])

    def test_cap(self) -> None:
        """The number of flows is bounded."""
        port = self.start(max_udp_flows=2)
        for number in range(5):
            port.protocol.datagramReceived(b"x", ("127.0.0.1", 1000 + number))
        self.assertEqual(len(self.tunnel.dialled), 2)
        self.assertEqual(self.counted("frontdoor.udp.dropped.flows"), 3)

    def test_unsupported(self) -> None:
        """Before a tunnel without datagrams, they are lost and counted."""
        self.tunnel.datagrams = False
        port = self.start()
        port.protocol.datagramReceived(b"x", ("127.0.0.1", 1111))
        self.assertEqual(self.counted("frontdoor.udp.failed.unsupported"), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Closing the port closes the flows."""
        port = self.start()
        port.protocol.datagramReceived(b"x", ("127.0.0.1", 1111))
        flow = self.tunnel.dialled[0].accept()
        port.stopListening()
        self.assertEqual(flow.outcome, "closed")
        self.assertEqual(self.reactor.getDelayedCalls(), [])
