"""``python -m tests.lab wire``: a scenario by hand, in memory, between processes or between two namespaces."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Mapping
from typing import IO, Any

from tests.lab.link import Link, Record, check_log
from tests.lab.progress import Progress
from tests.lab.scenario import WORDS, Carrier, Direction, Scenario, ScenarioError

_WORDS = "words of a scenario (add @up or @down for one direction):\n" + "\n".join(
    textwrap.wrap("  " + "  ".join(f"{name}={word.form}" for name, word in WORDS.items()), 100, subsequent_indent="  ")
)


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab wire",
        description=__doc__,
        epilog=_WORDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="?", default="", help='the words, as one argument: "delay=15ms loss=10%%"')
    parser.add_argument("--seed", default="1", help="of every chance (default 1)")
    parser.add_argument("--log", metavar="FILE", help="write each decision as a JSON line")
    parser.add_argument("--for", dest="seconds", type=float, default=0, help="end after so many seconds")
    carrier = parser.add_mutually_exclusive_group()
    carrier.add_argument("--udp", metavar="PORT=HOST:PORT", help="relay datagrams from a port to a server")
    carrier.add_argument("--tcp", metavar="PORT=HOST:PORT", help="relay connections from a port to a server")
    carrier.add_argument("--namespaces", action="store_true", help="two namespaces with the wire between (root)")
    carrier.add_argument("--check", metavar="LOG", help="run a packet log again and compare every decision")
    parser.add_argument("--second", metavar="COMMAND", help="with --namespaces: runs in the second (the server)")
    parser.add_argument("--first", metavar="COMMAND", help="with --namespaces: runs in the first; its end is the end")
    parser.add_argument("--packets", type=int, default=1000, help="without a carrier: packets each way, in memory")
    parser.add_argument("--size", type=int, default=1200, help="of those packets")
    parser.add_argument("--rate", type=float, default=1000, help="of those packets, per second")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run a scenario; 0 if it ran, 1 if a log differs or the first command failed, 2 for a bad argument."""
    options = _arguments(arguments)
    try:
        if options.check:
            return _check(options.check)
        scenario = Scenario.parse(options.scenario)
        scenario.require(Carrier.STREAMS if options.tcp else Carrier.PACKETS)
        target = _target(options.udp or options.tcp) if options.udp or options.tcp else None
    except (ScenarioError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"scenario: {scenario or '(no words: everything passes)'}\nseed: {options.seed}")
    if options.namespaces:
        return _namespaces(options, scenario)
    if target is not None:
        return _relay(options, scenario, *target)
    return _memory(options, scenario)


def _target(text: str) -> tuple[int, tuple[str, int]]:
    port, _, address = text.partition("=")
    host, _, target_port = address.rpartition(":")
    if not (port.isdecimal() and target_port.isdecimal() and host):
        raise ScenarioError(f"{text!r}: the form is PORT=HOST:PORT")
    return int(port), (host, int(target_port))


def _check(path: str) -> int:
    with open(path, encoding="ascii") as file:
        try:
            print(f"{check_log(json.loads(line) for line in file)} decisions, all the same")
        except ValueError as error:
            print(error)
            return 1
    return 0


