"""FEC as a filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.fec.filter import FecFilter
from tests.filters.contract import FilterContractTests, MemoryPackets, Upper


class Packets(MemoryPackets):
    """One that keeps packets apart."""

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """A packet each."""
        for packet in iovec:
            self.write(packet)


class FecFilterTests(FilterContractTests, SynchronousTestCase):
    """Packets both sides."""

    def make_filter(self, upper: Any) -> FecFilter:
        """The filter under test."""
        return FecFilter(upper, 3, 2, Clock())  # type: ignore[arg-type]

    def made(self) -> tuple[Upper, FecFilter, MemoryPackets]:
        """A connected one."""
        upper, transport = Upper(), Packets()
        filter_ = self.make_filter(upper)
        transport.connect(filter_)
        return upper, filter_, transport

    def test_size(self) -> None:
        """Eight bytes of each packet are the header."""
        _, filter_, transport = self.made()
        self.assertEqual(filter_.max_packet_size, transport.max_packet_size - 8)

    def test_recovers(self) -> None:
        """Of a group of three and two, any two may be lost."""
        _, sender, wire = self.made()
        sender.writeSequence([b"packet one", b"two", b"packet three"])
        self.assertEqual(len(wire.written), 5)
        for lost in ((0, 1), (1, 2), (0, 4), (3, 4)):
            upper, receiver, _ = self.made()
            receiver.packets_received([packet for i, packet in enumerate(wire.written) if i not in lost])
            self.assertEqual(sorted(upper.received), [b"packet one", b"packet three", b"two"])

    def test_peer_without_fec(self) -> None:
        """Packets without an FEC header pass."""
        upper, filter_, _ = self.made()
        bare = bytes.fromhex("443322115100040014000000000000000000000000000000")
        filter_.dataReceived(bare)
        self.assertEqual(upper.received, [bare])
