"""Tests of mikanet.pickaxe.session, with sending and paths: two sessions and everything that can happen between them."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import LocalProtocolError
from mikanet.pickaxe import wire
from mikanet.pickaxe.keys import Mac, SessionKeys
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.sending import MAX_RTO, MIN_RTO, RoundTrip
from mikanet.pickaxe.session import MAX_HELD, MAX_REPEATS, REPEAT_TIME, Role, Session
from tests.pickaxe.wires import KEYS, SID, Net, Wire
from tests.support.feeding import mutations


class Roaming(RuleBasedStateMachine):
    """Two sessions that talk while wires come, lose, repeat, reorder and die at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.serial = 0
        self.net.open(True)

    def _wire(self, pick: int) -> Wire:
        return self.net.wires[pick % len(self.net.wires)]

    @rule(side=st.integers(0, 1), size=st.integers(0, 3000), count=st.integers(1, 6))
    def send(self, side: int, size: int, count: int) -> None:
        """One end sends."""
        for _ in range(count):
            self.serial += 1
            self.net.ends[side].send(self.serial.to_bytes(4, "big") + bytes(size), self.net.now)
        self.net.flush()

    @rule(pick=st.integers(0, 100), side=st.integers(0, 1), index=st.integers(0, 1000), count=st.integers(1, 20))
    def deliver(self, pick: int, side: int, index: int, count: int) -> None:
        """Packets arrive, in any order on a wire that is not reliable."""
        each = self._wire(pick)
        for _ in range(count):
            if each.flights[side]:
                self.net.deliver(each, side, 0 if each.reliable else index % len(each.flights[side]))

    @rule(pick=st.integers(0, 100), side=st.integers(0, 1), index=st.integers(0, 1000))
    def drop(self, pick: int, side: int, index: int) -> None:
        """A packet is lost."""
        each = self._wire(pick)
        if not each.reliable and each.flights[side]:
            del each.flights[side][index % len(each.flights[side])]

    @rule(pick=st.integers(0, 100), side=st.integers(0, 1), index=st.integers(0, 1000))
    def repeat(self, pick: int, side: int, index: int) -> None:
        """A packet comes twice."""
        each = self._wire(pick)
        if not each.reliable and each.flights[side]:
            each.flights[side].append(each.flights[side][index % len(each.flights[side])])

    @rule(pick=st.integers(0, 100), first=st.integers(0, 1), both=st.booleans())
    def kill(self, pick: int, first: int, both: bool) -> None:
        """A wire dies, and one end knows it before the other."""
        each = self._wire(pick)
        self.net.lose(each, first)
        if both:
            self.net.lose(each, 1 - first)

    @precondition(lambda self: len(self.net.wires) < 12)
    @rule(reliable=st.booleans(), mtu=st.sampled_from([60, 200, 1200, 65_535]))
    def open(self, reliable: bool, mtu: int) -> None:
        """The client moves to a new wire."""
        self.net.open(reliable, 65_535 if reliable else mtu)

    @rule(pick=st.integers(0, 100))
    def go_back(self, pick: int) -> None:
        """The client moves to a wire that it had before."""
        path = self._wire(pick).paths[0]
        if not path.lost:
            self.net.client.session.use(path, self.net.now)
            self.net.client.session.ask(self.net.now)
            self.net.flush()

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 2.0, 20.0]))
    def wait(self, seconds: float) -> None:
        """Time goes on."""
        self.net.advance(seconds)

    @invariant()
    def always_a_prefix(self) -> None:
        """What came out is what was put in, from the beginning and without a gap."""
        for end, other in zip(self.net.ends, self.net.ends[::-1], strict=True):
            assert end.received == other.sent[: len(end.received)]

    @invariant()
    def books_balance(self) -> None:
        """The sums that decide about sending are right."""
        for end in self.net.ends:
            sending = end.session.sending
            entries = list(sending._sent.values())
            assert sending.size == sum(len(each.packet) for each in entries)
            assert sending.waiting == sum(len(each.packet) for each in entries if each.path is None and not each.held)
            assert sending._flight == sum(len(each.packet) for each in entries if each.flying)

    def teardown(self) -> None:
        """With one good wire everything arrives."""
        net = self.net
        for each in net.wires:
            net.lose(each, 0)
            net.lose(each, 1)
        net.open(True)
        net.settle()
        for end, other in zip(net.ends, net.ends[::-1], strict=True):
            assert end.received == other.sent, (len(end.received), len(other.sent))


