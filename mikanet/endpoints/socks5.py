"""``socks5:HOST:PORT:server=ENDPOINT[:credentials-file=FILE]``: TCP through a SOCKS5 proxy.

The first line of the file is ``user:password``.
"""

from __future__ import annotations

from typing import Any

from mikanet.address import Address, parse_port
from mikanet.endpoint_strings import client_from_string
from mikanet.endpoints.arguments import no_more
from mikanet.filters.socks_client import Socks5ClientEndpoint
from mikanet.service.secret_files import read_credentials


def parse_client(reactor: Any, host: str, port: str, server: str, **options: str) -> Socks5ClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong or unknown.
    """
    file = options.pop("credentials-file", None)
    no_more("socks5", options)
    user = password = None
    if file is not None:
        user, password = next(iter(read_credentials(file).items()))
    proxy = client_from_string(reactor, server)
    return Socks5ClientEndpoint(proxy, Address(host, parse_port(port)), user, password)
