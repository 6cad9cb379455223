"""``obfs-http:ENDPOINT[:url=http\\://www.example.com/]``: an HTTP head in front of each direction."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from mikanet.endpoint_strings import client_from_string, server_from_string
from mikanet.endpoints.arguments import no_more
from mikanet.errors import ConfigError
from mikanet.filters.obfs_http import obfs_http_client, obfs_http_server


def parse_client(
    reactor: Any, endpoint: str = "", *rest: str, url: str = "http://www.example.com/", **options: str
) -> IStreamClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong, missing or unknown.
    """
    _check(endpoint, rest, "obfs-http:tcp\\:HOST\\:8388")
    no_more("obfs-http", options)
    return obfs_http_client(client_from_string(reactor, endpoint), url)


def parse_server(reactor: Any, endpoint: str = "", *rest: str, **options: str) -> IStreamServerEndpoint:
    """A server endpoint.

    :raises ConfigError: if an argument is wrong, missing or unknown.
    """
    _check(endpoint, rest, "obfs-http:tcp\\:8388")
    no_more("obfs-http", options)
    return obfs_http_server(server_from_string(reactor, endpoint))


def _check(endpoint: str, rest: tuple[str, ...], example: str) -> None:
    if not endpoint or rest:
        raise ConfigError(f"obfs-http: takes one endpoint, with its colons escaped: {example}")
