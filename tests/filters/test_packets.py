"""Filters with packets on both sides."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.filters.packets import IPacketReceiver, PacketFilter, deliver, deliver_recovered
from tests.filters.contract import FilterContractTests, MemoryPackets, Upper


@implementer(IPacketReceiver)
class Batches(Upper):
    """Takes batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, list[bytes]]] = []

    def packets_received(self, packets: Any) -> None:
        """Note."""
        self.batches.append(("direct", list(packets)))

    def recovered_received(self, packets: Any) -> None:
        """Note."""
        self.batches.append(("recovered", list(packets)))


class PacketFilterTests(FilterContractTests, SynchronousTestCase):
    """The base, which changes nothing."""

    def make_filter(self, upper: Any) -> PacketFilter:
        """The filter under test."""
        return PacketFilter(upper)

    def test_batches(self) -> None:
        """Batches reach what takes batches as batches, and everything else packet by packet."""
        for upper in (Batches(), Upper()):
            filter_ = PacketFilter(upper)
            MemoryPackets().connect(filter_)
            filter_.packets_received([b"a", b"b"])
            filter_.recovered_received([b"c"])
            if isinstance(upper, Batches):
                self.assertEqual(upper.batches, [("direct", [b"a", b"b"]), ("recovered", [b"c"])])
            else:
                self.assertEqual(upper.received, [b"a", b"b", b"c"])

    def test_functions(self) -> None:
        """The two functions do the same for any upper side."""
        upper = Upper()
        deliver(upper, [b"a"])
        deliver_recovered(upper, [b"b"])
        self.assertEqual(upper.received, [b"a", b"b"])
