"""Counters on a socket, and the command that reads them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import tempfile
from io import StringIO
from pathlib import Path
from unittest import mock

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mikanet.cli.main import main
from mikanet.cli.status import format_bytes, format_time, table
from mikanet.counters import Counters
from mikanet.service.counters_socket import CountersService, _is_sound, read_all, runtime_dir


class SocketTests(TestCase):
    """A service's socket."""

    def setUp(self) -> None:
        """A service that has counted something."""
        # A socket's path has 107 characters at most, and trial's own folders are too deep for that.
        parent = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, parent)
        self.folder = Path(parent) / "run"
        self.counters = Counters()
        self.counters.add("mika.server.accepted.tcp", 1234)
        self.service = CountersService(reactor, "mika-server", self.counters.snapshot, folder=self.folder)

    def start(self) -> None:
        """Start it."""
        self.service.startService()
        self.service.startService()
        self.addCleanup(self.service.stopService)

    async def test_counters(self) -> None:
        """Whoever connects gets the service, its process and the counters of that moment."""
        self.start()
        self.counters.add("mika.server.refused.silence")
        (found,) = await deferToThread(lambda: list(read_all(self.folder)))
        self.assertEqual(
            found,
            {
                "service": "mika-server",
                "pid": os.getpid(),
                "uptime": 0,
                "counters": {"mika.server.accepted.tcp": 1234, "mika.server.refused.silence": 1},
            },
        )

    async def test_for_this_user_alone(self) -> None:
        """Neither the folder nor the socket is open to others."""
        self.start()
        (path,) = self.folder.glob("*.sock")
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode) & 0o077, 0)

    async def test_gone_when_stopped(self) -> None:
        """A stopped service leaves no socket."""
        self.service.startService()
        self.service.startService()
        await self.service.stopService()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_no_socket_is_no_reason_not_to_serve(self) -> None:
        """Where the folder cannot be made the service starts all the same."""
        self.folder.write_text("a file")
        self.start()


class ReadTests(SynchronousTestCase):
    """Reading sockets, and showing what they say."""

    def test_what_a_killed_process_left(self) -> None:
        """Its socket is removed; other files are left alone."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "mika-server-1.sock"))
        (folder / "file.sock").write_text("")
        self.assertEqual(list(read_all(folder)), [])
        self.assertEqual(len(list(folder.iterdir())), 2)  # a folder of somebody else's is left as it is
        self.patch(os, "environ", {**os.environ, "RUNTIME_DIRECTORY": str(folder)})
        self.assertEqual(list(read_all(folder)), [])
        self.assertEqual([path.name for path in folder.iterdir()], ["file.sock"])
        self.assertEqual(list(read_all(folder / "none")), [])

    def test_folder(self) -> None:
        """The service manager's word goes first, then the session's."""
        with mock.patch.dict(os.environ, {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/1"}):
            self.assertEqual(runtime_dir(), Path("/run/a"))
            del os.environ["RUNTIME_DIRECTORY"]
            self.assertEqual(runtime_dir(), Path("/run/user/1/mikanet"))

    def test_folder_that_may_not_be_looked_into(self) -> None:
        """Who was root, and still has root's home, gets a folder of his own instead of an error."""
        with (
            mock.patch.dict(os.environ, {"HOME": "/root"}),
            mock.patch.object(os, "geteuid", lambda: 65534),
            mock.patch.object(Path, "exists", side_effect=PermissionError(13, "Permission denied")),
        ):
            for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
                os.environ.pop(name, None)
            self.assertEqual(runtime_dir(), Path("/tmp/mikanet-uid-65534"))

    def test_table(self) -> None:
        """A block for each service, counters in order."""
        lines = table([{"service": "mika-client", "pid": 7, "counters": {"b.long": 1234567, "a": 2}}])
        self.assertEqual(lines, ["mika-client (process 7)", "  a                  2", "  b.long     1,234,567"])

    def test_what_others_may_say(self) -> None:
        """Anything that is not of the form of ours is skipped: root reads the sockets of others."""
        good = {"service": "x", "pid": 1, "counters": {"a": 1}, "uptime": 5}
        self.assertTrue(_is_sound(good))
        for change in (
            {"uptime": "x"},
            {"counters": []},
            {"counters": {"a": "b"}},
            {"pid": "1"},
            {"service": 7},
            {"bytes_up": 1.5},
        ):
            self.assertFalse(_is_sound({**good, **change}), change)
        for found in ([], None, 7, "text"):
            self.assertFalse(_is_sound(found))

    def test_summary(self) -> None:
        """How long it runs, how many connections there are, what was carried; hostile text is made harmless."""
        said = {"service": "x\x1b[2J", "pid": 7, "counters": {}, "uptime": 90061, "connections": 1234}
        lines = table([{**said, "bytes_up": 999, "bytes_down": 1_234_567}])
        self.assertEqual(lines[0], "x?[2J (process 7): up 1 d 1 h, 1,234 connections, 999 B up, 1.2 MB down")
        for seconds, text in ((0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7200, "2 h"), (86400 * 3 + 5, "3 d 5 s")):
            self.assertEqual(format_time(seconds), text)
        for count, text in ((0, "0 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (5e9, "5.0 GB"), (2e15, "2000 TB")):
            self.assertEqual(format_bytes(count), text)

    def run_status(self, *words: str) -> tuple[object, str]:
        """``mikanet status`` in an empty folder."""
        with (
            mock.patch.dict(os.environ, {"RUNTIME_DIRECTORY": self.mktemp()}),
            mock.patch.object(sys, "stdout", StringIO()) as stdout,
            self.assertRaises(SystemExit) as caught,
        ):
            main(["status", *words])
        return caught.exception.code, stdout.getvalue()

    def test_nothing_runs(self) -> None:
        """It says so, with status 1; in JSON nothing is nothing."""
        code, printed = self.run_status()
        self.assertEqual(code, 1)
        self.assertIn("no running service", printed)
        self.assertEqual(self.run_status("--json"), (1, ""))
