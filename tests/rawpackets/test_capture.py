"""Pieces as kernels hand them to devices, cut into frames."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from twisted.trial.unittest import SynchronousTestCase

from mikanet.rawpackets.capture import split_piece
from mikanet.wire import ethernet, ip

PLAIN = bytes(10)


def piece(version: int, size: int, payload: bytes) -> bytes:
    """A run of datagrams, with the header that the kernel puts before it."""
    source, destination = (IPv4Address(1), IPv4Address(2)) if version == 4 else (IPv6Address(1), IPv6Address(2))
    packet = ip.IpPacket(source, destination, 17, struct.pack("!HHHH", 40000, 9999, 8 + len(payload), 0xAAAA) + payload)
    frame = ethernet.encode(ethernet.EthernetFrame(bytes(6), bytes(6), packet.ethertype, ip.encode(packet)))
    return struct.pack("=BBHHHH", 1, 5, 42, size, 34, 6) + frame


class SplitTests(SynchronousTestCase):
    """Cutting."""

    def test_plain(self) -> None:
        """A frame without offload is itself, whatever it holds."""
        self.assertEqual(list(split_piece(PLAIN + b"frame")), [b"frame"])
        self.assertEqual(list(split_piece(b"short")), [])

    def test_runs(self) -> None:
        """Each datagram has headers of its own with right lengths and sums; the last may be shorter."""
        for version in (4, 6):
            frames = list(split_piece(piece(version, 100, bytes(100) + b"a" * 100 + b"b" * 30)))
            payloads = []
            for frame in frames:
                packet = ip.decode(ethernet.decode(frame).payload)
                source, destination, length, total = struct.unpack_from("!HHHH", packet.payload)
                self.assertEqual((source, destination, length, total), (40000, 9999, len(packet.payload), 0))
                payloads.append(packet.payload[8:])
            self.assertEqual(payloads, [bytes(100), b"a" * 100, b"b" * 30])

    def test_cut_short(self) -> None:
        """A piece that is not all there gives something, and no error."""
        data = piece(4, 100, bytes(300))
        for length in range(len(data)):
            list(split_piece(data[:length]))
