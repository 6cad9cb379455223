"""The DNS carrier without a network: records, the zone's answers, handshakes over many kinds of paths, and options."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.dns import DnsClient, DnsServer
from mikanet.carriers.dns_check import _Asker, _zone, delegation
from mikanet.carriers.dns_client import DnsAnswerError, DnsHandshake, DnsMode, DnsPath, read_answer
from mikanet.carriers.dns_records import (
    CARRYING,
    from_answer,
    from_labels,
    name_room,
    records_room,
    to_labels,
    to_records,
)
from mikanet.carriers.dns_zone import DnsZone
from mikanet.carriers.icmp import IcmpClient, IcmpServer, IcmpSocket
from mikanet.carriers.icmp_client import MAX_SIZE, IcmpHandshake
from mikanet.carriers.polled_numbers import KEY_SIZE, Numbers
from mikanet.carriers.polled_server import PolledLink, PolledServer
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.counters import Counters
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.wire import dns
from tests.carriers.polled_path import CountedNumbers

ZONE = dns.name_of("t.example")


def query(labels: bytes, kind: int, size: int | None = 1232, beside: bytes = b"") -> dns.Query:
    """A query below the zone as a server sees it."""
    section = labels + ZONE + kind.to_bytes(2, "big") + b"\0\1"
    return dns.read_query(dns.build_query(7, section, size, beside))


class RecordTests(SynchronousTestCase):
    """Messages in names and records."""

    def test_names(self) -> None:
        """150 bytes fit into a name of this zone; the longest name is legal."""
        self.assertEqual(name_room(ZONE), 150)
        for size in range(1, 151):
            message = random.Random(size).randbytes(size)
            name = to_labels(message) + ZONE
            self.assertLessEqual(len(name), dns.MAX_NAME)
            self.assertEqual(from_labels(dns.labels_of(name)[:-2]), message)

    @settings(deadline=None)
    @given(st.sampled_from(CARRYING), st.integers(512, 1452), st.integers(0, 10_000), st.booleans())
    def test_every_type(self, kind: int, limit: int, seed: int, shuffle: bool) -> None:
        """What fits by our own count fits, and comes out, also when a resolver shuffles records."""
        chance = random.Random(seed)
        asked = query(b"\x04abcd", kind)
        room = records_room(kind, dns.answer_room(asked, limit), ZONE)
        message = chance.randbytes(chance.choice((1, room, chance.randrange(1, room + 1))))
        answer = dns.build_answer(asked, *to_records(kind, message, ZONE, 12 + len(asked.section) - 4 - len(ZONE)))
        self.assertLessEqual(len(answer), limit)
        if shuffle:
            whole = dns.Message.decode(answer)
            records = list(whole.answers)
            chance.shuffle(records)
            answer = dns.Message(whole.ident, whole.flags, whole.questions, records, [], whole.additional).encode()
        self.assertEqual(from_answer(answer, kind, len(asked.section), ZONE), message)

    def test_addresses_look_public(self) -> None:
        """No address that a resolver may keep back: none is private, looped back, multicast or reserved."""
        for kind in (dns.A, dns.AAAA):
            asked = query(b"\x04abcd", kind)
            room = records_room(kind, dns.answer_room(asked, 4096), ZONE)
            _, records = to_records(kind, random.Random(kind).randbytes(room), ZONE, 17)
            size = 28 if kind == dns.AAAA else 16
            for at in range(0, len(records), size):
                address = ip_address(records[at + 12 : at + size])
                self.assertFalse(address.is_loopback or address.is_multicast or address.is_link_local, address)
                self.assertFalse(address.is_unspecified, address)

    def test_mutations(self) -> None:
        """10,000 changed answers are read or refused with the one error."""
        chance = random.Random(6)
        golden = []
        for kind in CARRYING:
            asked = query(b"\x04abcd", kind)
            golden.append((kind, dns.build_answer(asked, *to_records(kind, bytes(range(100)), ZONE, 17)), asked))
        for _ in range(10_000):
            kind, answer, asked = chance.choice(golden)
            data = bytearray(answer)
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.choice((0, 0xC0, 0xFF, chance.randrange(256)))
            if chance.random() < 0.3:
                del data[chance.randrange(len(data)) :]
            for read in (
                lambda d, k=kind, a=asked: read_answer(d, a.section, k, ZONE),
                lambda d, k=kind, a=asked: from_answer(d, k, len(a.section), ZONE),
            ):
                try:
                    read(bytes(data))
                except RemoteProtocolError:
                    pass

    def test_answers_without_a_message(self) -> None:
        """Error codes, truncation and emptiness are told; answers to other questions are not ours."""
        asked = query(b"\x04abcd", dns.TXT)
        for flags, rcode, truncated in ((dns.SERVFAIL, 2, False), (dns.AA | dns.TC, 0, True), (dns.AA, 0, False)):
            with self.assertRaises(DnsAnswerError) as caught:
                read_answer(dns.build_answer(asked, 0, b"", flags), asked.section, dns.TXT, ZONE)
            self.assertEqual((caught.exception.rcode, caught.exception.truncated), (rcode, truncated))
        other = query(b"\x04abce", dns.TXT)
        self.assertRaises(
            RemoteProtocolError, read_answer, dns.build_answer(other, 0, b""), asked.section, dns.TXT, ZONE
        )

    def test_path(self) -> None:
        """A link's questions have secret identifiers; an answer counts once."""
        path = DnsPath(ZONE, DnsMode(dns.NULL, 1000, 150, 0, 1232), 0x5555)
        asked = dns.read_query(path.question(3, b"message"))
        self.assertEqual(asked.ident, 3 ^ 0x5555)
        answer = dns.build_answer(asked, *to_records(dns.NULL, b"answer", ZONE, 17))
        self.assertEqual(path.answer(answer), (3, b"answer"))
        self.assertRaises(RemoteProtocolError, path.answer, answer)
        self.assertRaises(RemoteProtocolError, path.answer, b"")

    def test_data_beside_the_name(self) -> None:
        """In wide mode a question's name is short, and all of the message arrives."""
        path = DnsPath(ZONE, DnsMode(dns.NULL, 1000, 150, 1200, 1232), 0)
        message = random.Random(1).randbytes(1200)
        asked = dns.read_query(path.question(3, message))
        self.assertEqual(len(asked.labels), 3)
        self.assertEqual(from_labels(asked.labels[:1]) + asked.data, message)


