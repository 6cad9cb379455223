"""What ``mikanet doctor`` sees of the link itself: a client asks its server, a server watches what arrives."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.python.failure import Failure

from mikanet.cli.dissect import Dissector, Verdict
from mikanet.cli.doctor_findings import Finding, note, ok, problem
from mikanet.cli.doctor_machine import rule_commands
from mikanet.cli.dump import capture_all, link_interface, link_port, make_dissector
from mikanet.cli.ping import describe_path
from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.kcp.filter import PathSize
from mikanet.paqet.client import PaqetTunnel
from mikanet.paqet.config import Family
from mikanet.paqet.options import PaqetSetup
from mikanet.paqet.service import client_config, client_ports
from mikanet.rawpackets.routes import other_interfaces

#: Seconds for a server's kernel to take or refuse an ordinary connection.
_CONNECT_TIME = 3.0
_IP_AT = 14


# -- a client


def client_findings(setup: PaqetSetup, reactor: Any, seconds: float) -> Iterator[Finding]:
    """Ask the server, through everything that traffic goes through, over a port of our own."""
    counters, said = Counters(), list[str]()
    setup = _with_free_port(setup)
    server = setup.config.server
    assert server is not None
    try:
        ports = client_ports(reactor, setup, False, counters, 1)
        tunnel = PaqetTunnel(reactor, ports, client_config(setup, counters), str(server), report=said.append)
        tunnel.start_ports()
    except ConfigError as error:
        yield problem("link", str(error), f"mikanet doctor {setup.path}   (again, when that is mended)")
        return
    sizes: list[PathSize | None] = []
    answer = _ask(reactor, tunnel, seconds, sizes)
    if isinstance(answer, str):
        yield ok("link", f"{server} answers, {answer}")
        if sizes and sizes[0] is not None:
            yield _about_path(sizes[0])
        return
    yield from _explain(setup, counters, tunnel.sealer.refused, said)


def _with_free_port(setup: PaqetSetup) -> PaqetSetup:
    """The same from a port that is free, beside a client that runs."""
    network = setup.config.network
    free = replace(network, ipv4=_without_port(network.ipv4), ipv6=_without_port(network.ipv6))
    return replace(setup, config=replace(setup.config, network=free))


def _without_port(family: Family | None) -> Family | None:
    return None if family is None else replace(family, port=0)


def _about_path(found: PathSize) -> Finding:
    """What the path carries."""
    if found.size >= found.wanted or not found.settled:
        return ok("path", describe_path(found))
    text, _, advice = describe_path(found).partition(": set ")
    return problem("path", text, f"{advice.removesuffix(' at both ends')}   (in transport.kcp, at both ends)")


def _ask(reactor: Any, tunnel: PaqetTunnel, seconds: float, sizes: list[PathSize | None]) -> str | Failure:
    """Run the reactor until the server answered or the time is over; what its path carries goes to ``sizes``."""
    result: list[str | Failure] = []
    answered: list[str] = []

    async def ask() -> str:
        began = reactor.seconds()
        live = await tunnel.connections[0].session()
        said = f"after {(reactor.seconds() - began) * 1000:.0f} ms, in dialect {live.dialect.value}"
        answered.append(said)
        sizes.append(await tunnel.connections[0].find_path_size())
        return said

    def start() -> None:
        asking = ensureDeferred(ask()).addTimeout(seconds, reactor)
        asking.addBoth(result.append)
        asking.addBoth(lambda _: tunnel.stop()).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()
    return answered[0] if answered else result[0]  # the search for sizes may not have come to its end


def _explain(setup: PaqetSetup, counters: Counters, refused: int, said: list[str]) -> Iterator[Finding]:
    """Why a server did not answer, as far as it can be seen from here."""
    about_dialect = next((text for text in said if "dialect" in text), "")
    if about_dialect:
        text, _, advice = about_dialect.partition(": write ")
        where = f"(under mikanet: in {setup.path})" if advice else "(under mikanet: in the server's file)"
        line = advice.removesuffix(" under mikanet:") or f"dialect: {setup.config.dialects[0].value}"
        yield problem("dialect", text, f"{line}   {where}")
    elif refused:
        yield problem(
            "key",
            f"{refused} packets came from the server and this key does not open them: it has another key or block",
            "the same key and block   (in transport.kcp, at both ends)",
        )
    elif counters["rawpackets.dropped.rst"]:
        yield problem(
            "server",
            "the server's kernel answers with RST: nothing keeps it silent there, and perhaps no paqet runs",
            "twistd -n paqet-server --config FILE --firewall auto   (at the server)",
        )
    else:
        yield problem(
            "link",
            f"nothing comes back. {_ordinary_connection(setup)} Either the server does not run, or it has another key or "
            "block and keeps silent, or packets are blocked on the way. This tells which, while a client tries:",
            "mikanet doctor SERVER.yaml --seconds 30   (at the server)",
        )


def _ordinary_connection(setup: PaqetSetup) -> str:
    """What an ordinary TCP connection to the server's port does, in a sentence."""
    server = setup.config.server
    assert server is not None
    try:
        with socket.create_connection((server.host, server.port), _CONNECT_TIME):
            return "An ordinary program listens on that port."
    except ConnectionRefusedError:
        return "An ordinary connection is refused: the way is open, and no paqet holds the port."
    except OSError:
        return "An ordinary connection gets no answer either, which is so while a paqet holds the port."


