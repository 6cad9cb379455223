"""Outgoing TCP connections: straight to an address, or to the first of several that answers.

Each connection that a proxy takes in is one that it opens, so opening has to be lean: one deadline queue for all
attempts instead of a timer for each, and nothing around the protocol once it is connected.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, cast

from twisted.internet import error, tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IWriteDescriptor
from twisted.internet.posixbase import PosixReactorBase
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import IPAddress
from mikanet.guard.deadlines import Deadlines

#: How long a connection attempt may take, in seconds (our choice; the original programs wait 8 s to for ever).
CONNECT_TIMEOUT = 15.0

#: When several addresses are tried: how long one attempt is alone before the next begins, in seconds (RFC 8305, section 5).
ATTEMPT_DELAY = 0.25

#: Most addresses of one name that are tried: a name is not to make a server knock at hundreds of doors.
MAX_ATTEMPTS = 8


class Dialer:
    """Opens TCP connections to IP addresses.

    :param reactor: any with TCP; one with real sockets is used directly.
    :param timeout: seconds that each attempt may take.
    """

    def __init__(self, reactor: Any, timeout: float = CONNECT_TIMEOUT) -> None:
        self.reactor = reactor
        self.timeout = timeout
        self.deadlines = Deadlines(reactor, timeout)
        self._direct = isinstance(reactor, PosixReactorBase)  # reactors of tests have no sockets

    def connect(self, host: str, port: int, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to an IP address; fires with the connected protocol. Cancelling ends the attempt."""
        if self._direct:
            return _Attempt(self, host, port, factory).start()
        kind = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
        return kind(self.reactor, host, port, self.timeout).connect(factory)


@implementer(IWriteDescriptor)
class _Attempt:
    """One attempt: a socket that the reactor watches until it can be written to, and then takes over."""

    __slots__ = ("__weakref__", "_deadline", "_dialer", "_done", "_factory", "_peer", "_socket")

    def __init__(self, dialer: Dialer, host: str, port: int, factory: IProtocolFactory) -> None:
        self._dialer = dialer
        self._peer = (host, port)
        self._factory = factory
        self._socket: socket.socket | None = None
        self._deadline = -1
        self._done: Deferred[IProtocol] = Deferred(self._cancelled)

    def start(self) -> Deferred[IProtocol]:
        """Begin."""
        family = socket.AF_INET6 if ":" in self._peer[0] else socket.AF_INET
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            number = self._socket.connect_ex(self._peer)
        except (OSError, OverflowError) as problem:
            self._close()
            return fail(Failure(error.ConnectError(string=str(problem))))
        if number == errno.EINPROGRESS:
            self._deadline = self._dialer.deadlines.start(self._timed_out)
            self._dialer.reactor.addWriter(self)
        elif number == 0:
            self._adopt()
        else:
            self._fail(_explain(number))
        return self._done

    # -- what the reactor asks for

    def fileno(self) -> int:
        """The socket's number."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """For messages of the reactor."""
        return "dialling"

    def doWrite(self) -> None:
        """The attempt is over, one way or the other."""
        self._settle()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an error, or is ending."""
        self._settle()

    def _settle(self) -> None:
        if self._socket is None:
            return
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._fail(_explain(number))
        else:
            self._stop_watching()
            self._adopt()

    def _adopt(self) -> None:
        made = self._socket
        assert made is not None
        self._socket = None
        try:
            peer = self._peer if made.family == socket.AF_INET else made.getpeername()
            kind = IPv4Address if made.family == socket.AF_INET else IPv6Address
            protocol = self._factory.buildProtocol(kind("TCP", *peer))
            if protocol is None:
                raise error.NoProtocol
            # What adoptStreamConnection() does with a copy of the descriptor.
            transport = tcp.Server(made, protocol, peer, cast(Any, None), self._peer[1], self._dialer.reactor)
        except (OSError, error.NoProtocol) as problem:
            made.close()
            self._done.errback(Failure(problem))
            return
        transport.repstr = f"<{type(protocol).__name__} to {self._peer[0]}>"
        protocol.makeConnection(transport)
        if not self._done.called:  # cancelled by the protocol while it was being connected, which knows what it does
            self._done.callback(protocol)

    # -- ends

    def _timed_out(self) -> None:
        self._fail(error.TimeoutError())

    def _cancelled(self, done: Deferred[IProtocol]) -> None:
        if self._socket is not None:
            self._fail(error.ConnectingCancelledError(cast(Any, self._peer)))

    def _fail(self, problem: BaseException) -> None:
        self._stop_watching()
        self._close()
        self._done.errback(Failure(problem))

    def _stop_watching(self) -> None:
        self._dialer.deadlines.cancel(self._deadline)
        self._dialer.reactor.removeWriter(self)

    def _close(self) -> None:
        made, self._socket = self._socket, None
        if made is not None:
            made.close()


