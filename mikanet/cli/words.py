"""Command lines with words beside their options, which may stand before or behind them."""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence

from mikanet.service.options import Options


class WordsOptions(Options):
    """Base of commands that take words; subclasses check them in ``parseArgs``."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See :meth:`Options.parseOptions`."""
        words = list(sys.argv[1:] if options is None else options)
        try:
            found, rest = getopt.gnu_getopt(words, self.shortOpt, self.longOpt)
        except getopt.GetoptError as error:
            raise SystemExit(f"{self.command}: {error}") from None
        takes_value = {f"--{name[:-1]}" for name in self.longOpt if name.endswith("=")}
        words = []
        for name, value in found:
            # A value that looks like an option stays one with its name; a letter's value is the next word.
            words += [f"{name}={value}"] if name in takes_value else [name, value] if value else [name]
        words += ["--", *rest]
        super().parseOptions(words)
