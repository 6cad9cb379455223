"""A small hostile resolver: forwards DNS over UDP, and does to it what bad resolvers do.

    python -m tests.lab.resolver PORT=HOST:PORT [--drop 0.1] [--truncate 0.1] [--case] [--no-edns] [--formerr] [--rate 20] [--refuse]

It gives questions identifiers of its own, takes answers only for what it asked, and gives them back with the question as
its client wrote it.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

from twisted.internet.protocol import DatagramProtocol

from mikanet.errors import RemoteProtocolError
from mikanet.wire import dns

#: Questions that wait for an answer.
_MAX_WAITING = 4096


@dataclass
class Hostility:
    """What it does.

    :ivar drop: share of questions, and of answers, that it loses. :ivar truncate: share of answers that it empties and
        marks as truncated. :ivar case: it changes the case of letters in names. :ivar no_edns: it asks without EDNS.
    :ivar rate: questions per second that it takes, 0 for all; ``refuse`` answers the others with REFUSED, else they are
        lost. :ivar formerr: it answers whatever has an OPT record with FORMERR and nothing else.
    """

    drop: float = 0.0
    truncate: float = 0.0
    case: bool = False
    no_edns: bool = False
    rate: float = 0.0
    refuse: bool = False
    formerr: bool = False


class HostileResolver(DatagramProtocol):
    """Listens for clients, on the port that it is given."""

    noisy = False
    transport: Any

    def __init__(self, reactor: Any, upstream: tuple[str, int], hostility: Hostility, seed: int = 1) -> None:
        self._reactor = reactor
        self._upstream = upstream
        self._hostility = hostility
        self._random = random.Random(seed)
        self._waiting: dict[int, tuple[tuple[str, int], bytes, bytes]] = {}
        self._credit, self._credit_at = 1.0, 0.0
        self._asker = _Asker(self)

    def startProtocol(self) -> None:
        """Open the other side."""
        self._reactor.listenUDP(0, self._asker, interface="127.0.0.1", maxPacketSize=65535)

    def datagramReceived(self, data: bytes, client: tuple[str, int]) -> None:
        """A question."""
        how = self._hostility
        try:
            query = dns.read_query(data)
        except RemoteProtocolError:
            return
        if not self._may() or self._random.random() < how.drop:
            if how.refuse:
                self.transport.write(dns.build_answer(query, 0, b"", dns.REFUSED), client)
            return
        if how.formerr and query.edns:
            self.transport.write(data[:2] + bytes((0x81, 0x80 | dns.FORMERR)) + bytes(8), client)
            return
        ident = self._random.getrandbits(16)
        name = query.section[:-4]
        if how.case:
            name = bytes(self._random.choice((c, bytes([c]).swapcase()[0])) for c in name)
        section = name + query.section[-4:]
        if how.no_edns or not query.edns:
            asked = dns.build_query(ident, section, None)
        else:
            asked = dns.build_query(ident, section, min(query.size, 1232))
        self._waiting[ident] = (client, data[:2], query.section)
        if len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._asker.transport.write(asked, self._upstream)

    def _may(self) -> bool:
        if not self._hostility.rate:
            return True
        now = self._reactor.seconds()
        self._credit = min(2.0, self._credit + (now - self._credit_at) * self._hostility.rate)
        self._credit_at = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def answered(self, data: bytes) -> None:
        """An answer."""
        how = self._hostility
        waiting = self._waiting.pop(int.from_bytes(data[:2], "big"), None)
        if waiting is None or self._random.random() < how.drop:
            return
        client, ident, section = waiting
        size = len(section)
        answer = ident + data[2:12] + section + data[12 + size :]
        if self._random.random() < how.truncate:
            answer = ident + bytes([data[2] | 2, data[3]]) + b"\0\1" + bytes(6) + section
        self.transport.write(answer, client)


class _Asker(DatagramProtocol):
    noisy = False
    transport: Any

    def __init__(self, resolver: HostileResolver) -> None:
        self._resolver = resolver

    def datagramReceived(self, data: bytes, address: tuple[str, int]) -> None:
        self._resolver.answered(data)


def main() -> None:
    """Run one until it is stopped."""
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", metavar="PORT=HOST:PORT")
    parser.add_argument("--drop", type=float, default=0.0)
    parser.add_argument("--truncate", type=float, default=0.0)
    parser.add_argument("--case", action="store_true")
    parser.add_argument("--no-edns", action="store_true")
    parser.add_argument("--formerr", action="store_true")
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    port, _, upstream = chosen.where.partition("=")
    host, _, upstream_port = upstream.rpartition(":")
    how = Hostility(
        chosen.drop, chosen.truncate, chosen.case, chosen.no_edns, chosen.rate, chosen.refuse, chosen.formerr
    )
    resolver = HostileResolver(reactor, (host, int(upstream_port)), how, chosen.seed)
    reactor.listenUDP(int(port), resolver, interface="127.0.0.1", maxPacketSize=65535)
    reactor.run()


if __name__ == "__main__":
    main()
