"""``pickaxe:HOST:PORT:user=NAME:password-file=FILE:carrier=URL[,URL ...][:policy=ordered][:names=server]...``.

TCP to HOST and PORT through a Pickaxe server. Strings that name the same user, password and carriers share one session,
which begins with the first connection.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from mikanet.address import Address, parse_port
from mikanet.carriers.urls import CarrierContext, client_carrier
from mikanet.counters import Counters
from mikanet.endpoints.arguments import no_more, yes_no
from mikanet.errors import ConfigError
from mikanet.pickaxe.client import PickaxeClient, PickaxeClientConfig
from mikanet.pickaxe.keys import Kdf, Secret, normal_user
from mikanet.pickaxe.policy import Policy
from mikanet.pickaxe.tunnel import Names, PickaxeTunnel
from mikanet.service.secret_files import read_secret

_tunnels: dict[tuple[object, ...], PickaxeTunnel] = {}


def parse_client(reactor: Any, host: str, port: str, carrier: str, **options: str) -> IStreamClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong, missing or unknown.
    """
    user, file = options.pop("user", None), options.pop("password-file", None)
    if user is None or file is None:
        raise ConfigError("pickaxe: needs user=NAME and password-file=FILE")
    policy = options.pop("policy", "ordered")
    names = options.pop("names", "server")
    kdf = options.pop("kdf", "mikanet")
    insecure_ok = yes_no("insecure-ok", options.pop("insecure-ok", "no"))
    no_more("pickaxe", options)
    name, password = normal_user(user), read_secret(file, insecure_ok)
    key = (reactor, name, password, carrier, policy, names, kdf)
    tunnel = _tunnels.get(key)
    if tunnel is None:
        counters = Counters()
        context = CarrierContext(reactor, counters, read_secret=partial(read_secret, insecure_ok=True))
        carriers = [client_carrier(url, context) for url in carrier.split(",")]
        try:
            ways = Policy(policy), Names(names), Kdf(kdf)
        except ValueError as problem:
            raise ConfigError(f"pickaxe: {problem}") from None
        config = PickaxeClientConfig(
            name, Secret.of_password(ways[2], name, password), policy=ways[0], counters=counters
        )
        tunnel = _tunnels[key] = PickaxeTunnel(PickaxeClient(reactor, config, carriers), ways[1])
    return tunnel.stream_endpoint(Address(host, parse_port(port)))
