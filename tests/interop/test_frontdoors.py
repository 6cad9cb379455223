"""The front doors against real programs, over loopback sockets and a tunnel that dials directly."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from twisted.internet import defer, error
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason
from mikanet.filters.socks_client import Socks5ClientEndpoint
from mikanet.frontdoors.doors import (
    Credentials,
    DoorFactory,
    DoorSettings,
    UdpForward,
    forward_factory,
    http_factory,
    socks_factory,
)
from tests.support.direct import DirectTunnel
from tests.support.peers import require_program
from tests.support.processes import Process, free_port

reactor: Any = _reactor

SIZE = 5_000_003
BODY = random.Random(1).randbytes(SIZE)
DIGEST = hashlib.sha256(BODY).hexdigest().encode()


class Target(Resource):
    """Answers GET with the body, and anything with a body with the digest of that."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []

    def render_GET(self, request: Any) -> bytes:
        self.requests.append(request)
        return BODY

    def render_PUT(self, request: Any) -> bytes:
        self.requests.append(request)
        return hashlib.sha256(request.content.read()).hexdigest().encode()

    render_POST = render_PUT


class Echo(Protocol):
    """Sends back what it gets, and ends when its client does."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]  # it is connected


class UdpEcho(DatagramProtocol):
    """Sends datagrams back."""

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)  # type: ignore[union-attr]  # it is connected


class UdpClient(DatagramProtocol):
    """Collects datagrams."""

    def __init__(self) -> None:
        self.received: defer.DeferredQueue[bytes] = defer.DeferredQueue()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.put(datagram)


class Collect(Protocol):
    """Collects bytes until a number of them is there."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: defer.Deferred[Any] = defer.Deferred()
        self._wanted = 0
        self._done: defer.Deferred[bytes] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._done is not None and len(self.received) >= self._wanted:
            done, self._done = self._done, None
            done.callback(self.received)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.type)

    def when(self, length: int) -> defer.Deferred[bytes]:
        """Fires with all that came, once it has this length."""
        self._wanted = length
        if len(self.received) >= length:
            return defer.succeed(self.received)
        self._done = defer.Deferred()
        return self._done