class ZoneTests(SynchronousTestCase):
    """The name server."""

    def setUp(self) -> None:
        self.sent: list[tuple[Any, bytes]] = []
        self.links: list[PolledLink] = []
        self.zone = DnsZone(
            ZONE,
            dns.name_of("tns.example"),
            lambda to: [IPv4Address("192.0.2.53")],
            CountedNumbers(),
            lambda link, way: not self.links.append(link),  # type: ignore[func-returns-value]
            lambda to, message: self.sent.append((to, message)),
        )

    def ask(self, name: bytes, kind: int, cls: int = 1) -> dns.Message:
        """One question."""
        section = name + kind.to_bytes(2, "big") + cls.to_bytes(2, "big")
        self.zone.received(dns.build_query(9, section, 1232), "asker", False, 0.0)
        return dns.Message.decode(self.sent[-1][1])

    def test_apex(self) -> None:
        """SOA, NS and A, each with TTL 0 and the authority's mark."""
        for kind, data in ((dns.NS, dns.name_of("tns.example")), (dns.A, bytes([192, 0, 2, 53]))):
            message = self.ask(ZONE, kind)
            self.assertEqual([(r.data, r.ttl) for r in message.answers], [(data, 0)])
            self.assertTrue(message.flags & dns.AA)
        soa = self.ask(ZONE, dns.SOA).answers[0].data
        self.assertEqual(soa[-4:], bytes(4), "a minimum TTL of 0")

    def test_never_nxdomain(self) -> None:
        """Any name, of any type, in any case, exists."""
        chance = random.Random(8)
        for _ in range(500):
            labels = [chance.randbytes(chance.randrange(1, 20)) for _ in range(chance.randrange(1, 4))]
            zone = bytes(chance.choice((c, bytes([c]).swapcase()[0])) for c in ZONE)
            name = dns.join_labels(labels)[:-1] + zone
            message = self.ask(name, chance.choice((*CARRYING, dns.NS, dns.SOA, 255, 99)))
            self.assertEqual(message.rcode, dns.NOERROR)
            self.assertEqual(message.questions[0].name, name)

    def test_parts_of_a_name(self) -> None:
        """A resolver that asks label by label hears that there is something below, and moves nothing."""
        self.ask(to_labels(wire.hello(b"challeng")) + ZONE, dns.NULL)
        self.ask(to_labels(wire.start(1, dns.NULL, 500, 0, 3.0, 0)) + ZONE, dns.NULL)
        question = wire.up(1, 1, 0, 0, 8, False, 0, b"\0\x64" + bytes(100))
        whole = to_labels(question) + ZONE
        labels = dns.labels_of(whole)
        for count in range(3, len(labels)):
            message = self.ask(dns.join_labels(labels[-count:]), dns.A)
            self.assertEqual((message.rcode, len(message.answers), len(message.authority)), (0, 0, 1))
        self.assertEqual(self.ask(whole, dns.A).answers, [], "asked for addresses first")
        found = self.zone.received(dns.build_query(9, whole + b"\0\x0a\0\1", 1232), "asker", False, 0.0)
        assert found is not None
        self.assertEqual(found[1], [bytes(100)])

    def test_other_zones(self) -> None:
        """Are refused, as is another class."""
        for name in (dns.name_of("example"), dns.name_of("xt.example"), b"\0"):
            self.assertEqual(self.ask(name, dns.A).rcode, dns.REFUSED)
        self.assertEqual(self.ask(ZONE, dns.TXT, 3).rcode, dns.REFUSED)

    def test_no_room_means_tcp(self) -> None:
        """A link that has more to say than fits answers with TC."""
        self.ask(to_labels(wire.hello(b"challeng")) + ZONE, dns.NULL)
        self.ask(to_labels(wire.start(1, dns.NULL, 1000, 0, 3.0, 0)) + ZONE, dns.NULL)
        link = self.links[0]
        link.push([bytes(900)])
        self.ask(to_labels(wire.up(1, 1, 0, 0, 8, False, None, b"")) + ZONE, dns.NULL)
        link.flush(0.0)
        link.tick(5.0)
        section = to_labels(wire.up(1, 2, 0, 0, 8, False, None, b"")) + ZONE + b"\0\x0a\0\1"
        self.zone.received(dns.build_query(9, section, None), "asker", False, 5.0)
        link.flush(5.0)
        self.assertTrue(dns.Message.decode(self.sent[-1][1]).flags & dns.TC)
        self.zone.received(dns.build_query(9, section, None), "asker", True, 5.0)
        link.flush(5.0)
        self.assertEqual(len(dns.Message.decode(self.sent[-1][1]).answers), 1)

    def test_mutations(self) -> None:
        """10,000 changed queries are answered, or dropped with the one error."""
        chance = random.Random(9)
        golden = [
            dns.build_query(9, to_labels(message) + ZONE + b"\0\x0a\0\1", 1232, b"beside")
            for message in (wire.hello(b"challeng"), wire.probe(1, 500, 3), wire.start(1, 10, 500, 2, 3.0, 0))
        ]
        for _ in range(10_000):
            data = bytearray(chance.choice(golden))
            for _ in range(chance.randrange(0, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                self.zone.received(bytes(data), "asker", False, 0.0)
            except RemoteProtocolError:
                pass
        self.assertGreater(len(self.sent), 1000)


class HandshakeTests(SynchronousTestCase):
    """What a client finds out over paths of many kinds."""

    def run_over(
        self,
        change: Callable[[bytes], bytes | None],
        back: Callable[[bytes], bytes | None],
        resolver: Callable[[bytes], bytes | None] = lambda query: None,
    ) -> DnsHandshake:
        """A handshake, in virtual time, over a path that changes queries and answers.

        :param resolver: answers a query itself, or does not.
        """
        chance = random.Random(10)
        now = 0.0
        answers: list[bytes] = []
        zone = DnsZone(
            ZONE,
            b"\x02ns" + ZONE,
            lambda to: [],
            Numbers(chance.randbytes(KEY_SIZE)),
            lambda link, way: True,
            lambda to, message: answers.append(message),
        )
        handshake = DnsHandshake(ZONE, chance.getrandbits, now)
        while handshake.mode is None and now < 25:
            for question in handshake.questions(now):
                asked = change(question)
                own = resolver(question)
                if own is not None:
                    answers.append(own)
                elif asked is not None:
                    zone.received(asked, 0, False, now)
            now += 0.02
            got, answers[:] = list(answers), []
            for answer in got:
                changed = back(answer)
                if changed is not None:
                    handshake.received(changed, now)
            now = max(now, min(handshake.deadline, now + 0.5))
        return handshake

    def found(
        self, change: Callable[[bytes], bytes | None] = bytes, back: Callable[[bytes], bytes | None] = bytes
    ) -> DnsMode:
        """The mode."""
        mode = self.run_over(change, back).mode
        assert mode is not None
        return mode

    def test_straight(self) -> None:
        """The best of everything."""
        mode = self.found()
        self.assertEqual((mode.type, mode.name, mode.wide), (dns.NULL, 150, 1200))
        self.assertGreater(mode.size, 1300)

    def only(self, *kinds: int) -> Callable[[bytes], bytes | None]:
        """A path that knows these types only."""
        return lambda data: data if dns.read_query(data).type in kinds else None

    def test_types(self) -> None:
        """Whatever single type passes is used."""
        for kind in CARRYING:
            self.assertEqual(self.found(self.only(kind)).type, kind)

    def test_without_edns(self) -> None:
        """Where the OPT record is taken away, answers keep to 512 bytes."""

        def strip(data: bytes) -> bytes:
            asked = dns.read_query(data)
            return dns.build_query(asked.ident, asked.section, None)

        mode = self.found(strip)
        self.assertEqual(mode.wide, 0)
        self.assertLess(mode.size, 450)
        self.assertGreater(mode.size, 350)

    def formerr(self, query: bytes, question: bool) -> bytes | None:
        """A resolver without EDNS (RFC 6891, section 7): FORMERR to whatever has an OPT record."""
        asked = dns.read_query(query)
        if query[10:12] == b"\0\0":
            return None
        head = query[:2] + bytes((0x81, 0x81, 0, question)) + bytes(6)
        return head + asked.section if question else head

    def test_edns_is_an_error(self) -> None:
        """A resolver that answers FORMERR to OPT records, with the question or without, gets none: all within 512 bytes."""
        for question in (False, True):
            queries: list[bytes] = []

            def seen(query: bytes, queries: list[bytes] = queries) -> bytes:
                queries.append(query)
                return query

            handshake = self.run_over(seen, bytes, lambda query, question=question: self.formerr(query, question))  # type: ignore[misc]
            mode = handshake.mode
            assert mode is not None
            self.assertIsNone(mode.edns)
            self.assertEqual(mode.wide, 0)
            self.assertGreater(mode.size, 350)
            self.assertLess(mode.size, 450)
            self.assertEqual(mode.name, 150)
            path = DnsPath(ZONE, mode, 0)
            self.assertEqual(path.question(5, bytes(20))[10:12], b"\0\0", "nothing about EDNS on the link either")
            with_option = sum(query[10:12] != b"\0\0" for query in queries)
            self.assertLessEqual(with_option, len(CARRYING), "one for each type, and none after the first FORMERR")

    def test_edns_is_swallowed(self) -> None:
        """A path on which queries with an OPT record are lost is found out, too."""
        mode = self.found(lambda query: query if query[10:12] == b"\0\0" else None)
        self.assertIsNone(mode.edns)
        self.assertGreater(mode.size, 350)

    def test_a_late_answer_costs_no_edns(self) -> None:
        """Where only the first questions with an OPT record are lost, the link has large answers all the same."""
        lost = 0

        def first_lost(query: bytes) -> bytes | None:
            nonlocal lost
            if query[10:12] != b"\0\0" and lost < 3:
                lost += 1
                return None
            return query

        mode = self.found(first_lost)
        self.assertIsNotNone(mode.edns)
        self.assertGreater(mode.size, 1300)

    def test_large_answers_vanish(self) -> None:
        """Answers over 1,000 bytes are lost on the way: smaller ones are used."""
        mode = self.found(back=lambda data: data if len(data) <= 1000 else None)
        self.assertLess(mode.size, 1000)

    def test_long_names_vanish(self) -> None:
        """Names over 150 characters are lost: half of the room is used."""
        mode = self.found(lambda data: data if len(dns.read_query(data).section) < 150 else None)
        self.assertEqual(mode.name, 75)

    def test_option_is_changed(self) -> None:
        """Data beside the name that arrives changed is not trusted."""
        mode = self.found(lambda data: data.replace(b"\x15\x1c\x23", b"\x15\x1c\x24"))
        self.assertEqual(mode.wide, 0)

    def test_nobody_there(self) -> None:
        """Silence is told from refusal."""
        silent = self.run_over(lambda data: None, bytes)
        self.assertFalse(silent.answered)
        refused = self.run_over(bytes, lambda data: data[:3] + b"\x85" + data[4:])
        self.assertTrue(refused.answered)
        self.assertIsNone(refused.mode)
        self.assertIn(dns.REFUSED, refused.refusals)

    def test_loss(self) -> None:
        """Half of everything is lost, 30 times; it works each time."""
        for seed in range(30):
            chance = random.Random(seed)

            def lossy(data: bytes, chance: random.Random = chance) -> bytes | None:
                return data if chance.random() < 0.7 else None

            self.assertIsNotNone(self.run_over(lossy, lossy).mode, seed)


class IcmpSocketTests(SynchronousTestCase):
    """The raw socket in the reactor, with one of UDP in its place."""

    def setUp(self) -> None:
        """A socket that is watched."""
        self.made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.made.close)
        self.patch(IcmpSocket, "_open", lambda *_: self.made)
        self.readers: list[Any] = []
        self.addReader = self.readers.append
        self.removeReader = self.readers.remove
        self.socket = IcmpSocket(self, "127.0.0.1", 0, b"", lambda host, echoes: None)

    def test_what_the_network_reports(self) -> None:
        """An error that the kernel reports, which the reactor takes for an end, does not close it; the reactor's end does."""
        self.removeReader(self.socket)  # as the reactor does before it says so
        self.socket.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(self.readers, [self.socket])
        self.assertNotEqual(self.made.fileno(), -1)
        self.socket.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.readers, self.made.fileno()), ([], -1))


