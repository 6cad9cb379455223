"""How much the DNS and ICMP servers send to an address that has not shown that answers reach it."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.dns_records import CARRYING, to_labels
from mikanet.carriers.dns_zone import DnsZone
from mikanet.carriers.polled_numbers import KEY_SIZE, Numbers
from mikanet.carriers.polled_server import PolledLink, PolledServer
from mikanet.errors import RemoteProtocolError
from mikanet.guard.amplification import FACTOR
from mikanet.wire import dns

ZONE = dns.name_of("t.example")
ATTACKER, VICTIM = ("198.51.100.7", 4000), ("203.0.113.9", 53)


class _Number(Numbers):
    """Numbers whose last is told.

    :ivar last: given.
    """

    last = 0

    def _next(self, group: str, now: float) -> int:
        self.last = super()._next(group, now)
        return self.last


class DnsTests(SynchronousTestCase):
    """A name server that is asked with forged sources."""

    def setUp(self) -> None:
        self.sent: list[tuple[Any, bytes]] = []
        self.links: list[PolledLink] = []
        self.numbers = _Number(bytes(range(KEY_SIZE)))
        self.zone = self.make(ZONE)
        self.ident = 0

    def make(self, zone: bytes) -> DnsZone:
        """A server of a zone."""
        return DnsZone(
            zone,
            b"\x02ns" + zone,
            lambda to: [IPv4Address("192.0.2.53")],
            self.numbers,
            lambda link, way: not self.links.append(link),  # type: ignore[func-returns-value]
            lambda to, message: self.sent.append((to, message)),
        )

    def ask(
        self,
        message: bytes,
        sender: Any,
        kind: int = dns.NULL,
        *,
        size: int | None = 4096,
        tcp: bool = False,
        now: float = 0.0,
    ) -> tuple[int, list[bytes]]:
        """One question; its size, and what was answered to its sender."""
        section = to_labels(message) + ZONE + kind.to_bytes(2, "big") + b"\0\1"
        self.ident += 1
        return self.raw(dns.build_query(self.ident, section, size), sender, tcp, now)

    def raw(self, data: bytes, sender: Any, tcp: bool = False, now: float = 0.0) -> tuple[int, list[bytes]]:
        """The same with a whole query."""
        del self.sent[:]
        self.zone.received(data, sender, tcp, now)
        for link in self.links:
            link.flush(now)
        return len(data), [message for to, message in self.sent if to == sender]

    def number(self, sender: Any) -> int:
        """A number that was given to an address."""
        self.ask(wire.hello(b"challeng"), sender)
        return self.numbers.last

    def check(self, asked: tuple[int, list[bytes]], what: object = "") -> None:
        """Nothing larger than the factor."""
        size, answers = asked
        self.assertLessEqual(sum(map(len, answers)), FACTOR * size, what)

    def test_a_number_of_another_address(self) -> None:
        """Probes from a forged source, with a number that somebody else has got, bring small answers: of any type and size."""
        number = self.number(ATTACKER)
        for kind in CARRYING:
            for size in (None, 4096):
                self.check(self.ask(wire.hello(b"challeng"), VICTIM, kind, size=size), (kind, size))
                self.check(
                    self.ask(wire.start(number + 1, kind, 4000, 0, 3.0, 1), VICTIM, kind, size=size), (kind, size)
                )
            for wanted in (0, 100, 200, 444, 1384, 4096):
                for size in (None, 512, 1232, 4096):
                    for length in (0, 60, 140):
                        probe = wire.probe(number, wanted, 1, length)
                        self.check(self.ask(probe, VICTIM, kind, size=size), (kind, wanted, size, length))
        size, (answer,) = self.ask(wire.probe(number, 1384, 1), ATTACKER)
        self.assertGreater(len(answer), 1384)
        self.assertLess(size, 80)

    def test_a_link_of_another_address(self) -> None:
        """A link's questions from a forged source bring small answers, also repeated ones, while it has much to say."""
        number = self.number(ATTACKER)
        for kind in (dns.NULL, dns.TXT, dns.AAAA):
            self.links.clear()
            self.zone = self.make(ZONE)
            self.ask(wire.start(number, kind, 4000, 0, 3.0, 1), ATTACKER, kind)
            self.links[0].push([bytes(60_000)] * 4)
            large = self.ask(wire.up(number, 1, 0, 0, 8, False, None, b""), ATTACKER, kind)
            self.assertGreater(sum(map(len, large[1])), 1000)
            self.check(self.ask(wire.up(number, 1, 0, 0, 8, False, None, b""), VICTIM, kind), "repeated")
            for index in range(2, 200):
                question = wire.up(number, index, 0, 0, 8, False, None, b"")
                self.check(self.ask(question, VICTIM, kind, now=index * 0.05), (kind, index))

    def test_everything_else(self) -> None:
        """What any name server says, of any name of any zone, with EDNS and without."""
        chance = random.Random(5)
        for zone in (
            b"\x01t\0",
            ZONE,
            dns.name_of("a-rather-long-label.of.a-zone.example"),
            b"\x3f" + b"z" * 63 + ZONE,
        ):
            self.zone = self.make(zone)
            for name in (
                zone,
                b"\x01x" + zone,
                b"\x02ns" + zone,
                b"\x3f" + b"a" * 63 + zone,
                dns.name_of("other.example"),
            ):
                for kind in (*CARRYING, dns.SOA, dns.NS, 255, 65):
                    for size in (None, 512, 4096):
                        data = dns.build_query(chance.getrandbits(16), name + kind.to_bytes(2, "big") + b"\0\1", size)
                        self.check(self.raw(data, VICTIM), (zone, name, kind, size))

    def test_a_resolver_shows_itself_by_tcp(self) -> None:
        """An address that asks with another's number is told to come by TCP; then it gets large answers by UDP, too."""
        number = self.number(ATTACKER)
        probe = wire.probe(number, 1000, 1)
        _, (answer,) = self.ask(probe, VICTIM)
        self.assertTrue(dns.Message.decode(answer).flags & dns.TC)
        self.zone.tunnel.reached.show("203.0.113.9", 0.0)
        _, (answer,) = self.ask(probe, VICTIM)
        self.assertGreater(len(answer), 1000)
        self.assertFalse(dns.Message.decode(answer).flags & dns.TC)

    def test_links_by_way_of_a_new_address(self) -> None:
        """A link whose questions come from a new address goes on with small answers, and is asked to come by TCP."""
        number = self.number(ATTACKER)
        self.ask(wire.start(number, dns.NULL, 1000, 0, 3.0, 1), ATTACKER)
        self.links[0].push([bytes(1000)] * 2)
        _, (answer,) = self.ask(wire.up(number, 1, 0, 0, 8, False, None, b""), VICTIM)
        self.assertTrue(dns.Message.decode(answer).flags & dns.TC)
        _, (answer,) = self.ask(wire.up(number, 2, 0, 0, 8, False, None, b""), VICTIM)
        self.assertEqual(len(dns.Message.decode(answer).answers), 1)
        _, (answer,) = self.ask(wire.up(number, 2, 0, 0, 8, False, None, b""), VICTIM, tcp=True)
        self.assertEqual(len(dns.Message.decode(answer).answers), 1)


