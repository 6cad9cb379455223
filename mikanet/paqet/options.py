"""What paqet's programs make of their configuration file: keys, link, smux, raw packets."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from mikanet.address import Address, IPAddress
from mikanet.crypto.packet_keys import BLOCKS, Kdf, block_named, derive_key
from mikanet.errors import ConfigError
from mikanet.kcp.link import LinkSettings
from mikanet.paqet.config import Family, PaqetConfig, parse_config
from mikanet.rawpackets.routes import find_route
from mikanet.rawpackets.settings import FamilyPath, RawSettings
from mikanet.service.secret_files import is_weak, read_private_file
from mikanet.smux.frame import MAX_FRAME
from mikanet.smux.session import SmuxSettings


@dataclass(frozen=True)
class PaqetSetup:
    """A configuration file with what follows from it.

    :ivar path: the file, in the user's words.
    """

    path: str
    config: PaqetConfig
    link: LinkSettings
    smux: SmuxSettings


def load_setup(path: str, insecure_ok: bool) -> PaqetSetup:
    """Read a configuration file. It holds a secret, so it must be its owner's alone (X7).

    :raises ConfigError: in one line, with the line of the file where there is one.
    """
    try:
        text = read_private_file(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    config = parse_config(text, path)
    kcp = config.kcp
    block_named(kcp.block, insecure_ok)
    if BLOCKS[kcp.block].key_length and not insecure_ok and is_weak(kcp.key.encode()):
        raise ConfigError(
            f"the key in {path} is too easy to guess: mikanet genkey prints a good one, --insecure-ok takes this one"
        )
    link = LinkSettings(
        block=kcp.block,
        key=derive_key(kcp.key.encode(), Kdf.PAQET),
        mode=kcp.mode,
        mtu=kcp.mtu,
        snd_wnd=kcp.snd_wnd,
        rcv_wnd=kcp.rcv_wnd,
        data_shards=kcp.data_shards,
        parity_shards=kcp.parity_shards,
        require_proof=config.is_server,
    )
    smux = SmuxSettings(
        version=2,
        max_frame=MAX_FRAME,
        receive_buffer=kcp.receive_buffer,
        stream_buffer=kcp.stream_buffer,
        keepalive_interval=kcp.keepalive_interval,
        keepalive_timeout=kcp.keepalive_timeout,
    )
    return PaqetSetup(path, config, link, smux)


def server_raw_settings(config: PaqetConfig, firewall: bool) -> RawSettings:
    """The raw port of a server; what the file leaves out is that of the default route.

    :raises ConfigError: if that cannot be found.
    """
    network = config.network
    families: list[tuple[int, Family]] = [
        (version, family) for version, family in ((4, network.ipv4), (6, network.ipv6)) if family is not None
    ]
    paths, interface = {}, network.interface
    for version, family in families or [(4, Family())]:
        paths[version], interface = _path(family, None, version, interface, needs_router=False)
    return RawSettings(
        interface=interface,
        port=config.port,
        ipv4=paths.get(4),
        ipv6=paths.get(6),
        flags=network.local_flags,
        sockbuf=network.sockbuf,
        firewall=firewall,
        backend=config.backend,
    )


def client_raw_settings(config: PaqetConfig, firewall: bool) -> tuple[RawSettings, Address]:
    """The raw port of a client, and its server with its name looked up; what the file leaves out is that of the way there.

    :raises ConfigError: if that cannot be found.
    """
    assert config.server is not None
    ip = look_up(config.server.host)
    return way_to(config, firewall, ip), Address(str(ip), config.server.port)


def way_to(config: PaqetConfig, firewall: bool, ip: IPAddress, fresh: bool = False) -> RawSettings:
    """The raw port of a client whose server has the address ``ip``. Blocks while a next hop is asked for its station.

    :param fresh: as of :func:`~mikanet.rawpackets.routes.find_route`.
    :raises ConfigError: if the way there cannot be found.
    """
    network = config.network
    family = network.ipv4 if ip.version == 4 else network.ipv6
    if family is None and (network.ipv4 or network.ipv6) is not None:
        raise ConfigError(f"the server {config.server} is reached by IPv{ip.version}, which network does not configure")
    family = family or Family()
    path, interface = _path(family, ip, ip.version, network.interface, needs_router=True, fresh=fresh)
    return RawSettings(
        interface=interface,
        port=family.port,
        ipv4=path if ip.version == 4 else None,
        ipv6=path if ip.version == 6 else None,
        flags=network.local_flags,
        sockbuf=network.sockbuf,
        firewall=firewall,
        backend=config.backend,
    )


def _path(
    family: Family, destination: IPAddress | None, version: int, interface: str, needs_router: bool, fresh: bool = False
) -> tuple[FamilyPath, str]:
    """A family's path and the interface of it, found where they are not given."""
    if interface and family.address is not None and family.router_mac is not None:
        return FamilyPath(family.address, family.router_mac), interface
    route = find_route(destination, interface, version, fresh=fresh)
    router_mac = family.router_mac or route.router_mac
    if router_mac is None and needs_router:
        raise ConfigError(
            f"the station behind {route.interface} that leads to {destination} does not answer: "
            f"give its hardware address as network.ipv{version}.router_mac"
        )
    return FamilyPath(family.address or route.source, router_mac), interface or route.interface


def look_up(host: str) -> IPAddress:
    """The first address of a host, found before privileges are dropped.

    :raises ConfigError: if it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as problem:
        raise ConfigError(f"the server's name {host} is not known: {problem.strerror or problem}") from None
    return ipaddress.ip_address(str(found[0][4][0]).split("%")[0])
