"""Polled links over paths that lose, double, delay, reorder and limit, in virtual time."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.polled_arq import MAX_SEGMENTS, Receiver, Rtt, Sender
from mikanet.carriers.polled_numbers import KEY_SIZE, SPAN, Numbers
from mikanet.carriers.polled_pace import MIN_WINDOW, Pace
from mikanet.carriers.polled_server import PolledLink, PolledServer
from mikanet.errors import RemoteProtocolError
from tests.carriers.polled_path import CountedNumbers, Path


def packets(count: int, size: int = 700) -> list[bytes]:
    """Packets that are all different."""
    chance = random.Random(count)
    return [chance.randbytes(size) for _ in range(count)]


class PathTests(SynchronousTestCase):
    """What goes in comes out, whatever the path does."""

    def carry(self, path: Path, up: int, down: int, until: float) -> float:
        """Carry so many packets each way at once; the time that it took."""
        ups, downs = packets(up), packets(down)
        path.client.push(ups, 0.0)
        path.link.push(downs)
        took = path.run(until, lambda: len(path.at_server) >= up and len(path.at_client) >= down)
        self.assertEqual(path.at_server, ups)
        self.assertEqual(path.at_client, downs)
        return took

    def test_clean(self) -> None:
        """A clean path asks little more than it must, and loses nothing."""
        path = Path()
        self.carry(path, 20, 200, 5)
        self.assertEqual(path.client.lost, 0)
        self.assertEqual(path.client.resent, 0)
        self.assertLess(path.questions, 1000)

    def test_loss(self) -> None:
        """10 and 30 % loss of questions and of answers."""
        for seed in range(3):
            self.carry(Path(seed=seed, loss=0.1), 50, 200, 30)
            self.carry(Path(seed=seed, loss=0.3), 50, 100, 60)

    def test_doubled_and_reordered(self) -> None:
        """Every other packet doubled, all of them jumbled."""
        path = Path(double=0.5, jitter=0.05)
        self.carry(path, 100, 300, 30)

    def test_far_away(self) -> None:
        """A round trip of 1.5 s with loss."""
        self.carry(Path(delay=0.75, loss=0.1), 10, 50, 120)

    def test_limit(self) -> None:
        """A path that passes 20 questions per second is not asked for many more."""
        path = Path(limit=20)
        took = self.carry(path, 0, 300, 120)
        self.assertLess(path.questions / took, 60)
        self.assertGreater(300 * 700 / took, 0.3 * 20 * 1200)

    def test_outage(self) -> None:
        """Nothing passes for eight seconds in the middle; all comes after it."""
        path = Path()
        ups, downs = packets(100), packets(400)
        path.client.push(ups, 0.0)
        path.link.push(downs)
        path.run(0.1)
        path.blocked = True
        path.run(8.1)
        path.blocked = False
        took = path.run(60, lambda: len(path.at_server) >= 100 and len(path.at_client) >= 400)
        self.assertEqual((path.at_server, path.at_client), (ups, downs))
        self.assertLess(took, 25)

    def test_small_answers(self) -> None:
        """Answers as small as those of A records carry packets that are much larger."""
        self.carry(Path(down_room=28, up_room=40), 5, 20, 60)

    def test_idle(self) -> None:
        """An idle link asks about once a second, no more."""
        path = Path()
        path.run(10)
        before = path.questions
        path.run(40)
        self.assertLess(path.questions - before, 45)
        self.assertGreater(path.questions - before, 10)

    def test_answer_comes_when_there_is_one(self) -> None:
        """What the server says on an idle link arrives after one way, not at the next question."""
        path = Path(delay=0.1)
        path.run(20)
        path.link.push([b"news"])
        took = path.run(30, lambda: bool(path.at_client)) - 20
        self.assertLess(took, 0.11)

    def test_shared_path_is_left_room(self) -> None:
        """The window opens wide where everything passes, and stays small where 200 questions per second do."""
        wide, narrow = Path(delay=0.05), Path(delay=0.05, limit=200)
        for path in (wide, narrow):
            path.link.push(packets(3000))
        wide.run(2)
        self.assertGreater(wide.client.pace.window, 300)
        for second in range(1, 11):
            narrow.run(second)
            self.assertLess(narrow.client.pace.window, 100, second)
        self.assertLess(narrow.questions, 10 * 200)
        self.assertGreater(len(narrow.at_client), 500)

    @settings(deadline=None, max_examples=25)
    @given(
        st.integers(0, 1000),
        st.floats(0, 0.35),
        st.floats(0, 0.5),
        st.floats(0, 0.1),
        st.integers(30, 1300),
        st.integers(40, 200),
    )
    def test_any_path(self, seed: int, loss: float, double: float, jitter: float, down: int, up: int) -> None:
        """Both directions at once over any path."""
        path = Path(seed=seed, loss=loss, double=double, jitter=jitter, down_room=down, up_room=up)
        self.carry(path, 5, 10, 300)


class ArqTests(SynchronousTestCase):
    """Segments and acknowledgements."""

    def test_sequence_numbers_wrap(self) -> None:
        """200,000 segments through numbers of 16 bits, in steps of a whole window, some out of order."""
        sender, receiver = Sender(), Receiver()
        out = 0
        while out < 200_000:
            sender.push([b"x" * 8] * MAX_SEGMENTS)
            batch = []
            while (segment := sender.take(10, 0.0)) is not None:
                batch.append(segment)
            batch.reverse()
            got = [packet for number, data in batch for packet in receiver.take(number, data)]
            self.assertEqual(len(got), len(batch))
            out += len(got)
            sender.acknowledged(receiver.ack, receiver.sack, None, 0.0)
        self.assertEqual(sender.waiting, 0)

    def test_lost_is_told_from_late(self) -> None:
        """What was sent well before something that has landed is sent again; what was sent with it is not."""
        sender = Sender()
        sender.push([b"a" * 98])
        sender.take(25, 0.0)
        sender.take(25, 0.0)
        sender.take(25, 1.0)
        sender.take(25, 1.0)
        sender.acknowledged(0, 0b010, None, 1.1)  # the third is here
        self.assertTrue(sender.ready)
        again = [sender.take(25, 1.2), sender.take(25, 1.2), sender.take(25, 1.2)]
        self.assertEqual([found and found[0] for found in again], [0, 1, None])

    def test_nothing_said_of_the_rest(self) -> None:
        """Segments behind the end of what a peer told are not taken for lost."""
        sender = Sender()
        sender.push([b"a" * 998])
        for _ in range(40):
            sender.take(25, 0.0)
        sender.take(25, 0.0)
        sender.acknowledged(8, 0b1, 8, 1.0)
        sender.time_out(5.0)
        self.assertEqual(sender.take(25, 5.0), (8, b"a" * 25))
        sender.acknowledged(10, 0, 8, 5.1)
        lost = []
        while (found := sender.take(25, 5.2)) is not None:
            lost.append(found[0])
        self.assertEqual(lost, list(range(10, 19)))

    def test_acknowledgement_of_the_unsent(self) -> None:
        """Is refused; an old one is not."""
        sender = Sender()
        sender.push([b"abc"])
        sender.take(10, 0.0)
        self.assertRaises(RemoteProtocolError, sender.acknowledged, 2, 0, None, 0.1)
        sender.acknowledged(1, 0, None, 0.1)
        sender.acknowledged(0, 0, None, 0.2)

    def test_receiver_bounds(self) -> None:
        """Segments far ahead, and those that were there, are not kept."""
        receiver = Receiver()
        self.assertEqual(receiver.take(MAX_SEGMENTS, b"x"), [])
        self.assertEqual(receiver.sack, 0)
        self.assertTrue(receiver.twice)
        self.assertEqual(receiver.take(0, b"\0\1a"), [b"a"])
        self.assertEqual(receiver.take(0, b"\0\1a"), [])

    def test_rtt(self) -> None:
        """A path that answers after 100 ms each time times out soon after."""
        rtt = Rtt()
        self.assertEqual(rtt.timeout, 1.0)
        for _ in range(50):
            rtt.sample(0.1)
        self.assertLess(rtt.timeout, 0.2)


class PaceTests(SynchronousTestCase):
    """How many questions."""

    def test_refusals_shrink(self) -> None:
        """An answer that says "too many" takes a third of the window, once per round trip."""
        pace = Pace()
        before = pace.window
        pace.refused(1.0)
        pace.refused(1.0)
        self.assertEqual(pace.window, int(before * 0.7))
        for n in range(100):
            pace.refused(2.0 + n)
        self.assertEqual(pace.window, MIN_WINDOW)

    def test_silence(self) -> None:
        """When all is lost it goes on with little."""
        pace = Pace()
        pace.silence()
        self.assertEqual(pace.window, MIN_WINDOW)
        self.assertEqual(pace.ready_at(5.0), 5.0)


class WireTests(SynchronousTestCase):
    """Messages."""

    def test_round_trips(self) -> None:
        """Each message is read as it was made."""
        self.assertEqual(wire.read_question(wire.hello(b"12345678")), wire.Hello(b"12345678"))
        self.assertEqual(wire.read_welcome(wire.welcome(b"12345678", 77), b"12345678"), 77)
        self.assertIsNone(wire.read_welcome(wire.welcome(b"12345678", 77), b"12345679"))
        self.assertEqual(wire.read_question(wire.probe(5, 600, 9, 100)), wire.Probe(5, 600, 9))
        self.assertEqual(len(wire.probe(5, 600, 9, 100)), 100)
        self.assertEqual(wire.read_question(wire.start(5, 16, 600, 4, 1.5, 9)), wire.Start(5, 16, 600, 4, 1.5))
        self.assertEqual(wire.read_question(wire.close(5)), wire.Close(5))
        up = wire.up(5, 6, 7, 0b1011, 8, True, 9, b"data")
        self.assertEqual(wire.read_question(up), wire.Up(5, 6, 7, 0b1011, None, 9, b"data", True))
        self.assertTrue(wire.is_data(up))
        down = wire.down(0.5, 300, 7, 1 << 100, 4, False, None, b"")
        self.assertEqual(wire.read_down(down), wire.Down(0.5, 255, 7, 0, 32, None, b"", False))

    def test_layout(self) -> None:
        """A DATA question and answer byte by byte, as the document draws them."""
        made = wire.up(0x01020304, 0x0506, 0x0708, 0b101, 8, False, 0x090A, b"x")
        self.assertEqual(made.hex(), "1401020304050607080105090a78")
        made = wire.down(0.1, 3, 0x0708, 0, 8, True, 0x090A, b"x")
        self.assertEqual(made.hex(), "340503070800090a78")

    def test_probe_tells_every_change(self) -> None:
        """An answer to a probe is believed only if neither way changed a byte."""
        question = wire.probe(5, 300, 9, 100)
        answer = wire.probed(question, 300)
        self.assertEqual(wire.read_probed(answer, question), 300)
        self.assertEqual(wire.read_probed(wire.probed(question, 120), question), 120)
        self.assertIsNone(wire.read_probed(wire.probed(question[:90], 300), question))
        for at in range(len(answer)):
            bad = answer[:at] + bytes([answer[at] ^ 0x20]) + answer[at + 1 :]
            self.assertIsNone(wire.read_probed(bad, question))

    def test_mutations(self) -> None:
        """10,000 changed messages are read or refused with the one error."""
        chance = random.Random(5)
        golden = [wire.up(5, 6, 7, 0b1011, 8, True, 9, b"data"), wire.down(0.5, 300, 7, 1 << 100, 4, False, 1, b"x")]
        golden += [wire.hello(b"12345678"), wire.probe(5, 6, 7, 20), wire.start(5, 16, 600, 4, 1.5, 9), wire.close(5)]
        for _ in range(10_000):
            data = bytearray(chance.choice(golden))
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            if chance.random() < 0.5:
                del data[chance.randrange(len(data) + 1) :]
            for read in (wire.read_question, wire.read_down):
                try:
                    read(bytes(data))
                except RemoteProtocolError:
                    pass


class ServerTests(SynchronousTestCase):
    """Links and strangers."""

    def setUp(self) -> None:
        self.replies: list[tuple[str, bytes | None]] = []
        self.started: list[PolledLink] = []
        self.server = PolledServer(
            lambda path, message: self.replies.append((path, message)), CountedNumbers(), self.start
        )

    def start(self, link: PolledLink, path: str) -> bool:
        """Take every link."""
        self.started.append(link)
        return True

    def ask(self, message: bytes, path: str = "way", now: float = 0.0) -> list[bytes]:
        """One question; the packets that it brought."""
        found = self.server.question(message, path, 500, now)
        if found is None:
            return []
        found[0].flush(now)
        return found[1]

    def link(self) -> None:
        """A link with number 1 that keeps two questions."""
        self.ask(wire.hello(b"challeng"))
        self.ask(wire.start(1, 0, 500, 2, 3.0, 0))
        self.replies.clear()

    def test_asked_twice(self) -> None:
        """Each question gets the same answer each time, and is acted upon once."""
        self.ask(wire.hello(b"challeng"))
        self.replies.clear()
        for _ in range(2):
            self.ask(wire.probe(1, 100, 7))
            self.ask(wire.start(1, 0, 500, 2, 3.0, 0))
        self.assertEqual(self.replies[:2], self.replies[2:])
        self.assertEqual(len(self.started), 1)
        self.replies.clear()
        question = wire.up(1, 1, 0, 0, 8, False, 0, b"\0\3abc")
        self.assertEqual(self.ask(question), [b"abc"])
        self.assertEqual(self.ask(question, "other"), [])
        self.assertEqual([path for path, _ in self.replies], ["way", "other"])
        self.assertEqual(self.replies[0][1], self.replies[1][1])

    def test_questions_wait_and_time_out(self) -> None:
        """As many as were agreed upon are held; each is answered in time, the oldest first."""
        self.link()
        for number in range(1, 5):
            self.ask(wire.up(1, number, 0, 0, 8, False, None, b""), f"way {number}")
        self.assertEqual([path for path, _ in self.replies], ["way 1", "way 2"])
        link = self.started[0]
        self.assertEqual(link.deadline, 3.0)
        link.tick(3.0)
        self.assertEqual([path for path, _ in self.replies], ["way 1", "way 2", "way 3", "way 4"])

    def test_resolver_without_patience(self) -> None:
        """A held question that is asked again is answered at once, and later ones are held for less."""
        self.link()
        self.ask(wire.up(1, 1, 0, 0, 8, False, None, b""), "first")
        self.ask(wire.up(1, 1, 0, 0, 8, False, None, b""), "network's copy", 0.01)
        self.assertEqual(self.replies, [])
        self.ask(wire.up(1, 1, 0, 0, 8, False, None, b""), "again", 1.0)
        self.assertEqual([path for path, _ in self.replies], ["again"])
        self.assertAlmostEqual(self.started[0].hold, 0.8)

    def test_no_room(self) -> None:
        """A segment that does not fit any more asks for another way."""
        self.link()
        link = self.started[0]
        link.push([b"x" * 300])
        self.ask(wire.up(1, 1, 0, 0, 8, False, None, b""), "large")
        link.tick(2.0)
        self.server.question(wire.up(1, 2, 0, 0, 8, False, None, b""), "small", 100, 2.0)
        link.flush(2.0)
        self.assertEqual(self.replies[-1], ("small", None))
        self.ask(wire.up(1, 2, 0, 0, 8, False, None, b""), "over TCP", 2.0)
        self.assertEqual(self.replies[-1][0], "over TCP")
        self.assertIsNotNone(self.replies[-1][1])

    def test_strangers(self) -> None:
        """Links that are not here, other ways and nonsense are refused; what strangers leave behind is bounded."""
        self.link()
        for message in (
            wire.up(9, 1, 0, 0, 8, False, None, b""),
            wire.probe(9, 4000, 0),
            wire.start(9, 0, 500, 2, 3.0, 0),
            wire.close(9),
            b"",
            b"\xff",
        ):
            self.assertRaises(RemoteProtocolError, self.ask, message)
        with self.assertRaises(RemoteProtocolError):
            self.server.question(wire.up(1, 1, 0, 0, 8, False, None, b""), "way", 500, 0.0, 1)

    def test_flood_of_first_questions(self) -> None:
        """A client's number stays good through any number of strangers' first questions; none is kept."""
        server = PolledServer(
            lambda path, message: self.replies.append((path, message)), Numbers(bytes(KEY_SIZE)), self.start, str
        )
        server.question(wire.hello(b"challeng"), "client", 500, 0.0)
        connection = wire.read_welcome(self.replies[-1][1] or b"", b"challeng")
        assert connection is not None
        for number in range(5000):
            server.question(wire.hello(number.to_bytes(8, "big")), f"stranger {number}", 500, 1.0)
        with self.assertRaises(RemoteProtocolError):
            server.question(wire.start(connection, 0, 500, 2, 3.0, 0), "somebody else", 500, 2.0)
        server.question(wire.start(connection, 0, 500, 2, 3.0, 0), "client", 500, 29.0)
        self.assertEqual(self.replies[-1], ("client", wire.STARTED))
        self.assertEqual(list(server.links), [connection])

    def test_no_amplifier(self) -> None:
        """A stranger's first question brings an answer no larger than itself, but for three bytes."""
        self.ask(wire.hello(b"challeng"))
        self.assertLessEqual(len(self.replies[0][1] or b""), len(wire.hello(b"challeng")) + 3)


