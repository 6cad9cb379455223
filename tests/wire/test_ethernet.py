"""Ethernet frames and station addresses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.wire.ethernet import IPV4, EthernetFrame, decode, encode, format_mac, parse_mac


class FrameTests(SynchronousTestCase):
    """Frames."""

    def test_bytes(self) -> None:
        """Destination, source, type, payload."""
        frame = EthernetFrame(b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", IPV4, b"payload")
        data = bytes.fromhex("020000000001 020000000002 0800") + b"payload"
        self.assertEqual(encode(frame), data)
        self.assertEqual(decode(data), frame)

    def test_cut_short(self) -> None:
        """A header that is not all there is refused."""
        for length in range(14):
            with self.assertRaises(RemoteProtocolError):
                decode(bytes(length))
        self.assertEqual(decode(bytes(14)).payload, b"")


class MacTests(SynchronousTestCase):
    """Station addresses as text."""

    def test_forms(self) -> None:
        """Colons or hyphens, in any case."""
        for text in ("02:00:5e:AB:cd:0f", "02-00-5E-ab-CD-0F"):
            self.assertEqual(parse_mac(text), bytes.fromhex("02005eabcd0f"))

    @settings(deadline=None)
    @given(st.binary(min_size=6, max_size=6))
    def test_round_trip(self, mac: bytes) -> None:
        """What is written is what is read."""
        self.assertEqual(parse_mac(format_mac(mac)), mac)

    def test_others_are_refused(self) -> None:
        """Anything else is an error that shows the form."""
        for text in (
            "",
            "02:00:5e:ab:cd",
            "02:00:5e:ab:cd:0f:11",
            "2:0:5e:ab:cd:f",
            "02005eabcd0f",
            "zz:00:5e:ab:cd:0f",
        ):
            with self.assertRaises(ValueError) as caught:
                parse_mac(text)
            self.assertIn("02:00:5e:00:53:01", str(caught.exception))
