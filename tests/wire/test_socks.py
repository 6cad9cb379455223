"""Tests of mikanet.wire.socks: addresses, datagram headers, reply codes. Expected bytes are written out from RFC 1928."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, Reason, RemoteProtocolError
from mikanet.wire import socks
from tests.support.feeding import mutations

GOLDEN = {
    Address("192.0.2.7", 80): bytes.fromhex("01 c0000207 0050"),
    Address("0.0.0.0", 0): bytes.fromhex("01 00000000 0000"),
    Address("255.255.255.255", 65535): bytes.fromhex("01 ffffffff ffff"),
    Address("2001:db8::1", 443): bytes.fromhex("04 20010db8000000000000000000000001 01bb"),
    Address("::", 1): bytes.fromhex("04 00000000000000000000000000000000 0001"),
    Address("example.com", 8080): bytes.fromhex("03 0b") + b"example.com" + bytes.fromhex("1f90"),
    Address("b\xfccher.example", 53): bytes.fromhex("03 0f 62c3bc63686572") + b".example" + bytes.fromhex("0035"),
    Address("x" * 255, 1): bytes.fromhex("03 ff") + b"x" * 255 + bytes.fromhex("0001"),
    Address("fe80::1%eth0", 9): bytes.fromhex("03 0c") + b"fe80::1%eth0" + bytes.fromhex("0009"),
}

BAD = {
    "type 0": b"\x00\x7f\x00\x00\x01\x00\x50",
    "type 2": b"\x02\x04host\x00\x50",
    "type 255": b"\xff",
    "empty name": b"\x03\x00\x00\x50",
    "NUL": b"\x03\x03a\x00b\x00\x50",
    "newline": b"\x03\x03a\nb\x00\x50",
    "space": b"\x03\x03a b\x00\x50",
    "delete": b"\x03\x02a\x7f\x00\x50",
    "C1 control": b"\x03\x03a\xc2\x85\x00\x50",
    "zero-width": b"\x03\x04a\xe2\x80\x8b\x00\x50",
    "not UTF-8": b"\x03\x02a\xff\x00\x50",
    "surrogate": b"\x03\x03\xed\xa0\x80\x00\x50",
}

NAMES = st.text(min_size=1, max_size=60).filter(lambda t: t.isprintable() and " " not in t)
HOSTS = st.one_of(st.ip_addresses().map(str), NAMES)


class AddressTests(SynchronousTestCase):
    """encode_address and decode_address."""

    def test_golden_encoding(self) -> None:
        """Every kind of address has the bytes that the RFC gives it."""
        for address, raw in GOLDEN.items():
            self.assertEqual(socks.encode_address(address), raw)
            self.assertLessEqual(len(raw), socks.MAX_ADDRESS)

    def test_golden_decoding(self) -> None:
        """The bytes decode back, at any offset, and what follows is left alone."""
        for address, raw in GOLDEN.items():
            for before, after in ((b"", b""), (b"\x03\x00\xff", b"\x01\x02")):
                found = socks.decode_address(before + raw + after, len(before))
                self.assertEqual(found, (address, len(before) + len(raw)))

    def test_every_prefix_needs_more(self) -> None:
        """A cut address is no error: it needs more bytes."""
        for raw in GOLDEN.values():
            for cut in range(len(raw)):
                self.assertIsNone(socks.decode_address(raw[:cut]), raw[:cut])

    def test_bad_addresses_are_refused(self) -> None:
        """Unknown types, empty names and names with characters that no name has are errors."""
        for name, raw in BAD.items():
            with self.assertRaises(RemoteProtocolError, msg=name):
                socks.decode_address(raw)

    def test_what_has_no_form_is_refused(self) -> None:
        """Names that are empty, too long or hold control characters, and ports out of range, are our own error."""
        for host in ("", "x" * 256, "\xfc" * 128, "a\x00b", "a b", "a\nb", "\ud800"):
            self.assertRaises(LocalProtocolError, socks.encode_address, Address(host, 80))
        for port in (-1, 65536):
            self.assertRaises(LocalProtocolError, socks.encode_address, Address("host", port))

    @settings(deadline=None)
    @given(HOSTS, st.integers(0, 65535))
    def test_round_trip(self, host: str, port: int) -> None:
        """Any host and port come back as they were (IP addresses in their usual form)."""
        raw = socks.encode_address(Address(host, port))
        found = socks.decode_address(raw)
        assert found is not None
        address, end = found
        self.assertEqual((end, address.port), (len(raw), port))
        self.assertEqual(address.ip or address.host, Address(host, port).ip or host)

    @settings(deadline=None)
    @given(st.binary(max_size=300))
    def test_arbitrary_bytes(self, raw: bytes) -> None:
        """Arbitrary bytes are an address within its bounds, incomplete, or refused with the one error."""
        try:
            found = socks.decode_address(raw)
        except RemoteProtocolError:
            return
        if found is None:
            self.assertLess(len(raw), socks.MAX_ADDRESS)
        else:
            self.assertLessEqual(found[1], min(len(raw), socks.MAX_ADDRESS))

    def test_mutations(self) -> None:
        """10,000 mutated addresses decode, need more, or are refused; what decodes can be encoded again."""
        for raw in mutations(list(GOLDEN.values()), 10_000, seed=1928):
            try:
                found = socks.decode_address(raw)
            except RemoteProtocolError:
                continue
            if found is not None:
                socks.encode_address(found[0])


class DatagramTests(SynchronousTestCase):
    """The header of relayed datagrams (RFC 1928 section 7)."""

    def test_header(self) -> None:
        """Two reserved bytes, the fragment number 0, the address."""
        self.assertEqual(socks.encode_udp_header(Address("192.0.2.7", 53)), bytes.fromhex("0000 00 01 c0000207 0035"))

    def test_split(self) -> None:
        """The fragment number and the offset of the payload, which may be empty."""
        raw = bytes.fromhex("0000 00 01 c0000207 0035")
        self.assertEqual(socks.split_udp(raw + b"payload"), (0, 10))
        self.assertEqual(socks.split_udp(raw), (0, 10))
        self.assertEqual(socks.split_udp(b"\0\0\x85" + raw[3:] + b"x"), (0x85, 10))

    def test_not_a_relayed_datagram(self) -> None:
        """Every cut of a header, reserved bytes that are not 0, and bad addresses are refused."""
        raw = bytes.fromhex("0000 00 01 c0000207 0035")
        for cut in range(len(raw)):
            self.assertRaises(RemoteProtocolError, socks.split_udp, raw[:cut])
        for bad in (b"\x01" + raw[1:], b"\x00\x01" + raw[2:], b"\0\0\0\x02" + raw[4:], b"\0\0\0\x03\0\0\x35"):
            self.assertRaises(RemoteProtocolError, socks.split_udp, bad)

    def test_mutations(self) -> None:
        """10,000 mutated datagrams split inside their bounds or are refused."""
        golden = [b"\0\0\0" + raw + b"payload" for raw in GOLDEN.values()]
        for raw in mutations(golden, 10_000, seed=7):
            try:
                _, offset = socks.split_udp(raw)
            except RemoteProtocolError:
                continue
            self.assertLessEqual(offset, len(raw))


class ReplyCodeTests(SynchronousTestCase):
    """Reasons and reply codes."""

    def test_every_reason_has_its_code(self) -> None:
        """Each reason gives the code of RFC 1928 section 6 that says it."""
        expected = {
            Reason.FAILURE: 1,
            Reason.POLICY: 2,
            Reason.NETWORK_UNREACHABLE: 3,
            Reason.HOST_UNREACHABLE: 4,
            Reason.REFUSED: 5,
            Reason.TIMEOUT: 6,
            Reason.UNSUPPORTED: 7,
            Reason.LIMIT: 1,
        }
        self.assertEqual({reason: int(socks.rep_of_reason(reason)) for reason in Reason}, expected)

    def test_every_code_has_its_reason(self) -> None:
        """Codes 1 to 8 say a reason, and unknown ones FAILURE."""
        expected = [
            Reason.FAILURE,
            Reason.POLICY,
            Reason.NETWORK_UNREACHABLE,
            Reason.HOST_UNREACHABLE,
            Reason.REFUSED,
            Reason.TIMEOUT,
            Reason.UNSUPPORTED,
            Reason.UNSUPPORTED,
            Reason.FAILURE,
        ]
        self.assertEqual([socks.reason_of_rep(rep) for rep in range(1, 10)], expected)

    def test_unknown_is_ipv4(self) -> None:
        """The address that says nothing is 0.0.0.0, port 0."""
        self.assertEqual(socks.UNKNOWN.ip, ipaddress.IPv4Address(0))
