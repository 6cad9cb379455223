"""The log of a program in the foreground."""

from __future__ import annotations

import io
import time
from typing import Any

from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mikanet.service.console import ConsoleObserver, use_console

NOON = 1_700_049_600.0


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


class ConsoleTests(SynchronousTestCase):
    """Lines for people."""

    def written(self, stream: io.StringIO, namespace: str, level: LogLevel, text: str, **values: Any) -> str:
        """What one event makes of a stream."""
        observer = ConsoleObserver(stream, time.gmtime)
        publisher = LogPublisher(lambda event: observer({**event, "log_time": NOON}))
        Logger(namespace, observer=publisher).emit(level, text, **values)
        return stream.getvalue()

    def test_lines(self) -> None:
        """Time, a word for what is wrong, the message; no names of modules."""
        for level, plain, coloured in (
            (LogLevel.info, "2023-11-15T12:00:00+0000 info four workers\n", "12:00:00 four workers\n"),
            (
                LogLevel.warn,
                "2023-11-15T12:00:00+0000 warning four workers\n",
                "12:00:00 \x1b[33mwarning\x1b[0m four workers\n",
            ),
            (
                LogLevel.critical,
                "2023-11-15T12:00:00+0000 critical four workers\n",
                "12:00:00 \x1b[31mcritical\x1b[0m four workers\n",
            ),
        ):
            self.assertEqual(self.written(io.StringIO(), "mikanet.x", level, "{n} workers", n="four"), plain)
            self.assertEqual(self.written(Terminal(), "mikanet.x", level, "{n} workers", n="four"), coloured)

    def test_what_stands_on_stderr_is_not_said_again(self) -> None:
        """A message that its user has on stderr already is for log files."""
        for on_stderr, shown in ((True, 0), (False, 1)):
            text = self.written(io.StringIO(), "mikanet.x", LogLevel.critical, "no port", on_stderr=on_stderr)
            self.assertEqual(text.count("no port"), shown)

    def test_twisted(self) -> None:
        """Twisted's chatter stays away; its warnings, and that a signal came, do not."""
        for namespace, level, text, shown in (
            ("twisted.internet.base", LogLevel.info, "Main loop terminated.", False),
            ("-", LogLevel.info, "DoorFactory starting on 1080", False),
            ("twisted.internet.base", LogLevel.info, "Received SIGTERM, shutting down.", True),
            ("twisted.internet.tcp", LogLevel.warn, "out of files", True),
            ("stdout", LogLevel.info, "printed", True),
        ):
            self.assertEqual(text in self.written(io.StringIO(), namespace, level, text), shown, text)

    def test_hostile_names(self) -> None:
        """What a peer sent steers no terminal and begins no line."""
        line = self.written(
            Terminal(), "mikanet.x", LogLevel.info, "to {host}", host="a\x1b[2J\nwarning all is well\u202e"
        )
        self.assertEqual(line, "12:00:00 to a\\x1b[2J\\x0awarning all is well\\x202e\n")

    def test_failures(self) -> None:
        """A fault of ours comes with all that is known of it."""
        stream = io.StringIO()
        observer = ConsoleObserver(stream, time.gmtime)
        try:
            raise ValueError("odd")
        except ValueError:
            Logger("mikanet.x", observer=observer).failure("this should not happen")
        self.assertIn("this should not happen", stream.getvalue())
        self.assertIn("ValueError: odd", stream.getvalue())
        self.assertIn("Traceback", stream.getvalue())

    def test_when(self) -> None:
        """In the foreground, unless twistd's user wants the log elsewhere."""
        ours = "mikanet.service.console.console_observer"
        for options, expected in (
            ({"nodaemon": 1, "logfile": None, "syslog": 0, "logger": None}, ours),
            ({"nodaemon": 1, "logfile": "-", "syslog": 0, "logger": None}, ours),
            ({"nodaemon": 0, "logfile": None, "syslog": 0, "logger": None}, None),
            ({"nodaemon": 1, "logfile": "/var/log/x", "syslog": 0, "logger": None}, None),
            ({"nodaemon": 1, "logfile": None, "syslog": 1, "logger": None}, None),
            ({"nodaemon": 1, "logfile": None, "syslog": 0, "logger": "theirs"}, "theirs"),
        ):
            use_console(options)
            self.assertEqual(options["logger"], expected, options)
        use_console(None)
