"""What a client knows of its own server: whether it can be used now, and if not, why.

Front doors ask before they let an application wait, and the user reads the same words in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.answers import Answer
from mikanet.errors import Reason, ServerError, reason_of

#: How long applications wait for a server that has not answered yet, in seconds from the first attempt (our choice).
PATIENCE = 3.0

#: Least time between two messages about the same trouble, in seconds.
REPEAT_TIME = 60.0

T = TypeVar("T")

_log = Logger()


class ServerState:
    """Usable, or not and why.

    A client calls :meth:`trying` when it begins to reach its server, :meth:`failed` and :meth:`usable` as that goes.
    From :data:`PATIENCE` after the first attempt that did not succeed on there is ``trouble``, until one succeeds.

    :param name: the server in the user's words.
    :param report: takes one line for the user; the default logs a warning.
    :ivar trouble: why the server cannot be used, or None.
    """

    def __init__(self, clock: IReactorTime, name: str, report: Callable[[str], None] | None = None) -> None:
        self.name = name
        self.trouble: ServerError | None = None
        self._clock = clock
        self._report = report or (lambda text: _log.warn("{text}", text=text))
        self._waiting: dict[Callable[[ServerError], object], None] = {}
        self._patience: IDelayedCall | None = None
        self._cause: tuple[Reason, str] | None = None
        self._said = ""
        self._said_at = -REPEAT_TIME

    def trying(self) -> None:
        """An attempt begins while there is no established connection or session."""
        if self.trouble is None and self._patience is None:
            self._patience = self._clock.callLater(PATIENCE, self._out_of_patience)

    def failed(self, reason: Reason, text: str) -> None:
        """An attempt has failed; there may be others under way.

        :param text: what is wrong and what to do, without the server's name: ``refuses connections``.
        """
        self._cause = reason, text
        if self.trouble is not None:
            self._set(reason, text)

    def hopeless(self, reason: Reason, text: str) -> None:
        """It is certain that the server cannot be used as things are: nobody waits any longer."""
        self._cause = reason, text
        self._stop_patience()
        self._set(reason, text)

    def usable(self) -> None:
        """The server has shown that it can be used."""
        self._stop_patience()
        self._cause = None
        trouble, self.trouble = self.trouble, None
        if trouble is not None and self._said:
            self._said = ""
            self._said_at = -REPEAT_TIME
            self._report(f"the server {self.name} can be used again")

    def remark(self, text: str) -> None:
        """Something that the user should look at; nobody is refused for it. As :meth:`failed`."""
        self._say(f"the server {self.name} {text}")

    def wait(self, call: Callable[[ServerError], object]) -> None:
        """Have ``call`` called when there is trouble, once, until :meth:`wait_no_more`."""
        self._waiting[call] = None

    def wait_no_more(self, call: Callable[[ServerError], object]) -> None:
        """Forget a call; an unknown one is no error."""
        self._waiting.pop(call, None)

    def unless_trouble(self, attempt: Deferred[T]) -> Deferred[T]:
        """What ``attempt`` brings, or its failure; if there is trouble first, that, and the attempt is cancelled."""
        if self.trouble is not None:
            attempt.addErrback(lambda _: None)
            attempt.cancel()
            return fail(self.trouble)
        answer: Answer[T] = Answer(attempt.cancel)

        def trouble(problem: ServerError) -> None:
            if answer.fail(problem):
                attempt.cancel()

        def ended(outcome: object) -> object:
            self.wait_no_more(trouble)
            return outcome

        self.wait(trouble)
        attempt.addBoth(ended)
        attempt.addCallbacks(answer.give, answer.fail)
        return answer.deferred

    def forget(self) -> None:
        """Nobody has asked for a while: the next one is to find out anew."""
        self._stop_patience()
        self.trouble = self._cause = None

    def stop(self) -> None:
        """The client ends."""
        self._stop_patience()
        self._waiting.clear()

    def _out_of_patience(self) -> None:
        self._patience = None
        self._set(*(self._cause or (Reason.TIMEOUT, f"does not answer within {PATIENCE:g} s")))

    def _stop_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _set(self, reason: Reason, text: str) -> None:
        self.trouble = ServerError(reason, f"the tunnel's server {text}")
        self._say(f"the server {self.name} {text}")
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call(self.trouble)

    def _say(self, line: str) -> None:
        now = self._clock.seconds()
        if line != self._said or now - self._said_at >= REPEAT_TIME:
            self._said, self._said_at = line, now
            self._report(line)


def describe_failure(failure: Failure) -> tuple[Reason, str]:
    """Why a connection to a server failed, in words that follow its name."""
    reason = reason_of(failure.value)
    said = {
        Reason.REFUSED: "refuses connections: is it running, and is the port right?",
        Reason.TIMEOUT: "cannot be reached: it does not answer, or a firewall is in the way",
        Reason.HOST_UNREACHABLE: "cannot be reached: its name has no address, or there is no way to it",
        Reason.NETWORK_UNREACHABLE: "cannot be reached: this machine has no way to that network",
    }.get(reason)
    if said is None:
        text = " ".join((str(failure.value) or type(failure.value).__name__).split()).rstrip(".")
        said = f"cannot be reached: {text}"
    return reason, said
