"""Filters: the client's side of a proxy that grants a connection by a handshake, whatever that looks like."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from twisted.python.failure import Failure

from mikanet.errors import DestinationError, Reason, RemoteProtocolError
from mikanet.filters.base import Filter
from mikanet.wire.socks import reason_of_rep
from mikanet.wire.socks_client import CredentialsRefusedError, Reply

#: How long a proxy may take to reach the destination and answer, in seconds (our choice).
HANDSHAKE_TIMEOUT = 60.0


class ProxyHandshake(Protocol):
    """What the filter needs of a handshake.

    :ivar reply: the proxy's answer once it is here; its ``rep`` is 0 if the connection is granted.
    """

    reply: Reply | None

    def start(self) -> bytes:
        """What goes first."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the proxy; answers what is to be sent now.

        :raises CredentialsRefusedError: when the proxy wants other credentials.
        :raises RemoteProtocolError: when it does not speak the protocol, or refuses in words of its own.
        """

    def rest(self) -> bytes:
        """What came behind the reply."""


class ProxyClient(Filter):
    """Asks a proxy for a connection; once it is granted, the bytes flow unchanged.

    Lower side: a byte stream to the proxy. Upper side: a byte stream to the destination.

    :param handshake: not yet begun.
    :param clock: bounds the time of the handshake.
    """

    __slots__ = ("_clock", "_deadline", "_failure", "_handshake", "_timeout")

    def __init__(
        self, upper: IProtocol, handshake: ProxyHandshake, clock: IReactorTime, timeout: float = HANDSHAKE_TIMEOUT
    ) -> None:
        super().__init__(upper)
        self._handshake: ProxyHandshake | None = handshake
        self._clock = clock
        self._timeout = timeout
        self._deadline: IDelayedCall | None = None
        self._failure: DestinationError | None = None

    def connectionMade(self) -> None:
        """Greet the proxy."""
        assert self._handshake is not None
        self._deadline = self._clock.callLater(self._timeout, self._timed_out)
        self.write(self._handshake.start())

    def dataReceived(self, data: bytes) -> None:
        """Handshake bytes; after the reply, bytes for the upper protocol."""
        handshake = self._handshake
        if handshake is None:
            self.upper.dataReceived(data)
        elif self._failure is None:
            self._negotiate(handshake, data)

    def _negotiate(self, handshake: ProxyHandshake, data: bytes) -> None:
        try:
            answer = handshake.feed(data)
        except CredentialsRefusedError as error:
            self._fail(Reason.POLICY, str(error))
            return
        except RemoteProtocolError as error:
            self._fail(Reason.FAILURE, str(error))
            return
        if answer:
            self.write(answer)
        reply = handshake.reply
        if reply is None:
            return
        if reply.rep:
            reason = reason_of_rep(reply.rep)
            self._fail(reason, f"the proxy answered: {reason.value} (code {reply.rep})")
            return
        self._cancel_deadline()
        self._handshake = None
        rest = handshake.rest()
        self.establish()
        if rest and self.transport is not None:
            self.upper.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """A proxy that ends before its reply will not give one."""
        if self._handshake is None:
            super().readConnectionLost()
        else:
            self._fail(Reason.FAILURE, "the proxy closed the connection")

    def connectionLost(self, reason: Failure) -> None:
        """The proxy's connection is gone; before the reply, the failure says why as well as is known."""
        self._cancel_deadline()
        if self._handshake is not None:
            failure = self._failure or DestinationError(Reason.FAILURE, "the proxy closed the connection")
            reason = Failure(failure)
        super().connectionLost(reason)

    def _timed_out(self) -> None:
        self._deadline = None
        self._fail(Reason.TIMEOUT, "the proxy did not answer in time")

    def _fail(self, reason: Reason, text: str) -> None:
        self._cancel_deadline()
        if self._failure is None:
            self._failure = DestinationError(reason, text)
        self.abortConnection()

    def _cancel_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()
