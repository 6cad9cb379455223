"""Whatever an unauthenticated peer sends to any of the servers is no error of ours: no traceback, at most one line."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from twisted.internet import ssl
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers.dns import DnsServer
from mikanet.carriers.icmp import IcmpServer
from mikanet.carriers.site import TunnelSite
from mikanet.carriers.tcp import StreamServerFactory
from mikanet.carriers.urls import CarrierUrl
from mikanet.crypto.replay import ReplaySet
from mikanet.filters.base import FilterFactory
from mikanet.mika.protocol import MikaServerConfig, MikaServerFactory
from mikanet.mika.session import Profile, derive_keys
from mikanet.nitrosocks.tls import TlsFilter
from mikanet.nitrosocks.tls_options import ServerTls
from mikanet.pickaxe.server import PickaxeServer, PickaxeServerConfig
from mikanet.wire import icmp
from tests.carriers.webs import WebTransport, context
from tests.lab.tunnels import write_certificate
from tests.megaki.memory import MemoryServer
from tests.nitrosocks.memory import World as NitroWorld
from tests.paqet.world import World as PaqetWorld
from tests.pickaxe.memory import MemoryEgress
from tests.support.egress import FakeEgress
from tests.support.transports import MemoryTransport
from tests.support.vectors import load

#: What peers send: recorded hellos of TLS, HTTP, names of other protocols, and noise of many lengths.
HELLOS = [bytes.fromhex(each["bytes"]) for each in load("tls/hellos.json")["hellos"]]

WORDS = [
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"POST /t HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"\x05\x01\x00",
    b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    b"SSH-2.0-x\r\n",
    b"\r\n\r\n",
    bytes(2000),
    b"\xff" * 2000,
]


def inputs(seed: int) -> Iterator[bytes]:
    """All of them, spoilt ones, and noise."""
    rng = random.Random(seed)
    yield from HELLOS
    yield from WORDS
    for each in HELLOS[:4] + WORDS:
        for _ in range(4):
            spoilt = bytearray(each)
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
            yield bytes(spoilt)
    for size in (1, 2, 3, 5, 12, 16, 20, 28, 40, 64, 100, 255, 256, 257, 600, 1200, 1400):
        yield rng.randbytes(size)


class PeerTests(SynchronousTestCase):
    """Every server, and every carrier of Pickaxe."""

    def setUp(self) -> None:
        """A log that is counted."""
        self.lines: list[Any] = []
        globalLogPublisher.addObserver(self._note)
        self.addCleanup(globalLogPublisher.removeObserver, self._note)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.pem = Path(folder.name) / "server.pem"
        write_certificate(self.pem, Path(folder.name) / "ca.pem", "localhost")

    def _note(self, event: Any) -> None:
        if event.get("log_level") is not None and event["log_level"] > LogLevel.debug:
            self.lines.append(event.get("log_format"))

    def assert_quiet(self, say: Callable[[bytes], object]) -> None:
        """Each input leaves no error and at most one line."""
        for data in inputs(1):
            before = len(self.lines)
            say(data)
            self.assertEqual(self.flushLoggedErrors(), [], data[:60])
            self.assertLessEqual(len(self.lines) - before, 1, (data[:60], self.lines[before:]))

    def assert_streams_are_quiet(self, connect: Callable[[], MemoryTransport], advance: Callable[[float], Any]) -> None:
        """Inputs over connections of their own: whole, byte by byte, and followed by every kind of end."""

        def whole(data: bytes) -> None:
            transport = connect()
            transport.receive(data)
            if not (transport.closed or transport.aborted):
                transport.receive_fin()
            advance(100)
            transport.settle()

        def bytewise(data: bytes) -> None:
            transport = connect()
            for at in range(min(len(data), 700)):
                if not (transport.closed or transport.aborted):
                    transport.receive(data[at : at + 1])
            advance(1)
            transport.settle()
            advance(100)

        self.assert_quiet(whole)
        self.assert_quiet(bytewise)

    def test_mika(self) -> None:
        """Mika's server."""
        for profile in Profile:
            clock = Clock()
            config = MikaServerConfig(
                keys=derive_keys(b"a password for tests", profile),
                egress=cast(Any, FakeEgress()),
                replays=ReplaySet(),
                refusal_time=75.0,
                wall_clock=lambda: 1_700_000_000.0,
            )
            factory = MikaServerFactory(cast(Any, clock), config)
            self.assert_streams_are_quiet(self.connecting(factory), clock.advance)

    def connecting(self, factory: Any, kind: type[MemoryTransport] = MemoryTransport) -> Callable[[], MemoryTransport]:
        """What makes connections to a factory."""

        def connect() -> MemoryTransport:
            transport = kind("192.0.2.1")
            transport.connect(factory.buildProtocol(transport.getPeer()))
            return transport

        return connect

    def test_megaki(self) -> None:
        """Megaki's server."""
        clock = Clock()
        server = MemoryServer(clock)
        self.assert_streams_are_quiet(server.raw, clock.advance)

    def test_nitrosocks(self) -> None:
        """NitroSocks' server, inside TLS and before it."""
        for wait_first in (False, True):
            world = NitroWorld(server={"wait_first": wait_first})
            self.assert_streams_are_quiet(world.raw, world.clock.advance)
            tls = ServerTls(self.pem.read_bytes(), "server.pem")
            factory = FilterFactory(world.server, lambda upper, tls=tls: TlsFilter(upper, tls))  # type: ignore[misc]
            self.assert_streams_are_quiet(self.connecting(factory), world.clock.advance)

    def test_pickaxe_tcp(self) -> None:
        """Pickaxe over TCP, with the server's logins behind the carrier."""
        reactor: Any = MemoryReactorClock()
        factory = StreamServerFactory("tcp://0.0.0.0:8865", context(reactor), self.pickaxe(reactor).accept)
        self.assert_streams_are_quiet(self.connecting(factory), reactor.advance)

    def pickaxe(self, clock: Any) -> PickaxeServer:
        """A server that takes carriers."""
        config = PickaxeServerConfig(users={}.get, egress=cast(Any, MemoryEgress()))
        return PickaxeServer(clock, config)

    def test_pickaxe_site(self) -> None:
        """Pickaxe's site, over plain HTTP and over TLS, where hellos offer protocols and WebSockets may come."""
        reactor: Any = MemoryReactorClock()
        site: Any = TunnelSite("http://h/t", "/t", context(reactor), self.pickaxe(reactor).accept, False)
        self.assert_streams_are_quiet(self.connecting(site, WebTransport), reactor.advance)
        pem = self.pem.read_bytes()
        certificate = ssl.PrivateCertificate.loadPEM(pem)
        secure = TLSMemoryBIOFactory(
            ssl.CertificateOptions(privateKey=certificate.privateKey.original, certificate=certificate.original),
            False,
            site,
            clock=reactor,
        )
        self.assert_streams_are_quiet(self.connecting(secure, WebTransport), reactor.advance)

    def test_pickaxe_dns(self) -> None:
        """Pickaxe's name server, over UDP and TCP."""
        reactor: Any = MemoryReactorClock()
        server = DnsServer(CarrierUrl.parse("dns://127.0.0.1/t.example"), context(reactor))
        server._hub.accept = self.pickaxe(reactor).accept
        self.assert_quiet(lambda data: server._datagrams(("192.0.2.1", 5353), [data]))
        self.assert_streams_are_quiet(self.connecting(server._lines), reactor.advance)

    def test_pickaxe_icmp(self) -> None:
        """Pickaxe over echo requests; the socket lets in those with our clients' mark only."""
        reactor: Any = MemoryReactorClock()
        server = IcmpServer(CarrierUrl.parse("icmp://127.0.0.1"), context(reactor))
        server._hub.accept = self.pickaxe(reactor).accept
        self.assert_quiet(
            lambda data: server._received("192.0.2.1", [icmp.Echo(icmp.ECHO_REQUEST, 1, 1, icmp.MARK_UP + data)])
        )

    def test_paqet(self) -> None:
        """paqet's and every KCP server's packets."""
        world = PaqetWorld()
        self.assert_quiet(lambda data: world.net.sessions.packets_received(("192.0.2.1", 4000), [data]))
        world.net.clock.sleep(100)
