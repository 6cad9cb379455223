"""The KCP filter: ends, flow control, timers, proof."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet import error
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.kcp.filter import KcpFilter, Patience, Trust
from mikanet.kcp.segment import ACK, PUSH, Segment, decode, encode
from mikanet.kcp.settings import MODES, ArqSettings, Mode
from mikanet.relay import MemoryBudget
from tests.filters.contract import FilterContractTests, MemoryPackets, Upper
from tests.support.transports import LOST

EAGER = Mode(1, 10, 2, 1, ack_no_delay=True)
CONV = 77


def push(sn: int, data: bytes, una: int = 0, wnd: int = 128) -> bytes:
    """A data segment of the peer."""
    return encode(Segment(CONV, PUSH, 0, wnd, 5, sn, una, data))


class Producer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        """Note."""
        self.told.append("pause")

    def resumeProducing(self) -> None:
        """Note."""
        self.told.append("resume")

    def stopProducing(self) -> None:
        """Note."""
        self.told.append("stop")


class KcpFilterTests(FilterContractTests, SynchronousTestCase):
    """One end, its peer played by hand."""

    def make_filter(self, upper: Any, **options: Any) -> KcpFilter:
        """The filter under test."""
        self.clock = Clock()
        mode = options.pop("mode", EAGER)
        return KcpFilter(upper, CONV, ArqSettings(mode, snd_wnd=8, rcv_wnd=64), self.clock, **options)  # type: ignore[arg-type]

    def made(self, **options: Any) -> tuple[Upper, KcpFilter, MemoryPackets]:
        """A connected one."""
        upper = Upper()
        filter_ = self.make_filter(upper, **options)
        transport = MemoryPackets()
        transport.connect(filter_)
        return upper, filter_, transport

    def sent(self, transport: MemoryPackets) -> list[Segment]:
        """The segments sent since the last call."""
        segments = [segment for packet in transport.written for segment in decode(packet)]
        transport.written.clear()
        return segments

    def acknowledge(self, filter_: KcpFilter, segments: list[Segment], wnd: int = 128) -> None:
        """Answer all data segments."""
        una = max(segment.sn for segment in segments) + 1
        for segment in segments:
            filter_.dataReceived(encode(Segment(CONV, ACK, 0, wnd, segment.ts, segment.sn, una, b"")))

    def test_flow_control_passes(self) -> None:
        """A producer is paused while more than the window waits, and goes on when it has been acknowledged."""
        _, filter_, transport = self.made()
        producer = Producer()
        filter_.registerProducer(producer, True)  # type: ignore[arg-type]  # has what is needed of it
        filter_.write(bytes(1300 * 20))
        self.assertEqual(producer.told, ["pause"])
        first = self.sent(transport)
        self.assertEqual([segment.sn for segment in first], list(range(8)))
        self.acknowledge(filter_, first)
        self.acknowledge(filter_, self.sent(transport))
        self.assertEqual(producer.told, ["pause", "resume"])
        filter_.unregisterProducer()

    def test_pull_producer(self) -> None:
        """A pull producer is asked for more as long as there is room, and never told to pause."""
        _, filter_, _ = self.made()
        producer = Producer()
        producer.resumeProducing = lambda: (producer.told.append("more"), filter_.write(bytes(2600)))  # type: ignore[method-assign, assignment]
        filter_.registerProducer(producer, False)  # type: ignore[arg-type]
        self.assertTrue(3 <= len(producer.told) < 10)
        self.assertEqual(set(producer.told), {"more"})

    def test_batches_are_answered_once(self) -> None:
        """A batch of datagrams is delivered at once and answered by one datagram."""
        upper, filter_, transport = self.made()
        filter_.packets_received([push(sn, b"%d" % sn) for sn in range(5)])
        self.assertEqual(upper.received, [b"01234"])
        self.assertEqual(len(transport.written), 1)

    def test_write_delay(self) -> None:
        """With write delay a write waits for the next flush; without, it goes at once."""
        _, filter_, transport = self.made(mode=MODES["fast"])
        self.clock.advance(1)
        filter_.write(b"x")
        first = len(transport.written)
        self.clock.advance(0.031)
        self.assertEqual((first, len(transport.written)), (0, 1))
        _, filter_, transport = self.made()
        filter_.write(b"x")
        self.assertEqual(len(transport.written), 1)

    def test_write_delay_ends_with_acknowledgements(self) -> None:
        """A delayed write goes along when acknowledgements leave."""
        _, filter_, transport = self.made(mode=replace(MODES["fast"], ack_no_delay=True))
        self.clock.advance(1)
        filter_.write(b"credit")
        self.assertEqual(transport.written, [])
        filter_.packets_received([push(0, b"data")])
        self.assertEqual([segment.cmd for segment in self.sent(transport)], [ACK, PUSH])

    def test_paused_reading_closes_the_window(self) -> None:
        """While reading is paused nothing is delivered and the window told to the peer shrinks; resuming opens it."""
        upper, filter_, transport = self.made()
        filter_.pauseProducing()
        filter_.packets_received([push(sn, b"x") for sn in range(64)])
        self.assertEqual((upper.received, self.sent(transport)[-1].wnd), ([], 0))
        filter_.resumeProducing()
        self.assertEqual(upper.received, [b"x" * 64])
        self.clock.advance(0.02)
        self.assertEqual(self.sent(transport)[-1].wnd, 64)

    def test_lose_connection_flushes(self) -> None:
        """loseConnection waits until what was written is acknowledged, then ends cleanly."""
        upper, filter_, transport = self.made()
        filter_.write(b"last words")
        filter_.loseConnection()
        filter_.write(b"too late")
        self.assertFalse(transport.closed)
        self.acknowledge(filter_, self.sent(transport))
        self.assertTrue(transport.closed)
        self.assertTrue(upper.lost[0].check(error.ConnectionDone))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lose_connection_is_bounded(self) -> None:
        """Without an acknowledgement it gives up after the linger time, and says so."""
        upper, filter_, _ = self.made(patience=Patience(linger=3.0))
        filter_.write(b"anyone?")
        filter_.loseConnection()
        for _ in range(31):
            self.clock.advance(0.1)
        self.assertTrue(upper.lost[0].check(error.TimeoutError))

    def test_lose_connection_waits_for_the_producer(self) -> None:
        """With a producer, the end begins when it has let go."""
        upper, filter_, _ = self.made()
        filter_.registerProducer(Producer(), True)  # type: ignore[arg-type]
        filter_.loseConnection()
        self.assertEqual(upper.lost, [])
        filter_.unregisterProducer()
        self.assertEqual(len(upper.lost), 1)

    def test_idle_timeout(self) -> None:
        """A peer that is silent for too long is gone; one that is heard in time is not."""
        upper, filter_, _ = self.made(patience=Patience(idle=10.0))
        self.clock.advance(9)
        filter_.dataReceived(push(0, b"here"))
        self.clock.advance(9)
        self.clock.advance(0.9)
        self.assertEqual(upper.lost, [])
        self.clock.advance(0.2)
        self.assertTrue(upper.lost[0].check(error.TimeoutError))

    def test_dead_link(self) -> None:
        """A segment sent 20 times to a peer that is silent ends the session (Q9)."""
        upper, filter_, transport = self.made(patience=Patience(idle=3600.0))
        filter_.write(b"anyone?")
        for _ in range(10_000):
            self.clock.advance(0.1)
            if upper.lost:
                break
        self.assertTrue(upper.lost[0].check(error.ConnectionLost))
        self.assertGreaterEqual(len(transport.written), 20)

    def test_impossible_acknowledgement_ends(self) -> None:
        """A peer that acknowledges what was not sent loses the session at once (Q6)."""
        upper, filter_, transport = self.made()
        filter_.dataReceived(push(0, b"x", una=5))
        self.assertTrue(upper.lost[0].check(error.ConnectionAborted))
        self.assertTrue(transport.aborted)

    def test_strangers_are_counted(self) -> None:
        """Datagrams of other conversations change nothing."""
        upper, filter_, transport = self.made()
        filter_.packets_received([encode(Segment(CONV + 1, PUSH, 0, 1, 0, 0, 0, b"x")), b"noise" * 9])
        self.assertEqual((upper.received, transport.written, filter_.refused), ([], [], 2))

    def test_proof(self) -> None:
        """Until the peer is proven nothing is delivered, and no more than three times its bytes is sent (Q4)."""
        upper, filter_, transport = self.made(require_proof=True, ts_offset=0x5EED)
        filter_.write(b"prove it")
        self.assertEqual(transport.written, [])
        filter_.dataReceived(push(0, b"GET /"))
        challenge = [segment for segment in self.sent(transport) if segment.cmd == PUSH]
        self.assertEqual([segment.data for segment in challenge], [b"prove it"])
        self.assertLessEqual(challenge[0].wnd, 31)
        filter_.dataReceived(encode(Segment(CONV, ACK, 0, 128, challenge[0].ts ^ 1, 0, 0, b"")))
        self.assertEqual(upper.received, [])
        filter_.dataReceived(encode(Segment(CONV, ACK, 0, 128, challenge[0].ts, 0, 1, b"")))
        self.assertEqual(upper.received, [b"GET /"])

    def test_lost_proof_is_asked_for_again(self) -> None:
        """When the acknowledgement is lost and una covers it, the challenge is sent again until one arrives (Q4)."""
        upper, filter_, transport = self.made(require_proof=True)
        filter_.write(b"prove it")
        filter_.dataReceived(push(0, b"GET /"))
        self.sent(transport)
        filter_.dataReceived(push(1, b" HTTP/1.1", una=1))
        self.clock.advance(0.3)
        again = [segment for segment in self.sent(transport) if segment.cmd == PUSH]
        self.assertEqual([segment.sn for segment in again], [0])
        self.assertEqual(upper.received, [])
        filter_.dataReceived(encode(Segment(CONV, ACK, 0, 128, again[0].ts, 0, 1, b"")))
        self.assertEqual(upper.received, [b"GET / HTTP/1.1"])
        filter_.dataReceived(push(2, b"", una=1))
        assert filter_.arq is not None
        self.assertEqual(filter_.arq.waiting, 0)

    def test_no_amplification(self) -> None:
        """An unproven peer gets at most three times what it sent, however long it is tried."""
        _, filter_, transport = self.made(require_proof=True)
        filter_.write(bytes(1000))
        opening = push(0, b"x" * 50)
        filter_.dataReceived(opening)
        for _ in range(49):
            self.clock.advance(0.1)
        self.assertLessEqual(len(transport.bytes_written), 3 * len(opening))

    def test_probation_ends(self) -> None:
        """A peer that does not prove itself in time is forgotten."""
        upper, filter_, _ = self.made(require_proof=True)
        filter_.dataReceived(push(0, b"x"))
        self.clock.advance(4.9)
        self.assertEqual(upper.lost, [])
        self.clock.advance(0.2)
        self.assertEqual(len(upper.lost), 1)

    def test_recovered_packets(self) -> None:
        """What FEC rebuilt is delivered too."""
        upper, filter_, _ = self.made()
        filter_.recovered_received([push(0, b"rebuilt")])
        self.assertEqual(upper.received, [b"rebuilt"])

    def test_nothing_is_left_behind(self) -> None:
        """After the lower transport is lost no timer is left."""
        _, filter_, transport = self.made()
        filter_.write(b"x")
        transport.lose(LOST)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_half_close_ends_with_silence(self) -> None:
        """After the end of our direction the peer's bytes still come; 2 s without any are a clean end."""
        upper, filter_, transport = self.made()
        self.assertTrue(filter_.can_half_close)
        filter_.write(b"question")
        filter_.loseWriteConnection()
        filter_.write(b"too late")
        self.acknowledge(filter_, self.sent(transport))
        for sn in range(4):
            self.clock.advance(1.9)
            filter_.dataReceived(push(sn, b"answer"))
        self.clock.advance(1.9)
        self.assertEqual((upper.received, upper.lost), ([b"answer"] * 4, []))
        self.clock.advance(0.2)
        self.assertTrue(upper.lost[0].check(error.ConnectionDone))
        self.assertNotIn(b"too late", transport.bytes_written)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_half_close_waits_for_what_was_written(self) -> None:
        """Silence is none while the peer has not acknowledged everything, nor while it is not read here."""
        upper, filter_, transport = self.made()
        filter_.pauseProducing()
        filter_.write(b"question")
        filter_.loseWriteConnection()
        for _ in range(8):
            self.clock.advance(0.5)
        self.assertEqual(upper.lost, [])
        filter_.dataReceived(push(0, b"answer"))
        self.acknowledge(filter_, [segment for segment in self.sent(transport) if segment.cmd == PUSH])
        for _ in range(8):
            self.clock.advance(0.5)
        self.assertEqual(upper.lost, [])
        filter_.resumeProducing()
        self.assertEqual(upper.received, [b"answer"])
        self.clock.advance(2.1)
        self.assertEqual(len(upper.lost), 1)

    def test_window_of_an_unauthenticated_peer(self) -> None:
        """What is kept for a peer is 31 segments until the protocol above has authenticated it, then all of the window."""
        upper, filter_, transport = self.made(trust=Trust.TOLD)
        filter_.packets_received([push(sn, bytes(1000)) for sn in range(1, 64)])
        assert filter_.arq is not None
        self.assertLessEqual(filter_.arq.buffered, 32)
        filter_.dataReceived(push(0, b"password"))
        self.assertLessEqual(max(segment.wnd for segment in self.sent(transport)), 31)
        filter_.arq.proven = True  # a proof of life is none of knowing the password
        filter_.dataReceived(push(0, b"password"))
        self.assertFalse(filter_.authenticated)
        filter_.peer_authenticated()
        self.assertTrue(filter_.authenticated)
        filter_.dataReceived(push(33, b"x"))
        self.assertEqual(max(segment.wnd for segment in self.sent(transport)), 64)
        self.assertGreater(sum(map(len, upper.received)), 31_000)

    def test_window_until_the_proof(self) -> None:
        """Where nothing above authenticates, the limit falls with the proof of life; a client's server has none."""
        _, filter_, transport = self.made(trust=Trust.PROVEN)
        filter_.dataReceived(push(0, bytes(100)))
        filter_.write(b"hello")
        *_, greeting = self.sent(transport)
        self.assertEqual(greeting.data, b"hello")
        filter_.peer_authenticated()
        self.assertFalse(filter_.authenticated)
        filter_.dataReceived(encode(Segment(CONV, ACK, 0, 128, greeting.ts, 0, 1, b"")))
        self.assertTrue(filter_.authenticated)
        self.assertTrue(self.made()[1].authenticated)

    def test_budget(self) -> None:
        """All that a session keeps, received or to be sent, counts in the budget, and no more when it is over."""
        budget = MemoryBudget(1 << 30)
        _, filter_, transport = self.made(budget=budget)
        filter_.pauseProducing()
        filter_.packets_received([push(sn, bytes(1000)) for sn in range(1, 21)])
        self.assertTrue(20_000 <= budget.used <= 20 * 1500, budget.used)
        received = budget.used
        filter_.write(bytes(13_000))
        self.assertGreaterEqual(budget.used, received + 13_000)
        filter_.packets_received([push(0, bytes(1000))])
        filter_.resumeProducing()
        self.acknowledge(filter_, [segment for segment in self.sent(transport) if segment.cmd == PUSH])
        self.acknowledge(filter_, [segment for segment in self.sent(transport) if segment.cmd == PUSH])
        self.assertEqual(budget.used, 0)
        filter_.write(bytes(13_000))
        transport.lose(LOST)
        self.assertEqual(budget.used, 0)