class IcmpTests(SynchronousTestCase):
    """Echo requests with forged sources."""

    def test_forged_sources(self) -> None:
        """Nothing but an error is the answer to another address: no probe, no start, no data of a link."""
        sent: list[tuple[str, bytes | None]] = []
        links: list[PolledLink] = []
        numbers = _Number(bytes(range(KEY_SIZE)))
        server = PolledServer(
            lambda path, message: sent.append((path, message)),
            numbers,
            lambda link, path: not links.append(link),  # type: ignore[func-returns-value]
            str,
            str,
        )
        server.question(wire.hello(b"challeng"), "attacker", 1470, 0.0)
        number = numbers.last
        self.assertRaises(RemoteProtocolError, server.question, wire.probe(number, 1470, 1), "victim", 1470, 0.0)
        server.question(wire.start(number, 0, 1470, 2, 3.0, 1), "attacker", 1470, 0.0)
        links[0].push([bytes(10_000)])
        server.question(wire.up(number, 1, 0, 0, 8, False, None, b""), "attacker", 1470, 0.0)
        for message in (wire.up(number, 1, 0, 0, 8, False, None, b""), wire.up(number, 2, 0, 0, 8, False, None, b"")):
            self.assertRaises(RemoteProtocolError, server.question, message, "victim", 1470, 0.0)
        server.question(wire.probe(number, 1470, 1), "victim", 1470, 0.0)
        links[0].flush(0.0)
        self.assertEqual([message for path, message in sent if path == "victim" and message is not None], [])
        self.assertGreater(max(len(message) for path, message in sent if message is not None), 1400)