# -- a server


def server_findings(setup: PaqetSetup, seconds: float) -> Iterator[Finding]:
    """Watch the port for a while. A server that runs is not disturbed."""
    port = link_port(setup)
    try:
        interface = link_interface(setup)
    except ConfigError as error:
        yield note("packets", f"not watched: {error}", "network.interface: NAME   (in the file, to watch that one)")
        return
    try:
        seen = _watch(setup, interface, seconds)
    except ConfigError as error:
        yield note("packets", f"not watched: {error}")
        return
    from_clients = sum(seen.verdicts[True].values())
    elsewhere = ", ".join(f"{count} on {name}" for name, count in seen.elsewhere.most_common(3))
    if elsewhere and not from_clients:
        name = seen.elsewhere.most_common(1)[0][0]
        yield problem(
            "packets",
            f"to port {port} came {elsewhere}, and none on {interface}, where the server listens",
            f"interface: {name}   (under network: in {setup.path})",
        )
        return
    if elsewhere:
        yield note("packets", f"to port {port} came {elsewhere}, beside {from_clients} on {interface}")
    if not from_clients:
        yield note(
            "packets",
            f"none came to port {port} in {seconds:g} s. If a client tries meanwhile and none comes, the port is blocked "
            "before this machine, or the client sends them elsewhere:",
            f"mikanet doctor {setup.path} --seconds 30   (and open TCP port {port} at your provider's firewall)",
        )
        return
    yield from _judge_packets(setup, seen)


class _Seen:
    """Packets by direction (True is towards the server) and verdict.

    :ivar elsewhere: those towards the server on other interfaces than its own, by their names.
    """

    def __init__(self, dissector: Dissector) -> None:
        self.dissector = dissector
        self.verdicts: dict[bool, Counter[Verdict]] = {True: Counter(), False: Counter()}
        self.locked_from: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()


def _watch(setup: PaqetSetup, interface: str, seconds: float) -> _Seen:
    seen, others = _Seen(make_dissector(setup)), make_dissector(setup)
    for name, packet in capture_all([interface, *other_interfaces(interface)], setup, seconds):
        dissector = seen.dissector if name == interface else others  # what passes two of them is the same packet twice
        found = dissector.packet(packet.data[_IP_AT:])
        if found is None:
            continue
        if name != interface:
            seen.elsewhere[name] += found.towards_server
            continue
        seen.verdicts[found.towards_server][found.verdict] += 1
        if found.verdict is Verdict.LOCKED and found.towards_server and len(seen.locked_from) < 1000:
            seen.locked_from[found.source.host] += 1
    return seen


def _judge_packets(setup: PaqetSetup, seen: _Seen) -> Iterator[Finding]:
    port = link_port(setup)
    arrived, left = seen.verdicts[True], seen.verdicts[False]
    opened, locked = arrived[Verdict.OPENED], arrived[Verdict.LOCKED]
    if locked:
        who = ", ".join(host for host, _ in seen.locked_from.most_common(3))
        text = f"{locked} packets from {who} are not opened by this key: another key or block, or strangers"
        mend = "the same key and block   (in transport.kcp, at both ends)"
        yield note("key", text, mend) if opened else problem("key", text, mend)
    if opened:
        answered = left[Verdict.OPENED]
        if answered:
            yield ok("packets", f"{opened} came that this key opens, and {answered} went back")
        else:
            yield problem(
                "packets",
                f"{opened} came that this key opens, and none went back: no server runs here, or it sends elsewhere",
                f"twistd -n paqet-server --config {setup.path}",
            )
    if arrived[Verdict.MALFORMED]:
        yield note(
            "packets", f"{arrived[Verdict.MALFORMED]} came with a wrong checksum: something on the way changes them"
        )
    if left[Verdict.RESET]:
        yield problem("kernel", f"this machine answered {left[Verdict.RESET]} packets with RST", rule_commands(port))
    strange = seen.dissector.seen_dialects - set(setup.config.dialects)
    if strange:
        names = ", ".join(sorted(each.value for each in (*strange, *setup.config.dialects)))
        found = " and ".join(sorted(each.value for each in strange))
        yield problem("dialect", f"clients speak {found}", f"dialect: [{names}]   (under mikanet: in {setup.path})")
