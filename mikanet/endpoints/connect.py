"""``connect:HOST:PORT:server=ENDPOINT[:credentials-file=FILE]``: TCP through an HTTP proxy, by CONNECT.

The first line of the file is ``user:password``, for Basic authentication; a proxy that wants NTLM or Kerberos is not spoken to.
"""

from __future__ import annotations

from typing import Any

from mikanet.address import Address, parse_port
from mikanet.endpoint_strings import client_from_string
from mikanet.endpoints.arguments import no_more
from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.filters.connect_client import ConnectClientEndpoint
from mikanet.service.secret_files import read_credentials


def parse_client(reactor: Any, host: str, port: str, server: str, **options: str) -> ConnectClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong or unknown.
    """
    file = options.pop("credentials-file", None)
    no_more("connect", options)
    user = password = None
    if file is not None:
        user, password = next(iter(read_credentials(file).items()))
    proxy = client_from_string(reactor, server)
    try:
        return ConnectClientEndpoint(proxy, Address(host, parse_port(port)), user, password, clock=reactor)
    except LocalProtocolError as problem:
        raise ConfigError(f"connect: {problem}") from None
