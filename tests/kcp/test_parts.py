"""The small parts of a KCP session: round trip, congestion window, send queues, paths."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IConsumer
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.crypto.packet_keys import BLOCKS
from mikanet.crypto.packets import GCM_MAX_PACKETS, GCM_WARN_PACKETS
from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.interfaces import IPacketTransport
from mikanet.kcp.congestion import CongestionWindow
from mikanet.kcp.link import LinkSettings, PacketSealer, conv_of, kcp_datagram, shared_sealer
from mikanet.kcp.ports import PacketPath
from mikanet.kcp.rtt import RttEstimator
from mikanet.kcp.sendqueue import MessageQueue, StreamQueue


class RttTests(SynchronousTestCase):
    """The estimator beyond the traces."""

    def test_bounds(self) -> None:
        """The timeout stays between its bounds."""
        for nodelay, least in ((0, 100), (1, 30)):
            rtt = RttEstimator(10, nodelay)
            for _ in range(20):
                rtt.sample(0)
            self.assertEqual(rtt.rto, least)
            for _ in range(50):
                rtt.sample(500_000)
            self.assertEqual(rtt.rto, 60_000)

    def test_first_sample(self) -> None:
        """The first one sets both numbers; a sudden quick answer raises the variance slowly, a slow one fast."""
        rtt = RttEstimator(10, 1)
        rtt.sample(200)
        self.assertEqual((rtt.srtt, rtt.rttvar, rtt.rto), (200, 100, 600))
        rtt.sample(10)
        self.assertEqual((rtt.srtt, rtt.rttvar), (176, 102))
        rtt.sample(900)
        self.assertEqual((rtt.srtt, rtt.rttvar), (266, 257))


class CongestionTests(SynchronousTestCase):
    """The window beyond the trace."""

    def test_growth_and_falls(self) -> None:
        """It starts at 1 after the first flush, doubles to ssthresh, then creeps; loss cuts it."""
        window = CongestionWindow(1000)
        window.flushed(0, 0, 0, 0, 2)
        self.assertEqual(window.cwnd, 1)
        for _ in range(200):
            window.acknowledged(64)
        self.assertTrue(2 < window.cwnd <= 64)
        window.flushed(1, 0, 20, window.cwnd, 2)
        self.assertEqual((window.ssthresh, window.cwnd), (10, 12))
        window.flushed(0, 1, 12, 12, 2)
        self.assertEqual((window.ssthresh, window.cwnd), (6, 1))

    def test_remote_window_is_the_limit(self) -> None:
        """It never grows past the peer's window."""
        window = CongestionWindow(1000)
        window.flushed(0, 0, 0, 0, 2)
        for _ in range(1000):
            window.acknowledged(3)
        self.assertEqual(window.cwnd, 3)


class QueueTests(SynchronousTestCase):
    """What waits to be sent."""

    @given(st.lists(st.binary(max_size=30)), st.lists(st.integers(1, 4)), st.integers(1, 9))
    def test_stream(self, writes: list[bytes], takes: list[int], mss: int) -> None:
        """Segments are full but for the last of what was there, and together they are what was written."""
        queue = StreamQueue(mss)
        got = b""
        for write in writes:
            queue.put(write)
        for count in takes:
            before = queue.segments()
            taken = queue.take(count)
            self.assertEqual(len(taken), min(count, before))
            self.assertTrue(all(frg == 0 for frg, _ in taken))
            self.assertTrue(all(len(data) == mss for _, data in taken[:-1]))
            got += b"".join(data for _, data in taken)
            self.assertEqual(queue.segments(), before - len(taken))
        while queue.segments():
            got += b"".join(data for _, data in queue.take(1000))
        self.assertEqual(got, b"".join(writes))

    def test_messages(self) -> None:
        """A message is cut into numbered fragments, the last of which is 0; too long ones are refused."""
        queue = MessageQueue(4)
        queue.put(b"0123456789")
        queue.put(b"ab")
        self.assertEqual(queue.take(9), [(2, b"0123"), (1, b"4567"), (0, b"89"), (0, b"ab")])
        self.assertRaises(LocalProtocolError, queue.put, bytes(4 * 255 + 1))


