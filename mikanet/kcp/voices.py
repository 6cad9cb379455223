"""The few words that both ends of a KCP link say when their keys may differ; the wire itself says nothing (X2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: Seconds until a client says that nothing has come back, and between two words about the same (our choice).
SILENCE_TIME, REMIND_TIME = 5.0, 60.0
#: Packets of a source that do not open until a server says so; less is noise of the internet (our choice).
TELLING = 3
#: Seconds between two such lines, of whatever sources; and sources that are remembered, for so many seconds.
LINE_TIME, MAX_SOURCES, SOURCE_TIME = 10.0, 1024, 3600.0

_log = Logger()


def _warn(text: str) -> None:
    _log.warn("{text}", text=text)


class ServerVoice:
    """Tells a server's operator of sources whose packets do not open: at most a line in ten seconds, an hour apart for each.

    :param say: takes one line; the default logs a warning.
    """

    def __init__(self, clock: IReactorTime, say: Callable[[str], None] = _warn) -> None:
        self._clock = clock
        self._say = say
        self._failing: OrderedDict[Hashable, int] = OrderedDict()  # negative once it was said
        self._said: OrderedDict[Hashable, float] = OrderedDict()
        self._next = 0.0
        self._unsaid = 0

    def opened(self, source: Hashable) -> None:
        """A packet of this source was good: what fails beside it is chance."""
        self._failing.pop(source, None)

    def failed(self, source: Hashable, host: str, count: int) -> None:
        """So many packets of a source failed their check."""
        failing = self._failing.pop(source, 0) + count
        self._failing[source] = failing
        if len(self._failing) > MAX_SOURCES:
            self._failing.popitem(last=False)
        now = self._clock.seconds()
        if failing < TELLING or self._said.get(source, 0.0) > now:
            return
        self._said[source] = now + SOURCE_TIME
        self._said.move_to_end(source)
        if len(self._said) > MAX_SOURCES:
            self._said.popitem(last=False)
        if now < self._next:
            self._unsaid += 1
            return
        self._next = now + LINE_TIME
        others = f" (and from {self._unsaid} other addresses)" if self._unsaid else ""
        self._unsaid = 0
        self._say(
            f"packets from {host}{others} do not open: if that is a client of yours, its key, kdf or block is another than "
            "here"
        )


class Watched(Protocol):
    """A client's session. :ivar opened: packets that were good; :ivar refused: packets that failed their check."""

    opened: int
    refused: int


class ClientVoice:
    """Tells a client's user when a session has brought nothing: of one server, at most a line a minute.

    :param server: in the user's words.
    """

    def __init__(self, clock: IReactorTime, server: str, say: Callable[[str], None] = _warn) -> None:
        self._clock = clock
        self._server = server
        self._say = say
        self._next = 0.0

    def watch(self, session: Watched) -> IDelayedCall:
        """Look at a session in a while; cancel that when it ends."""
        return self._clock.callLater(SILENCE_TIME, self._look, session)

    def _look(self, session: Watched) -> None:
        now = self._clock.seconds()
        if session.opened or now < self._next:
            return
        self._next = now + REMIND_TIME
        if session.refused:
            self._say(f"packets from {self._server} do not open: key, kdf or block is another there")
        else:
            self._say(
                f"nothing has come from {self._server}: check that it runs, that its UDP port can be reached, and that key, "
                "kdf and block are the same there, as a server with others keeps silent"
            )
