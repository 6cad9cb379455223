"""``paqet:HOST:PORT:config=FILE[:firewall=auto][:insecure-ok=no]``.

TCP to HOST and PORT through the paqet server of a client's configuration file; its doors are not opened. The sessions
of one file are shared, opened when they are wanted, and let go when idle. Raw packets need root when that happens.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint

from mikanet.address import Address, parse_port
from mikanet.counters import Counters
from mikanet.endpoints.arguments import no_more, yes_no
from mikanet.errors import ConfigError
from mikanet.paqet.client import PaqetTunnel
from mikanet.paqet.options import PaqetSetup, load_setup
from mikanet.paqet.service import client_config, client_ports

_tunnels: dict[tuple[object, ...], PaqetTunnel] = {}


def parse_client(reactor: Any, host: str, port: str, **options: str) -> IStreamClientEndpoint:
    """A client endpoint.

    :raises ConfigError: if an argument is wrong, missing or unknown, or the file is.
    """
    file = options.pop("config", None)
    if file is None:
        raise ConfigError("paqet: needs config=FILE")
    firewall = options.pop("firewall", "auto")
    if firewall not in ("auto", "off"):
        raise ConfigError(f"firewall is auto or off, not {firewall!r}")
    insecure_ok = yes_no("insecure-ok", options.pop("insecure-ok", "no"))
    no_more("paqet", options)
    destination = Address(host, parse_port(port))
    setup = load_setup(file, insecure_ok)
    key = (reactor, os.path.abspath(file), setup.config, firewall)
    tunnel = _tunnels.get(key)
    if tunnel is None:
        tunnel = _tunnels[key] = _make(reactor, setup, firewall == "auto")
    return tunnel.stream_endpoint(destination)


def _make(reactor: Any, setup: PaqetSetup, firewall: bool) -> PaqetTunnel:
    if setup.config.is_server:
        raise ConfigError(f"{setup.path} has the role of a server: an endpoint needs a client's file")
    counters = Counters()
    ports = client_ports(reactor, setup, firewall, counters, setup.config.connections)
    return PaqetTunnel(reactor, ports, client_config(setup, counters, resident=False), str(setup.config.server))