class _Log:
    """The log file, if one is wanted."""

    def __init__(self, path: str | None) -> None:
        self._file: IO[str] | None = open(path, "w", encoding="ascii") if path else None  # noqa: SIM115

    def __call__(self, record: Record) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _memory(options: argparse.Namespace, scenario: Scenario) -> int:
    """Numbered packets each way in virtual time."""
    log = _Log(options.log)
    link = Link(scenario, options.seed, log)
    progress = Progress("packets", options.packets)
    late: dict[Direction, list[float]] = {way: [] for way in Direction}
    order: dict[Direction, list[int]] = {way: [] for way in Direction}

    def take(now: float) -> None:
        for delivery in link.due(now):
            if delivery.origin == "sent":
                number = int.from_bytes(delivery.packet[:4], "big")
                if number < options.packets:
                    late[delivery.direction].append(delivery.at - number / options.rate)
                    order[delivery.direction].append(number)

    for number in range(options.packets):
        now = number / options.rate
        take(now)
        for way in Direction:
            link.send(way, number.to_bytes(4, "big") + bytes(max(0, options.size - 4)), now)
        progress.at(number)
    take(options.packets / options.rate + 3600)
    log.close()
    _print_counts({f"{way} {action}": count for (way, action), count in link.counts.items()})
    for way in Direction:
        if late[way]:
            times = sorted(late[way])
            middle, most = times[len(times) // 2], times[-1]
            overtaken = sum(a > b for a, b in zip(order[way], order[way][1:], strict=False))
            print(f"{way.value}: delay median {middle * 1000:.2f} ms, most {most * 1000:.2f} ms; overtaken {overtaken}")
    return 0


def _relay(options: argparse.Namespace, scenario: Scenario, port: int, target: tuple[str, int]) -> int:
    from twisted.internet import reactor as _reactor

    from tests.lab.relay import TCPRelay, UDPRelay

    reactor: Any = _reactor
    log = _Log(options.log)
    relay: TCPRelay | UDPRelay
    if options.tcp:
        relay = TCPRelay(reactor, scenario, options.seed, target, log=log)
    else:
        relay = UDPRelay(reactor, scenario, options.seed, target, log=log)
    print(f"listening on 127.0.0.1:{relay.listen(port)}, to {target[0]}:{target[1]}; Ctrl-C ends it", flush=True)
    progress = Progress("seconds", options.seconds, every=5)
    started = time.monotonic()

    def counts() -> dict[str, int]:
        if isinstance(relay, TCPRelay):
            return {"connections": relay.accepted, "open now": len(relay.connections)}
        return {f"{way} {action}": count for (way, action), count in relay.link.counts.items()}

    def tick() -> None:
        progress.at(round(time.monotonic() - started), str(counts()))
        reactor.callLater(1, tick)

    tick()
    if options.seconds:
        reactor.callLater(options.seconds, reactor.stop)
    reactor.addSystemEventTrigger("before", "shutdown", relay.stop)
    reactor.run()
    log.close()
    _print_counts(counts())
    return 0


def _namespaces(options: argparse.Namespace, scenario: Scenario) -> int:
    from tests.lab.netns import Namespaces

    status = 0
    with Namespaces(scenario, options.seed, log=options.log or "") as pair:
        first, second = pair.first, pair.second
        print(f"first:  {first.name}  {first.address}  {first.address6}  {first.interface}")
        print(f"second: {second.name}  {second.address}  {second.address6}  {second.interface}", flush=True)
        values = {"first": first.address, "second": second.address}
        server = second.start(_words(options.second, values)) if options.second else None
        time.sleep(0.5 if server is not None else 0)
        progress = Progress("seconds", options.seconds, every=5)
        started = time.monotonic()
        client = first.start(_words(options.first, values)) if options.first else None
        if client is None:
            print("enter them with: ip netns exec NAME ...; Ctrl-C ends and removes both", flush=True)
        try:
            while (client is None or client.alive) and not 0 < options.seconds < time.monotonic() - started:
                time.sleep(0.1)
                progress.at(round(time.monotonic() - started), str(pair.counts()))
        except KeyboardInterrupt:
            pass
        counts = pair.counts()
        if client is not None:
            client.stop(1)
            status = 1 if client.returncode else 0
            print(f"-- first ended with {client.returncode}\n{client.output}", end="")
        if server is not None:
            server.stop(1)
            print(f"-- second said\n{server.output}", end="")
    _print_counts(counts)
    return status


def _words(command: str, values: Mapping[str, str]) -> list[str]:
    """A command line in which ``{first}`` and ``{second}`` stand for the addresses."""
    return [word.format_map(values) if "{" in word else word for word in shlex.split(command)]


def _print_counts(counts: Mapping[str, int]) -> None:
    print("what happened:")
    for name, count in sorted(counts.items()):
        print(f"  {name:20} {count}")
