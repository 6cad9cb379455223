"""Tests of mikanet.nitrosocks.tls with real TLS in memory."""

from __future__ import annotations

import datetime
import ipaddress
import random
import tempfile
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.errors import ConfigError
from mikanet.nitrosocks.options import parse_realm
from mikanet.nitrosocks.tls import MAX_ANSWERS, TlsFilter
from mikanet.nitrosocks.tls_options import ClientTls, ServerTls, certificates
from tests.lab.tunnels import write_certificate
from tests.support.transports import MemoryTransport


@implementer(IHalfCloseableProtocol)
class Upper:
    """Notes what happens."""

    transport: Any = None

    def __init__(self) -> None:
        self.got = b""
        self.is_secured = 0
        self.read_ended = 0
        self.reason: Any = None

    def makeConnection(self, transport: Any) -> None:
        """Note it."""
        self.transport = transport

    def secured(self, connection: SSL.Connection) -> None:
        """Note it."""
        self.is_secured += 1

    def dataReceived(self, data: bytes) -> None:
        """Note it."""
        self.got += data

    def readConnectionLost(self) -> None:
        """Note it."""
        self.read_ended += 1

    def writeConnectionLost(self) -> None:
        """Nothing."""

    def connectionLost(self, reason: Any) -> None:
        """Note it."""
        self.reason = reason


class _Counting:
    """A side, and its connection, that answers every read with the same bytes and counts what it is given."""

    def __init__(self, secured: bool = False, answer: bytes = b"") -> None:
        self.taken = 0
        self._secured = secured
        self._answer = answer
        self._due = b""

    def connection(self) -> Any:
        """Itself."""
        return self

    def verify(self, connection: Any) -> None:
        """Everything is fine."""

    def explain(self, connection: Any, text: str) -> str:
        """Nothing to add."""
        return text

    def do_handshake(self) -> None:
        """Done at once, or never."""
        if not self._secured:
            raise SSL.WantReadError

    def bio_write(self, data: bytes) -> None:
        """Bytes from below."""
        self.taken += len(data)
        self._due += self._answer

    def recv(self, size: int) -> bytes:
        """Nothing for above."""
        raise SSL.WantReadError

    def bio_read(self, size: int) -> bytes:
        """The answers."""
        due, self._due = self._due, b""
        if not due:
            raise SSL.WantReadError
        return due


class Both:
    """A client's and a server's filter, with a wire between them."""

    def __init__(self, client: ClientTls, server: ServerTls) -> None:
        self.near, self.far = Upper(), Upper()
        self.filters = (TlsFilter(self.near, client), TlsFilter(self.far, server))  # type: ignore[arg-type]
        self.wires = (MemoryTransport("192.0.2.99"), MemoryTransport("192.0.2.1"))
        self._taken = [0, 0]
        for filter_, wire in zip(self.filters, self.wires, strict=True):
            wire.connect(filter_)

    def carry(self, cut: Any = lambda data: [data]) -> None:
        """Carry until nothing moves."""
        moved = True
        while moved:
            moved = False
            for way in (0, 1):
                fresh = b"".join(self.wires[way].written[self._taken[way] :])
                self._taken[way] = len(self.wires[way].written)
                for piece in cut(fresh) if fresh else ():
                    if not self.wires[1 - way].closed:
                        self.wires[1 - way].receive(piece)
                moved = moved or bool(fresh)


