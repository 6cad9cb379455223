"""What ``mikanet doctor`` looks at on this machine: rights, interface, addresses, router, sizes, port, kernel, rules."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from mikanet.address import IPAddress
from mikanet.cli.doctor_findings import Finding, note, ok, problem
from mikanet.errors import ConfigError
from mikanet.paqet.config import Family
from mikanet.paqet.options import PaqetSetup, look_up
from mikanet.rawpackets.device import interface_mtu, interface_state
from mikanet.rawpackets.firewall import IptablesRules, NftRules, find_rules, stale_ports
from mikanet.rawpackets.frames import MAX_HEADERS_V4, MAX_HEADERS_V6
from mikanet.rawpackets.hold import port_is_taken
from mikanet.rawpackets.routes import Route, find_route, own_addresses
from mikanet.rawpackets.selftest import kernel_answers
from mikanet.wire.ethernet import format_mac
from mikanet.wire.tcp import SYN

#: Capabilities by their numbers (<linux/capability.h>).
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
_WORDS_OF_OURS = ("mikanet", "paqet")
#: What an entry without SYN saves of the longest headers.
_SYN_EXTRA = 8


class Machine:
    """What is asked of the machine; tests have another."""

    def may(self, capability: int) -> bool:
        """Whether this process has a capability."""
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
        return os.geteuid() == 0

    def interface_up(self, name: str) -> bool:
        """Whether an interface is up.

        :raises OSError: if there is none of that name.
        """
        return interface_state(name)[1]

    def mtu(self, name: str) -> int:
        """The largest IP packet of an interface."""
        return interface_mtu(name)

    def addresses(self, name: str) -> Sequence[IPAddress]:
        """The addresses of an interface."""
        return own_addresses(name)

    def route(self, destination: IPAddress | None, interface: str, family: int) -> Route:
        """The way there.

        :raises ConfigError: if there is none.
        """
        return find_route(destination, interface, family)

    def look_up(self, host: str) -> IPAddress:
        """The address of a name.

        :raises ConfigError: if it has none.
        """
        return look_up(host)

    def port_is_free(self, port: int) -> bool:
        """Whether nobody listens on a TCP port."""
        return not port_is_taken(port)

    def port_holder(self, port: int) -> str:
        """The command line of the program that listens on a TCP port, with its process id; empty if that is not known."""
        inodes = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(descriptor) in inodes:
                    pid = descriptor.parts[2]
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                    return f"{' '.join(words).strip()} (process {pid})"
            except OSError:
                continue
        return ""

    def kernel_answers(self, address: IPAddress, port: int) -> bool:
        """Whether the kernel answers with RST.

        :raises OSError: if that cannot be tried.
        """
        return kernel_answers(address, port, random.randint(20000, 30000))

    def stale_ports(self) -> set[int]:
        """Ports whose rules nobody keeps.

        :raises ConfigError: if that cannot be seen.
        """
        return stale_ports(find_rules())

    def removal_commands(self, ports: set[int]) -> str:
        """The commands that remove the rules of ports."""
        rules = find_rules()
        return "\n".join(map(rules.removal, sorted(ports)))


def machine_findings(setup: PaqetSetup, machine: Machine) -> Iterator[Finding]:
    """The findings, in the order in which one rests on the other."""
    if setup.config.carrier == "udp":
        yield ok("carrier", "UDP: no raw packets, no rights, no rules are needed")
        return
    if not machine.may(CAP_NET_RAW):
        yield problem(
            "rights",
            "raw sockets need root or the capability CAP_NET_RAW",
            _rights_mend(setup),
        )
        return
    if machine.may(CAP_NET_ADMIN):
        yield ok("rights", "raw sockets and firewall rules")
    else:
        yield problem(
            "rights",
            "raw sockets, but nothing that keeps the kernel silent: neither rules nor a held port, which need the "
            "capability CAP_NET_ADMIN",
            _rights_mend(setup),
        )
    yield from _Network(setup, machine).findings()


def _rights_mend(setup: PaqetSetup) -> str:
    return f"sudo mikanet doctor {setup.path}\nAmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN   (in a systemd unit)"


class _Network:
    """The checks of the section ``network``, family by family."""

    def __init__(self, setup: PaqetSetup, machine: Machine) -> None:
        self._setup = setup
        self._config = setup.config
        self._machine = machine
        self._interface = setup.config.network.interface

    def findings(self) -> Iterator[Finding]:
        """All of them."""
        yield from self._check_interface()
        network = self._config.network
        destination: IPAddress | None = None
        if self._config.server is not None:
            try:
                destination = self._machine.look_up(self._config.server.host)
            except ConfigError as error:
                yield problem("server name", str(error), f"getent hosts {self._config.server.host}")
                return
        families = [(version, each) for version, each in ((4, network.ipv4), (6, network.ipv6)) if each is not None]
        if destination is not None:
            families = [(destination.version, (network.ipv4 if destination.version == 4 else network.ipv6) or Family())]
        source: IPAddress | None = None
        for version, family in families or [(4, Family())]:
            source = yield from self._check_family(version, family, destination)
        if self._interface:
            yield from self._check_mtu(any(version == 6 for version, _ in families))
        yield from self._check_kernel(source)

    def _check_interface(self) -> Iterator[Finding]:
        name = self._interface
        if not name:
            return
        try:
            is_up = self._machine.interface_up(name)
        except OSError:
            self._interface = ""
            yield problem(
                "interface",
                f"there is no interface {name}",
                "ip link   (lists them; give one as network.interface, or leave the key out)",
            )
            return
        if is_up:
            yield ok("interface", f"{name} is up")
        else:
            yield problem("interface", f"{name} is down", f"ip link set {name} up")

    def _check_family(
        self, version: int, family: Family, destination: IPAddress | None
    ) -> Generator[Finding, None, IPAddress | None]:
        """One family; its value is our address."""
        route = yield from self._check_route(version, family, destination)
        source = family.address or (None if route is None else route.source)
        if family.address is not None and self._interface:
            found = self._machine.addresses(self._interface)
            if family.address in found:
                yield ok(f"IPv{version} address", f"{family.address} is on {self._interface}")
            else:
                there = ", ".join(str(each) for each in found if each.version == version) or "none"
                yield problem(
                    f"IPv{version} address",
                    f"{family.address} is not on {self._interface}, which has {there}",
                    f"ip addr show {self._interface}   (give one of them as network.ipv{version}.addr, or leave it out)",
                )
        if route is not None:
            yield from self._check_router(version, family, route, destination)
        return source

    def _check_route(
        self, version: int, family: Family, destination: IPAddress | None
    ) -> Generator[Finding, None, Route | None]:
        """The way that the kernel would take; another interface than the file's is a mistake at a client."""
        try:
            route = self._machine.route(destination, "", version)
        except ConfigError:
            try:
                route = self._machine.route(destination, self._interface, version)
            except ConfigError as error:
                complete = self._interface and family.address is not None and family.router_mac is not None
                yield (note("route", str(error)) if complete else problem("route", str(error), "ip route"))
                return None
        if self._interface and route.interface != self._interface and destination is not None:
            yield problem(
                "interface",
                f"packets to {destination} leave by {route.interface}, and the file says {self._interface}",
                f"interface: {route.interface}   (in network, or leave the key out)",
            )
        elif not self._interface:
            self._interface = route.interface
            yield ok("interface", f"{route.interface}, found by its route")
        return route

    def _check_router(
        self, version: int, family: Family, route: Route, destination: IPAddress | None
    ) -> Iterator[Finding]:
        where = f"IPv{version} router"
        hop = route.gateway or f"{destination}, which is on the link,"
        if route.router_mac is None:
            if family.router_mac is not None:
                yield note(where, f"{hop} does not say its station, so that of the file cannot be compared")
            elif self._config.is_server:
                yield note(where, "none: answers go to the station that a client's packets come from")
            else:
                yield problem(where, f"{hop} does not answer", f"ip -{version} neigh show dev {route.interface}")
        elif family.router_mac in (None, route.router_mac):
            yield ok(where, f"{hop} is {format_mac(route.router_mac)}")
        else:
            yield problem(
                where,
                f"the file sends everything to {format_mac(family.router_mac or b'')}, and {hop} is "
                f"{format_mac(route.router_mac)}",
                f'router_mac: "{format_mac(route.router_mac)}"   (in network.ipv{version}, or leave the key out)',
            )

    def _check_mtu(self, ipv6: bool) -> Iterator[Finding]:
        config = self._config
        room = self._machine.mtu(self._interface) - (MAX_HEADERS_V6 if ipv6 else MAX_HEADERS_V4)
        if not any(flags & SYN for flags in (*config.network.local_flags, *config.network.remote_flags)):
            room += _SYN_EXTRA
        if config.kcp.mtu <= room:
            yield ok("size", f"packets of {config.kcp.mtu} bytes fit {self._interface}")
        else:
            yield problem(
                "size",
                f"packets of {config.kcp.mtu} bytes do not fit {self._interface}",
                f"mtu: {room}   (in transport.kcp, at both ends)",
            )

    # -- port, kernel and rules

    def _check_kernel(self, source: IPAddress | None) -> Iterator[Finding]:
        config = self._config
        port = config.port
        fixed = next((each.port for each in (config.network.ipv4, config.network.ipv6) if each and each.port), 0)
        if not config.is_server:
            port = fixed
        held = False
        if port and not self._machine.port_is_free(port):
            holder = self._machine.port_holder(port)
            held = any(word in holder for word in _WORDS_OF_OURS)
            if held:
                yield ok("port", f"{port} is held by {holder}")
            else:
                yield problem(
                    "port",
                    f"TCP port {port} is in use{f' by {holder}' if holder else ''}, which would answer in our place",
                    f"ss -tlnp sport = :{port}   (stop that program, or choose another port)",
                )
                return
        elif port:
            yield ok("port", f"{port} is free" + ("; no server of ours runs now" if config.is_server else ""))
        if port and source is not None:
            yield from self._check_answers(source, port, held)
        yield from self._check_stale()

    def _check_answers(self, source: IPAddress, port: int, held: bool) -> Iterator[Finding]:
        try:
            answers = self._machine.kernel_answers(source, port)
        except OSError as error:
            yield note("kernel", f"cannot be tried with {source}: {error.strerror or error}")
            return
        if not answers:
            yield ok("kernel", f"sends no RST for port {port}")
        elif held:
            yield problem("kernel", f"answers packets to port {port} with RST", rule_commands(port))
        else:
            yield note(
                "kernel",
                f"answers port {port} with RST now; paqet-server and paqet-client silence it when they start. For another "
                "program that does not, the rules are:",
                rule_commands(port),
            )

    def _check_stale(self) -> Iterator[Finding]:
        try:
            stale = self._machine.stale_ports()
        except ConfigError as error:
            yield note("firewall", str(error))
            return
        if stale:
            ports = ", ".join(map(str, sorted(stale)))
            yield note(
                "firewall",
                f"rules that a killed process left are there, for port {ports}; the next start with --firewall auto "
                "removes them, and so does this:",
                self._machine.removal_commands(stale),
            )
        else:
            yield ok("firewall", "no rules of killed processes are left")


def rule_commands(port: int) -> str:
    """The commands that keep a kernel silent about a port by hand: nft's where it is, else iptables'."""
    try:
        rules = find_rules()
    except ConfigError:
        rules = NftRules("nft")
    if isinstance(rules, NftRules):
        return f"nft -f - <<'END'\n{NftRules.script(port)}END"
    return "\n".join(" ".join(["iptables", "-t", table, "-I", *rest]) for table, *rest in IptablesRules.rules(port))
