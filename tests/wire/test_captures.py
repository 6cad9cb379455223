"""Files of captured packets."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from io import BytesIO

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.wire.captures import ETHERNET, RAW_IP, Captured, CaptureError, file_header, packet_block, read_captures

#: Written by hand from the two format descriptions: one packet "abcde" of 1,000,000,000.25 s.
PCAP = (
    bytes.fromhex("d4c3b2a1 0200 0400 00000000 00000000 00000400 01000000 00ca9a3b 90d00300 05000000 05000000")
    + b"abcde"
)
PCAP_BIG_NANO = (
    bytes.fromhex("a1b23c4d 0002 0004 00000000 00000000 00040000 00000065 3b9aca00 0ee6b280 00000005 00000005")
    + b"abcde"
)
SECTION = bytes.fromhex("0a0d0d0a 1c000000 4d3c2b1a 0100 0000 ffffffffffffffff 1c000000")
INTERFACE = bytes.fromhex("01000000 14000000 0100 0000 00000000 14000000")


def read(data: bytes) -> list[Captured]:
    """All packets of a file."""
    return list(read_captures(BytesIO(data).read))


class ReadTests(SynchronousTestCase):
    """Reading."""

    def test_pcap(self) -> None:
        """Either byte order, microseconds or nanoseconds, and the link type."""
        self.assertEqual(read(PCAP), [Captured(1e9 + 0.25, b"abcde", ETHERNET)])
        self.assertEqual(read(PCAP_BIG_NANO), [Captured(1e9 + 0.25, b"abcde", RAW_IP)])

    def test_pcapng(self) -> None:
        """Enhanced and simple packets; blocks and options of other kinds are passed over."""
        stamp = 1_000_000_000_250_000
        enhanced = (
            struct.pack("<IIIIIIII", 6, 40, 0, stamp >> 32, stamp & 0xFFFFFFFF, 5, 5, 0)[:28]
            + b"abcde\0\0\0"
            + struct.pack("<I", 40)
        )
        simple = struct.pack("<III", 3, 20, 3) + b"xyz\0" + struct.pack("<I", 20)
        other = struct.pack("<II", 0x0BAD, 16) + b"what" + struct.pack("<I", 16)
        found = read(SECTION + other + INTERFACE + enhanced + other + simple)
        self.assertEqual(found, [Captured(1e9 + 0.25, b"abcde", 1), Captured(0.0, b"xyz", 1)])

    def test_pcapng_big_endian_and_resolution(self) -> None:
        """Another byte order, times in units of 2**-10 s, and a second section that begins anew."""
        section = struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
        interface = struct.pack(">IIHHIHHB3xII", 1, 32, 1, 0, 0, 9, 1, 0x8A, 0, 32)
        packet = struct.pack(">IIIIIII4sI", 6, 36, 0, 0, 1536, 4, 4, b"abcd", 36)
        self.assertEqual(read(section + interface + packet), [Captured(1.5, b"abcd", 1)])
        self.assertEqual(len(read(section + interface + packet + SECTION + INTERFACE)), 1)
        with self.assertRaises(CaptureError):
            read(section + interface + section + packet)

    def test_file_that_just_ends(self) -> None:
        """The whole packets of a file that is cut off anywhere are read; a cut header is an error."""
        for data in (PCAP, file_header() + packet_block(Captured(1.0, b"abc", 1))):
            for length in range(len(data)):
                try:
                    self.assertEqual(read(data[:length]), [])
                except CaptureError:
                    self.assertLess(length, 40)

    def test_others_are_refused(self) -> None:
        """Nothing, text, a packet or a block of no sensible length."""
        too_long = PCAP[:24] + struct.pack("<IIII", 0, 0, 1 << 20, 1 << 20)
        for data in (
            b"",
            b"abc",
            b"role: client\n",
            too_long,
            SECTION + struct.pack("<II", 5, 7),
            SECTION + b"\x06\0\0\0\xff\xff\xff\xff",
        ):
            with self.assertRaises(CaptureError):
                read(data)

    def test_mutations(self) -> None:
        """Ten thousand mutated files: packets, or the one declared error."""
        rng = random.Random(3)
        seeds = [PCAP, PCAP_BIG_NANO, file_header() + packet_block(Captured(1.0, b"abc", 1), "comment") * 2]
        for _ in range(10_000):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.choice((0, 1, 255, rng.randrange(256)))
            try:
                read(bytes(data))
            except CaptureError:
                pass


class WriteTests(SynchronousTestCase):
    """Writing pcapng."""

    def test_header(self) -> None:
        """A section and an interface, as the format says."""
        self.assertEqual(file_header(), SECTION + INTERFACE)

    def test_comment(self) -> None:
        """It stands behind the packet as option 1, padded."""
        block = packet_block(Captured(0.0, b"abcd", 1), "hello")
        self.assertIn(b"abcd" + bytes.fromhex("0100 0500") + b"hello\0\0\0" + bytes(4), block)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2**35), st.binary(max_size=50), st.text(max_size=9))))
    def test_round_trip(self, packets: list[tuple[int, bytes, str]]) -> None:
        """What is written is read, times to the microsecond."""
        data = file_header() + b"".join(packet_block(Captured(t / 16, d, 1), c) for t, d, c in packets)
        reading: Callable[[int], bytes] = BytesIO(data).read
        found = list(read_captures(reading))
        self.assertEqual([each.data for each in found], [each for _, each, _ in packets])
        for one, (time, _, _) in zip(found, packets, strict=True):
            self.assertAlmostEqual(one.time, time / 16, 5)
