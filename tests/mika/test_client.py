"""Mika's client filters and tunnel in memory."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.crypto.replay import ReplaySet
from mikanet.errors import DestinationError, Reason
from mikanet.mika.client import MikaClientConfig, MikaClientFilter, MikaDatagramFilter, MikaTunnel
from mikanet.mika.session import Profile, ServerSession, derive_keys
from mikanet.mika.wire import Kind
from tests.filters.contract import FilterContractTests, HalfClosingUpper, Upper
from tests.support.transports import MemoryTransport

KEYS = {profile: derive_keys(b"a password for tests", profile) for profile in Profile}
NOW = 1_700_000_000
TARGET = Address("example.com", 443)


def config(profile: Profile = Profile.SPEC, **changes: Any) -> MikaClientConfig:
    """A client's configuration with a fixed clock and seeded randomness."""
    rng = random.Random(9)
    settings = {"wall_clock": lambda: NOW + 0.7, "random_bytes": rng.randbytes, "random_below": rng.randrange}
    return MikaClientConfig(KEYS[profile], **(settings | changes))


def server(profile: Profile = Profile.SPEC) -> ServerSession:
    """The server's end."""
    return ServerSession(KEYS[profile], ReplaySet(), lambda: NOW)


class Unobserved:
    """Takes note of nothing."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def connected(self, connection: Any) -> None:
        """Nothing."""

    def heard(self, connection: Any) -> None:
        """Nothing."""

    def ended(self, connection: Any) -> None:
        """Nothing."""


class Talking(HalfClosingUpper):
    """An upper protocol that has something to say at once."""

    def connectionMade(self) -> None:
        """Say it, in two writes."""
        super().connectionMade()
        self.transport.write(b"early ")
        self.transport.write(b"data")


class StreamFilterTests(FilterContractTests, SynchronousTestCase):
    """A stream through Mika."""

    profile = Profile.SPEC

    def make_filter(self, upper: Any) -> Any:
        """A filter of its own session."""
        return MikaClientFilter(upper, config(self.profile).new_session(Kind.TCP, TARGET), Unobserved(self.profile))

    def test_first_flight_is_one_write(self) -> None:
        """IV, header and early data leave in one write (M6)."""
        _, _, transport = self.opened(Talking())
        self.assertEqual(len(transport.written), 1)
        end = server(self.profile)
        self.assertEqual(b"".join(end.receive(transport.written[0])), b"early data")
        assert end.header is not None
        self.assertEqual((end.header.destination, end.header.moment), (TARGET, NOW))

    def test_header_alone(self) -> None:
        """Without early data the header does not wait for any."""
        _, filter_, transport = self.opened()
        end = server(self.profile)
        self.assertEqual(end.receive(transport.bytes_written), [])
        self.assertIsNotNone(end.header)
        filter_.write(b"")
        self.assertEqual(len(transport.written), 1)

    def test_response(self) -> None:
        """What the server sends is deciphered."""
        upper, _, transport = self.opened()
        end = server(self.profile)
        end.receive(transport.bytes_written)
        for piece in (b"one", b"two"):
            transport.receive(end.send(piece))
        self.assertEqual(upper.received, [b"one", b"two"])

    def test_half_close(self) -> None:
        """Our end is the end mark and a FIN; it is sent once (M5)."""
        _, filter_, transport = self.opened()
        filter_.loseWriteConnection()
        filter_.loseWriteConnection()
        end = server(self.profile)
        end.receive(transport.bytes_written)
        self.assertTrue(end.ended)
        self.assertEqual(transport.fin, self.profile is Profile.SPEC)

    def test_close_sends_the_end_mark(self) -> None:
        """A clean close is told, an abort is not."""
        _, filter_, transport = self.opened()
        filter_.loseConnection()
        end = server(self.profile)
        end.receive(transport.bytes_written)
        self.assertTrue(end.ended and transport.closed)
        _, filter_, transport = self.opened()
        filter_.abortConnection()
        end = server(self.profile)
        end.receive(transport.bytes_written)
        self.assertFalse(end.ended)

    def test_closing_while_being_connected(self) -> None:
        """An upper protocol that closes in its connectionMade still sends everything, in order."""

        class Brief(Talking):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.transport.loseConnection()

        _, _, transport = self.opened(Brief())
        end = server(self.profile)
        self.assertEqual(b"".join(b"".join(end.receive(each)) for each in transport.written), b"early data")
        self.assertTrue(end.ended and transport.closed)

    def test_printable_iv(self) -> None:
        """With the option the first six bytes are printable (M6)."""
        session = config(self.profile, printable_iv=True).new_session(Kind.TCP, TARGET)
        self.assertTrue(all(0x21 <= byte <= 0x7E for byte in session.open()[:6]))


class GoStreamFilterTests(StreamFilterTests):
    """The same with profile go."""

    profile = Profile.GO

    def test_chunks_fit_the_original(self) -> None:
        """No chunk is larger than the original's 4096 bytes: a reader that refuses more takes all of it (M4)."""
        _, filter_, transport = self.opened()
        filter_.write(bytes(50_000))
        end = server(self.profile)
        got = end.receive(transport.bytes_written)
        self.assertLessEqual(max(map(len, got)), 4096)
        self.assertEqual(sum(map(len, got)), 50_000)