class IcmpHandshakeTests(SynchronousTestCase):
    """The same over ICMP."""

    def run_over(self, limit: int, loss: float = 0.0, seed: int = 1) -> IcmpHandshake:
        """A handshake over a path that passes messages up to a size."""
        chance = random.Random(seed)
        replies: list[tuple[int, bytes]] = []
        server = PolledServer(
            lambda path, message: replies.append((path, message or b"")),
            Numbers(chance.randbytes(KEY_SIZE)),
            lambda link, path: True,
        )
        now = 0.0
        handshake = IcmpHandshake(chance.getrandbits, now)
        while handshake.size is None and now < 20:
            for number, message in handshake.questions(now):
                if len(message) <= limit and chance.random() >= loss:
                    server.question(message, number, MAX_SIZE, now)
            now += 0.02
            got, replies[:] = list(replies), []
            for number, message in got:
                if len(message) <= limit and chance.random() >= loss:
                    handshake.received(number, message, now)
            now = max(now, min(handshake.deadline, now + 0.5))
        return handshake

    def test_sizes(self) -> None:
        """The largest that passes is used."""
        for limit, size in ((1500, MAX_SIZE), (1440, 1430), (1200, 1180), (600, 500), (100, 100)):
            self.assertEqual(self.run_over(limit).size, size)
        self.assertIsNone(self.run_over(0).size)

    def test_loss(self) -> None:
        """Half of everything is lost, 30 times; it works each time."""
        for seed in range(30):
            self.assertIsNotNone(self.run_over(1500, 0.3, seed).size, seed)


