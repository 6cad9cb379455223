"""What workers print, on its way into the log: in lines of a bounded length, harmless to look at, and not without end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

#: Longest line that goes into the log in one piece, in bytes.
MAX_LINE = 4096

#: Bytes of one worker that go into the log in one window of so many seconds; what is more is counted and dropped.
LOGGED, WINDOW = 256 * 1024, 1.0

#: Bytes that are read in a window at most: a worker that prints without end waits for its pipe.
READ = 4 * 1024 * 1024


def harmless(line: bytes) -> str:
    """A line as text of one line, whatever is in it: what cannot be printed is shown as an escape.

    A carriage return, an escape sequence or a line separator could otherwise forge or hide lines of the log.
    """
    text = line.decode("utf-8", "backslashreplace").rstrip()
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(char: str) -> str:
    return "\t" if char == "\t" else char.encode("unicode_escape").decode()


class Output:
    """The two outputs of one worker.

    :param say: takes each line. :param listen: called with whether more is to be read.
    """

    def __init__(self, clock: Any, say: Callable[[str], None], listen: Callable[[bool], None]) -> None:
        self._clock = clock
        self._say = say
        self._listen = listen
        self._rests: dict[int, bytes] = {}
        self._read = 0
        self._dropped = 0
        self._window: IDelayedCall | None = None
        self._paused = False

    def received(self, number: int, data: bytes) -> None:
        """Bytes from output ``number``."""
        if self._window is None:
            self._window = self._clock.callLater(WINDOW, self._window_over)
        self._read += len(data)
        if self._read > LOGGED:
            self._dropped += len(data)
            self._rests.pop(number, None)
            if self._read > READ and not self._paused:
                self._paused = True
                self._listen(False)
            return
        *lines, rest = (self._rests.get(number, b"") + data).split(b"\n")
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rests[number] = rest
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if line.strip():
            for at in range(0, len(line), MAX_LINE):
                self._say(harmless(line[at : at + MAX_LINE]))

    def _window_over(self) -> None:
        self._window = None
        self._read = 0
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._say(f"({dropped} bytes more were printed within {WINDOW:g} s and are not shown)")
        if self._paused:
            self._paused = False
            self._listen(True)

    def ended(self) -> None:
        """Nothing more comes."""
        if self._window is not None:
            self._window.cancel()
            self._window_over()
        for rest in self._rests.values():
            self._line(rest)
        self._rests.clear()
