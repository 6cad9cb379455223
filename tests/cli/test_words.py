"""Commands with words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.words import WordsOptions


class Options(WordsOptions):
    """A command."""

    command = "command"
    optParameters: ClassVar[Sequence[Sequence[object]]] = [["name", "n", None, "something"]]
    words: tuple[str, ...] = ()

    def parseArgs(self, *words: str) -> None:
        """Keep them."""
        self.words = words


class WordsTests(SynchronousTestCase):
    """Options and words in any order."""

    def test_order(self) -> None:
        """Options stand before, between or behind words; behind ``--`` everything is a word."""
        for line in ("--name x a b", "a --name x b", "a b --name=x", "-n x a b", "a -nx b", "--name x -- a b"):
            options = Options()
            options.parseOptions(line.split())
            self.assertEqual((options["name"], options.words), ("x", ("a", "b")), line)
        options = Options()
        options.parseOptions(["a", "--", "--name"])
        self.assertEqual(options.words, ("a", "--name"))

    def test_mistakes(self) -> None:
        """One line each."""
        for line in ("a --nonsense", "a --name"):
            with self.assertRaises(SystemExit) as caught:
                Options().parseOptions(line.split())
            self.assertNotIn("\n", str(caught.exception.code))
