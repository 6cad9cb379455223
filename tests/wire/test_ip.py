"""IPv4 and IPv6 packets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.wire import ip

#: The example of an IPv4 header with its checksum that textbooks use: UDP, 115 bytes, 192.168.0.1 to 192.168.0.199.
TEXTBOOK = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")
V6 = bytes.fromhex("6b80000000040640 20010db8000000000000000000000001 20010db8000000000000000000000002") + b"data"

addresses4 = st.builds(IPv4Address, st.integers(0, 2**32 - 1))
addresses6 = st.builds(IPv6Address, st.integers(0, 2**128 - 1))


class V4Tests(SynchronousTestCase):
    """IPv4."""

    def test_known_header(self) -> None:
        """Every field, and the checksum, of a known header."""
        packet = ip.IpPacket(IPv4Address("192.168.0.1"), IPv4Address("192.168.0.199"), 17, bytes(95))
        self.assertEqual(ip.encode(packet), TEXTBOOK + bytes(95))
        self.assertEqual(ip.decode(TEXTBOOK + bytes(95) + b"padding"), packet)

    def test_refused(self) -> None:
        """A wrong checksum or length, a fragment, a header that is cut short, another version."""
        good = TEXTBOOK + bytes(95)
        for at, value in ((1, 1), (24 - 14, 0), (0, 0x44), (0, 0x55), (3, 0x74), (3, 0x13), (6, 0x60), (7, 1)):
            bad = bytearray(good)
            bad[at] = value
            with self.assertRaises(RemoteProtocolError):
                ip.decode(bytes(bad))
        for length in range(len(good)):
            with self.assertRaises(RemoteProtocolError):
                ip.decode(good[:length])

    def test_options_are_skipped(self) -> None:
        """The payload begins behind them."""
        header = bytes.fromhex("46000019000040004006") + b"\0\0" + bytes.fromhex("0a4d00020a4d0001 01010101")
        total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 24, 2))
        total = (total & 0xFFFF) + (total >> 16)
        data = header[:10] + (~total & 0xFFFF).to_bytes(2, "big") + header[12:] + b"x"
        self.assertEqual(ip.decode(data).payload, b"x")

    @settings(deadline=None, max_examples=50)
    @given(addresses4, addresses4, st.binary(max_size=60), st.integers(0, 255), st.booleans())
    def test_round_trip(
        self, source: IPv4Address, destination: IPv4Address, payload: bytes, tos: int, df: bool
    ) -> None:
        """Any packet comes back."""
        packet = ip.IpPacket(source, destination, 6, payload, tos, 5, 77, df)
        self.assertEqual(ip.decode(ip.encode(packet)), packet)


class V6Tests(SynchronousTestCase):
    """IPv6."""

    def test_known_header(self) -> None:
        """Every field; what stands behind the length is padding."""
        source, destination = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
        packet = ip.IpPacket(source, destination, 6, b"data", 184)
        self.assertEqual(ip.encode(packet), V6)
        self.assertEqual(ip.decode(V6 + b"padding"), packet)

    def test_cut_short(self) -> None:
        """Refused at every length."""
        for length in range(len(V6)):
            with self.assertRaises(RemoteProtocolError):
                ip.decode(V6[:length])

    @settings(deadline=None, max_examples=50)
    @given(addresses6, addresses6, st.binary(max_size=60), st.integers(0, 255), st.integers(0, 0xFFFFF))
    def test_round_trip(
        self, source: IPv6Address, destination: IPv6Address, payload: bytes, tos: int, label: int
    ) -> None:
        """Any packet comes back."""
        packet = ip.IpPacket(source, destination, 6, payload, tos, 5, label)
        self.assertEqual(ip.decode(ip.encode(packet)), packet)


class MisuseTests(SynchronousTestCase):
    """What cannot be written."""

    def test_two_families(self) -> None:
        """Addresses of two families are an error of ours."""
        with self.assertRaises(ValueError):
            ip.encode(ip.IpPacket(IPv4Address(1), IPv6Address(1), 6, b""))

    def test_too_long(self) -> None:
        """So is a payload that no length field holds."""
        for address in (IPv4Address(1), IPv6Address(1)):
            with self.assertRaises(ValueError):
                ip.encode(ip.IpPacket(address, address, 6, bytes(65536)))
