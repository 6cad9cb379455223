"""paqet's own configuration files: what they say, unchanged, with what we add in a section of our own. No I/O.

The keys of alpha.19, 20 and 21 are known; any other key is a mistake with its line, and a value of zero means the
default, as in the original. What the original demands and can be found on the machine (interface, own address, router)
may be left out.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace

from mikanet.address import Address, IPAddress, parse_address, parse_port
from mikanet.crypto.packet_keys import BLOCKS
from mikanet.kcp.settings import MAX_PACKET, MAX_WINDOW, MODES, Mode
from mikanet.paqet.wire import MAX_FLAGS, Dialect
from mikanet.paqet.yaml_sections import Section, read_yaml
from mikanet.wire.ethernet import parse_mac
from mikanet.wire.tcp import DEFAULT_FLAGS, parse_flags

#: Windows (send, receive) of either end, in packets.
CLIENT_WINDOWS, SERVER_WINDOWS = (128, 512), (1024, 1024)
#: Capture buffers of either end.
CLIENT_SOCKBUF, SERVER_SOCKBUF = 4 << 20, 8 << 20
#: What a server takes unless it is told: the document's dialect and the newest. alpha.20's looks like the newest at
#: first sight, so it is taken only when asked for (Q1).
AUTO_DIALECTS = (Dialect.GOB, Dialect.A21)
_LOG_LEVELS = ("none", "debug", "info", "warn", "error", "fatal")


@dataclass(frozen=True, slots=True)
class Family:
    """One address family of the machine: our address, our port, and the station that packets are sent to."""

    address: IPAddress | None = None
    port: int = 0
    router_mac: bytes | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """The section ``network``; None and empty where the file leaves it to us."""

    interface: str = ""
    ipv4: Family | None = None
    ipv6: Family | None = None
    local_flags: tuple[int, ...] = (DEFAULT_FLAGS,)
    remote_flags: tuple[int, ...] = (DEFAULT_FLAGS,)
    sockbuf: int = CLIENT_SOCKBUF


@dataclass(frozen=True, slots=True)
class Kcp:
    """The section ``transport.kcp``."""

    mode: Mode
    mtu: int
    snd_wnd: int
    rcv_wnd: int
    data_shards: int
    parity_shards: int
    block: str
    key: str = field(repr=False)
    receive_buffer: int
    stream_buffer: int
    keepalive_interval: int
    keepalive_timeout: int


@dataclass(frozen=True, slots=True)
class Door:
    """A listening SOCKS5 port of the file."""

    listen: Address
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward of the file."""

    listen: Address
    target: Address
    udp: bool


@dataclass(frozen=True, slots=True)
class PaqetConfig:
    """A whole file.

    :ivar server: (client) the server. :ivar port: (server) the port that is listened on.
    :ivar dialects: of messages: those that a server takes; for a client the one it speaks, or several to find it among.
    """

    is_server: bool
    server: Address | None
    port: int
    doors: tuple[Door, ...]
    forwards: tuple[Forward, ...]
    network: Network
    connections: int
    kcp: Kcp
    carrier: str
    dialects: tuple[Dialect, ...]
    backend: str


def parse_config(text: str, name: str) -> PaqetConfig:
    """The configuration in ``text``, which is the content of the file ``name``.

    :raises ConfigError: in one line that names the line of the file.
    """
    top = read_yaml(text, name)
    role = top.choice("role", ("client", "server"), "")
    if not role:
        raise top.error("role", "is missing: client or server")
    is_server = role == "server"
    log = top.section("log")
    log.choice("level", _LOG_LEVELS, "none")
    log.done()
    network = _network(top.section("network"), is_server)
    transport = top.section("transport")
    connections, kcp = _transport(transport, is_server)
    ours = top.section("mikanet")
    carrier = ours.choice("carrier", ("raw", "udp"), "raw")
    backend = ours.choice("backend", ("packet", "pcap"), "packet")
    dialects = _dialects(ours)
    congestion = ours.yes("congestion")
    if congestion is not None:
        kcp = replace(kcp, mode=replace(kcp.mode, nc=0 if congestion else 1))
    ours.done()
    server, port, doors, forwards = _ends(top, is_server, network)
    if (
        connections > 1
        and any(each is not None and each.port for each in (network.ipv4, network.ipv6))
        and not is_server
    ):
        raise transport.error("conn", "must be 1 with a fixed port: give port 0 in network for more")
    top.done()
    return PaqetConfig(is_server, server, port, doors, forwards, network, connections, kcp, carrier, dialects, backend)