class NumberTests(SynchronousTestCase):
    """Connections' numbers."""

    def setUp(self) -> None:
        self.numbers = Numbers(bytes(range(KEY_SIZE)))

    def test_known_again(self) -> None:
        """For the rest of a span and all of the next, from the same addresses, with the same key."""
        for now in (0.0, SPAN - 1, 7 * SPAN + 3):
            number = self.numbers.give("192.0.2.1", now)
            self.assertTrue(self.numbers.knows(number, "192.0.2.1", now))
            self.assertTrue(self.numbers.knows(number, "192.0.2.1", now + SPAN))
            self.assertFalse(self.numbers.knows(number, "192.0.2.1", now + 2 * SPAN))
            self.assertFalse(self.numbers.knows(number, "192.0.2.2", now))
            self.assertFalse(Numbers(bytes(KEY_SIZE)).knows(number, "192.0.2.1", now))

    def test_each_once(self) -> None:
        """No number is given twice within a span, and they look random."""
        given = [self.numbers.give("", 0.0) for _ in range(5000)]
        self.assertEqual(len(set(given)), len(given))
        for bit in range(32):
            self.assertLess(abs(sum(number >> bit & 1 for number in given) / len(given) - 0.5), 0.05)

    def test_guesses(self) -> None:
        """Of random numbers, one in some thousands is taken for ours."""
        chance = random.Random(5)
        right = sum(self.numbers.knows(chance.getrandbits(32), "", 0.0) for _ in range(20_000))
        self.assertLess(right, 40)
