"""DNS messages: dig's queries, dnsmasq's answers, RFC 1035's compressed names, and what is refused."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.wire import dns
from tests.support.vectors import load

VECTORS = load("dns/vectors.json")
QUERIES = {name: bytes.fromhex(found["hex"]) for name, found in VECTORS["dig"].items()}
ANSWERS = {name: bytes.fromhex(found) for name, found in VECTORS["dnsmasq"]["answers"].items()}

LABELS = st.lists(st.binary(min_size=1, max_size=63), min_size=0, max_size=4).filter(
    lambda labels: sum(map(len, labels)) + len(labels) < 255
)


class NameTests(SynchronousTestCase):
    """Names on the wire."""

    def test_rfc_1035_compression(self) -> None:
        """The message of section 4.1.4: F.ISI.ARPA at 20, FOO.F.ISI.ARPA at 40, ARPA at 64, the root at 92."""
        message = bytearray(93)
        message[20:32] = b"\x01F\x03ISI\x04ARPA\x00"
        message[40:46] = b"\x03FOO\xc0\x14"
        message[64:66] = b"\xc0\x1a"
        found = [dns.read_name(bytes(message), at) for at in (20, 40, 64, 92)]
        self.assertEqual([dns.text_of(name) for name, _ in found], ["F.ISI.ARPA.", "FOO.F.ISI.ARPA.", "ARPA.", "."])
        self.assertEqual([end for _, end in found], [32, 46, 66, 93])

    def test_limits(self) -> None:
        """Labels of 63 and names of 255 pass, one more does not."""
        self.assertEqual(len(dns.name_of("a" * 63)), 65)
        self.assertRaises(LocalProtocolError, dns.name_of, "a" * 64)
        longest = ".".join(["a" * 63] * 3 + ["b" * 61])
        self.assertEqual(len(dns.name_of(longest)), 255)
        self.assertRaises(LocalProtocolError, dns.name_of, longest + "b")
        self.assertRaises(LocalProtocolError, dns.name_of, "a..b")
        self.assertRaises(LocalProtocolError, dns.name_of, "ä.example")

    def test_pointers_that_never_end(self) -> None:
        """A pointer to itself, forward, or out of the message, and names beyond 255, are refused."""
        for message in (b"\xc0\x00", b"\xc0\x02\x01a\x00", b"\x01a\xc0", b"\x05abc", b"\x80a", b"\x01a\xc0\x00" * 2):
            self.assertRaises(RemoteProtocolError, dns.read_name, message, 0)
        chain = b"\x3f" + b"a" * 63
        self.assertRaises(RemoteProtocolError, dns.read_name, chain * 5 + b"\0", 0)

    def test_pointers_to_pointers(self) -> None:
        """A name may go by way of as many pointers as it could have labels, and of no more."""
        message = b"\0" + b"".join((0xC000 | max(0, 2 * index - 1)).to_bytes(2, "big") for index in range(200))
        self.assertEqual(dns.read_name(message, 1 + 2 * (dns.MAX_POINTERS - 1))[0], b"\0")
        self.assertRaises(RemoteProtocolError, dns.read_name, message, 1 + 2 * dns.MAX_POINTERS)

    def test_text(self) -> None:
        """Strange bytes are shown as in zone files."""
        self.assertEqual(dns.text_of(b"\x03a.\x00\x00"), "a\\046\\000.")


class MessageTests(SynchronousTestCase):
    """Whole messages."""

    def test_digs_queries(self) -> None:
        """What dig asked is read, by the general codec and by the server's."""
        wanted = {"plain": ("www.t.example.", dns.A, 512), "edns": ("t.example.", dns.TXT, 1232)}
        wanted |= {"cookie": ("abc.DEF.t.example.", dns.NULL, 4096), "minimal-root": (".", dns.NS, 512)}
        for name, (text, kind, size) in wanted.items():
            message = dns.Message.decode(QUERIES[name])
            self.assertEqual([(dns.text_of(q.name), q.type, q.cls) for q in message.questions], [(text, kind, dns.IN)])
            query = dns.read_query(QUERIES[name])
            self.assertEqual((query.ident, query.type, query.size), (message.ident, kind, size))
            self.assertEqual(dns.join_labels(query.labels), message.questions[0].name)
            self.assertEqual(query.edns, message.edns_size is not None)
            self.assertEqual(query.data, b"")

    def test_digs_query_again(self) -> None:
        """The same query is built byte by byte, but for the AD bit that dig sets."""
        built = dns.build_query(0xA5D7, b"\x01t\x07example\x00\x00\x10\x00\x01", 1232)
        expected = bytearray(QUERIES["edns"])
        expected[3] &= ~0x20
        self.assertEqual(built, bytes(expected))

    def test_dnsmasqs_answers(self) -> None:
        """Compressed answers of another program."""
        alias = dns.Message.decode(ANSWERS["alias.t.example 1"])
        self.assertEqual([r.type for r in alias.answers], [dns.CNAME, dns.A])
        self.assertEqual(dns.text_of(alias.answers[0].data), "host.t.example.")
        self.assertEqual(dns.text_of(alias.answers[1].name), "host.t.example.")
        self.assertEqual(alias.answers[1].data, bytes([192, 0, 2, 7]))
        self.assertEqual(alias.answers[1].ttl, 7)
        mail = dns.Message.decode(ANSWERS["t.example 15"]).answers[0]
        self.assertEqual((mail.data[:2], dns.text_of(mail.data[2:])), (b"\0\x0a", "mail.t.example."))
        self.assertEqual(dns.Message.decode(ANSWERS["t.example 16"]).answers[0].data, b"\x0bhello world\x06second")

    @settings(deadline=None)
    @given(LABELS, st.integers(0, 65535), st.binary(max_size=300), st.integers(0, 2**32 - 1))
    def test_round_trip(self, labels: list[bytes], kind: int, data: bytes, ttl: int) -> None:
        """What is encoded is decoded."""
        if kind in (dns.NS, dns.CNAME, dns.MX, dns.SOA):
            kind = dns.TXT
        name = dns.join_labels(labels)
        records = [dns.Record(name, kind, data, ttl)]
        message = dns.Message(7, dns.QR, [dns.Question(name, kind)], records, [], [dns.opt(1232, [(9, b"x")])])
        self.assertEqual(dns.Message.decode(message.encode()), message)

    def test_own_option(self) -> None:
        """Data beside the name comes out as it went in, behind other options too."""
        section = b"\x01t\x00\x00\x0a\x00\x01"
        self.assertEqual(dns.read_query(dns.build_query(1, section, 1232, b"beside")).data, b"beside")
        options = [(10, b"12345678"), (dns.DATA_OPTION, b"more")]
        message = dns.Message(1, 0, [dns.Question(b"\x01t\x00", 10)], additional=[dns.opt(512, options)])
        self.assertEqual(dns.read_query(message.encode()).data, b"more")

    def test_answers(self) -> None:
        """An answer repeats the question as it came, case and all, and says EDNS only to whom did."""
        query = dns.read_query(QUERIES["cookie"])
        answer = dns.build_answer(query, 1, struct.pack("!HHHIH", 0xC00C, dns.NULL, dns.IN, 0, 2) + b"hi")
        message = dns.Message.decode(answer)
        self.assertEqual(message.questions[0].name, b"\x03abc\x03DEF\x01t\x07example\x00")
        self.assertEqual([(r.data, r.ttl) for r in message.answers], [(b"hi", 0)])
        self.assertEqual(message.flags, dns.QR | dns.AA | dns.RD)
        self.assertEqual(message.edns_size, dns.OUR_SIZE)
        self.assertIsNone(dns.Message.decode(dns.build_answer(dns.read_query(QUERIES["plain"]), 0, b"")).edns_size)
        self.assertEqual(dns.answer_room(query, len(answer)), 14)

    def test_refused_queries(self) -> None:
        """Answers, other opcodes, several questions and compressed names get no answer."""
        good = QUERIES["plain"]
        for change in ((2, 0x80), (2, 0x28), (5, 2), (5, 0), (7, 1), (9, 1), (12, 0xC0), (12, 0x7F)):
            bad = bytearray(good)
            bad[change[0]] = change[1]
            self.assertRaises(RemoteProtocolError, dns.read_query, bytes(bad))
        for size in range(len(good)):
            self.assertRaises(RemoteProtocolError, dns.read_query, good[:size])

    def test_mutations(self) -> None:
        """10,000 changed messages are read or refused with the one error."""
        chance = random.Random(3)
        golden = [*QUERIES.values(), *ANSWERS.values()]
        readers: list[Callable[[bytes], Any]] = [dns.Message.decode, dns.read_query]
        for _ in range(10_000):
            data = bytearray(chance.choice(golden))
            for _ in range(chance.randrange(1, 5)):
                data[chance.randrange(len(data))] = chance.choice((0, 0xC0, 0xFF, chance.randrange(256)))
            if chance.random() < 0.3:
                del data[chance.randrange(len(data)) :]
            for read in readers:
                try:
                    read(bytes(data))
                except RemoteProtocolError:
                    pass
