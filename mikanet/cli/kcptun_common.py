"""What the two kcptun commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort

from mikanet.errors import ConfigError
from mikanet.service.options import Options
from mikanet.smux.session import SmuxSettings

#: kcptun's: a frame of at most 32 KiB, NOP each 10 s, and 30 s of silence are the end.
KCPTUN_SMUX = SmuxSettings(version=1, max_frame=32768, keepalive_interval=10.0, keepalive_timeout=30.0)


class KcptunOptions(Options):
    """Options of both ends."""

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["smux", None, "1", "smux version: 1 or 2, as the peer's"],
    ]

    smux: SmuxSettings

    def check(self) -> None:
        """See :meth:`Options.check`."""
        if self["smux"] not in ("1", "2"):
            raise ConfigError(f"--smux is 1 or 2, not {self['smux']}")
        self.smux = SmuxSettings(int(self["smux"]), KCPTUN_SMUX.max_frame, keepalive_interval=10.0)


def serve(reactor: Any, listen: Callable[[], Deferred[IListeningPort]]) -> int:
    """Listen, and run until stopped; the exit status."""
    problem: list[str] = []

    def failed(why: Any) -> None:
        cause = why.value
        text = str(cause.socketError) if isinstance(cause, error.CannotListenError) else str(cause)
        problem.append(" ".join(text.split()))
        reactor.stop()

    def start() -> None:
        listen().addErrback(failed)

    reactor.callWhenRunning(start)
    reactor.run()
    if problem:
        raise SystemExit(f"cannot listen: {problem[0]}")
    return 0