def _explain(number: int) -> BaseException:
    found: BaseException = error.getConnectError((number, os.strerror(number)))
    return found


class _Race:
    """Attempts at several addresses, each some time after the one before or when that has failed; the first wins."""

    __slots__ = ("_addresses", "_attempts", "_done", "_factory", "_first_problem", "_key", "_over", "_port", "_race")

    def __init__(self, race: Racing, addresses: Sequence[IPAddress], port: int, factory: IProtocolFactory) -> None:
        self._race = race
        self._addresses = deque(addresses)
        self._port = port
        self._factory = factory
        self._attempts: set[Deferred[IProtocol]] = set()
        self._first_problem: Failure | None = None
        self._key = -1
        self._over = False
        self._done: Deferred[IProtocol] = Deferred(lambda _: self._stop())

    def start(self) -> Deferred[IProtocol]:
        """Begin with the first address."""
        self._next()
        return self._done

    def _next(self) -> None:
        self._race.delays.cancel(self._key)
        address = self._addresses.popleft()
        if self._addresses:
            self._key = self._race.delays.start(self._next)
        attempt = self._race.dialer.connect(str(address), self._port, self._factory)
        self._attempts.add(attempt)
        attempt.addCallbacks(self._connected, self._failed, callbackArgs=(attempt,), errbackArgs=(attempt,))

    def _connected(self, protocol: IProtocol, attempt: Deferred[IProtocol]) -> None:
        self._attempts.discard(attempt)
        self._stop()
        self._done.callback(protocol)

    def _failed(self, failure: Failure, attempt: Deferred[IProtocol]) -> None:
        self._attempts.discard(attempt)
        if self._over:
            return
        # "No route" of the family that this network does not have says less than what the other one met.
        if self._first_problem is None or self._first_problem.check(error.NoRouteError):
            self._first_problem = failure
        if self._addresses:
            self._next()
        elif not self._attempts:
            self._done.errback(self._first_problem)

    def _stop(self) -> None:
        self._over = True
        self._addresses.clear()
        self._race.delays.cancel(self._key)
        attempts, self._attempts = self._attempts, set()
        for attempt in attempts:
            attempt.addErrback(lambda _: None)
            attempt.cancel()


class Racing:
    """Opens a connection to whichever of several addresses answers first (happy eyeballs, RFC 8305 section 5)."""

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer
        self.delays = Deadlines(dialer.reactor, ATTEMPT_DELAY)

    def connect(self, addresses: Sequence[IPAddress], port: int, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to one of ``addresses``, in turns of the two families; at most :data:`MAX_ATTEMPTS` are tried.

        The Deferred fails with one of Twisted's connection errors. Cancelling ends all attempts.
        """
        if len(addresses) == 1:
            return self.dialer.connect(str(addresses[0]), port, factory)
        return _Race(self, interleave(addresses)[:MAX_ATTEMPTS], port, factory).start()


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """The addresses in turns of the two families, beginning with that of the first one."""
    first = [ip for ip in addresses if ip.version == addresses[0].version]
    others = [ip for ip in addresses if ip.version != addresses[0].version]
    pairs = zip_longest(first, others)
    return [ip for pair in pairs for ip in pair if ip is not None]
