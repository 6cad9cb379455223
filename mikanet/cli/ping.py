"""``mikanet ping CONFIG``: whether the server of a paqet client's file answers, how fast, and in which dialect."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.python import usage

from mikanet.cli.words import WordsOptions as BaseOptions
from mikanet.counters import Counters
from mikanet.errors import ConfigError, DestinationError
from mikanet.kcp.filter import PathSize
from mikanet.paqet.client import PaqetTunnel
from mikanet.paqet.options import PaqetSetup, load_setup
from mikanet.paqet.service import client_config, client_ports
from mikanet.paqet.tap_common import FIREWALL_OPTION, wants_firewall
from mikanet.paqet.wire import Dialect
from mikanet.service.program import program_reactor

#: Seconds without an answer after which a ping counts as lost.
PATIENCE = 5.0
#: Seconds between two pings.
_PAUSE = 0.2


class Options(BaseOptions):
    """Options of ``mikanet ping``."""

    command = "mikanet ping"
    synopsis = "[options] CONFIG"
    longdesc = "Asks the server of a paqet client's file for answers, through everything that traffic goes through."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["count", None, "4", "pings to send"],
        FIREWALL_OPTION,
    ]

    setup: PaqetSetup
    count: int
    firewall: bool
    config = ""

    def parseArgs(self, *words: str) -> None:
        """The configuration file."""
        if len(words) != 1:
            raise usage.UsageError("give one file: the client's configuration")
        self.config = words[0]

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self.setup = load_setup(self.config, bool(self["insecure-ok"]))
        if self.setup.config.is_server:
            raise ConfigError(f"{self.config} is a server's: ping takes a client's, which says where the server is")
        self.count = self.number("count", 1, 1_000_000)
        self.firewall = wants_firewall(self)


def run(options: Options, reactor: Any = None) -> int:
    """Ping; the exit status says whether everything was answered."""
    reactor = program_reactor(reactor)
    server = str(options.setup.config.server)
    counters = Counters()
    try:
        ports = client_ports(reactor, options.setup, options.firewall, counters, 1)
        tunnel = PaqetTunnel(reactor, ports, client_config(options.setup, counters), server, report=print)
        tunnel.start_ports()
    except ConfigError as problem:
        raise SystemExit(f"{options.command}: {problem}") from None
    status = [1]

    def start() -> None:
        def done(result: int) -> None:
            status[0] = result

        pinging = _ping(reactor, tunnel, server, options.count).addCallback(done)
        pinging.addBoth(lambda _: tunnel.stop()).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()
    return status[0]


def describe_path(found: PathSize) -> str:
    """What a path carries, in a line."""
    if found.size >= found.wanted:
        return f"packets of {found.size} bytes pass, which is the MTU"
    if not found.settled:
        return (
            f"packets of {found.size} bytes pass; whether larger ones up to the MTU of {found.wanted} do is not known"
        )
    return f"packets pass up to {found.size} bytes, not up to the MTU of {found.wanted}: set mtu: {found.size} at both ends"


@inlineCallbacks
def _ping(reactor: Any, tunnel: PaqetTunnel, server: str, count: int) -> Any:
    connection = tunnel.connections[0]
    began = reactor.seconds()
    try:
        live = yield connection.session()
    except DestinationError:
        return 1
    print(f"{server}: live after {(reactor.seconds() - began) * 1000:.0f} ms, dialect {live.dialect.value}")
    times = []
    for number in range(1, count + 1):
        began = reactor.seconds()
        answer: Deferred[Dialect | None] = connection.ping().addTimeout(PATIENCE, reactor)
        try:
            yield answer
        except Exception:  # noqa: BLE001 - lost, for whatever reason
            print(f"{number}: no answer within {PATIENCE:g} s")
        else:
            times.append((reactor.seconds() - began) * 1000)
            print(f"{number}: {times[-1]:.1f} ms")
        yield deferLater(reactor, _PAUSE)
    found = yield connection.find_path_size()
    if found is not None:
        print(describe_path(found))
    summary = f"{len(times)} of {count} answered"
    if times:
        summary += f", {min(times):.1f} / {statistics.median(times):.1f} / {max(times):.1f} ms (least / median / most)"
    print(summary)
    return 0 if len(times) == count else 1
