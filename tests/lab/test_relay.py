"""Tests of :mod:`tests.lab.relay`: the wire between real sockets on loopback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer, error, reactor, task
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.lab.link import Record, check_log
from tests.lab.recording import streams
from tests.lab.relay import TCPRelay, UDPRelay


class _Echo(Protocol):
    """Sends back what it gets; keeps everything."""

    def __init__(self, kept: list[_Echo]) -> None:
        self.got = b""
        self.lost: type[BaseException] | None = None
        kept.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        assert self.transport is not None
        self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason.type


class _Client(Protocol):
    """Keeps what it gets and how it ended."""

    def __init__(self) -> None:
        self.got = b""
        self.pieces = 0
        self.lost: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self.pieces += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason.type


class _DatagramEcho(DatagramProtocol):
    def __init__(self) -> None:
        self.sources: list[tuple[str, int]] = []

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.sources.append(addr)
        self.transport.write(datagram, addr)


class _DatagramClient(DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.got.append(datagram)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition.

    :raises AssertionError: if it does not come true in time.
    """
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await task.deferLater(reactor, 0.01)  # type: ignore[arg-type]
    raise AssertionError("it did not come true in time")


class RelayTestCase(TestCase):
    """Starts relays and servers, and stops them."""

    timeout = 30

    def setUp(self) -> None:
        self.servers: list[_Echo] = []

    def tcp(self, scenario: str, log: list[Record] | None = None) -> TCPRelay:
        """A TCP relay in front of an echo server; ``port`` is where to connect."""
        factory = Factory.forProtocol(lambda: _Echo(self.servers))  # type: ignore[arg-type]
        factory.noisy = False
        port: Any = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        relay = TCPRelay(
            reactor, scenario, 1, ("127.0.0.1", port.getHost().port), log=log.append if log is not None else None
        )
        self.addCleanup(port.stopListening)
        self.addCleanup(relay.stop)
        self.port = relay.listen()
        return relay

    def connect(self) -> defer.Deferred[Any]:
        """A client of the relay."""
        return connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", self.port), _Client())  # type: ignore[arg-type]

    def udp(self, scenario: str, log: list[Record] | None = None) -> tuple[UDPRelay, _DatagramEcho, _DatagramClient]:
        """A UDP relay in front of an echo server, and a client of it."""
        echo, client = _DatagramEcho(), _DatagramClient()
        server: Any = reactor.listenUDP(0, echo, interface="127.0.0.1")  # type: ignore[attr-defined]
        relay = UDPRelay(
            reactor, scenario, 1, ("127.0.0.1", server.getHost().port), log=log.append if log is not None else None
        )
        mine: Any = reactor.listenUDP(0, client, interface="127.0.0.1")  # type: ignore[attr-defined]
        client.transport.connect("127.0.0.1", relay.listen())
        for stop in (server.stopListening, mine.stopListening, relay.stop):
            self.addCleanup(stop)
        return relay, echo, client


class UDPRelayTests(RelayTestCase):
    """Datagrams between processes."""

    async def test_datagrams_go_both_ways(self) -> None:
        """Without words every datagram arrives and the answers come back."""
        _, _, client = self.udp("delay=2ms")
        for n in range(50):
            client.transport.write(b"%d" % n)
        await until(lambda: len(client.got) == 50)
        self.assertEqual(client.got, [b"%d" % n for n in range(50)])

    async def test_loss_is_the_seeds(self) -> None:
        """Chosen datagrams are lost, the log says which, and the log runs again."""
        log: list[Record] = []
        relay, _, client = self.udp("droplist@up=2-4 loss@down=30%", log)
        for n in range(100):
            client.transport.write(b"%d" % n)
        await until(lambda: relay.link.counts["up", "deliver"] == 97)
        await until(lambda: relay.link.counts["down", "deliver"] + relay.link.counts["down", "loss"] == 97)
        await until(lambda: len(client.got) == relay.link.counts["down", "deliver"])
        self.assertNotIn(b"2", client.got)
        self.assertEqual(check_log(log), 100 + 97)

    async def test_a_rebind_is_a_new_source(self) -> None:
        """After a rebind the server sees another port, or another address, and answers to the old one are lost."""
        for word in ("port", "address"):
            relay, echo, client = self.udp(f"rebind={word}")
            client.transport.write(b"1")
            await until(lambda client=client: len(client.got) == 1)  # type: ignore[misc]
            relay.link.rebind(reactor.seconds())  # type: ignore[attr-defined]
            client.transport.write(b"2")
            await until(lambda client=client: len(client.got) == 2)  # type: ignore[misc]
            self.assertNotEqual(echo.sources[0], echo.sources[1])
            self.assertEqual(echo.sources[0][0] == echo.sources[1][0], word == "port")
            echo.transport.write(b"late", echo.sources[0])
            client.transport.write(b"3")
            await until(lambda client=client: len(client.got) == 3)  # type: ignore[misc]
            self.assertEqual(client.got, [b"1", b"2", b"3"])

    async def test_record_and_replay(self) -> None:
        """What was recorded can be sent again beside new traffic, from a socket whose answers nobody gets."""
        path = self.mktemp()
        relay, _, client = self.udp(f"record@up={path}")
        client.transport.write(b"old 1")
        client.transport.write(b"old 2")
        await until(lambda: len(client.got) == 2)
        await relay.stop()
        _, echo, again = self.udp(f"replay@up={path}")
        again.transport.write(b"new")
        await until(lambda: len(echo.sources) == 3)
        self.assertEqual(len(set(echo.sources)), 2)
        self.assertEqual(again.got, [b"new"])


