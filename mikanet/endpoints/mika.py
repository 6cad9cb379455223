"""``mika:HOST:PORT:server=ENDPOINT:password-file=FILE[:profile=spec][:method=aes-256-cfb][:insecure-ok=no]``.

TCP to HOST and PORT through a Mika server. Keys are derived once per server, password and profile.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from mikanet.address import Address, parse_port
from mikanet.endpoint_strings import client_from_string
from mikanet.endpoints.arguments import no_more, yes_no
from mikanet.errors import ConfigError
from mikanet.mika.client import MikaClientConfig, MikaTunnel
from mikanet.mika.session import Profile, derive_keys
from mikanet.service.secret_files import read_secret

_tunnels: dict[tuple[object, ...], MikaTunnel] = {}


def parse_client(reactor: Any, host: str, port: str, server: str, **options: str) -> IStreamClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong, missing or unknown.
    """
    file = options.pop("password-file", None)
    if file is None:
        raise ConfigError("mika: needs password-file=FILE")
    profile = _profile(options.pop("profile", "spec"))
    method = options.pop("method", "aes-256-cfb")
    insecure_ok = yes_no("insecure-ok", options.pop("insecure-ok", "no"))
    no_more("mika", options)
    password = read_secret(file, insecure_ok)
    key = (reactor, server, password, profile, method)
    tunnel = _tunnels.get(key)
    if tunnel is None:
        config = MikaClientConfig(derive_keys(password, profile, method))
        tunnel = _tunnels[key] = MikaTunnel(reactor, client_from_string(reactor, server), config, server)
    return tunnel.stream_endpoint(Address(host, parse_port(port)))


def _profile(value: str) -> Profile:
    try:
        return Profile(value)
    except ValueError:
        raise ConfigError(f"unknown profile {value!r}: use spec or go") from None
