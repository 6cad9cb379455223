"""``nitrosocks:HOST:PORT:server=ENDPOINT:server-name=NAME:private-key=FILE:token-file=FILE[:tls-verify=system]...``.

TCP to HOST and PORT through a NitroSocks server. All strings with the same server and keys share one session.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from mikanet.address import Address, parse_port
from mikanet.endpoint_strings import client_from_string
from mikanet.endpoints.arguments import no_more, yes_no
from mikanet.errors import ConfigError
from mikanet.nitrosocks.client import NitroTunnel, Server
from mikanet.nitrosocks.options import make_client_config

_tunnels: dict[tuple[object, ...], NitroTunnel] = {}


def parse_client(reactor: Any, host: str, port: str, server: str, **options: str) -> IStreamClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong, missing or unknown.
    """
    given = dict(options)
    for name in ("server-name", "private-key", "token-file"):
        if name not in given:
            raise ConfigError(f"nitrosocks: needs {name}=...")
    key = (reactor, server, tuple(sorted(options.items())))
    tunnel = _tunnels.get(key)
    if tunnel is None:
        config = make_client_config(
            server_name=given.pop("server-name"),
            private_key=given.pop("private-key"),
            token_file=given.pop("token-file"),
            tls_verify=given.pop("tls-verify", "system"),
            cipher=given.pop("cipher", "aes-256-gcm"),
            tls_binding=given.pop("tls-binding", "off"),
            insecure_ok=yes_no("insecure-ok", given.pop("insecure-ok", "no")),
        )
        no_more("nitrosocks", given)
        tunnel = _tunnels[key] = NitroTunnel(reactor, [Server(server, client_from_string(reactor, server))], config)
    return tunnel.stream_endpoint(Address(host, parse_port(port)))
