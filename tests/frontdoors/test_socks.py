"""Tests of mikanet.frontdoors.socks. Expected bytes are written out from the RFCs."""

from __future__ import annotations

from twisted.internet import error
from zope.interface.verify import verifyObject

from mikanet.address import Address
from mikanet.errors import DestinationError, LocalProtocolError, Reason
from mikanet.frontdoors.credentials import Credentials
from mikanet.interfaces import ITunnel
from tests.frontdoors.support import CONNECT, GREETING, SOCKS4A, SUCCESS, SocksTestCase, failure
from tests.support.feeding import fragmentations

DESTINATION = Address("example.com", 443)


class ConnectTests(SocksTestCase):
    """CONNECT, versions 5, 4 and 4a."""

    def test_fake_tunnel(self) -> None:
        """The tunnel of these tests keeps the contract."""
        verifyObject(ITunnel, self.tunnel)

    def test_connect(self) -> None:
        """Success is replied when the tunnel is connected, not before; then bytes flow both ways."""
        client = self.open()
        client.deliver(GREETING)
        self.assertEqual(client.read(), b"\x05\x00")
        client.deliver(CONNECT)
        self.assertEqual(client.read(), b"")
        (dialled,) = self.tunnel.dialled
        self.assertEqual((dialled.destination, dialled.http), (DESTINATION, False))
        far = dialled.accept()
        self.assertEqual(client.read(), SUCCESS)
        client.deliver(b"up")
        far.deliver(b"down")
        self.assertEqual((far.read(), client.read()), (b"up", b"down"))
        client.deliver_end()
        far.deliver_end()
        self.assertEqual((client.outcome, far.outcome), ("closed", "closed"))
        self.assert_nothing_left()

    def test_every_fragmentation(self) -> None:
        """However the bytes are cut, those behind the request are written inside the tunnel's connectionMade."""
        for pieces in fragmentations(GREETING + CONNECT + b"early bytes", most_cuts=40):
            self.setUp()
            client = self.open()
            for piece in pieces:
                client.deliver(piece)
            far = self.tunnel.dialled[0].accept()
            self.assertEqual((client.read(), far.read()), (b"\x05\x00" + SUCCESS, b"early bytes"))

    def test_synchronous_tunnel(self) -> None:
        """A tunnel that connects inside connect() is as good."""
        self.tunnel.accept_at_once = True
        client = self.open()
        client.deliver(GREETING + CONNECT + b"early")
        self.assertEqual(client.read(), b"\x05\x00" + SUCCESS)
        self.assertEqual(self.tunnel.dialled[0].transport.read(), b"early")

    def test_socks4(self) -> None:
        """SOCKS4a is answered in its own form, well or badly."""
        client = self.open()
        client.deliver(SOCKS4A + b"early")
        far = self.tunnel.dialled[0].accept()
        self.assertEqual(self.tunnel.dialled[0].destination, DESTINATION)
        self.assertEqual((client.read(), far.read()), (bytes.fromhex("005a 0000 00000000"), b"early"))
        client = self.connect()
        client.deliver(SOCKS4A)
        self.tunnel.dialled[1].reject(DestinationError(Reason.POLICY))
        self.assertEqual(client.read(), bytes.fromhex("005b 0000 00000000"))

    def test_failures(self) -> None:
        """Each reason has its reply code; the connection ends cleanly behind the reply."""
        for problem, rep in (
            (DestinationError(Reason.FAILURE), 1),
            (DestinationError(Reason.POLICY), 2),
            (error.NoRouteError(), 3),
            (error.DNSLookupError(), 4),
            (error.ConnectionRefusedError(), 5),
            (error.TimeoutError(), 6),
            (DestinationError(Reason.UNSUPPORTED), 7),
            (DestinationError(Reason.LIMIT), 1),
            (error.ConnectionLost(), 1),
        ):
            client = self.open()
            client.deliver(GREETING + CONNECT + b"early")
            self.tunnel.dialled[-1].reject(problem)
            self.assertEqual(client.read(), b"\x05\x00" + failure(rep), problem)
            self.assertTrue(client.half_closed)
            client.deliver(b"more early bytes")
            client.deliver_end()
            self.assertEqual(client.outcome, "closed")
            self.assert_nothing_left()

    def test_tunnel_that_refuses_at_once(self) -> None:
        """So has a destination that the tunnel does not even dial."""
        for problem, rep in ((DestinationError(Reason.POLICY), 2), (LocalProtocolError("no form"), 1)):
            self.tunnel.fail_at_once = problem
            client = self.open()
            client.deliver(GREETING + CONNECT)
            self.assertEqual(client.read(), b"\x05\x00" + failure(rep))

    def test_tunnel_bug_is_logged(self) -> None:
        """An exception that no tunnel should bring is logged, and the client still gets its answer."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        self.tunnel.dialled[0].reject(ZeroDivisionError())
        self.assertEqual(client.read(), b"\x05\x00" + failure(1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_bind(self) -> None:
        """BIND is refused with 7, or 5B."""
        client = self.open()
        client.deliver(GREETING + bytes.fromhex("05 02 00 01 c0000207 0050"))
        self.assertEqual(client.read(), b"\x05\x00" + failure(7))
        client = self.connect()
        client.deliver(bytes.fromhex("04 02 0050 c0000207 00"))
        self.assertEqual(client.read(), bytes.fromhex("005b 0000 00000000"))
        self.assertEqual(self.tunnel.dialled, [])

    def test_tunnel_lost(self) -> None:
        """A tunnel that is lost behind the success reply is a reset for the application."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        self.tunnel.dialled[0].accept().lose(error.ConnectionLost())
        self.assertEqual(client.outcome, "aborted")
        self.assert_nothing_left()

    def test_back_pressure(self) -> None:
        """A full tunnel stops the reading of the client, early bytes too."""
        client = self.open()
        client.deliver(GREETING + CONNECT + b"e" * 70000)
        self.assertFalse(client.reading)
        far = self.tunnel.dialled[0].accept()
        self.assertTrue(client.reading)
        client.deliver(b"x" * 70000)
        self.assertFalse(client.reading)
        self.assertEqual(len(far.read()), 140000)
        self.assertTrue(client.reading)


class PasswordTests(SocksTestCase):
    """With credentials in the settings, nobody gets in without."""

    CREDENTIALS = Credentials({"alice": "secret"})
    RIGHT = bytes.fromhex("01 05") + b"alice" + bytes.fromhex("06") + b"secret"

    def test_right(self) -> None:
        """The right pair lets the client in."""
        client = self.open(credentials=self.CREDENTIALS)
        client.deliver(b"\x05\x01\x02" + self.RIGHT + CONNECT)
        self.assertEqual(client.read(), b"\x05\x02\x01\x00")
        self.assertEqual(self.tunnel.dialled[0].destination, DESTINATION)

    def test_wrong(self) -> None:
        """A wrong password, no password and SOCKS4 are refused and counted."""
        for data, answer in (
            (b"\x05\x01\x02" + self.RIGHT[:-1] + b"T", b"\x05\x02\x01\x01"),
            (GREETING, b"\x05\xff"),
            (SOCKS4A, bytes.fromhex("005b 0000 00000000")),
        ):
            client = self.open(credentials=self.CREDENTIALS)
            client.deliver(data)
            self.assertEqual(client.read(), answer)
            client.deliver(CONNECT)
            client.deliver_end()
            self.assertEqual(client.outcome, "closed")
            self.assertEqual(self.counted("frontdoor.socks.refused.password"), 1)
        self.assertEqual(self.tunnel.dialled, [])
