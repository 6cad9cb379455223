"""How much a KCP server sends to an address that has not shown that its packets arrive there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

from mikanet.endpoints.kcp import MIKA_CLIENT, MIKA_SERVER
from mikanet.guard.amplification import FACTOR
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.segment import PUSH, Segment, encode
from mikanet.kcp.settings import MODES
from tests.kcp.net import Net

RAW = LinkSettings("aes", bytes(32), MODES["fast2"], snd_wnd=64, rcv_wnd=64)
SIZE = 300_000


class Answering(Protocol):
    """Answers the first bytes with many."""

    asked = False

    def dataReceived(self, data: bytes) -> None:
        """Once."""
        if not self.asked:
            self.asked = True
            assert self.transport is not None
            self.transport.write(bytes(SIZE))


class Asking(Protocol):
    """Asks, and counts what comes."""

    got = 0

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self.transport.write(b"a question of a usual length" * 4)

    def dataReceived(self, data: bytes) -> None:
        """Count."""
        self.got += len(data)


class ForgedSourceTests(SynchronousTestCase):
    """Sessions from addresses that do not answer, because they have never asked."""

    def forge(self, settings: LinkSettings, sizes: list[int], wait: float) -> float:
        """Packets with forged sources, from 5 addresses; bytes that went there for each that came."""
        net = Net(settings, Factory.forProtocol(Answering))
        net.server_port.keep = True
        sealer = net._sealer(replace(settings, require_proof=False))
        came = 0
        for number in range(5):
            for sn, size in enumerate(sizes):
                segment = encode(Segment(7 + number, PUSH, 0, 1024, 0, sn, 0, bytes(size)))
                if settings.has_fec:
                    segment = bytes(4) + b"\xf1\0" + (2 + len(segment)).to_bytes(2, "little") + segment
                    segment = (sn + 13 * number).to_bytes(4, "little") + segment[4:]
                (packet,) = sealer.seal([segment])
                came += len(packet)
                net.sessions.packets_received((f"203.0.113.{number}", 4000), [packet])
        self.assertEqual(net.counters["kcp.server.opened"], 5)
        over: list[int] = []
        net.clock.callLater(wait, over.append, 1)
        net.clock.run(lambda: bool(over), wait + 1)
        return sum(map(len, net.server_port.sent)) / came

    def test_factor(self) -> None:
        """Whatever the link, a session that nobody has asked for gets no more than three times its packets, for ever."""
        doubled = replace(MIKA_SERVER, data_shards=1, parity_shards=1)
        for settings in (
            MIKA_SERVER,
            doubled,
            RAW,
            replace(RAW, require_proof=True),
            replace(RAW, stream=True, block="null"),
        ):
            for sizes in ([1], [200], [1000], [100] * 20):
                factor = self.forge(settings, sizes, 40.0)
                self.assertLessEqual(factor, FACTOR, (settings, sizes))

    def test_honest_peers(self) -> None:
        """A peer that answers gets everything, after one more round trip."""
        for server, client in ((MIKA_SERVER, MIKA_CLIENT), (RAW, RAW)):
            net = Net(server, Factory.forProtocol(Answering), "delay=20ms")
            upper: Any = Asking()
            net.client(upper, client)
            started = net.clock.now
            net.clock.run(lambda upper=upper: upper.got == SIZE, 10)
            self.assertLess(net.clock.now - started, 1.0)
