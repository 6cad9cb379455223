"""Addresses, errors, counters: what everything else stands on."""

from __future__ import annotations

from twisted.internet import error
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address, parse_address, parse_ip, parse_port
from mikanet.counters import Counters
from mikanet.errors import ConfigError, DestinationError, Reason, reason_of


class AddressTests(SynchronousTestCase):
    """Destinations as text and as values."""

    def test_round_trip(self) -> None:
        """What is parsed prints as it was written."""
        for text in ("example.com:80", "192.0.2.1:65535", "[2001:db8::1]:1", "a_b.example:22"):
            self.assertEqual(str(parse_address(text)), text)

    def test_mistakes(self) -> None:
        """Everything else is refused in one line."""
        for text in ("", "host", "host:", ":80", "host:0", "host:65536", "host:+1", "host: 1", "host:1e3", "host:\u0661",
                     "2001:db8::1:80", "[host]:80", "[::1]", "[::1]80", "x" * 256 + ":80", "a b:80", "a\tb:80"):  # fmt: skip
            with self.assertRaises(ConfigError, msg=text) as caught:
                parse_address(text)
            self.assertNotIn("\n", str(caught.exception))

    def test_ip(self) -> None:
        """Only the usual forms are addresses; anything else is a name."""
        self.assertEqual(str(Address("192.0.2.1", 1).ip), "192.0.2.1")
        for text in ("example.com", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "", "1.2.3.4 "):
            self.assertIsNone(parse_ip(text), text)

    def test_ports(self) -> None:
        """1 to 65535 in decimal digits."""
        self.assertEqual((parse_port("1"), parse_port("65535")), (1, 65535))


class ReasonTests(SynchronousTestCase):
    """Why a destination could not be reached."""

    def test_reasons(self) -> None:
        """Ours, Twisted's, and anything unknown."""
        for exception, reason in (
            (DestinationError(Reason.POLICY), Reason.POLICY),
            (error.ConnectionRefusedError(), Reason.REFUSED),
            (error.TCPTimedOutError(), Reason.TIMEOUT),
            (error.TimeoutError(), Reason.TIMEOUT),
            (error.NoRouteError(), Reason.NETWORK_UNREACHABLE),
            (error.DNSLookupError(), Reason.HOST_UNREACHABLE),
            (error.ConnectError(), Reason.FAILURE),
            (ValueError(), Reason.FAILURE),
            (None, Reason.FAILURE),
        ):
            self.assertEqual(reason_of(exception), reason, exception)


class CountersTests(SynchronousTestCase):
    """The registry."""

    def test_totals(self) -> None:
        """Zero until counted; a snapshot does not change."""
        counters = Counters()
        self.assertEqual(counters["a.b"], 0)
        counters.add("a.b")
        counters.add("a.b", 4)
        snapshot = counters.snapshot()
        counters.add("a.b")
        self.assertEqual((counters["a.b"], snapshot), (6, {"a.b": 5}))
