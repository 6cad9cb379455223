"""UDP ports with a socket in memory: runs of packets in one call, and what happens where that does not exist."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.kcp.udp import UdpPackets

PEER = ("192.0.2.1", 5000)
OTHER = ("192.0.2.2", 6000)
GRO = 104


class FakeSocket:
    """Takes sends, gives reads."""

    def __init__(self, runs: bool = True) -> None:
        self.runs = runs
        self.calls: list[tuple[str, Any]] = []
        self.reads: list[Any] = []
        self.full = False

    def _check(self) -> None:
        if self.full:
            raise BlockingIOError

    def sendto(self, packet: bytes, peer: Any) -> None:
        """One packet."""
        self._check()
        self.calls.append(("sendto", (packet, peer)))

    def sendmsg(self, packets: Any, control: Any, flags: int, *peer: Any) -> None:
        """A run."""
        self._check()
        if not self.runs:
            raise OSError(errno.EINVAL, "no such thing")
        (level, kind, size) = control[0]
        assert (level, kind) == (socket.IPPROTO_UDP, 103)
        self.calls.append(("run", (struct.unpack("=H", size)[0], list(packets), *peer)))

    def recvmsg(self, size: int, ancillary: int) -> Any:
        """What is next."""
        if not self.reads:
            raise BlockingIOError
        item = self.reads.pop(0)
        if isinstance(item, Exception):
            raise item
        return item


class UdpPacketsTests(SynchronousTestCase):
    """Without a network."""

    def port(self, runs: bool = True, only: Any = None) -> tuple[UdpPackets, FakeSocket]:
        """A port on a fake socket."""
        self.received: list[tuple[Any, list[bytes]]] = []
        clock: Any = Clock()
        port = UdpPackets(clock, 0, "", lambda peer, packets: self.received.append((peer, packets)), only)
        fake = FakeSocket(runs)
        port.socket = fake  # type: ignore[assignment]
        port.connected = True  # type: ignore[assignment]
        return port, fake

    def test_runs(self) -> None:
        """Packets of one size go in one call, the last may be shorter; another size begins another run."""
        port, fake = self.port()
        a, b, c = b"a" * 100, b"b" * 100, b"c" * 40
        port.send_packets(PEER, [a, b, c, a, c, b])
        self.assertEqual(
            fake.calls,
            [("run", (100, [a, b, c], PEER)), ("run", (100, [a, c], PEER)), ("sendto", (b, PEER))],
        )

    def test_runs_are_bounded(self) -> None:
        """A run has at most 64 packets and fewer bytes than a UDP datagram can have."""
        port, fake = self.port()
        port.send_packets(PEER, [bytes(100)] * 130)
        port.send_packets(PEER, [bytes(1400)] * 60)
        runs = [len(call[1][1]) for call in fake.calls if call[0] == "run"]
        self.assertEqual(runs, [64, 64, 2, 46, 14])

    def test_without_runs(self) -> None:
        """Where the kernel cannot cut runs, each packet goes by itself, from the first failure on."""
        port, fake = self.port(runs=False)
        packets = [b"1" * 9, b"2" * 9]
        port.send_packets(PEER, packets)
        port.send_packets(PEER, packets)
        self.assertEqual(fake.calls, [("sendto", (packet, PEER)) for packet in packets * 2])

    def test_one_peer(self) -> None:
        """A port for one peer takes packets of that one only, however its address is written."""
        port, fake = self.port(only=("2001:DB8:0::1", 5000))
        fake.reads = [(b"a", [], 0, ("2001:db8::1", 5000, 0, 0)), (b"b", [], 0, ("2001:db8::2", 5000, 0, 0))]
        fake.reads += [(b"c", [], 0, ("2001:db8::1", 5001, 0, 0))]
        port.doRead()
        self.assertEqual([packets for _, packets in self.received], [[b"a"]])

    def test_full_socket_loses(self) -> None:
        """What a full socket does not take is lost, and nothing is raised."""
        port, fake = self.port()
        fake.full = True
        port.send_packets(PEER, [b"x", b"y"])
        self.assertEqual(fake.calls, [])

    def test_reads_are_batched_by_peer(self) -> None:
        """One turn's packets come as one batch per run of a peer, runs cut into their packets."""
        port, fake = self.port()
        run = b"a" * 10 + b"b" * 10 + b"c" * 4
        fake.reads = [
            (run, [(socket.IPPROTO_UDP, GRO, struct.pack("=i", 10))], 0, PEER),
            (b"d", [], 0, PEER),
            OSError(errno.ECONNREFUSED, "what ICMP said"),
            (b"e", [], 0, OTHER),
        ]
        port.doRead()
        self.assertEqual(self.received, [(PEER, [b"a" * 10, b"b" * 10, b"c" * 4, b"d"]), (OTHER, [b"e"])])

    def test_failing_socket_ends_the_turn(self) -> None:
        """A socket that only fails does not hold the reactor."""
        port, fake = self.port()
        fake.reads = [OSError(errno.ENOTCONN, "broken")] * 10_000
        port.doRead()
        self.assertGreater(len(fake.reads), 9_000)

    def test_sources(self) -> None:
        """Limits count IPv4 addresses, and IPv6 networks of 64 bits."""
        source = UdpPackets.source_of
        self.assertNotEqual(source(("192.0.2.1", 1)), source(("192.0.2.2", 1)))
        self.assertEqual(source(("2001:db8::1", 1, 0, 0)), source(("2001:db8::ffff:1", 2, 0, 0)))
        self.assertNotEqual(source(("2001:db8::1", 1)), source(("2001:db8:0:1::1", 1)))
        port, _ = self.port()
        self.assertEqual(port.address_of(PEER).host, PEER[0])  # type: ignore[attr-defined]
