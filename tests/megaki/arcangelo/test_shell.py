"""The Python shell, with its pipe in memory."""

from __future__ import annotations

import io
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki.arcangelo import launch, shell
from mikanet.megaki.exchange import PROBE_BYTES, Context, Exchange


class MemoryPipe(shell.Pipe):
    """What was fed is read, what was put is kept."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._buffer += data
        self.said = b""

    def take(self, size: int) -> bytes:
        """The end of the process at the end of the data."""
        if len(self._buffer) < size:
            self.flush()
            raise SystemExit(0)
        return super().take(size)

    def flush(self) -> None:
        """Keep it."""
        self.said += b"".join(self._answers)
        self._answers.clear()


class ShellTests(SynchronousTestCase):
    """Scripts in the shell."""

    def setUp(self) -> None:
        """Words for the log are caught."""
        self.log = io.StringIO()
        self.patch(sys, "stderr", self.log)

    def run_script(self, data: bytes, **script: Any) -> bytes:
        """What the shell answers to these bytes with this script."""
        pipe = MemoryPipe(data)
        with self.assertRaises(SystemExit):
            shell.serve(pipe, script)
        return pipe.said

    def ask(self, request: bytes, host: str = "192.0.2.7", **script: Any) -> Exchange:
        """One request, through our side of the protocol."""
        exchange = Exchange(258, Context(host, 4711, b"T" * 16).encode(), request, at_once=True)
        exchange.feed(self.run_script(exchange.begin(), **script))
        self.assertTrue(exchange.done)
        return exchange

    def test_request(self) -> None:
        """The script sees the request and who asks; start and stop are called around it."""
        seen: list[Any] = []

        def on_handle(request: bytes) -> bytes:
            arca = shell.arca
            seen.append((request, arca.client_ip, arca.client_port, arca.token, arca.guid))
            return b"answer"

        for host in ("192.0.2.7", "2001:db8::1"):
            exchange = self.ask(
                b"q", host, on_handle=on_handle, on_start=lambda: seen.append(1), on_stop=lambda: seen.append(2)
            )
            self.assertEqual(exchange.answer, b"answer")
            guid = (258).to_bytes(8, sys.byteorder)
            self.assertEqual(seen, [1, (b"q", host, 4711, b"T" * 16, guid), 2])
            seen.clear()

    def test_answers(self) -> None:
        """None is an empty answer; 1 MiB is taken."""
        self.assertEqual(self.ask(b"q", on_handle=lambda request: None).answer, b"")
        self.assertEqual(self.ask(b"q", on_handle=lambda request: bytes(1048576)).answer, bytes(1048576))

    def test_failures(self) -> None:
        """An exception, a wrong type and a too long answer fail the request, with a word in the log; the shell goes on."""
        for on_handle in (lambda request: 1 // 0, lambda request: "text", lambda request: bytes(1048577)):
            self.assertIsNone(self.ask(b"q", on_handle=on_handle).answer)
        self.assertIn("ZeroDivisionError", self.log.getvalue())
        self.assertIsNone(self.ask(b"q", on_handle=lambda request: b"", on_start=lambda: 1 // 0).answer)

    def test_probe(self) -> None:
        """A probe is answered without the script."""
        self.assertEqual(self.run_script(PROBE_BYTES * 3, on_handle=None), PROBE_BYTES * 3)

    def test_unknown_type(self) -> None:
        """An unknown type ends the process."""
        self.run_script(b"\x63" + bytes(8), on_handle=None)
        self.assertIn("unknown request type 99", self.log.getvalue())


class LaunchTests(SynchronousTestCase):
    """The launcher, with the system's calls noted."""

    def test_order(self) -> None:
        """The user changes before the limit of processes is set, and the program is run last (K9)."""
        calls: list[Any] = []

        def note(name: str) -> Any:
            return lambda *arguments: calls.append((name, *arguments))

        for module, names in ((launch.os, ("setsid", "umask", "setgroups", "setgid", "setuid", "execv")),):
            for name in names:
                self.patch(module, name, note(name))
        self.patch(launch.resource, "setrlimit", note("setrlimit"))
        self.patch(launch, "bind_to_server", note("bind"))
        self.patch(launch.sys, "argv", ["launch.py", "1234,1000,64,0,77", "/bin/x", "a"])
        launch.main()
        names = [call[0] for call in calls]
        self.assertEqual(calls[-1], ("execv", "/bin/x", ["/bin/x", "a"]))
        processes = calls.index(("setrlimit", launch.resource.RLIMIT_NPROC, (0, 0)))
        self.assertLess(names.index("setuid"), processes)
        self.assertLess(names.index("setuid"), calls.index(("bind", 77)))
        self.assertLess(names.index("setgid"), names.index("setuid"))
        self.assertLess(names.index("setgroups"), names.index("setgid"))
        self.assertIn(("setrlimit", launch.resource.RLIMIT_AS, (1000, 1000)), calls)

    def test_as_it_is(self) -> None:
        """Without a user and limits only files and core dumps are limited."""
        calls: list[Any] = []
        for name in ("setsid", "umask", "execv"):
            self.patch(launch.os, name, lambda *_: None)
        self.patch(launch.resource, "setrlimit", lambda which, _: calls.append(which))
        self.patch(launch, "bind_to_server", lambda _: None)
        self.patch(launch.sys, "argv", ["launch.py", "-1,0,64,-1,77", "/bin/x"])
        launch.main()
        self.assertEqual(calls, [launch.resource.RLIMIT_CORE, launch.resource.RLIMIT_NOFILE])
