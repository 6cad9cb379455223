"""Filters: the client's side of a SOCKS5 proxy, as a filter and as an endpoint."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from zope.interface import implementer

from mikanet.address import Address
from mikanet.filters.base import FilterClientEndpoint
from mikanet.filters.proxy_client import HANDSHAKE_TIMEOUT, ProxyClient
from mikanet.wire.socks_client import ClientHandshake


class Socks5Client(ProxyClient):
    """Asks a SOCKS5 proxy for a connection; see :class:`~mikanet.filters.proxy_client.ProxyClient`."""

    __slots__ = ()


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