class OptionTests(SynchronousTestCase):
    """What users may write."""

    context = CarrierContext(Clock(), Counters())

    def test_wrong_urls(self) -> None:
        """Each is refused with one line."""
        wrong: dict[Any, list[str]] = {
            DnsClient: [
                "dns://host:53",
                "dns://host/a/b",
                "dns://host/t.example?type=SRV",
                "dns://host/t.example?size=9",
                "dns://host/t.example?transport=quic",
                "dns://host/t.example?who=me",
                "dns://host/" + ".".join(["a" * 60] * 4),
            ],
            DnsServer: ["dns://host", "dns://host/t.example?address=nowhere", "dns://host/t.example?ns=" + "a" * 64],
            IcmpClient: ["icmp://host:7", "icmp://host/x", "icmp://host?size=10", "icmp://host?size=9000"],
            IcmpServer: ["icmp://host:7", "icmp://host?size=100"],
        }
        for kind, texts in wrong.items():
            for text in texts:
                with self.assertRaises(ConfigError) as caught:
                    kind(CarrierUrl.parse(text), self.context)
                self.assertNotIn("\n", str(caught.exception))

    def test_delegation(self) -> None:
        """The two records to paste."""
        self.assertEqual(
            delegation(ZONE, "192.0.2.1"),
            "t.example.    IN  NS    tns.example.\ntns.example.  IN  A     192.0.2.1",
        )