class TlsTests(SynchronousTestCase):
    """The filter."""

    def setUp(self) -> None:
        """A certificate."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        write_certificate(self.folder / "server.pem", self.folder / "ca.pem", "localhost")
        self.server = ServerTls((self.folder / "server.pem").read_bytes(), "server.pem")
        self.trust = certificates((self.folder / "ca.pem").read_bytes(), "ca.pem")

    def both(self, name: str = "localhost", trust: Any = None) -> Both:
        """Both ends, not yet secured."""
        return Both(ClientTls(name, self.trust if trust is None else trust), self.server)

    def secured(self) -> Both:
        """Both ends after the handshake."""
        both = self.both()
        both.carry()
        self.assertEqual((both.near.is_secured, both.far.is_secured), (1, 1))
        return both

    def test_any_fragmentation(self) -> None:
        """Handshake and data pass in whatever pieces the network makes of them."""
        rng = random.Random(1)

        def cut(data: bytes) -> list[bytes]:
            at = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, 20)))
            return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]

        for _ in range(5):
            both = self.both()
            both.carry(cut)
            data = rng.randbytes(200_000)
            both.near.transport.write(data)
            both.far.transport.write(data[:70_000])
            both.carry(cut)
            self.assertEqual(both.far.got, data)
            self.assertEqual(both.near.got, data[:70_000])

    def test_byte_by_byte(self) -> None:
        """Also one byte at a time."""
        both = self.both()
        both.carry(lambda data: [data[at : at + 1] for at in range(len(data))])
        both.near.transport.write(b"hello")
        both.carry(lambda data: [data[at : at + 1] for at in range(len(data))])
        self.assertEqual(both.far.got, b"hello")

    def test_nothing_before_the_handshake(self) -> None:
        """What is written before is not sent in clear: it is not sent."""
        both = self.both()
        both.near.transport.write(b"secret")
        both.carry()
        self.assertEqual(both.far.got, b"")
        self.assertNotIn(b"secret", both.wires[0].bytes_written)

    def test_goodbye(self) -> None:
        """An orderly end says goodbye in TLS; a FIN alone is an end, too, without a goodbye."""
        both = self.secured()
        both.near.transport.loseConnection()
        both.carry()
        self.assertTrue(both.wires[0].closed)
        self.assertEqual((both.far.read_ended, both.filters[1].said_goodbye), (1, True))
        both = self.secured()
        both.wires[1].receive_fin()
        self.assertEqual((both.far.read_ended, both.filters[1].said_goodbye), (1, False))

    def test_half_close(self) -> None:
        """One direction ends, the other goes on."""
        both = self.secured()
        both.far.transport.loseWriteConnection()
        both.near.transport.write(b"still heard")
        both.carry()
        self.assertEqual((both.far.got, both.near.read_ended, both.wires[1].fin), (b"still heard", 1, True))

    def test_garbage(self) -> None:
        """What is no TLS gets an alert and an end, in a handshake and later."""
        both = self.both()
        both.wires[1].receive(b"GET / HTTP/1.1\r\n\r\n" * 10)
        self.assertTrue(both.wires[1].closed)
        both = self.secured()
        both.wires[1].receive(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertTrue(both.wires[1].closed)
        both.wires[1].settle()
        self.assertIn("TLS", str(both.far.reason.value))

    def test_nothing_is_kept_after_the_end(self) -> None:
        """Bytes that come after our end, before any handshake, are not kept."""
        connection = _Counting()
        upper = Upper()
        wire = MemoryTransport("192.0.2.1")
        wire.connect(TlsFilter(upper, connection))  # type: ignore[arg-type]
        wire.receive(b"\x16\x03\x01")
        upper.transport.loseWriteConnection()
        for _ in range(100):
            wire.receive(bytes(65536))
        self.assertEqual(connection.taken, 3)

    def test_answers_of_tls_are_bounded(self) -> None:
        """A peer that asks TLS for answers without end, new keys for one, is cut; one that sends data may ask now and then."""
        asking = _Counting(secured=True, answer=bytes(27))
        wire = MemoryTransport("192.0.2.1")
        wire.connect(TlsFilter(Upper(), asking))  # type: ignore[arg-type]
        for _ in range(10_000):
            if not wire.closed:
                wire.receive(bytes(27))
        self.assertTrue(wire.closed)
        self.assertLessEqual(len(wire.bytes_written), MAX_ANSWERS + 100)
        honest = _Counting(secured=True, answer=bytes(27))
        wire = MemoryTransport("192.0.2.1")
        wire.connect(TlsFilter(Upper(), honest))  # type: ignore[arg-type]
        for _ in range(3000):
            wire.receive(bytes(65536))
        self.assertFalse(wire.closed)

    def test_wrong_name(self) -> None:
        """A certificate for another name ends the connection before anything is said."""
        both = self.both("another.example")
        both.carry()
        self.assertEqual(both.near.is_secured, 0)
        both.wires[0].settle()
        self.assertIn("not for the server's name, another.example", str(both.near.reason.value))
        self.assertIn("--server-name", str(both.near.reason.value))

    def test_unknown_signer(self) -> None:
        """So does one that nobody known has signed; one that takes anybody does not mind."""
        base = self.folder
        write_certificate(base / "x.pem", base / "x-ca.pem", "localhost")
        both = self.both(trust=certificates((base / "x-ca.pem").read_bytes(), "x"))
        both.carry()
        self.assertEqual(both.near.is_secured, 0)
        both = self.both("whatever.example", trust=[])
        both.carry()
        self.assertEqual(both.near.is_secured, 1)

    def reason(self, both: Both) -> str:
        """Why the client's end was lost."""
        both.wires[0].settle()
        return str(both.near.reason.value)

    def test_why_a_certificate_is_not_trusted(self) -> None:
        """Self-signed, over, not yet begun, and for another name are told apart, each with what helps."""
        now = datetime.datetime.now(datetime.UTC)
        for first, last, words in (
            (-2, 2, ["has signed itself", "--tls-verify FILE", "--tls-verify off"]),
            (-9, -1, ["ended on", "renew it"]),
            (1, 9, ["begins on", "clock of this machine"]),
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
            made = (
                x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
                .not_valid_before(now + datetime.timedelta(days=first))
                .not_valid_after(now + datetime.timedelta(days=last))
                .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
                .sign(key, hashes.SHA256())
                .public_bytes(serialization.Encoding.PEM)
            )
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            # Trusted by name where the date is to be what is wrong.
            trust = self.trust if first < 0 < last else certificates(made, "own")
            both = Both(ClientTls("localhost", trust), ServerTls(private + made, "own"))
            both.carry()
            self.assertEqual(both.near.is_secured, 0)
            reason = self.reason(both)
            for word in words:
                self.assertIn(word, reason)

    def test_no_tls_there(self) -> None:
        """An answer that is no TLS is called that."""
        upper, wire = Upper(), MemoryTransport("192.0.2.1")
        wire.connect(TlsFilter(upper, ClientTls("localhost", self.trust)))  # type: ignore[arg-type]
        wire.receive(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        wire.settle()
        self.assertIn("does not answer in TLS", str(upper.reason.value))

    def chain(self, names: list[x509.GeneralName] | None, text: str = "localhost") -> tuple[ServerTls, list[Any]]:
        """A server with a certificate under an intermediate under a root; and all three certificates, its own first."""
        made: list[tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = []
        now = datetime.datetime.now(datetime.UTC)
        for what in ("root", "intermediate", text):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, what)])
            issuer, signer = (made[-1][0].subject, made[-1][1]) if made else (subject, key)
            leaf = what == text
            builder = (
                x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=3))
                .add_extension(x509.BasicConstraints(ca=not leaf, path_length=None), critical=True)
            )
            if leaf and names is not None:
                builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            made.append((builder.sign(signer, hashes.SHA256()), key))
        root, intermediate, own = (each.public_bytes(serialization.Encoding.PEM) for each, _ in made)
        private = made[-1][1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return ServerTls(private + own + intermediate, "chain"), [
            certificates(each, "one") for each in (own, intermediate, root)
        ]

    def test_trust_in_any_link_of_the_chain(self) -> None:
        """The root, the certificate that signed the server's, or the server's own: one of them is enough."""
        server, links = self.chain([x509.DNSName("localhost")])
        for trust in links:
            both = Both(ClientTls("localhost", trust), server)
            both.carry()
            self.assertEqual(both.near.is_secured, 1)
        both = Both(ClientTls("localhost", self.trust), server)
        both.carry()
        self.assertEqual(both.near.is_secured, 0)
        self.assertIn("give --tls-verify FILE with the certificate that signed it", self.reason(both))

    def test_names_in_certificates(self) -> None:
        """A certificate with a common name alone is refused in words, one with other kinds of names only, too."""
        for names in (None, [x509.RFC822Name("a@localhost")]):
            server, links = self.chain(names)
            for name in ("localhost", "192.0.2.1"):
                both = Both(ClientTls(name, links[2]), server)
                both.carry()
                both.wires[0].settle()
                self.assertEqual(both.near.is_secured, 0)
                self.assertIn("subjectAltName", str(both.near.reason.value))
        server, links = self.chain([x509.IPAddress(ipaddress.ip_address("192.0.2.1"))])
        both = Both(ClientTls("192.0.2.1", links[2]), server)
        both.carry()
        self.assertEqual(both.near.is_secured, 1)

    def test_dot_at_the_end(self) -> None:
        """A name with a dot at its end is asked for, and compared, without it."""
        both = self.both("localhost.")
        both.carry()
        self.assertEqual(both.near.is_secured, 1)
        self.assertEqual(both.filters[1].connection.get_servername(), b"localhost")
        self.assertRaises(ConfigError, ClientTls, ".", None)

    def test_renewed(self) -> None:
        """New connections get the new certificate, old ones live on; a file with a mistake changes nothing."""
        old = self.secured()
        write_certificate(self.folder / "new.pem", self.folder / "new-ca.pem", "localhost")
        trust = certificates((self.folder / "new-ca.pem").read_bytes(), "new")
        self.assertRaises(ConfigError, self.server.replace, b"", "empty")
        self.secured()
        self.server.replace((self.folder / "new.pem").read_bytes(), "new.pem")
        both = self.both(trust=trust)
        both.carry()
        self.assertEqual(both.near.is_secured, 1)
        old.near.transport.write(b"still there")
        old.carry()
        self.assertEqual(old.far.got, b"still there")

    def test_exporter(self) -> None:
        """Both ends of one connection export the same, two connections do not."""
        values = set()
        for _ in range(2):
            both = self.secured()
            pair = {filter_.connection.export_keying_material(b"EXPORTER-ns1", 32) for filter_ in both.filters}
            self.assertEqual(len(pair), 1)
            values |= pair
        self.assertEqual(len(values), 2)

    def test_server_name(self) -> None:
        """The server sees what name was asked for; for an address none is sent (RFC 6066)."""
        both = self.secured()
        self.assertEqual(both.filters[1].connection.get_servername(), b"localhost")
        both = self.both("192.0.2.1", trust=[])
        both.carry()
        self.assertIsNone(both.filters[1].connection.get_servername())

    def test_bad_files(self) -> None:
        """A file without certificate or key, or with those of two, is refused in words."""
        base = self.folder
        write_certificate(base / "y.pem", base / "y-ca.pem", "localhost")
        mixed = (base / "y.pem").read_bytes().partition(b"-----BEGIN CERT")[0] + (base / "ca.pem").read_bytes()
        for content in (b"", b"-----BEGIN CERTIFICATE-----\nrubbish", (base / "ca.pem").read_bytes(), mixed):
            self.assertRaises(ConfigError, ServerTls, content, "file")
        self.assertRaises(ConfigError, ClientTls, "a" * 70 + ".example", None)


class RealmNameTests(SynchronousTestCase):
    """The names of realms."""

    def test_as_clients_send_them(self) -> None:
        """A name outside ASCII is the one that clients ask for; one that no client can ask for is refused."""
        self.assertEqual(parse_realm("Bücher.Example=key,tokens"), ("xn--bcher-kva.example", "key", "tokens"))
        self.assertEqual(parse_realm("Bob.Example=a,b")[0], "bob.example")
        self.assertRaises(ConfigError, parse_realm, "a" * 70 + ".example=key,tokens")
