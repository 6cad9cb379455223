"""How far the stack reaches: whole transfers over a bad wire in memory, seeded, on a clock that jumps.

One gigabyte instead of the 20 MB of each transfer: ``MIKANET_REACH_MB=1000 python -m twisted.trial tests.kcp.test_reach``.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace

from twisted.internet.interfaces import IConsumer, IPullProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.kcp.link import LinkSettings
from mikanet.kcp.settings import MODES
from tests.kcp.net import Net

MEGABYTES = int(os.environ.get("MIKANET_REACH_MB", "20"))
LINK = LinkSettings("aes", bytes(range(32)), MODES["fast3"], snd_wnd=1024, rcv_wnd=1024)
BAD = "delay=20ms loss=10% reorder=5% duplicate=1% corrupt=0.1%"
_BLOCK = random.Random(0).randbytes(1 << 16)


@implementer(IPullProducer)
class Source(Protocol):
    """Writes so many bytes as the stack takes them, each block different; ``digest`` is what they should be."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.number = 0
        self.digest = hashlib.sha256()

    def connectionMade(self) -> None:
        """Begin."""
        assert self.transport is not None
        transport: IConsumer = self.transport  # type: ignore[assignment]
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """One block more."""
        assert self.transport is not None
        if not self.left:
            self.transport.unregisterProducer()  # type: ignore[attr-defined]
            return
        self.number += 1
        cut = self.number * 7919 % len(_BLOCK)
        data = (_BLOCK[cut:] + _BLOCK[:cut])[: min(self.left, len(_BLOCK))]
        self.left -= len(data)
        self.digest.update(data)
        self.transport.write(data)

    def stopProducing(self) -> None:
        """Over."""


class Sink(Protocol):
    """Counts and hashes."""

    def __init__(self) -> None:
        self.got = 0
        self.digest = hashlib.sha256()

    def dataReceived(self, data: bytes) -> None:
        """Count."""
        self.got += len(data)
        self.digest.update(data)


class Echo(Protocol):
    """Sends everything back."""

    def dataReceived(self, data: bytes) -> None:
        """Back."""
        assert self.transport is not None
        self.transport.write(data)


class EchoClient(Protocol):
    """So many requests, one after the answer to the other; ``got`` is everything that came back."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = list(requests)
        self.wanted = b"".join(requests)
        self.got = b""

    def connectionMade(self) -> None:
        """The first."""
        self.next()

    def next(self) -> None:
        """One more."""
        assert self.transport is not None
        self.transport.write(self.requests.pop(0))

    def dataReceived(self, data: bytes) -> None:
        """An answer, or part of it."""
        self.got += data
        if len(self.got) % 64 == 0 and self.requests:
            self.next()


class ReachTests(SynchronousTestCase):
    """Bit-exact, or it counts for nothing."""

    def transfer(self, settings: LinkSettings, scenario: str, size: int, seed: int, most: float = 7200.0) -> Net:
        """Carry ``size`` bytes from a client to the server."""
        sink, source = Sink(), Source(size)
        net = Net(settings, Factory.forProtocol(lambda: sink), scenario, seed)
        session = net.client(source, settings)
        net.clock.run(lambda: sink.got >= size or session.kcp.arq is None, most)
        self.assertEqual((sink.got, sink.digest.digest()), (size, source.digest.digest()))
        return net

    def bad_wire(self, block: str, fec: bool) -> None:
        """The bad wire, one combination."""
        settings = replace(LINK, block=block)
        if fec:
            settings = replace(settings, data_shards=10, parity_shards=3)
        net = self.transfer(settings, BAD, MEGABYTES * 1_000_000, seed=len(block) + fec)
        for action in ("reorder", "duplicate"):
            self.assertGreater(net.link.counts["up", action], 0)
        self.assertGreater(net.counters["kcp.server.dropped.check"], 0)
        self.assertGreater(net.counters["kcp.server.dropped.repeated"], 0)

    def test_aes(self) -> None:
        """RTT 40 ms, 10 % loss, 5 % reordered, 1 % repeated, 0.1 % corrupted: aes without FEC."""
        self.bad_wire("aes", fec=False)

    def test_aes_fec(self) -> None:
        """The same with FEC 10/3."""
        self.bad_wire("aes", fec=True)

    def test_gcm(self) -> None:
        """The same with aes-128-gcm, without FEC."""
        self.bad_wire("aes-128-gcm", fec=False)

    def test_gcm_fec(self) -> None:
        """The same with aes-128-gcm and FEC 10/3."""
        self.bad_wire("aes-128-gcm", fec=True)

    def test_outages(self) -> None:
        """Dark for 5 s after every 2 s of light: nothing is lost and nothing ends."""
        # Narrow, so that the transfer meets many of them.
        settings = replace(LINK, snd_wnd=32, rcv_wnd=32)
        net = self.transfer(settings, "delay=20ms blackhole-on=2s blackhole-off=5s", 5_000_000, seed=3)
        self.assertGreater(net.clock.now - 1000, 14)

    def test_heavy_loss(self) -> None:
        """20 % and 30 % loss each way at RTT 200 ms."""
        for percent in (20, 30):
            self.transfer(LINK, f"delay=100ms loss={percent}%", 3_000_000, seed=percent)

    def test_many_clients(self) -> None:
        """1,024 clients with 64 echoes of 64 bytes each, at once."""
        settings = replace(LINK, max_sessions_per_host=2000)
        net = Net(settings, Factory.forProtocol(Echo), "delay=5ms jitter=2ms", 9)
        rng = random.Random(64)
        clients = []
        for _ in range(1024):
            client = EchoClient([rng.randbytes(64) for _ in range(64)])
            clients.append(client)
            net.client(client, settings)
        net.clock.run(lambda: all(len(c.got) == 64 * 64 for c in clients[::101]), 600)
        net.clock.run(lambda: all(len(c.got) == 64 * 64 for c in clients), 600)
        self.assertTrue(all(client.got == client.wanted for client in clients))
        self.assertEqual(len(net.sessions), 1024)

    def test_mirror_and_noise(self) -> None:
        """Packets that come back to their sender, and forged ones, change nothing (Q3, F2)."""
        net = self.transfer(LINK, "delay=10ms mirror=20% inject=200/s", 2_000_000, seed=5)
        self.assertGreater(net.link.counts["down", "mirror"] + net.link.counts["up", "mirror"], 100)
