"""What programs do with their reactor."""

from __future__ import annotations

import ast
import time

from twisted.internet import reactor
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.service.program import program_reactor
from tests.test_layers import MODULES


class ProgramReactorTests(SynchronousTestCase):
    """:func:`program_reactor`."""

    def test_given(self) -> None:
        """A reactor that is given is the one."""
        given = MemoryReactorClock()
        self.assertIs(program_reactor(given), given)

    def test_of_this_process(self) -> None:
        """Without one it is the installed reactor, on the monotonic clock."""
        self.assertIs(program_reactor(), reactor)
        self.assertLess(abs(reactor.seconds() - time.monotonic()), 60)

    def test_every_program_asks_here(self) -> None:
        """No program imports the installed reactor by itself."""
        found = [
            name
            for name, path in MODULES.items()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            and node.module == "twisted.internet"
            and "reactor" in [alias.name for alias in node.names]
        ]
        self.assertEqual(sorted(found), ["mikanet.filters.socks_client", "mikanet.service.program"])