def _ends(
    top: Section, is_server: bool, network: Network
) -> tuple[Address | None, int, tuple[Door, ...], tuple[Forward, ...]]:
    """What only one of the roles has: server, port, doors and forwards."""
    listen, server = top.section("listen"), top.section("server")
    listening = listen.parsed("addr", parse_listen, None)
    address = server.parsed("addr", parse_address, None)
    listen.done()
    server.done()
    doors = tuple(_doors(top))
    forwards = tuple(_forwards(top))
    if not is_server:
        if address is None:
            raise server.error("addr", "is missing: the server, as HOST:PORT")
        return address, 0, doors, forwards
    # The original listens on the port of the network section, whatever its listen section says.
    ports = {each.port for each in (network.ipv4, network.ipv6) if each is not None and each.port}
    if len(ports) > 1:
        raise top.error("network", "has different ports for ipv4 and ipv6: a server has one")
    port = ports.pop() if ports else listening.port if listening is not None else 0
    if not port:
        raise listen.error("addr", "is missing: the port to listen on, as :9999")
    return None, port, doors, forwards


def _doors(top: Section) -> list[Door]:
    doors = []
    for each in top.sections("socks5"):
        listen = each.parsed("listen", parse_listen, None)
        if listen is None:
            raise each.error("listen", "is missing: where to listen, as 127.0.0.1:1080")
        doors.append(Door(listen, each.text("username"), each.text("password")))
        each.done()
    return doors


def _forwards(top: Section) -> list[Forward]:
    forwards = []
    for each in top.sections("forward"):
        listen, target = each.parsed("listen", parse_listen, None), each.parsed("target", parse_address, None)
        protocol = each.choice("protocol", ("tcp", "udp"), "")
        if listen is None or target is None or not protocol:
            missing = "listen" if listen is None else "target" if target is None else "protocol"
            raise each.error(missing, "is missing: a forward has listen, target and protocol")
        forwards.append(Forward(listen, target, protocol == "udp"))
        each.done()
    return forwards


def _network(section: Section, is_server: bool) -> Network:
    interface = section.text("interface")
    section.text("guid")  # Windows only
    families = [_family(section.section(key), version) for key, version in (("ipv4", 4), ("ipv6", 6))]
    tcp, pcap = section.section("tcp"), section.section("pcap")
    local, remote = _flags(tcp, "local_flag"), _flags(tcp, "remote_flag")
    sockbuf = pcap.number("sockbuf", 1024, 100 << 20, SERVER_SOCKBUF if is_server else CLIENT_SOCKBUF)
    for each in (tcp, pcap, section):
        each.done()
    return Network(interface, families[0], families[1], local, remote, sockbuf)


def _family(section: Section, version: int) -> Family | None:
    if not section:
        return None

    def parse(text: str) -> tuple[IPAddress | None, int]:
        host, port = _split(text, least=0)
        ip = ipaddress.ip_address(host) if host else None
        if ip is not None and ip.version != version:
            raise ValueError(f"{host} is not an IPv{version} address")
        return (None if ip is None or ip.is_unspecified else ip), port

    nowhere: tuple[IPAddress | None, int] = (None, 0)
    address, port = section.parsed("addr", parse, nowhere)
    mac = section.parsed("router_mac", parse_mac, None)
    section.done()
    return Family(address, port, mac)


