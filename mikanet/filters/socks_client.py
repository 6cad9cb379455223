"""Filters: the client's side of a SOCKS5 proxy, as a filter and as an endpoint."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason, RemoteProtocolError
from mikanet.filters.base import Filter, FilterClientEndpoint
from mikanet.wire.socks import reason_of_rep
from mikanet.wire.socks_client import ClientHandshake, CredentialsRefusedError

#: How long a proxy may take to reach the destination and answer, in seconds (our choice).
HANDSHAKE_TIMEOUT = 60.0


class Socks5Client(Filter):
    """Asks a proxy for a connection; once it is granted, the bytes flow unchanged.

    Lower side: a byte stream to the proxy. Upper side: a byte stream to the destination.

    :param handshake: not yet begun.
    :param clock: bounds the time of the handshake.
    """

    __slots__ = ("_clock", "_deadline", "_failure", "_handshake", "_timeout")

    def __init__(
        self, upper: IProtocol, handshake: ClientHandshake, clock: IReactorTime, timeout: float = HANDSHAKE_TIMEOUT
    ) -> None:
        super().__init__(upper)
        self._handshake: ClientHandshake | None = handshake
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

    def _negotiate(self, handshake: ClientHandshake, data: bytes) -> None:
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


@implementer(IStreamClientEndpoint)
class Socks5ClientEndpoint:
    """A destination behind a SOCKS5 proxy.

    ``connect`` fails with :class:`DestinationError` when the handshake fails: ``POLICY`` when the proxy wants other
    credentials or forbids the destination, otherwise the reason that the proxy gives. When the proxy itself cannot be
    reached, it fails as ``proxy_endpoint`` does.

    :param proxy_endpoint: leads to the proxy.
    :param username: 1..255 bytes in UTF-8, and so the password; None to offer no password.
    :param clock: provides IReactorTime; the global reactor if None.
    :param timeout: seconds for the handshake, from the proxy's connection to its reply.
    :raises LocalProtocolError: if the destination, user name or password has no form in SOCKS5.
    """

    def __init__(
        self,
        proxy_endpoint: IStreamClientEndpoint,
        destination: Address,
        username: str | None = None,
        password: str | None = None,
        *,
        clock: Any = None,
        timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        if clock is None:
            from twisted.internet import reactor as clock
        self._proxy = proxy_endpoint
        self._destination = destination
        self._username = username
        self._password = password
        self._clock: IReactorTime = clock
        self._timeout = timeout
        # Made once here for its checks.
        self._make_handshake()

    def _make_handshake(self) -> ClientHandshake:
        return ClientHandshake(self._destination, self._username, self._password)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to the proxy; fires with the protocol once the destination is reached."""
        endpoint = FilterClientEndpoint(
            self._proxy, lambda upper: Socks5Client(upper, self._make_handshake(), self._clock, self._timeout)
        )
        return endpoint.connect(protocolFactory)
