"""Services that listen, and servers that end in order (X9)."""

from __future__ import annotations

import errno
import resource
import signal
import sys
from collections.abc import Callable, Collection
from typing import Any, ClassVar, NoReturn, Protocol

from twisted.application.service import MultiService, Service
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.address import parse_ip

_log = Logger()


class ListeningService(Service):
    """Listens on an endpoint from before privileges are dropped until it is stopped.

    :param text: the endpoint in the user's words.
    :param purpose: what is listened for, for messages.
    :param warn_beyond_loopback: say so if others than this machine can connect.
    """

    def __init__(
        self,
        text: str,
        endpoint: IStreamServerEndpoint,
        factory: IProtocolFactory,
        purpose: str,
        warn_beyond_loopback: bool = False,
    ) -> None:
        self._text = text
        self._endpoint = endpoint
        self._factory = factory
        self._purpose = purpose
        self._warn_beyond_loopback = warn_beyond_loopback
        self._port: IListeningPort | None = None
        self._stopped = False
        self._starting = True
        self._problem: BaseException | None = None

    def privilegedStartService(self) -> None:
        """Open the port.

        :raises SystemExit: after one line for the user on stderr, if that cannot be done.
        """
        maybeDeferred(self._endpoint.listen, self._factory).addCallbacks(self._listening, self._failed)
        self._starting = False
        if self._problem is not None:
            fail_to_listen(self._text, self._problem)

    def _failed(self, failure: Failure) -> None:
        if self._starting:
            self._problem = failure.value
        else:
            _log.critical("cannot listen on {where}: {problem}", where=self._text, problem=str(failure.value))

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        _log.info("{purpose} on {address}", purpose=self._purpose, address=_describe_address(port))
        if self._warn_beyond_loopback and not _is_loopback(port):
            _log.warn(
                "{purpose} on {address} serves everybody who can reach it: give --proxy-auth FILE, or listen on loopback "
                "with :interface=127.0.0.1",
                purpose=self._purpose,
                address=_describe_address(port),
            )
        if self._stopped:
            port.stopListening()

    def stopService(self) -> Deferred[None]:
        """Close the port; connections that it accepted live on."""
        super().stopService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._stopped = True
        if self._port is None:
            return succeed(None)
        return maybeDeferred(self._port.stopListening).addCallback(lambda _: None)


def fail_to_listen(where: str, problem: BaseException) -> NoReturn:
    """Tell the user why a port cannot be opened, in one line on stderr and in the log, and end the process."""
    cause = problem.socketError if isinstance(problem, error.CannotListenError) else problem
    if isinstance(cause, OverflowError):
        cause = OSError(0, "a port is a number from 1 to 65535")
    text = f"cannot listen on {where}: {getattr(cause, 'strerror', None) or cause}"
    advice = _ADVICE.get(getattr(cause, "errno", None) or 0)
    if advice is not None:
        text = f"{text}; {advice}"
    fail_to_serve(text)


def fail_to_serve(text: str) -> NoReturn:
    """Tell the user in one line, on stderr and in the log, why this cannot go on, and end the process."""
    on_stderr = sys.__stderr__ is not None
    # A log that goes to the same terminal leaves out what stands there already.
    _log.critical("{text}", text=text, on_stderr=on_stderr)
    if sys.__stderr__ is not None:
        # twistd has taken over sys.stderr by now, and what is written there ends in the log.
        sys.__stderr__.write(f"{text}\n")
    raise CannotServeError(text)


class CannotServeError(SystemExit, Exception):
    """Ends the process without a traceback; as an Exception, too, so that a daemon's parent is told why.

    Its status is a number: the interpreter would print a text once more.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = 1


_ADVICE = {
    errno.EADDRINUSE: "another program has that port: stop it, or choose another port",
    errno.EACCES: "ports below 1024 need root, or the capability CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


def _describe_address(port: IListeningPort) -> str:
    address = port.getHost()
    host, number = getattr(address, "host", None), getattr(address, "port", None)
    return str(address) if host is None else f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _is_loopback(port: IListeningPort) -> bool:
    ip = parse_ip(str(getattr(port.getHost(), "host", "")))
    return ip is not None and ip.is_loopback


class Abortable(Protocol):
    """A connection that can be cut."""

    def abort(self) -> None:
        """End at once with a reset."""


class DrainingService(MultiService):
    """A parent of listening services whose end waits for connections, but not for ever.

    When stopped it first closes its ports, then lets the connections end by themselves for the drain time, then cuts
    them. A second signal cuts them at once.

    :cvar reloads: whether SIGHUP means something to this service, also on a terminal.
    :param connections: those that are there now; looked at again and again while draining.
    :param drain_time: seconds.
    """

    reloads: ClassVar[bool] = False

    def __init__(self, clock: IReactorTime, connections: Collection[Abortable], drain_time: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._clock = clock
        self._connections = connections
        self._drain_time = drain_time

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    def startService(self) -> None:
        """As MultiService; SIGHUP goes to :meth:`hang_up` unless it says that the user's terminal is gone."""
        super().startService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        if self.reloads or not sys.stdin or not sys.stdin.isatty():
            try:
                signal.signal(signal.SIGHUP, lambda *_: self.hang_up())
            except ValueError:
                pass  # not in the main thread, as in tests

    def hang_up(self) -> None:
        """SIGHUP, which some systems send when they rotate logs; a service with something to load overrides this."""
        _log.info("SIGHUP: there is nothing to load anew; going on")

    def stopService(self) -> Deferred[None]:
        """Fires when every port is closed and every connection has ended or was cut."""
        stopping = maybeDeferred(super().stopService)
        return stopping.addCallback(lambda _: self._drain())

    def _drain(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        until = self._clock.seconds() + self._drain_time
        hurry = [False]
        if self._connections and self._drain_time:
            _log.info(
                "waiting up to {time:g} s for {count} connections; a second signal cuts them",
                time=self._drain_time,
                count=len(self._connections),
            )
        restore = _on_signal(lambda: hurry.__setitem__(0, True))

        def look() -> None:
            if not self._connections or hurry[0] or self._clock.seconds() >= until:
                for connection in list(self._connections):
                    connection.abort()
                restore()
                # An abort acts in the next turn of the reactor: wait for it, or the process ends with clean closes.
                self._clock.callLater(0.01, done.callback, None)
            else:
                self._clock.callLater(0.1, look)

        look()
        return done


def _on_signal(call: Callable[[], None]) -> Callable[[], None]:
    """Call ``call`` at SIGTERM and SIGINT until the returned function puts things back."""
    old: dict[int, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, lambda *_: call())
    except ValueError:
        pass  # not in the main thread, so there is nothing to take over

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    return restore


def raise_file_limit() -> None:
    """Let this process open as many files as its hard limit permits: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            _log.debug("the limit of open files stays at {soft}", soft=soft)