def _flags(section: Section, key: str) -> tuple[int, ...]:
    entries = section.texts(key, MAX_FLAGS)
    try:
        return tuple(map(parse_flags, entries)) or (DEFAULT_FLAGS,)
    except ValueError as problem:
        raise section.error(key, f"is wrong: {problem}") from None


def _transport(section: Section, is_server: bool) -> tuple[int, Kcp]:
    if section.choice("protocol", ("kcp",), "") != "kcp":
        raise section.error("protocol", "is missing: write kcp")
    connections = section.number("conn", 1, 256, 1)
    section.number("tcpbuf", 4096, 1 << 30, 8192)  # alpha.19's; buffers are ours to choose
    section.number("udpbuf", 2048, 1 << 30, 4096)
    kcp = section.section("kcp")
    snd_wnd, rcv_wnd = SERVER_WINDOWS if is_server else CLIENT_WINDOWS
    made = Kcp(
        mode=_mode(kcp),
        mtu=kcp.number("mtu", 50, MAX_PACKET, 1350),
        snd_wnd=kcp.number("sndwnd", 1, MAX_WINDOW, snd_wnd),
        rcv_wnd=kcp.number("rcvwnd", 1, MAX_WINDOW, rcv_wnd),
        data_shards=kcp.number("dshard", 0, 255, 0),
        parity_shards=kcp.number("pshard", 0, 255, 0),
        block=kcp.choice("block", tuple(BLOCKS), "aes"),
        key=kcp.text("key"),
        receive_buffer=kcp.number("smuxbuf", 1024, 1 << 30, 4 << 20),
        stream_buffer=kcp.number("streambuf", 1024, 1 << 30, 2 << 20),
        keepalive_interval=kcp.number("smuxkalive", 1, 3600, 2),
        keepalive_timeout=kcp.number("smuxktimeout", 1, 3600, 8),
    )
    if BLOCKS[made.block].key_length and not made.key:
        raise kcp.error("key", f"is missing: block {made.block} needs a secret, and mikanet genkey prints one")
    if made.stream_buffer > made.receive_buffer:
        raise kcp.error("streambuf", "must not be larger than smuxbuf")
    if made.keepalive_timeout < made.keepalive_interval:
        raise kcp.error("smuxktimeout", "must not be shorter than smuxkalive")
    if made.data_shards + made.parity_shards > 256:
        raise kcp.error("dshard", "and pshard together are more than 256")
    kcp.done()
    section.done()
    return connections, made


def _mode(kcp: Section) -> Mode:
    name = kcp.choice("mode", ("normal", "fast", "fast2", "fast3", "manual"), "fast")
    # Read in every mode, as the original does, and used in one.
    manual = Mode(
        nodelay=kcp.number("nodelay", 0, 1, 0),
        interval_ms=kcp.number("interval", 10, 5000, 10),
        resend=kcp.number("resend", 0, 1024, 0),
        nc=kcp.number("nocongestion", 0, 1, 0),
        write_delay=bool(kcp.yes("wdelay")),
        ack_no_delay=bool(kcp.yes("acknodelay")),
    )
    return manual if name == "manual" else MODES[name]


def _dialects(ours: Section) -> tuple[Dialect, ...]:
    words = ours.texts("dialect", 4) or ["auto"]
    if words == ["auto"]:
        return AUTO_DIALECTS
    try:
        return tuple(map(Dialect, words))
    except ValueError:
        names = ", ".join(dialect.value for dialect in Dialect)
        raise ours.error("dialect", f"is auto, one of {names}, or a list of those") from None


# -- addresses


def parse_listen(text: str) -> Address:
    """Where to listen: ``HOST:PORT``, or ``:PORT`` for every address; the host is then empty.

    :raises ValueError: if it is neither.
    """
    host, port = _split(text, least=1)
    if host:
        ipaddress.ip_address(host)
    return Address(host, port)


def _split(text: str, least: int) -> tuple[str, int]:
    host, separator, digits = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets")
    if not separator:
        raise ValueError(f"{text!r} is not ADDRESS:PORT")
    return host, 0 if not least and digits == "0" else parse_port(digits)
