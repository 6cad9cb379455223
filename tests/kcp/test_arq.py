"""The KCP session against kcp-go's own traces, and its rules one by one."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.kcp.arq import DEAD_LINK, UNLIMITED, Arq, Due
from mikanet.kcp.segment import ACK, PUSH, WASK, ImpossibleAckError, Segment, SegmentError, decode, encode
from mikanet.kcp.settings import ArqSettings, Mode
from tests.support.feeding import mutations
from tests.support.vectors import load

TRACES = load("paqet/kcp.json")["kcp_arq_traces"]


def settings_of(config: dict[str, Any]) -> ArqSettings:
    """The settings that a trace was made with."""
    mode = Mode(
        config["nodelay"], config["interval"], config["resend"], config["nc"], ack_no_delay=config["ack_no_delay"]
    )
    return ArqSettings(mode, config["kcp_mtu"], config["sndwnd"], config["rcvwnd"], config["stream"])


def state_of(arq: Arq) -> dict[str, int | bool]:
    """The session's state under the traces' names."""
    window = arq._congestion
    return {
        "snd_nxt": (arq._snd_una + len(arq._in_flight)) & 0xFFFFFFFF,
        "snd_una": arq._snd_una,
        "snd_queue": arq._queue.segments(),
        "snd_buf": len(arq._in_flight),
        "rcv_nxt": arq.rcv_nxt,
        "rcv_queue": len(arq._received),
        "rcv_buf": len(arq._out_of_order),
        "rmt_wnd": arq._rmt_wnd,
        "rx_rto": arq.rtt.rto,
        "rx_srtt": arq.rtt.srtt,
        "rx_rttvar": arq.rtt.rttvar,
        "probe_wait": arq._probe_wait,
        "cwnd": window.cwnd if window else 0,
        "incr": window.incr if window else 0,
        "ssthresh": window.ssthresh if window else 2,
    }


class TraceTests(SynchronousTestCase):
    """Each endpoint of each trace of kcp-go, byte for byte."""

    def replay(self, trace: dict[str, Any], side: str) -> None:
        """Run one endpoint through its operations and all its flushes."""
        arq = Arq(trace["config"]["conv"], settings_of(trace["config"]))
        operations = list(trace[side])
        flushes = [(t, 1) for t in trace[f"{side}_flush_at"]]
        steps = sorted([(op["t"], 1 if op["op"] == "flush" else 0, i) for i, op in enumerate(operations)])
        shown = {t for t, kind, _ in steps if kind == 1}
        steps = sorted(steps + [(t, 1, -1) for t, _ in flushes if t not in shown])
        expected: dict[str, Any] = {}
        for now, _, at in steps:
            if at < 0:
                self.assertEqual(arq.flush(now), [], f"silent flush at {now}")
                continue
            op = operations[at]
            out = self.act(arq, op, now)
            self.assertEqual([d.hex() for d in out], op.get("out", []), f"{trace['name']}: {side} at {now}")
            expected.update(op.get("state", {}))
            state = state_of(arq)
            for name in state.keys() & expected.keys():
                if name in ("cwnd", "incr", "ssthresh") and trace["config"]["nc"]:
                    continue
                self.assertEqual(state[name], expected[name], f"{trace['name']}: {side} {name} at {now}")

    def act(self, arq: Arq, op: dict[str, Any], now: int) -> list[bytes]:
        """Do one operation; what it sends."""
        if op["op"] == "send":
            arq.send(bytes.fromhex(op["data"]))
            return arq.flush(now) if op.get("then_flush") else []
        if op["op"] == "input":
            due = arq.input(bytes.fromhex(op["in"]), now)
            return arq.flush(now, due) if due else []
        if op["op"] == "recv":
            self.assertEqual((arq.receive_message() or b"").hex(), op["got"])
            return []
        out = arq.flush(now)
        if "next_in" in op:
            self.assertEqual(arq.next_interval(now), op["next_in"], f"at {now}")
        return out


def _add_trace_tests() -> None:
    for number, trace in enumerate(TRACES):
        for side in "AB":

            def test(self: TraceTests, trace: dict[str, Any] = trace, side: str = side) -> None:
                self.replay(trace, side)

            test.__doc__ = f"{trace['name']}: end {side}."
            setattr(TraceTests, f"test_trace_{number}_{side}", test)


_add_trace_tests()


class Link:
    """Two sessions joined by lists of datagrams, for tests that need no time of flight."""

    def __init__(self, a: Arq, b: Arq) -> None:
        self.a, self.b = a, b
        self.now = 0

    def exchange(self, rng: random.Random | None = None, loss: float = 0.0) -> None:
        """One flush interval: both flush, and what they send arrives, shuffled and thinned if asked."""
        self.now += 10
        for source, sink in ((self.a, self.b), (self.b, self.a)):
            datagrams = source.flush(self.now)
            if rng is not None:
                datagrams = [d for d in datagrams if rng.random() >= loss]
                rng.shuffle(datagrams)
            for datagram in datagrams:
                sink.input(datagram, self.now)


FAST3 = Mode(1, 10, 2, 1, ack_no_delay=True)


class ArqTests(SynchronousTestCase):
    """Rules that the traces do not reach."""

    def pair(self, first_sn: int = 0, **options: object) -> Link:
        """Two sessions of one conversation."""
        made = ArqSettings(FAST3, mtu=100, **options)  # type: ignore[arg-type]
        return Link(Arq(7, made, first_sn=first_sn), Arq(7, made, first_sn=first_sn))

    def carry(self, link: Link, data: bytes, rng: random.Random, loss: float) -> bytes:
        """Send ``data`` from a to b; what arrived."""
        link.a.send(data)
        got = b""
        for _ in range(3000):
            link.exchange(rng, loss)
            got += link.b.receive_stream()
            if len(got) >= len(data) and not link.a.waiting:
                break
        return got

    @settings(deadline=None, max_examples=25)
    @given(st.integers(), st.sampled_from([0.0, 0.1, 0.4]), st.integers(1, 6000))
    def test_bytes_arrive(self, seed: int, loss: float, length: int) -> None:
        """Bytes arrive once and in order whatever is lost and however datagrams are mixed."""
        rng = random.Random(seed)
        data = rng.randbytes(length)
        self.assertEqual(self.carry(self.pair(), data, rng, loss), data)

    def test_serial_wrap(self) -> None:
        """sn, una and ts pass 2**32 without a mark, with loss and reordering around the edge."""
        for first in (0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFF0):
            link = self.pair(first_sn=first)
            link.now = 0xFFFFFF00
            rng = random.Random(first)
            data = rng.randbytes(9000)
            self.assertEqual(self.carry(link, data, rng, 0.2), data)
            self.assertEqual(link.b.rcv_nxt, (first + 119) & 0xFFFFFFFF)

    def test_message_mode(self) -> None:
        """Without stream mode each write comes out whole and by itself; 255 fragments are the most."""
        link = self.pair(stream=False, rcv_wnd=300, snd_wnd=300)
        writes = [b"a", bytes(76), bytes(77), bytes(255 * 76)]
        for data in writes:
            link.a.send(data)
        got = []
        for _ in range(50):
            link.exchange()
            while (message := link.b.receive_message()) is not None:
                got.append(message)
        self.assertEqual(got, writes)
        self.assertRaises(LocalProtocolError, link.a.send, bytes(255 * 76 + 1))

    def test_congestion_window_carries(self) -> None:
        """With congestion control on, everything arrives too, and the window grows from 1."""
        made = ArqSettings(Mode(1, 10, 2, 0), mtu=100)
        link = Link(Arq(7, made), Arq(7, made))
        data = bytes(20_000)
        self.assertEqual(self.carry(link, data, random.Random(2), 0.05), data)

    def test_dead_link(self) -> None:
        """A segment sent 20 times without an answer marks the link dead (Q9)."""
        link = self.pair()
        link.a.send(b"anyone?")
        now, sent = 0, 0
        while not link.a.dead:
            now += 10
            sent += len(link.a.flush(now))
            self.assertLess(now, 10_000_000)
        self.assertEqual(sent, DEAD_LINK)

    def test_proof(self) -> None:
        """Only an acknowledgement with a time stamp that was sent proves a peer; one of another time does not (Q4)."""
        arq = Arq(7, ArqSettings(FAST3), ts_offset=0x12345678)
        arq.send(b"challenge")
        (datagram,) = arq.flush(5)
        ts = next(decode(datagram)).ts
        self.assertEqual(ts, 0x1234567D)
        arq.input(encode(Segment(7, ACK, 0, 32, ts - 1, 0, 0, b"")), 6)
        self.assertFalse(arq.proven)
        arq.input(encode(Segment(7, ACK, 0, 32, ts, 0, 1, b"")), 6)
        self.assertTrue(arq.proven)

    def test_impossible_acknowledgements(self) -> None:
        """una beyond what was sent, and ACKs of unsent segments, are errors of the peer (Q6)."""
        for cmd, sn, una in ((ACK, 1, 0), (ACK, 5, 0), (PUSH, 0, 2), (WASK, 0, 0x7FFFFFFF)):
            arq = Arq(7, ArqSettings(FAST3))
            arq.send(b"x")
            arq.flush(0)
            self.assertRaises(ImpossibleAckError, arq.input, encode(Segment(7, cmd, 0, 32, 0, sn, una, b"")), 1)

    def test_bad_datagrams(self) -> None:
        """A wrong conv, length or command is an error; what came before it in the datagram stays done."""
        good = encode(Segment(7, PUSH, 0, 32, 0, 0, 0, b"good"))
        wrong = [
            encode(Segment(8, PUSH, 0, 32, 0, 1, 0, b"")),
            encode(Segment(7, 80, 0, 32, 0, 1, 0, b"")),
            encode(Segment(7, PUSH, 0, 32, 0, 1, 0, b"cut"))[:-1],
        ]
        for bad in wrong:
            arq = Arq(7, ArqSettings(FAST3))
            self.assertRaises(SegmentError, arq.input, good + bad, 0)
            self.assertEqual(arq.receive_stream(), b"good")
        self.assertRaises(SegmentError, Arq(7, ArqSettings()).input, b"short", 0)
        arq = Arq(7, ArqSettings())
        arq.input(good + bytes(23), 0)
        self.assertEqual(arq.receive_stream(), b"good")

    def test_acks_are_batched(self) -> None:
        """Without ack-no-delay an answer is due only when a datagram full of them is owed."""
        arq = Arq(7, ArqSettings(mtu=24 * 10))
        dues = [arq.input(encode(Segment(7, PUSH, 0, 32, 0, sn, 0, b"x")), 0) for sn in range(10)]
        self.assertEqual(dues, [Due.NOTHING] * 9 + [Due.ACKS])
        (datagram,) = arq.flush(1, Due.ACKS)
        self.assertEqual([s.sn for s in decode(datagram)], [9])

    def test_recovered_datagrams_tell_no_time(self) -> None:
        """What FEC rebuilt changes neither the peer's window nor the round trip."""
        arq = Arq(7, ArqSettings(FAST3))
        arq.send(b"x")
        arq.flush(0)
        arq.input(encode(Segment(7, ACK, 0, 5, 0, 0, 1, b"")), 100, regular=False)
        self.assertEqual((arq.rtt.srtt, arq._rmt_wnd), (0, 32))

    def test_idle_has_no_deadline(self) -> None:
        """A session with nothing to do needs no timer; one with something in flight does."""
        link = self.pair()
        self.assertIsNone(link.a.deadline())
        link.a.send(b"x")
        self.assertIsNotNone(link.a.deadline())
        link.exchange()
        link.exchange()
        self.assertIsNone(link.a.deadline())

    def test_advertised_limit(self) -> None:
        """A limit of the receive window shows in what is sent, and is what is kept; it can be lifted."""
        arq = Arq(7, ArqSettings(FAST3))
        arq.receive_limit = 31
        arq.input(encode(Segment(7, PUSH, 0, 32, 0, 0, 0, b"x")), 0)
        self.assertEqual([s.wnd for s in decode(arq.flush(0)[0])], [30])
        arq.receive_stream()
        for sn in range(2, 1000):
            arq.input(encode(Segment(7, PUSH, 0, 32, 0, sn, 0, b"x")), 0)
        self.assertEqual(arq.buffered, 31)  # 2 to 32, of a window of 32 for who has not heard of ours
        self.assertEqual({s.wnd for d in arq.flush(1) for s in decode(d)}, {31})
        arq.receive_limit = UNLIMITED
        for sn in range(1, 1000):
            arq.input(encode(Segment(7, PUSH, 0, 32, 0, sn, 0, b"x")), 0)
        self.assertEqual(len(arq.receive_stream()), 999)

    def test_mutations(self) -> None:
        """10,000 mutated datagrams raise RemoteProtocolError or nothing, in bounded memory."""
        golden = [
            bytes.fromhex(op["in"]) for trace in TRACES for side in "AB" for op in trace[side] if op["op"] == "input"
        ]
        conv = TRACES[0]["config"]["conv"]
        arq = Arq(conv, ArqSettings(FAST3, rcv_wnd=64))
        refused = 0
        for now, datagram in enumerate(mutations(golden, 10_000, seed=1)):
            if now % 50 == 0:
                arq = Arq(conv, ArqSettings(FAST3, rcv_wnd=64))
                arq.send(bytes(3000))
                arq.flush(now)
            try:
                arq.input(datagram, now)
            except RemoteProtocolError:
                refused += 1
            self.assertLessEqual(len(arq._out_of_order) + len(arq._received), 128)
        self.assertGreater(refused, 2000)
