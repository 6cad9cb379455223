"""The worker protocol from the server's side."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from mikanet.megaki.exchange import Context, Exchange
from tests.support.feeding import fragmentations, mutations

TOKEN = bytes(range(16))
# As the original's structures stand in memory on x86: see the protocol page.
CONTEXT = bytes.fromhex("0200 18db 7f000001 0000000000000000") + TOKEN
START = bytes.fromhex("01 0500000000000000 20000000") + CONTEXT
HANDLE = bytes.fromhex("03 0500000000000000 05000000") + b"hello"
QUIT = bytes.fromhex("02 0500000000000000")
ANSWERS = bytes.fromhex("01 04 03000000") + b"yes" + b"\3"
NUMBER = bytes.fromhex("0500000000000000")


def numbered(*parts: bytes, number: bytes = NUMBER) -> bytes:
    """Answers as a shell numbers them."""
    return b"".join(bytes([part[0] | 0x80]) + number + part[1:] for part in parts)


NUMBERED = numbered(b"\1", bytes.fromhex("04 03000000") + b"yes", b"\3")


def exchange(at_once: bool = True) -> Exchange:
    """An exchange with number 5."""
    return Exchange(5, CONTEXT, b"hello", at_once)


class ContextTests(SynchronousTestCase):
    """Who asks."""

    def test_layout(self) -> None:
        """IPv4 and mapped addresses are 32 bytes with the token, IPv6 addresses 44."""
        self.assertEqual(Context("127.0.0.1", 6363, TOKEN).encode(), CONTEXT)
        self.assertEqual(Context("::ffff:127.0.0.1", 6363, TOKEN).encode(), CONTEXT)
        six = bytes.fromhex("0a00 18db 00000000 20010db8000000000000000000000001 00000000") + TOKEN
        self.assertEqual(Context("2001:db8::1%eth0", 6363, TOKEN).encode(), six)
        self.assertNotIn("0001", repr(Context("127.0.0.1", 1, TOKEN)))


class ExchangeTests(SynchronousTestCase):
    """One request."""

    def test_at_once(self) -> None:
        """A shell gets everything in one piece, and its answers are read however they are cut."""
        for pieces in fragmentations(NUMBERED):
            each = exchange()
            self.assertEqual(each.begin(), START + HANDLE + QUIT)
            self.assertEqual([each.feed(piece) for piece in pieces], [b""] * len(pieces))
            self.assertTrue(each.done)
            self.assertEqual(each.answer, b"yes")

    def test_step_by_step(self) -> None:
        """A program that speaks the original's protocol is sent each part when the one before is answered."""
        each = exchange(at_once=False)
        self.assertEqual(each.begin(), START)
        self.assertEqual(each.feed(b"\1"), HANDLE)
        self.assertEqual(each.feed(ANSWERS[1:4]), b"")
        self.assertEqual(each.feed(ANSWERS[4:-1]), QUIT)
        self.assertFalse(each.done)
        each.feed(b"\3")
        self.assertTrue(each.done)

    def test_empty_and_large(self) -> None:
        """An empty answer is an answer; 1 MiB is taken, one byte more is not."""
        each = exchange()
        each.feed(numbered(b"\1", bytes.fromhex("04 00000000"), b"\3"))
        self.assertEqual(each.answer, b"")
        each = exchange()
        each.feed(numbered(b"\1", b"\4" + (1048576).to_bytes(4, "little") + bytes(1048576), b"\3"))
        self.assertEqual(each.answer, bytes(1048576))
        with self.assertRaises(RemoteProtocolError):
            exchange().feed(numbered(b"\1", b"\4" + (1048577).to_bytes(4, "little")))

    def test_numbers(self) -> None:
        """An answer to another request is refused, and a shell's without a number; a program may number its own."""
        for wrong in (bytes(8), b"\4" + NUMBER[1:], NUMBER[::-1]):
            for part in ((b"\1",), (b"\1", b"\5")):
                with self.assertRaises(RemoteProtocolError):
                    exchange().feed(
                        numbered(part[0], number=wrong if len(part) == 1 else NUMBER)
                        + numbered(*part[1:], number=wrong)
                    )
        with self.assertRaises(RemoteProtocolError):
            exchange().feed(ANSWERS)
        for pieces in fragmentations(NUMBERED):
            each = exchange(at_once=False)
            for piece in pieces:
                each.feed(piece)
            self.assertEqual((each.done, each.answer), (True, b"yes"))
        each = exchange(at_once=False)
        each.feed(b"\1")
        with self.assertRaises(RemoteProtocolError):
            each.feed(numbered(b"\5", number=bytes(8)))

    def test_failures(self) -> None:
        """Answers 02 and 05 leave no answer, and the worker in step."""
        for at_once, answers, expected in (
            (True, "01 05 03", [b""] * 3),
            (True, "02 05 03", [b""] * 3),
            (False, "01 05 03", [HANDLE, QUIT, b""]),
            (False, "02", [b""]),
        ):
            each = exchange(at_once)
            said = [bytes([byte]) for byte in bytes.fromhex(answers)]
            self.assertEqual([each.feed(numbered(part) if at_once else part) for part in said], expected)
            self.assertTrue(each.done)
            self.assertIsNone(each.answer)

    def test_out_of_step(self) -> None:
        """Any other answer, and any byte too many, is refused."""
        for answers in ("00", "03", "04", "05", "06", "10", "0101", "0103", "01050 4".replace(" ", ""), "01050303"):
            with self.assertRaises(RemoteProtocolError, msg=answers):
                exchange().feed(numbered(*(bytes([byte]) for byte in bytes.fromhex(answers))))
            with self.assertRaises(RemoteProtocolError, msg=answers):
                exchange(at_once=False).feed(bytes.fromhex(answers))

    def test_mutations(self) -> None:
        """10,000 mutated answers raise only the declared error; what is done has an answer that was there."""
        rng = random.Random(6)
        for data in mutations([ANSWERS, b"\1\5\3", NUMBERED], 10_000, seed=6):
            each = exchange(at_once=rng.random() < 0.5)
            try:
                each.feed(data)
            except RemoteProtocolError:
                continue
            if each.answer is not None:
                self.assertIn(each.answer, data)