class _ZoneAsker(_Asker):
    """Asks a zone in memory; as a resolver, takes the mark of authority away."""

    def __init__(self, nameserver: str, straight: bool, knows_edns: bool = True) -> None:
        self._knows_edns = knows_edns
        self.host, self.port = "192.0.2.53", 53
        self._straight = straight
        self._sent: list[bytes] = []
        self._zone = DnsZone(
            ZONE,
            dns.name_of(nameserver),
            lambda to: [IPv4Address("192.0.2.53")],
            CountedNumbers(),
            lambda link, way: True,
            lambda to, message: self._sent.append(message),
        )

    def exchange(self, section: bytes, size: int | None) -> dns.Message:
        """The zone's answer."""
        if size is not None and not self._knows_edns:
            return dns.Message.decode(bytes((0, 9, 0x81, 0x81, 0, 0)) + bytes(6))
        self._zone.received(dns.build_query(9, section, size), "asker", False, 0.0)
        message = dns.Message.decode(self._sent[-1])
        return message if self._straight else replace(message, flags=message.flags & ~dns.AA)

    def over_tcp(self, name: bytes) -> bool:
        """It is."""
        return True


class DoctorTests(SynchronousTestCase):
    """What ``mikanet doctor`` says of a zone."""

    def notes(self, nameserver: str, straight: bool) -> list[tuple[str, str]]:
        """What it says of name servers."""
        found = _zone(_ZoneAsker(nameserver, straight), ZONE)
        return [(status, text) for status, what, text, _ in found if what == "name server"]

    def test_edns_is_an_error(self) -> None:
        """A resolver that does not know EDNS is asked without, and the user reads what that costs."""
        found = list(_zone(_ZoneAsker("NS.t.example", False, knows_edns=False), ZONE))
        self.assertNotIn("PROBLEM", [status for status, *_ in found])
        text = "192.0.2.53 takes EDNS for an error: answers have 512 bytes at most, and a tunnel is slow"
        self.assertIn(("note", "EDNS", text, "another resolver, if there is one"), found)

    def test_name_server(self) -> None:
        """A name server below its zone has an address there; of one outside the zone's server knows nothing, and is not asked."""
        inside = [("ok", "NS.t.example. has an address")]
        self.assertEqual(self.notes("NS.t.example", straight=True), inside)
        self.assertEqual(self.notes("tns.example", straight=True), [])
        self.assertEqual(self.notes("nst.example", straight=True), [])
        self.assertEqual([status for status, _ in self.notes("tns.example", straight=False)], ["note"])
