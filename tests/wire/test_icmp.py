"""ICMP echo messages against the kernel's."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.wire import icmp
from tests.support.vectors import load

VECTORS = load("icmp/echo.json")
V4 = [bytes.fromhex(packet) for packet in VECTORS["v4"]]
V6 = [bytes.fromhex(packet) for packet in VECTORS["v6"]]


class IcmpTests(SynchronousTestCase):
    """Requests and replies."""

    def test_kernels_messages(self) -> None:
        """The request and Linux' reply to it are read."""
        wanted = (0x1234, 1, b"\xa5" * 16)
        self.assertEqual(icmp.decode(icmp.without_ip_header(V4[0])), (icmp.ECHO_REQUEST, *wanted))
        self.assertEqual(icmp.decode(icmp.without_ip_header(V4[1])), (icmp.ECHO_REPLY, *wanted))
        self.assertEqual({icmp.decode(packet).type for packet in V6}, {icmp.ECHO_REQUEST6, icmp.ECHO_REPLY6})

    def test_built_as_the_kernel_builds(self) -> None:
        """The same bytes, checksum included."""
        payload = b"\xa5" * 16
        self.assertEqual(icmp.encode(icmp.ECHO_REPLY, 0x1234, 1, payload), V4[1][20:])
        self.assertEqual(icmp.encode(icmp.ECHO_REQUEST, 0x1234, 1, payload), V4[0][20:])
        for packet in V6:
            built = icmp.encode(packet[0], 0x1234, 1, payload)
            self.assertEqual(built[:2] + built[4:], packet[:2] + packet[4:])

    @settings(deadline=None)
    @given(st.sampled_from([0, 8, 128, 129]), st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=1500))
    def test_round_trip(self, kind: int, ident: int, sequence: int, payload: bytes) -> None:
        """What is encoded is decoded."""
        self.assertEqual(icmp.decode(icmp.encode(kind, ident, sequence, payload)), (kind, ident, sequence, payload))

    def test_refused(self) -> None:
        """Short messages, other types and codes, and broken IP headers."""
        good = V4[0][20:]
        for bad in (b"", good[:7], b"\x03" + good[1:], good[:1] + b"\x01" + good[2:]):
            self.assertRaises(RemoteProtocolError, icmp.decode, bad)
        for bad in (b"", b"\x60" + V4[0][1:], b"\x44" + V4[0][1:], b"\x4f" + V4[0][1:20]):
            self.assertRaises(RemoteProtocolError, icmp.without_ip_header, bad)

    def test_mutations(self) -> None:
        """10,000 changed packets are read or refused with the one error."""
        chance = random.Random(4)
        for _ in range(10_000):
            data = bytearray(chance.choice(V4))
            for _ in range(3):
                data[chance.randrange(len(data))] = chance.randrange(256)
            del data[chance.randrange(len(data) + 1) :]
            try:
                icmp.decode(icmp.without_ip_header(bytes(data)))
            except RemoteProtocolError:
                pass

    def test_marks_tell_directions(self) -> None:
        """They differ in the last bit alone."""
        self.assertEqual(int.from_bytes(icmp.MARK_UP, "big") ^ int.from_bytes(icmp.MARK_DOWN, "big"), 1)
