"""Tests of NitroSocks' TLS with hellos as browsers, tools and inspecting proxies send them."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mikanet.filters.base import FilterFactory
from mikanet.nitrosocks.tls import TlsFilter
from mikanet.nitrosocks.tls_options import ClientTls, ServerTls
from tests.lab.tunnels import write_certificate
from tests.nitrosocks.memory import REFUSAL_TIME, World
from tests.nitrosocks.test_tls import Both
from tests.support.transports import MemoryTransport
from tests.support.vectors import load

HELLOS = {each["name"]: bytes.fromhex(each["bytes"]) for each in load("tls/hellos.json")["hellos"]}

#: What begins a record with handshake messages in it, and the message that answers a hello.
HANDSHAKE, SERVER_HELLO, ALERT = 0x16, 2, 0x15


def small_records(hello: bytes, size: int) -> bytes:
    """The same handshake message in records of ``size`` bytes of content (RFC 8446 section 5.1 permits that)."""
    content = hello[5:]
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(hello[:3] + struct.pack("!H", len(piece)) + piece for piece in pieces)


class _OffersAlpn(ClientTls):
    """A client as inspecting proxies are: it asks for HTTP."""

    def connection(self) -> SSL.Connection:
        """With an offer."""
        connection = super().connection()
        connection.set_alpn_protos([b"h2", b"http/1.1"])
        return connection


class HelloTests(SynchronousTestCase):
    """What a server does with them."""

    def setUp(self) -> None:
        """A server's certificate."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        pem = Path(folder.name) / "server.pem"
        write_certificate(pem, Path(folder.name) / "ca.pem", "localhost")
        self.tls = ServerTls(pem.read_bytes(), "server.pem")

    def connect(self) -> tuple[World, MemoryTransport]:
        """A server with real TLS, and a connection to it."""
        world = World(server={"wait_first": True})
        factory = FilterFactory(world.server, lambda upper: TlsFilter(upper, self.tls))
        transport = MemoryTransport("192.0.2.99")
        transport.connect(factory.buildProtocol(None))
        return world, transport

    def assert_answered(self, data: bytes, pieces: int, what: str) -> None:
        """The server answers with its hello, and whatever comes then ends in one alert."""
        world, transport = self.connect()
        for at in range(pieces):
            transport.receive(data[at * len(data) // pieces : (at + 1) * len(data) // pieces])
        answer = transport.bytes_written
        self.assertEqual((answer[0], answer[5]), (HANDSHAKE, SERVER_HELLO), what)
        transport.receive(b"\x16\x03\x03\x00\x10" + bytes(16))
        self.assertTrue(transport.closed, what)
        transport.settle()
        counters = world.server.counters
        self.assertEqual(counters["nitrosocks.server.refused.tls"], 1, what)
        self.assertEqual(sum(number for name, number in counters.snapshot().items() if "refused" in name), 1, what)

    def test_recorded(self) -> None:
        """Every recorded hello is answered, in one piece and byte by byte; nothing is logged as an error."""
        for name, hello in HELLOS.items():
            self.assert_answered(hello, 1, name)
            self.assert_answered(hello, len(hello), name)

    def test_small_records(self) -> None:
        """A hello in many small records, as some fragment it against inspection, is one like others."""
        for name in ("openssl-alpn", "openssl-tls12-alpn", "curl"):
            self.assert_answered(small_records(HELLOS[name], 64), 1, name)

    def test_one_byte_records(self) -> None:
        """Records of one byte get the server's hello or one alert; OpenSSL decides which, and nothing is logged."""
        for name in HELLOS:
            _, transport = self.connect()
            transport.receive(small_records(HELLOS[name], 1))
            self.assertIn(transport.bytes_written[:1], (bytes([HANDSHAKE]), bytes([ALERT])))

    def test_spoilt(self) -> None:
        """A hello with any byte spoilt ends in the server's hello or one alert, and in no error in the log."""
        for name in ("openssl-alpn", "curl-http11-tls12"):
            hello = HELLOS[name]
            for at in range(5, len(hello)):
                _, transport = self.connect()
                transport.receive(hello[:at] + bytes([hello[at] ^ 0xFF]) + hello[at + 1 :])
                if transport.bytes_written:
                    self.assertIn(transport.bytes_written[0], (HANDSHAKE, ALERT), (name, at))

    def test_offer_of_alpn(self) -> None:
        """A peer that offers protocols is served like any other; none is chosen."""
        both = Both(_OffersAlpn("localhost", []), self.tls)
        both.carry()
        self.assertEqual((both.near.is_secured, both.far.is_secured), (1, 1))
        self.assertEqual(both.filters[0].connection.get_alpn_proto_negotiated(), b"")
        both.near.transport.write(b"hello")
        both.carry()
        self.assertEqual(both.far.got, b"hello")

    def test_http_inside(self) -> None:
        """A browser that got through TLS and asks for a page meets the uniform rejection: silence, and a FIN in time."""
        world, transport = self.connect()
        near = _Browser(self.tls, transport)
        near.carry()
        near.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
        sent = len(transport.bytes_written)
        world.clock.advance(REFUSAL_TIME - 1)
        self.assertFalse(transport.fin or transport.closed)
        self.assertEqual(len(transport.bytes_written), sent)
        world.clock.advance(1)
        self.assertTrue(transport.fin)


class _Browser:
    """A client of TLS that offers ALPN and is no client of ours."""

    def __init__(self, tls: Any, transport: MemoryTransport) -> None:
        self._connection = _OffersAlpn("localhost", []).connection()
        self._transport = transport
        self._taken = 0

    def carry(self) -> None:
        """Carry the handshake until nothing moves."""
        for _ in range(10):
            try:
                self._connection.do_handshake()
            except SSL.WantReadError:
                pass
            self._flush()

    def send(self, data: bytes) -> None:
        """Bytes inside TLS."""
        self._connection.sendall(data)
        self._flush()

    def _flush(self) -> None:
        try:
            self._transport.receive(self._connection.bio_read(65536))
        except SSL.WantReadError:
            pass
        fresh = self._transport.bytes_written[self._taken :]
        self._taken += len(fresh)
        if fresh:
            self._connection.bio_write(fresh)
