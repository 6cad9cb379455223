"""The held port with a kernel of the test's own; with the real one it is tested in ``tests/interop``."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.rawpackets import hold as module
from mikanet.rawpackets.hold import hold_port, port_is_taken


class Socket:
    """A socket whose calls fail as a test wants."""

    def __init__(self, problem: OSError | None) -> None:
        self.problem = problem
        self.closed = False

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def bind(self, where: tuple[str, int]) -> None:
        """Take the port."""
        if self.problem is not None:
            raise self.problem
        self.where = where

    def listen(self, backlog: int) -> None:
        """Listen."""

    def getsockname(self) -> tuple[str, int]:
        """Where."""
        return self.where

    def close(self) -> None:
        """Closed."""
        self.closed = True


class HoldTests(SynchronousTestCase):
    """What the kernel may refuse."""

    def make(self, bind: OSError | None = None, attach: OSError | None = None) -> Socket:
        """A kernel that refuses these."""
        made = Socket(bind)

        def attach_filter(to: socket.socket, program: Sequence[Any]) -> None:
            if attach is not None:
                raise attach

        self.patch(module, "_tcp_socket", lambda: made)
        self.patch(module, "attach_filter", attach_filter)
        return made

    def test_held(self) -> None:
        """A port that is there to be had."""
        self.make()
        held = hold_port(9999, max)
        assert held is not None
        self.assertEqual(held.number, 9999)

    def test_low_port(self) -> None:
        """A port that we may not bind is None: rules may do alone."""
        made = self.make(bind=PermissionError(errno.EACCES, "no"))
        self.assertIsNone(hold_port(443, max))
        self.assertTrue(made.closed)

    def test_no_right_to_silence(self) -> None:
        """A kernel that lets us attach no filter is not one that lets us bind no port: it is said which right is missing."""
        made = self.make(attach=PermissionError(errno.EPERM, "no"))
        for port in (9999, 0):
            with self.assertRaises(ConfigError) as caught:
                hold_port(port, max)
            self.assertIn("needs root or CAP_NET_ADMIN", str(caught.exception))
        self.assertTrue(made.closed)

    def test_taken(self) -> None:
        """Looking needs no right to silence anything; a port that we may not bind is not taken."""
        attach = PermissionError(errno.EPERM, "no")
        for problem, taken in (
            (None, False),
            (PermissionError(errno.EACCES, "no"), False),
            (OSError(errno.EADDRINUSE, "in use"), True),
        ):
            made = self.make(problem, attach)
            self.assertIs(port_is_taken(443), taken)
            self.assertTrue(made.closed)
