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
        except getopt.GetoptError:
            pass  # the parser proper finds the same mistake, and says so in one line
        else:
            takes_value = {f"--{name}" for name in self.longOpt if name.endswith("=")}
            words = [f"{name}={value}" if f"{name}=" in takes_value else name for name, value in found]
            words += ["--", *rest]
        super().parseOptions(words)
