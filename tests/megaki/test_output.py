"""What workers print."""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki.output import LOGGED, READ, WINDOW, Output, harmless


class HarmlessTests(SynchronousTestCase):
    """Lines that can be looked at."""

    def test_texts(self) -> None:
        """Ordinary text stays as it is; what moves the cursor, hides or forges lines is shown as an escape."""
        self.assertEqual(harmless("Grüße, 日本\tand a tab".encode()), "Grüße, 日本\tand a tab")
        self.assertEqual(harmless(b"a\rforged"), "a\\rforged")
        self.assertEqual(harmless(b"\x1b[2J\x07\x00"), "\\x1b[2J\\x07\\x00")
        self.assertEqual(harmless("a\u2028b\x85c\u202ed".encode()), "a\\u2028b\\x85c\\u202ed")
        self.assertEqual(harmless(b"\xff"), "\\xff")

    def test_noise(self) -> None:
        """Of any bytes one printable line is left."""
        rng = random.Random(2)
        for _ in range(300):
            text = harmless(rng.randbytes(rng.randrange(200)))
            self.assertTrue(text.replace("\t", "").isprintable(), text)


class OutputTests(SynchronousTestCase):
    """A worker's two outputs."""

    def setUp(self) -> None:
        """An output."""
        self.clock = Clock()
        self.said: list[str] = []
        self.listening = True
        self.output = Output(self.clock, self.said.append, self.listen)

    def listen(self, listening: bool) -> None:
        """Note it."""
        self.listening = listening

    def test_lines(self) -> None:
        """Lines of each output by themselves, cut to a bounded length, and bounded while one has no end."""
        self.output.received(2, b"one\ntw")
        self.output.received(1, b"other\n")
        self.output.received(2, b"o\n\n" + b"x" * 10_000)
        self.assertEqual(self.said[:3], ["one", "other", "two"])
        self.assertEqual([len(line) for line in self.said[3:]], [4096, 4096])
        self.output.ended()
        self.assertEqual(len(self.said[-1]), 10_000 - 8192)
        self.output.received(1, b"y" * 10_000 + b"\n")
        self.assertEqual([len(line) for line in self.said[-3:]], [4096, 4096, 10_000 - 8192])

    def test_without_end(self) -> None:
        """A worker that prints without end is logged for a while, then one line counts the rest, and its pipe waits."""
        for _ in range(READ // 1024 + 1):
            self.output.received(1, b"x" * 1023 + b"\n")
        self.assertLessEqual(sum(map(len, self.said)), LOGGED)
        self.assertFalse(self.listening)
        count = len(self.said)
        self.clock.advance(WINDOW)
        self.assertTrue(self.listening)
        self.assertEqual(len(self.said), count + 1)
        self.assertIn("not shown", self.said[-1])
        self.output.received(1, b"again\n")
        self.assertEqual(self.said[-1], "again")
        self.clock.advance(WINDOW)
        self.assertEqual(self.clock.getDelayedCalls(), [])