class DatagramFilterTests(FilterContractTests, SynchronousTestCase):
    """Datagrams through Mika."""

    def make_filter(self, upper: Any) -> Any:
        """A filter of its own session."""
        return MikaDatagramFilter(upper, config().new_session(Kind.UDP, TARGET), Unobserved(Profile.SPEC))

    def test_edges_are_kept(self) -> None:
        """One write is one datagram there, one datagram there is one dataReceived here (M7)."""
        upper, filter_, transport = self.opened()
        datagrams = [b"a", b"b" * 65507, b"c"]
        for each in (*datagrams, b"", bytes(65508)):
            filter_.write(each)
        end = server()
        self.assertEqual(end.receive(transport.bytes_written), datagrams)
        wire = b"".join(map(end.send_datagram, datagrams))
        for start in range(0, len(wire), 1000):
            transport.receive(wire[start : start + 1000])
        self.assertEqual(upper.received, datagrams)

    def test_a_full_link_drops(self) -> None:
        """While the link is full datagrams are dropped, not kept."""
        _, filter_, transport = self.opened()
        transport.producer.pauseProducing()
        before = len(transport.written)
        filter_.write(b"lost")
        self.assertEqual(len(transport.written), before)
        transport.producer.resumeProducing()
        filter_.write(b"sent")
        self.assertEqual(len(transport.written), before + 1)


class FakeServer:
    """An endpoint whose connections are in memory."""

    def __init__(self) -> None:
        self.transports: list[MemoryTransport] = []
        self.failing: Exception | None = None

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect, or fail."""
        if self.failing is not None:
            return fail(self.failing)
        transport = MemoryTransport()
        self.transports.append(transport)
        return succeed(transport.connect(factory.buildProtocol(None)))


class TunnelTests(SynchronousTestCase):
    """The tunnel that front doors use, and what it tells its user."""

    def setUp(self) -> None:
        """A tunnel to a server in memory."""
        self.clock = Clock()
        self.server = FakeServer()
        self.said: list[str] = []
        self.tunnel = MikaTunnel(self.clock, self.server, config(), "tcp:example:1", self.said.append)

    def connect(self, **options: Any) -> Any:
        """A connection through the tunnel."""
        return self.tunnel.stream_endpoint(TARGET, **options).connect(Factory.forProtocol(Upper))

    def header(self, index: int = -1) -> Any:
        """The header that the server saw."""
        end = server()
        end.receive(self.server.transports[index].bytes_written)
        return end.header

    def test_kinds(self) -> None:
        """TCP carries its address, HTTP none, UDP its own."""
        self.successResultOf(self.connect())
        self.assertEqual((self.header().kind, self.header().destination), (Kind.TCP, TARGET))
        self.successResultOf(self.connect(http=True))
        self.assertEqual((self.header().kind, self.header().destination), (Kind.HTTP, None))
        self.tunnel.datagram_endpoint(TARGET).connect(Factory.forProtocol(Upper))
        self.assertEqual((self.header().kind, self.header().destination), (Kind.UDP, TARGET))

    def test_go_has_no_datagrams(self) -> None:
        """The original carries none, so a front door can say so (M7)."""
        tunnel = MikaTunnel(self.clock, self.server, config(Profile.GO), "s")
        with self.assertRaises(DestinationError) as caught:
            tunnel.datagram_endpoint(TARGET)
        self.assertEqual(caught.exception.reason, Reason.UNSUPPORTED)