class ModelTests(SynchronousTestCase):
    """Any sequence of sending, losing and moving."""

    def test_always_a_prefix_and_finally_equal(self) -> None:
        """Whatever happens on the way, what is delivered is a prefix of what was sent, and in the end all of it."""
        run_state_machine_as_test(  # type: ignore[no-untyped-call]  # untyped in hypothesis
            Roaming,
            settings=settings(
                max_examples=120,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


class LossyTests(SynchronousTestCase):
    """Long transfers over bad paths, seeded."""

    def transfer(self, seed: int, loss: float, mtu: int, count: int, size: int) -> Net:
        """Both ends send ``count`` messages over one wire that loses, repeats and reorders."""
        rng = random.Random(seed)
        net = Net(seed)
        each = net.open(False, mtu)
        for index in range(count):
            for end in net.ends:
                end.send(index.to_bytes(4, "big") + rng.randbytes(size), net.now)
        net.flush()
        for _ in range(20_000):
            if all(end.received == other.sent for end, other in zip(net.ends, net.ends[::-1], strict=True)):
                return net
            for side in (0, 1):
                flight, each.flights[side][:] = list(each.flights[side]), []
                rng.shuffle(flight)
                for packet in flight:
                    if rng.random() >= loss:
                        net.ends[1 - side].take(packet, each.paths[1 - side], net.now)
                        if rng.random() < 0.05:
                            net.ends[1 - side].take(packet, each.paths[1 - side], net.now)
            net.advance(0.05)
            net.flush()
        raise AssertionError([len(end.received) for end in net.ends])

    def test_thirty_percent_loss(self) -> None:
        """With three of ten packets lost, some repeated and all shuffled, everything arrives."""
        self.transfer(1, 0.3, 65_535, 300, 800)

    def test_fragments_over_a_small_path(self) -> None:
        """Packets of 800 bytes cross a path of 110 bytes that loses one fragment in twenty (P2b)."""
        self.transfer(2, 0.05, 110, 60, 800)

    def test_a_cut_at_each_packet(self) -> None:
        """A reliable wire that dies at any one of 200 packets takes nothing with it."""
        for cut in range(200):
            net = Net(cut)
            first = net.open(True)
            for index in range(110):
                for end in net.ends:
                    end.send(index.to_bytes(2, "big"), net.now)
            net.flush()
            moved = 0
            while moved < cut and any(first.flights):
                for side in (0, 1):
                    if first.flights[side] and moved < cut:
                        net.deliver(first, side)
                        moved += 1
            self.assertEqual(moved, cut)
            net.lose(first, cut % 2)
            net.lose(first, 1 - cut % 2)
            net.open(True)
            net.settle()
            for end, other in zip(net.ends, net.ends[::-1], strict=True):
                self.assertEqual(end.received, other.sent, cut)


class WrapTests(SynchronousTestCase):
    """The 24 bits on the wire, and the 64 behind them (P2)."""

    def run_over(self, start: int) -> None:
        """Start both ends just below a wrap and send over it, with losses and a change of path."""
        net = Net(start)
        for end, other in zip(net.ends, net.ends[::-1], strict=True):
            end.session._next = start
            other.session._expected = start
        each = net.open(False)
        for index in range(40):
            for end in net.ends:
                end.send(index.to_bytes(2, "big"), net.now)
        net.flush()
        del each.flights[0][::3], each.flights[1][::4]
        net.advance(0.1)
        net.lose(each, 0)
        net.lose(each, 1)
        net.open(True)
        net.settle()
        for end, other in zip(net.ends, net.ends[::-1], strict=True):
            self.assertEqual(end.received, other.sent)
            self.assertGreater(end.session.processed, start + 20)

    def test_wrap_at_24_bits(self) -> None:
        """The number on the wire begins anew, and nothing is lost or taken twice."""
        self.run_over((1 << 24) - 5)

    def test_wrap_at_32_bits(self) -> None:
        """So at every further wrap."""
        self.run_over((1 << 32) - 5)

    def test_end_of_numbers(self) -> None:
        """At 2^48 the session says that it is used up, and sends no more."""
        net = Net()
        net.client.session._next = (1 << 48) - 1
        net.client.session.send(wire.DATA, bytes(4), now=0.0)
        self.assertTrue(net.client.session.exhausted)
        with self.assertRaises(LocalProtocolError):
            net.client.session.send(wire.DATA, bytes(4), now=0.0)


class ResendTests(SynchronousTestCase):
    """What is sent again, when, and by which path (P4, P5)."""

    def setUp(self) -> None:
        """Two sessions on one wire, with the greeting behind them."""
        self.net = Net()

    def open(self, reliable: bool) -> Wire:
        """A wire in use, on which everything is acknowledged."""
        each = self.net.open(reliable)
        self.net.settle()
        return each

    def test_resends_are_byte_identical(self) -> None:
        """What is sent again has the same number and the same MAC."""
        each = self.open(False)
        self.net.client.send(b"one", self.net.now)
        self.net.flush()
        first = list(each.flights[0])
        each.flights[0].clear()
        self.net.advance(3.0)
        self.assertIn(first[0], each.flights[0])

    def test_no_resend_while_a_reliable_path_lives(self) -> None:
        """What a living reliable path took is not sent again, however long it takes."""
        each = self.open(True)
        self.net.client.send(b"one", self.net.now)
        self.net.flush()
        sent = list(each.flights[0])
        self.net.advance(60.0)
        self.assertEqual(each.flights[0].count(sent[0]), 1)
        self.assertEqual(self.net.client.session.sending.resent, 0)

    def test_resend_when_the_path_is_lost(self) -> None:
        """The next path gets everything at once, in order."""
        first = self.open(True)
        for text in (b"one", b"two", b"three"):
            self.net.client.send(text, self.net.now)
        self.net.flush()
        lost = list(first.flights[0])
        self.net.lose(first, 0)
        second = self.net.open(True)
        self.assertEqual(second.flights[0][:3], lost[:3])

    def test_what_a_silent_reliable_path_took_goes_by_the_next(self) -> None:
        """A path that is not in use any more and brings nothing is not waited for."""
        first = self.open(True)
        self.net.client.send(b"one", self.net.now)
        self.net.flush()
        stuck = first.flights[0][0]
        self.net.now += 3.0
        second = self.net.open(True)
        self.net.advance(5.0)
        self.assertIn(stuck, second.flights[0])

    def test_timeouts_double(self) -> None:
        """Without any answer the waits grow to ten seconds."""
        timer = RoundTrip()
        timer.sample(0.001)
        self.assertEqual(timer.rto, MIN_RTO)
        waits = []
        for _ in range(8):
            waits.append(timer.rto)
            timer.back_off()
        self.assertEqual(waits[:4], [0.2, 0.4, 0.8, 1.6])
        self.assertEqual(timer.rto, MAX_RTO)
        timer.progress()
        self.assertEqual(timer.rto, MIN_RTO)

    def test_echoes_alone_cause_no_echoes(self) -> None:
        """An idle session is silent for ever."""
        self.open(False)
        self.net.settle()
        self.net.advance(600.0)
        self.assertEqual([list(flight) for each in self.net.wires for flight in each.flights], [[], []])
        self.assertEqual(self.net.client.session.deadline, None)

    def request(self, each: Wire) -> bytes:
        """Send an echo request over ``each``; its packet, with the answer still on the way."""
        self.net.client.session.ask(self.net.now)
        self.net.flush()
        packet = each.flights[0][0]
        self.net.deliver(each, 0)
        return packet

    def test_a_response_comes_back_by_the_path_of_the_duplicate(self) -> None:
        """The same request by another path brings the same response by that path, and does not move the session."""
        each = self.open(True)
        packet = self.request(each)
        answer = each.flights[1][0]
        other = Wire(True)
        self.net.wires.append(other)
        self.net.now += REPEAT_TIME
        self.net.server.take(packet, other.paths[1], self.net.now)
        self.net.flush()
        self.assertEqual(other.flights[1], [answer])
        self.assertIs(self.net.server.session.path, each.paths[1])

    def test_an_acknowledged_response_comes_three_times(self) -> None:
        """The repeats of a response that has arrived are counted (P5)."""
        each = self.open(True)
        packet = self.request(each)
        self.net.settle()
        self.net.server.session.sending.acknowledge(10**9, self.net.now)
        count = 0
        for _ in range(10):
            self.net.now += REPEAT_TIME
            self.net.server.take(packet, each.paths[1], self.net.now)
            self.net.flush()
            count += len(each.flights[1])
            each.flights[1].clear()
        self.assertEqual(count, MAX_REPEATS)

    def test_an_unacknowledged_response_comes_each_time(self) -> None:
        """A response that has not arrived is never given up, but comes ten times a second at most."""
        each = self.open(True)
        packet = self.request(each)
        each.flights[1].clear()
        for step, expected in ((0.01, 0), (REPEAT_TIME, 1), (REPEAT_TIME, 1), (0.05, 0), (REPEAT_TIME, 1)):
            self.net.now += step
            self.net.server.take(packet, each.paths[1], self.net.now)
            self.net.flush()
            self.assertEqual(len(each.flights[1]), expected)
            each.flights[1].clear()

    def test_a_stranger_repeats_a_request(self) -> None:
        """It is answered, and that is all: the stranger's carrier is not proven, and the answer is still sent again when
        the carrier that took it is lost (P5)."""
        each = self.open(True)
        packet = self.request(each)
        answer = each.flights[1][0]
        stranger = Wire(True)
        self.net.wires.append(stranger)
        for _ in range(5):
            self.net.now += REPEAT_TIME
            self.net.server.take(packet, stranger.paths[1], self.net.now)
        self.net.flush()
        self.assertEqual(stranger.flights[1], [answer] * 5)
        self.assertFalse(stranger.paths[1].proven)
        self.net.lose(each, 1)
        self.net.lose(each, 0)
        second = self.net.open(True)
        while second.flights[0]:
            self.net.deliver(second, 0)
        self.assertIn(answer, second.flights[1])

    def test_a_repeated_packet_is_no_sign_of_life(self) -> None:
        """Neither on a stranger's carrier nor on the one in use."""
        each = self.open(True)
        packet = self.request(each)
        for path in (Path(True), each.paths[1]):
            heard = path.heard
            self.net.now += 60.0
            self.net.server.take(packet, path, self.net.now)
            self.assertEqual(path.heard, heard)

    def test_late_packets_do_not_lead_back(self) -> None:
        """What was long on its way by the carrier that the client has left moves the server's path no more."""
        slow = self.open(True)
        for index in range(10):
            self.net.client.send(bytes([index]), self.net.now)
        self.net.flush()
        quick = self.net.open(True)
        self.net.deliver(quick, 0)
        while slow.flights[0]:
            self.net.deliver(slow, 0)
            self.assertIs(self.net.server.session.path, quick.paths[1])
        self.assertEqual(self.net.server.received, self.net.client.sent)

    def test_echo_replies_go_by_the_path_in_use(self) -> None:
        """The server's late echo requests by a carrier that the client has left are answered by the one that it uses."""
        slow = self.open(True)
        self.net.server.session.ask(self.net.now)
        self.net.flush()
        quick = self.net.open(True)
        quick.flights[0].clear()
        self.net.deliver(slow, 1)
        self.assertEqual((len(slow.flights[0]), len(quick.flights[0])), (0, 1))

    def test_showing_a_path(self) -> None:
        """A carrier that is not in use is proven by a new packet, which does not move the session."""
        each = self.open(True)
        other = Wire(True)
        self.net.wires.append(other)
        self.net.client.session.show(other.paths[0], self.net.now)
        self.net.flush()
        self.net.deliver(other, 0)
        self.assertTrue(other.paths[1].proven)
        self.assertIs(self.net.server.session.path, each.paths[1])
        self.net.client.send(b"one", self.net.now)
        self.net.settle()
        self.assertEqual(self.net.server.received, [b"one"])

    def test_only_a_new_number_moves_the_session(self) -> None:
        """A replayed packet on another path leaves the server's path where it was."""
        each = self.open(True)
        self.net.client.send(b"one", self.net.now)
        self.net.flush()
        packet = each.flights[0][0]
        self.net.deliver(each, 0)
        thief = Path(True)
        self.net.server.take(packet, thief, self.net.now)
        self.assertIs(self.net.server.session.path, each.paths[1])
        self.assertFalse(thief.proven)
        self.assertEqual(self.net.server.received, [b"one"])


class BacklogTests(SynchronousTestCase):
    """How much is unacknowledged where a narrow carrier is at hand (P2b)."""

    def run_at(self, rate: float, seconds: float = 10.0, delay: float = 0.05) -> tuple[float, int]:
        """Send as much as may be sent over a path of ``rate`` bytes per second; the rate reached in the second half, and
        the most that was unacknowledged in it."""
        net = Net()
        each = net.open(True)
        net.settle()
        session = net.client.session
        session.sending.measured = True
        arriving: list[tuple[float, bytes]] = []
        replies: list[tuple[float, bytes]] = []
        free, most, end = net.now, 0, net.now + seconds
        while net.now < end:
            while session.room > 0:
                net.client.send(bytes(4096), net.now)
                net.flush()
            for packet in each.flights[0]:
                free = max(free, net.now) + len(packet) / rate
                arriving.append((free + delay, packet))
            each.flights[0].clear()
            replies += [(net.now + delay, packet) for packet in each.flights[1]]
            each.flights[1].clear()
            while arriving and arriving[0][0] <= net.now:
                net.server.take(arriving.pop(0)[1], each.paths[1], net.now)
            while replies and replies[0][0] <= net.now:
                net.client.take(replies.pop(0)[1], each.paths[0], net.now)
            net.flush()
            net.advance(0.01)
            if net.now > end - seconds / 2:
                most = max(most, session.sending.size)
            else:
                half = len(net.server.received)
        return (len(net.server.received) - half) * 4096 / (seconds / 2), most

    def test_a_slow_path(self) -> None:
        """At 50 kB/s a quarter of a mebibyte is the most."""
        rate, most = self.run_at(50e3)
        self.assertGreater(rate, 45e3)
        self.assertLess(most, 300e3)

    def test_a_middling_path(self) -> None:
        """At 500 kB/s about one and a half seconds of it."""
        rate, most = self.run_at(500e3)
        self.assertGreater(rate, 450e3)
        self.assertLess(most, 1.2e6)

    def test_a_fast_path(self) -> None:
        """At 10 MB/s, with a tenth of a second back and forth, the bound costs nothing."""
        rate, _ = self.run_at(10e6, seconds=4.0)
        self.assertGreater(rate, 9e6)


class AuthenticationTests(SynchronousTestCase):
    """What is not the peer's is dropped without a word."""

    def setUp(self) -> None:
        """A server's session that has processed one packet, and the client's packets that follow."""
        self.net = Net()
        self.wire = self.net.open(True)
        self.net.settle()
        self.golden = []
        for index in range(20):
            self.net.client.send(bytes([index]) * index, self.net.now)
        self.net.flush()
        self.golden = list(self.wire.flights[0])

    def test_mutations(self) -> None:
        """Of 20,000 changed packets not one is accepted, answered, or moves anything."""
        session, path = self.net.server.session, Path(True)
        genuine = set(self.golden)
        before = session.processed
        for packet in mutations(self.golden, 20_000, seed=6):
            if packet not in genuine and packet:
                self.assertEqual(session.receive(packet, path, self.net.now), [])
        self.assertEqual(session.processed, before)
        self.assertFalse(path.proven)
        self.assertEqual(path.heard, float("-inf"))

    def test_random_packets(self) -> None:
        """So with 50,000 random ones that carry the right SID."""
        session, path = self.net.server.session, Path(True)
        rng = random.Random(7)
        for _ in range(50_000):
            packet = bytes([rng.choice((2, 8, 10, 12))]) + SID + rng.randbytes(rng.randint(0, 60))
            self.assertEqual(session.receive(packet, path, 0.0), [])
        self.assertFalse(path.proven)

    def test_reflection(self) -> None:
        """A packet that comes back to its sender is none: each direction has a key and a parity of its own."""
        packet = self.golden[0]
        self.assertEqual(self.net.client.session.receive(packet, Path(True), 0.0), [])
        turned = bytes([packet[0] | 1]) + packet[1:]
        self.assertEqual(self.net.client.session.receive(turned, Path(True), 0.0), [])

    def test_reserved_bit(self) -> None:
        """A packet with bit 7 of its type set is dropped, though its MAC be right."""
        mac = Mac(KEYS.client)
        counter = self.net.server.session.processed + 1
        for kind in (0x8A, 0x8C, 0xFE):
            tag = mac.tag(wire.mac_input(kind, SID, counter), b"")
            packet = wire.header(kind, SID, counter, tag)
            self.assertEqual(self.net.server.session.receive(packet, Path(True), 0.0), [])
        self.assertEqual(self.net.server.session.processed, counter - 1)

    def test_beyond_the_window(self) -> None:
        """A packet 4,096 numbers ahead is dropped; one less is held (P3)."""
        session = self.net.server.session
        mac = Mac(KEYS.client)
        for ahead, held in ((MAX_HELD, 0), (MAX_HELD - 1, 1)):
            counter = session.processed + 1 + ahead
            tag = mac.tag(wire.mac_input(wire.DATA, SID, counter), bytes(4))
            session.receive(wire.header(wire.DATA, SID, counter, tag) + bytes(4), Path(True), 0.0)
            self.assertEqual(len(session._held), held)

    def test_held_bytes_are_bounded(self) -> None:
        """Not more than 1 MiB waits for its turn."""
        session = self.net.server.session
        mac = Mac(KEYS.client)
        body = bytes(60_000)
        for index in range(40):
            counter = session.processed + 2 + index
            tag = mac.tag(wire.mac_input(wire.DATA, SID, counter), body)
            session.receive(wire.header(wire.DATA, SID, counter, tag) + body, Path(True), 0.0)
        self.assertLessEqual(session._held_bytes, 1024 * 1024)
        self.assertEqual(len(session._held), 17)


class ExactBytesTests(SynchronousTestCase):
    """A session's packets against bytes worked out by hand with a standard library."""

    def test_worked_values(self) -> None:
        """M is the first 8 bytes of HMAC-SHA256 over T, SID, all of C, and the body (4.2)."""
        import hashlib
        import hmac
        import struct

        net = Net()
        each = net.open(True)
        net.settle()
        net.client.session.send(wire.DATA, b"\x09\0\0\0", b"payload", now=net.now)
        net.flush()
        counter = net.client.session._next - 1
        body = b"\x09\0\0\0payload"
        covered = b"\x0a" + SID + struct.pack("<Q", counter) + body
        tag = hmac.new(KEYS.client, covered, hashlib.sha256).digest()[:8]
        packet = b"\x0a" + SID + struct.pack("<I", counter)[:3] + tag + body
        self.assertEqual(each.flights[0][0], packet)

    def test_random_bytes_are_passed_in(self) -> None:
        """Two sessions with the same randomness send the same bytes."""

        def first_packet(seed: int) -> Any:
            path = Path(True)
            session = Session(Role.CLIENT, SID, SessionKeys(bytes(32), bytes(32)), random.Random(seed).randbytes)
            session.use(path, 0.0)
            session.ask(0.0)
            return session.flush(0.0)[0][1]

        self.assertEqual(first_packet(1), first_packet(1))
        self.assertNotEqual(first_packet(1), first_packet(2))
