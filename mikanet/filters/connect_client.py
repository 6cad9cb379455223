"""Filters: the client's side of an HTTP proxy's CONNECT, as an endpoint."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from zope.interface import implementer

from mikanet.address import Address
from mikanet.filters.base import FilterClientEndpoint
from mikanet.filters.proxy_client import HANDSHAKE_TIMEOUT, ProxyClient
from mikanet.wire.connect_client import ConnectHandshake


@implementer(IStreamClientEndpoint)
class ConnectClientEndpoint:
    """A destination behind an HTTP proxy.

    ``connect`` fails with :class:`~mikanet.errors.DestinationError` when the proxy refuses: ``POLICY`` when it wants
    other credentials. When the proxy itself cannot be reached, it fails as ``proxy_endpoint`` does.

    :param proxy_endpoint: leads to the proxy.
    :param username: for Basic authentication; None to offer none.
    :param timeout: seconds for the handshake.
    :raises LocalProtocolError: if the destination or user name has no form in HTTP.
    """

    def __init__(
        self,
        proxy_endpoint: IStreamClientEndpoint,
        destination: Address,
        username: str | None = None,
        password: str | None = None,
        *,
        clock: IReactorTime,
        timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self._proxy = proxy_endpoint
        self._arguments = (destination, username, password)
        self._clock = clock
        self._timeout = timeout
        ConnectHandshake(*self._arguments)  # for its checks

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to the proxy; fires with the protocol once the destination is reached."""
        endpoint = FilterClientEndpoint(
            self._proxy,
            lambda upper: ProxyClient(upper, ConnectHandshake(*self._arguments), self._clock, self._timeout),
        )
        return endpoint.connect(protocolFactory)