class FrontDoorTestCase(TestCase):
    """Doors on loopback."""

    timeout = 60

    def setUp(self) -> None:
        self.tunnel = DirectTunnel(reactor, {"target.example": "127.0.0.1"})
        self.target = Target()
        self.target_port = self.listen(Site(self.target))

    def listen(self, factory: Any) -> int:
        """Listen on a free port of loopback until the test ends."""
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        if isinstance(factory, DoorFactory):
            self.addCleanup(self._all_gone, factory)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def _all_gone_async(self, factory: DoorFactory) -> None:
        factory.abort_all()
        while factory.connections:
            await self.wait(0.01)

    def _all_gone(self, factory: DoorFactory) -> defer.Deferred[None]:
        return defer.Deferred.fromCoroutine(self._all_gone_async(factory))

    def listen_udp(self, protocol: Any) -> int:
        """The same for UDP."""
        port = reactor.listenUDP(0, protocol, interface="127.0.0.1", maxPacketSize=65536)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def wait(self, seconds: float) -> defer.Deferred[None]:
        """Let the reactor run."""
        done: defer.Deferred[None] = defer.Deferred()
        reactor.callLater(seconds, done.callback, None)
        return done

    def settings(self, **more: Any) -> DoorSettings:
        """For a door of this test."""
        return DoorSettings(reactor=reactor, **more)

    async def curl(self, *arguments: str) -> bytes:
        """What curl prints; it must succeed."""
        out, status = await self.curl_status(*arguments)
        self.assertEqual(status, 0, arguments)
        return out

    async def curl_status(self, *arguments: str) -> tuple[bytes, int]:
        """What curl prints, and its exit status."""
        command = require_program("curl")
        fixed = ["-q", "-s", "--max-time", "30", "--noproxy", ""]
        out, _, status = await getProcessOutputAndValue(command, [*fixed, *arguments], env={}, reactor=reactor)
        return out, status

    def upload(self) -> str:
        """A file with the body, for curl."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(BODY)
        return path

    async def check_transfers(self, *proxy: str, host: str = "127.0.0.1") -> None:
        """A download and an upload through a proxy are whole."""
        url = f"http://{host}:{self.target_port}/"
        self.assertEqual(hashlib.sha256(await self.curl(*proxy, url)).hexdigest().encode(), DIGEST)
        self.assertEqual(await self.curl(*proxy, "-T", self.upload(), url), DIGEST)


class CurlSocksTests(FrontDoorTestCase):
    """curl through the SOCKS door."""

    async def test_versions(self) -> None:
        """SOCKS5 with an address and with a name, SOCKS4 and 4a carry a download and an upload whole."""
        port = self.listen(socks_factory(self.tunnel, self.settings()))
        await self.check_transfers("--socks5", f"127.0.0.1:{port}")
        await self.check_transfers("--socks5-hostname", f"127.0.0.1:{port}", host="target.example")
        await self.check_transfers("--socks4", f"127.0.0.1:{port}")
        await self.check_transfers("--socks4a", f"127.0.0.1:{port}", host="target.example")

    async def test_password(self) -> None:
        """With a password, the right one is needed."""
        settings = self.settings(credentials=Credentials({"alice": "secret"}))
        port = self.listen(socks_factory(self.tunnel, settings))
        await self.check_transfers("-x", f"socks5h://alice:secret@127.0.0.1:{port}")
        url = f"http://127.0.0.1:{self.target_port}/"
        for proxy in (f"socks5h://alice:wrong@127.0.0.1:{port}", f"socks5h://127.0.0.1:{port}"):
            self.assertEqual((await self.curl_status("-x", proxy, url))[1], 97)

    async def test_refused(self) -> None:
        """A destination that refuses is told by its code: curl names it."""
        port = self.listen(socks_factory(self.tunnel, self.settings()))
        closed = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1")
        number = closed.getHost().port
        await closed.stopListening()
        out, status = await self.curl_status(
            "-w", "%{proxy_code} %{errormsg}", "-x", f"socks5h://127.0.0.1:{port}", f"http://127.0.0.1:{number}/"
        )
        self.assertEqual(status, 97)
        self.assertIn(b"(5)", out)


class CurlHttpTests(FrontDoorTestCase):
    """curl through the HTTP door."""

    async def test_plain(self) -> None:
        """Absolute URLs: download and upload whole, with a length and in chunks."""
        port = self.listen(http_factory(self.tunnel, self.settings()))
        proxy = ("-x", f"http://127.0.0.1:{port}")
        await self.check_transfers(*proxy, host="target.example")
        url = f"http://target.example:{self.target_port}/"
        chunked = await self.curl(*proxy, "-H", "Transfer-Encoding: chunked", "-T", self.upload(), url)
        self.assertEqual(chunked, DIGEST)
        for request in self.target.requests:
            self.assertFalse(request.requestHeaders.hasHeader("proxy-connection"))
            self.assertFalse(request.requestHeaders.hasHeader("via"))

    async def test_connect(self) -> None:
        """CONNECT: download and upload whole."""
        port = self.listen(http_factory(self.tunnel, self.settings()))
        await self.check_transfers("-p", "-x", f"http://127.0.0.1:{port}", host="target.example")

    async def test_keep_alive(self) -> None:
        """Several URLs of one curl use one connection to the proxy and one to the destination."""
        settings = self.settings()
        port = self.listen(http_factory(self.tunnel, settings))
        url = f"http://target.example:{self.target_port}/"
        out = await self.curl("-x", f"http://127.0.0.1:{port}", url, url, url)
        self.assertEqual(out, BODY * 3)
        self.assertEqual(settings.counters["frontdoor.http.connections"], 1)
        self.assertEqual(settings.counters["frontdoor.http.dialled"], 1)

    async def test_password(self) -> None:
        """With a password, the right one is needed, and it is not passed on."""
        settings = self.settings(credentials=Credentials({"alice": "secret"}))
        port = self.listen(http_factory(self.tunnel, settings))
        good, bad = f"http://alice:secret@127.0.0.1:{port}", f"http://alice:wrong@127.0.0.1:{port}"
        url = f"http://target.example:{self.target_port}/"
        for mode in ((), ("-p",)):
            self.assertEqual(await self.curl(*mode, "-x", good, url), BODY)
            self.assertEqual(await self.curl(*mode, "--proxy-anyauth", "-x", good, url), BODY)
            out, _ = await self.curl_status(
                *mode, "-w", "%{http_code} %{http_connect}", "-o", "/dev/null", "-x", bad, url
            )
            self.assertIn(b"407", out)
        for request in self.target.requests:
            self.assertFalse(request.requestHeaders.hasHeader("proxy-authorization"))


class ForwardTests(FrontDoorTestCase):
    """Forwards."""

    async def test_tcp(self) -> None:
        """curl through a TCP forward: download and upload whole."""
        destination = Address("target.example", self.target_port)
        self.target_port = self.listen(forward_factory(self.tunnel, destination, self.settings()))
        await self.check_transfers()

    async def test_udp(self) -> None:
        """Datagrams of any size through a UDP forward come back."""
        echo = self.listen_udp(UdpEcho())
        forward = UdpForward(self.tunnel, Address("127.0.0.1", echo), self.settings())
        port = self.listen_udp(forward)
        client = UdpClient()
        self.listen_udp(client)
        for size in (0, 1, 1400, 9000, 65000):
            assert client.transport is not None
            client.transport.write(BODY[:size], ("127.0.0.1", port))
            self.assertEqual(await client.received.get(), BODY[:size])


class SocksClientTests(FrontDoorTestCase):
    """Our own SOCKS5 client, and UDP ASSOCIATE, against the SOCKS door."""

    async def test_endpoint(self) -> None:
        """The client endpoint connects through the door, with a password, and bytes flow."""
        settings = self.settings(credentials=Credentials({"alice": "secret"}))
        port = self.listen(socks_factory(self.tunnel, settings))
        echo = Address("target.example", self.listen(Factory.forProtocol(Echo)))
        proxy = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        client: Any = await Socks5ClientEndpoint(proxy, echo, "alice", "secret").connect(Factory.forProtocol(Collect))
        client.transport.write(BODY[:300000])
        self.assertEqual(await client.when(300000), BODY[:300000])
        client.transport.abortConnection()
        wrong = Socks5ClientEndpoint(proxy, echo, "alice", "wrong").connect(Factory.forProtocol(Collect))
        problem = await self.assertFailure(wrong, DestinationError)
        self.assertEqual(problem.reason, Reason.POLICY)

    async def test_udp_associate(self) -> None:
        """Datagrams for two destinations come back under their addresses; the port closes with its connection."""
        settings = self.settings()
        factory = socks_factory(self.tunnel, settings)
        port = self.listen(factory)
        echoes = [self.listen_udp(UdpEcho()) for _ in range(2)]
        control: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(Factory.forProtocol(Collect))
        control.transport.write(bytes.fromhex("050100 05030001 00000000 0000"))
        reply = await control.when(12)
        self.assertEqual(reply[:10], bytes.fromhex("0500 05000001 7f000001"))
        relay = ("127.0.0.1", int.from_bytes(reply[10:], "big"))
        client = UdpClient()
        self.listen_udp(client)
        assert client.transport is not None
        for echo in (*echoes, *echoes):
            for size in (0, 1, 1400, 65000):
                datagram = bytes.fromhex("000000 01 7f000001") + echo.to_bytes(2, "big") + BODY[:size]
                client.transport.write(datagram, relay)
                self.assertEqual(await client.received.get(), datagram)
        name = bytes.fromhex("000000 03 0e") + b"target.example" + echoes[0].to_bytes(2, "big") + b"by name"
        client.transport.write(name, relay)
        self.assertEqual(await client.received.get(), name)
        self.assertEqual(settings.counters["frontdoor.udp.flows"], 3)
        control.transport.loseConnection()
        while factory.connections:
            await self.wait(0.01)
        # Twisted closes the port in the next turn; it is free again then, so it can be opened here.
        await self.wait(0.05)
        await reactor.listenUDP(relay[1], DatagramProtocol(), interface="127.0.0.1").stopListening()


class MicrosocksTests(FrontDoorTestCase):
    """Our SOCKS5 client against microsocks."""

    def start(self, *arguments: str) -> TCP4ClientEndpoint:
        """A running microsocks."""
        port = free_port()
        command = [require_program("microsocks"), "-i", "127.0.0.1", "-p", str(port), *arguments]
        self.addCleanup(Process(command, ports=[port]).stop)
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)

    async def check_echo(self, proxy: TCP4ClientEndpoint, *credentials: str) -> None:
        """Bytes go to an echo and back."""
        echo = Address("127.0.0.1", self.listen(Factory.forProtocol(Echo)))
        connecting = Socks5ClientEndpoint(proxy, echo, *credentials).connect(Factory.forProtocol(Collect))
        client: Any = await connecting
        client.transport.write(BODY[:300000])
        self.assertEqual(await client.when(300000), BODY[:300000])
        client.transport.abortConnection()
        await client.lost

    async def test_without_password(self) -> None:
        """A stream through it, and the reason when a destination refuses."""
        proxy = self.start()
        await self.check_echo(proxy)
        closed = Socks5ClientEndpoint(proxy, Address("127.0.0.1", free_port()))
        problem = await self.assertFailure(closed.connect(Factory.forProtocol(Collect)), DestinationError)
        self.assertEqual(problem.reason, Reason.REFUSED)

    async def test_with_password(self) -> None:
        """The right password is needed."""
        proxy = self.start("-u", "alice", "-P", "only-for-this-test")
        await self.check_echo(proxy, "alice", "only-for-this-test")
        for credentials in (("alice", "wrong"), ()):
            endpoint = Socks5ClientEndpoint(proxy, Address("127.0.0.1", 9), *credentials)
            problem = await self.assertFailure(endpoint.connect(Factory.forProtocol(Collect)), DestinationError)
            self.assertEqual(problem.reason, Reason.POLICY)


class EndTests(FrontDoorTestCase):
    """What the kernel makes of the doors' ends."""

    async def connect(self, port: int, first: bytes) -> Any:
        """A connection that has sent its first bytes."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        client: Any = await endpoint.connect(Factory.forProtocol(Collect))
        client.transport.write(first)
        return client

    async def test_refusal_behind_many_bytes(self) -> None:
        """A refusal reaches a client whole and ends cleanly, however much the client has sent ahead."""
        self.patch(self.tunnel, "stream_endpoint", _refusing)
        junk = bytes(400_000)
        port = self.listen(socks_factory(self.tunnel, self.settings()))
        client = await self.connect(port, bytes.fromhex("050100 05010001 7f000001 0009") + junk)
        self.assertIs(await client.lost, error.ConnectionDone)
        self.assertEqual(client.received, bytes.fromhex("0500 05020001 00000000 0000"))
        port = self.listen(http_factory(self.tunnel, self.settings()))
        head = b"POST http://x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
        client = await self.connect(port, head + junk)
        self.assertIs(await client.lost, error.ConnectionDone)
        self.assertTrue(client.received.startswith(b"HTTP/1.1 403 Forbidden\r\n"))

    async def test_cut_stream(self) -> None:
        """A destination's reset is a reset for the application, behind SOCKS, CONNECT and in a plain response."""
        response = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
        cutter = self.listen(Factory.forProtocol(_Cutter))
        socks = self.listen(socks_factory(self.tunnel, self.settings()))
        http = self.listen(http_factory(self.tunnel, self.settings()))
        address = b"127.0.0.1:%d" % cutter
        for port, first in (
            (socks, bytes.fromhex("050100 05010001 7f000001") + cutter.to_bytes(2, "big") + b"x"),
            (http, b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\nx" % address),
            (http, b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n" % address),
        ):
            client = await self.connect(port, first)
            self.assertIs(await client.lost, error.ConnectionLost)
            self.assertTrue(client.received.endswith(response))


def _refusing(destination: Address, http: bool = False) -> Any:
    raise DestinationError(Reason.POLICY)


class _Cutter(Protocol):
    """Sends half a response, and a while later a reset."""

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        reactor.callLater(0.05, transport.abortConnection)
