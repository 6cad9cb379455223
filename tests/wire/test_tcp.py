"""TCP segments and flags."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.wire import tcp
from tests.support.vectors import load

#: A RST of a Linux kernel, as captured.
_FRAME = bytes.fromhex(load("paqet/captures.json")["captures"]["paqet_alpha21_null_block_http_get"][2]["frame"])
RST, SOURCE, DESTINATION = _FRAME[34:], _FRAME[26:30], _FRAME[30:34]


class SegmentTests(SynchronousTestCase):
    """Segments."""

    def test_of_a_kernel(self) -> None:
        """What Linux sends is read field by field, and written the same."""
        segment = tcp.decode(RST, SOURCE, DESTINATION)
        self.assertEqual(segment, tcp.TcpSegment(0xE99F, 9999, 0xFCBDAE17, 0, tcp.RST, 0, b"", b""))
        self.assertEqual(tcp.encode(segment, SOURCE, DESTINATION), RST)

    def test_every_bit_is_covered(self) -> None:
        """A bit that is turned over is noticed, in the segment and in the addresses."""
        for at in range(len(RST) * 8):
            bad = bytearray(RST)
            bad[at // 8] ^= 1 << at % 8
            with self.assertRaises(RemoteProtocolError):
                tcp.decode(bytes(bad), SOURCE, DESTINATION)
        with self.assertRaises(RemoteProtocolError):
            tcp.decode(RST, SOURCE, IPv4Address("10.77.0.3").packed)

    def test_cut_short(self) -> None:
        """Refused at every length."""
        for length in range(len(RST)):
            with self.assertRaises(RemoteProtocolError):
                tcp.decode(RST[:length], SOURCE, DESTINATION)

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 2**32 - 1), st.integers(0, tcp.ALL_FLAGS), st.binary(max_size=9), st.binary(max_size=99))
    def test_round_trip(self, number: int, flags: int, options: bytes, payload: bytes) -> None:
        """Any segment comes back, its options padded to whole words."""
        segment = tcp.TcpSegment(1, 65535, number, number ^ 5, flags, 7, options, payload, 3)
        for source in (b"\x7f\0\0\1", bytes(15) + b"\1"):
            back = tcp.decode(tcp.encode(segment, source, source), source, source)
            self.assertEqual(back, segment._replace(options=options + bytes(-len(options) % 4)))

    def test_options(self) -> None:
        """The bytes of each option that is written."""
        self.assertEqual(tcp.mss_option(1460).hex(), "020405b4")
        self.assertEqual(tcp.window_scale_option(8).hex(), "030308")
        self.assertEqual(tcp.timestamps_option(1, 2).hex(), "080a0000000100000002")


class FlagTests(SynchronousTestCase):
    """Flags by their letters."""

    def test_letters(self) -> None:
        """Each letter has its bit, NS the ninth."""
        bits = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80, "N": 0x100}
        for letter, bit in bits.items():
            self.assertEqual(tcp.parse_flags(letter), bit)
            self.assertEqual(tcp.format_flags(bit), letter)
        self.assertEqual(tcp.parse_flags("PA"), tcp.DEFAULT_FLAGS)
        self.assertEqual(tcp.format_flags(tcp.ALL_FLAGS), "FSRPAUECN")

    def test_others_are_refused(self) -> None:
        """No letters, small ones, or others."""
        for text in ("", "pa", "PX", "P A"):
            with self.assertRaises(ValueError):
                tcp.parse_flags(text)

    def test_what_a_peer_may_ask_for(self) -> None:
        """Entries with RST, and those that carry nothing, are skipped; higher bits are ignored (Q7)."""
        entries = map(tcp.parse_flags, ("PA", "R", "RA", "E", "CN", "S", "UE", "F"))
        self.assertEqual(
            [tcp.format_flags(entry) for entry in tcp.usable_flags([0, 0xFE18, *entries])],
            ["PA", "PA", "S", "UE", "F"],
        )
