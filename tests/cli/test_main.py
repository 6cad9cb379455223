"""The ``mikanet`` command."""

from __future__ import annotations

import sys
from io import StringIO
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from mikanet import __version__
from mikanet.cli.main import COMMANDS, PROGRAMS, main


class MainTests(SynchronousTestCase):
    """Subcommands and their mistakes."""

    def run_main(self, *words: str) -> tuple[object, str]:
        """The exit status and what was printed."""
        with mock.patch.object(sys, "stdout", StringIO()) as stdout, self.assertRaises(SystemExit) as caught:
            main(list(words))
        return caught.exception.code, stdout.getvalue()

    def test_help(self) -> None:
        """The list of commands, with status 0 when asked for and 2 when nothing was said."""
        for words, status in ((["--help"], 0), ([], 2)):
            code, printed = self.run_main(*words)
            self.assertEqual(code, status)
            for name, text in [*((name, text) for name, _, text in COMMANDS), *PROGRAMS]:
                self.assertIn(f"{name}", printed)
                self.assertIn(text, printed)

    def test_version(self) -> None:
        """One line."""
        self.assertEqual(self.run_main("--version"), (0, f"mikanet {__version__}\n"))

    def test_unknown_command(self) -> None:
        """One line that says what helps."""
        code, _ = self.run_main("nonsense")
        self.assertEqual(code, "mikanet: unknown command 'nonsense'; mikanet --help lists them")
        code, _ = self.run_main("mika-sever")
        self.assertEqual(
            code, "mikanet: unknown command 'mika-sever'; did you mean mika-server? mikanet --help lists them"
        )

    def test_every_command_can_be_loaded(self) -> None:
        """Each has its own help and a run function."""
        for name, _, _ in COMMANDS:
            code, printed = self.run_main(name, "--help")
            self.assertIn(code, (0, None))
            self.assertTrue(printed.startswith(f"usage: mikanet {name} "), printed)

    def test_programs(self) -> None:
        """Servers and clients are commands as well: their help, and their mistakes in one line."""
        for name, _ in PROGRAMS:
            _, printed = self.run_main(name, "--help")
            self.assertTrue(printed.startswith(f"usage: mikanet {name} "), printed)
            code, _ = self.run_main(name, "--nonsense")
            self.assertEqual(code, f"{name}: option --nonsense not recognized; --help lists the options")

    def test_genkey(self) -> None:
        """A secret and nothing else."""
        code, printed = self.run_main("genkey")
        self.assertEqual((code, len(printed)), (0, 44))
        code, _ = self.run_main("genkey", "--nonsense")
        self.assertEqual(code, "mikanet genkey: option --nonsense not recognized; --help lists the options")