class LinkTests(SynchronousTestCase):
    """What is shared by the sessions of a link."""

    def test_conversations(self) -> None:
        """The conv of bare and FEC packets; parity tells none, and what is neither is no conversation's."""
        bare = bytes.fromhex("443322115100040014000000000000000000000000000000")
        self.assertEqual(conv_of(bare), 0x11223344)
        self.assertEqual(conv_of(bytes.fromhex("00000000f1001a00") + bare), 0x11223344)
        self.assertIsNone(conv_of(bytes.fromhex("00000000f2001a00") + bare))
        self.assertEqual(conv_of(bytes.fromhex("fffffffff3001a00") + bare), -1)
        self.assertEqual(conv_of(b"short"), -1)
        self.assertEqual(kcp_datagram(bytes.fromhex("00000000f1001a00") + bare), bare)
        self.assertEqual(kcp_datagram(bare), bare)

    def test_settings_that_cannot_be(self) -> None:
        """Numbers that do not fit, a block without its key, and unknown blocks are refused."""
        wrong: list[dict[str, Any]] = [
            {"block": "aes"},
            {"block": "rot13"},
            {"mtu": 1501},
            {"mtu": 24},
            {"mtu": 32, "data_shards": 1, "parity_shards": 1},
            {"rcv_wnd": 0},
            {"snd_wnd": 40_000},
            {"data_shards": -1},
        ]
        for changes in wrong:
            self.assertRaises(ConfigError, LinkSettings, **{"block": "null", **changes})

    def test_key_is_used_up(self) -> None:
        """An aes-128-gcm key warns at 2**30 packets, once, and seals nothing after 2**32 (Q2)."""
        sealer = PacketSealer(LinkSettings("aes-128-gcm", bytes(32)), os.urandom)
        with capturedLogs() as logs:
            sealer.seal([b"x"])
            self.assertEqual(logs, [])
            cipher: Any = sealer._cipher
            for sealed, count in ((GCM_WARN_PACKETS, 1), (GCM_WARN_PACKETS, 1), (GCM_MAX_PACKETS, 0)):
                cipher.sealed = sealed
                self.assertEqual(len(sealer.seal([b"x"])), count)
        self.assertEqual(len(logs), 2)

    def test_own_packets_are_known_for_ever(self) -> None:
        """A link's own packets are dropped whenever and wherever they come back, and sending them remembers nothing (Q3)."""
        for block in (name for name in BLOCKS if name != "null"):
            settings = LinkSettings(block, bytes(32))
            sealer = PacketSealer(settings, random.Random(4).randbytes)
            early = sealer.seal([b"body of the packet"] * 3)
            for _ in range(20):
                sealer.seal([b"another body"] * 50)
            assert sealer._seen is not None
            self.assertFalse(any(sealer._seen._newer) or any(sealer._seen._older))
            self.assertEqual((sealer.open(early), sealer.repeated, sealer.refused), ([], 3, 0), block)
            other = PacketSealer(settings, random.Random(5).randbytes)
            self.assertEqual(other.open(early), [b"body of the packet"] * 3)
            self.assertEqual((other.open(early), other.repeated), ([], 3))

    def test_sealers_of_one_key_are_one(self) -> None:
        """Servers of one key in a process share a sealer, and so do clients; servers and clients do not."""
        settings, other = LinkSettings("aes", bytes(32)), LinkSettings("aes", b"k" * 32)
        made = [shared_sealer(replace(settings, snd_wnd=wnd), os.urandom, True) for wnd in (10, 20)]
        self.assertIs(made[0], made[1])
        self.assertIsNot(made[0], shared_sealer(settings, os.urandom, False))
        self.assertIsNot(made[0], shared_sealer(other, os.urandom, True))
        client = shared_sealer(settings, os.urandom, False)
        self.assertEqual(made[0].open(client.seal([b"request"])), [b"request"])

    def test_path(self) -> None:
        """The transport of one session seals what it sends, and closes once."""
        sent: list[Any] = []
        closed: list[bool] = []

        class Port:
            def send_packets(self, peer: Any, packets: list[bytes]) -> None:
                sent.append((peer, packets))

        sealer = PacketSealer(LinkSettings("aes", bytes(32)), random.Random(1).randbytes)
        path = PacketPath(Port(), "peer", sealer, 1330, lambda: closed.append(True))
        verifyObject(IPacketTransport, path)
        self.assertTrue(IConsumer.providedBy(path))
        path.writeSequence([b"one", b"two"])
        ((peer, packets),) = sent
        self.assertEqual((peer, [len(packet) for packet in packets]), ("peer", [23, 23]))
        self.assertEqual(sealer.open(packets), [])  # its own, and so dropped
        self.assertEqual(sealer.repeated, 2)
        path.loseConnection()
        path.abortConnection()
        path.write(b"late")
        self.assertEqual((len(sent), closed), (1, [True]))