class TCPRelayTests(RelayTestCase):
    """Connections between processes."""

    async def test_bytes_both_ways_and_a_clean_end(self) -> None:
        """A megabyte goes there and back byte-exact, and a clean end stays clean."""
        self.tcp("delay=1ms")
        client = await self.connect()
        sent = bytes(range(256)) * 4096
        client.transport.write(sent)
        await until(lambda: len(client.got) == len(sent))
        self.assertEqual(client.got, sent)
        client.transport.loseConnection()
        await until(lambda: self.servers[0].lost is not None)
        self.assertEqual(self.servers[0].lost, error.ConnectionDone)

    async def test_a_large_transfer_is_held_back(self) -> None:
        """A slow wire stops reading from its sender instead of taking everything into memory."""
        relay = self.tcp("bandwidth=80Mbps")
        client = await self.connect()
        client.transport.write(bytes(8_000_000))
        await until(lambda: bool(self.servers))
        most = 0
        for _ in range(20):
            await task.deferLater(reactor, 0.02)  # type: ignore[arg-type]
            most = max(most, *(sum(c.link.waiting(d) for d in c.link._ways) for c in relay.connections.values()))
        self.assertGreater(most, 100_000)
        self.assertLess(most, 2_000_000)
        client.transport.abortConnection()
        await until(lambda: not relay.connections)

    async def test_fragments_arrive_one_by_one(self) -> None:
        """With a gap between them the fragments are read one at a time."""
        self.tcp("fragment@down=1 fragment-gap@down=5ms")
        client = await self.connect()
        client.transport.write(b"0123456789")
        await until(lambda: client.got == b"0123456789")
        self.assertGreaterEqual(client.pieces, 8)

    async def test_cuts(self) -> None:
        """After the chosen byte both sides see a reset, or a false clean end."""
        for kind, seen in (("reset", error.ConnectionLost), ("fin", error.ConnectionDone)):
            self.servers.clear()
            self.tcp(f"cut-after@down=1000 cut={kind}")
            client = await self.connect()
            client.transport.write(bytes(5000))
            await until(lambda client=client: client.lost is not None)  # type: ignore[misc]
            await until(lambda: self.servers[0].lost is not None)
            self.assertEqual(client.lost, seen)
            self.assertLessEqual(len(client.got), 1000)

    async def test_a_reset_stays_a_reset(self) -> None:
        """The server's reset reaches the client as one, and the client's the server."""
        self.tcp("delay=1ms")
        client = await self.connect()
        await until(lambda: bool(self.servers))
        assert self.servers[0].transport is not None
        self.servers[0].transport.abortConnection()  # type: ignore[attr-defined]
        await until(lambda: client.lost is not None)
        self.assertEqual(client.lost, error.ConnectionLost)

    async def test_bytes_wait_in_an_outage(self) -> None:
        """While the link is dead nothing arrives; afterwards everything does."""
        self.tcp("blackhole-on=0.05s blackhole-off=0.4s")
        client = await self.connect()
        await task.deferLater(reactor, 0.1)  # type: ignore[arg-type]
        client.transport.write(b"held")
        await task.deferLater(reactor, 0.1)  # type: ignore[arg-type]
        self.assertEqual(client.got, b"")
        await until(lambda: client.got == b"held")

    async def test_record_and_replay_of_client_streams(self) -> None:
        """A recorded client stream can be sent again to the server on a connection of its own."""
        path = self.mktemp()
        relay = self.tcp(f"record={path}")
        client = await self.connect()
        client.transport.write(b"GET /secret")
        await until(lambda: client.got == b"GET /secret")
        self.assertEqual(streams(path), [b"GET /secret"])
        self.assertEqual(relay.replay(path), 1)
        await until(lambda: len(self.servers) == 2 and self.servers[1].got == b"GET /secret")
        for server in self.servers:
            assert server.transport is not None
            server.transport.loseConnection()
        await until(lambda: not relay.connections)

    async def test_a_refusing_server_is_a_reset(self) -> None:
        """When nobody listens behind the relay, its client sees a reset."""
        relay = self.tcp("")
        relay.target = ("127.0.0.1", 1)
        client = await self.connect()
        await until(lambda: client.lost is not None)
        self.assertEqual(client.lost, error.ConnectionLost)
