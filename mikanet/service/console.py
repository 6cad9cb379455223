"""The log of a program in the foreground: for people on a terminal, and for whoever collects lines otherwise.

A line has the time, what is wrong if something is, and the message. Names of classes and modules are for log files of
twistd, which keep their own form.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, formatEvent
from zope.interface import implementer

_COLOURS = {LogLevel.warn: "\x1b[33m", LogLevel.error: "\x1b[31m", LogLevel.critical: "\x1b[31m"}
_PLAIN = "\x1b[0m"
_WORDS = {LogLevel.debug: "debug", LogLevel.info: "info", LogLevel.warn: "warning", LogLevel.error: "error"}

#: What Twisted itself says that a user wants to read.
_OF_TWISTED = ("Received SIG",)


@implementer(ILogObserver)
class ConsoleObserver:
    """Writes lines to a stream; in colour, and with the time of day only, if that is a terminal.

    :param local_time: turns Unix seconds into a local time.
    """

    def __init__(self, stream: TextIO, local_time: Callable[[float], time.struct_time] = time.localtime) -> None:
        self._stream = stream
        self._local_time = local_time
        self._terminal = stream.isatty()

    def __call__(self, event: LogEvent) -> None:
        """Write one event, if it is for users."""
        if event.get("on_stderr"):
            return
        level = event.get("log_level", LogLevel.info)
        failure = "log_failure" in event or bool(event.get("isError"))
        if not failure and level <= LogLevel.info and not _is_ours(event):
            return
        text = self._text(event, failure)
        if text:
            self._stream.write(f"{self._stamp(event, level)}{text}\n")
            self._stream.flush()

    def _text(self, event: LogEvent, failure: bool) -> str:
        if failure:
            return eventAsText(event, includeTimestamp=False, includeSystem=False)
        # Names that peers sent are in some messages: nothing of them is to steer a terminal or to begin a line.
        return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in formatEvent(event))

    def _stamp(self, event: LogEvent, level: Any) -> str:
        moment = self._local_time(event.get("log_time", 0.0))
        if not self._terminal:
            return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z', moment)} {_WORDS.get(level, 'critical')} "
        colour = _COLOURS.get(level)
        stamp = time.strftime("%H:%M:%S", moment)
        return f"{stamp} {colour}{_WORDS.get(level, 'critical')}{_PLAIN} " if colour else f"{stamp} "


def _is_ours(event: LogEvent) -> bool:
    namespace = str(event.get("log_namespace", ""))
    if namespace.startswith("mikanet"):
        return True
    if namespace in ("stdout", "stderr"):
        return True
    return formatEvent(event).startswith(_OF_TWISTED)


def console_observer() -> ConsoleObserver:
    """What twistd calls for its observer: lines on stdout, where it writes its own."""
    return ConsoleObserver(sys.stdout)


def use_console(parent: Any) -> None:
    """Have a twistd in the foreground write such lines, unless its user wants its log elsewhere.

    :param parent: twistd's options, or None.
    """
    if parent is None or "nodaemon" not in parent or not parent["nodaemon"]:
        return
    if parent.get("logger") or parent.get("syslog") or parent.get("logfile") not in (None, "", "-"):
        return
    parent["logger"] = f"{__name__}.{console_observer.__name__}"  # twistd imports it
