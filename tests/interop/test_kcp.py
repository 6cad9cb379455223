"""``kcp:`` endpoint strings over real UDP on loopback, as Mika's link and with a cipher."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet import defer, error, reactor
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mikanet.endpoints import quote
from mikanet.errors import DestinationError
from tests.support.lossy_udp import LossyUdpRelay
from tests.support.processes import free_port

SIZE = 2_000_000


class Collect(Protocol):
    """Collects ``want`` bytes."""

    def __init__(self, want: int, say: bytes = b"") -> None:
        self.done: defer.Deferred[str] = defer.Deferred()
        self.lost: defer.Deferred[Any] = defer.Deferred()
        self._want = want
        self._say = say
        self._got = 0
        self._hash = hashlib.sha256()

    def connectionMade(self) -> None:
        """Speak."""
        assert self.transport is not None
        self.transport.write(self._say)

    def dataReceived(self, data: bytes) -> None:
        """Collect."""
        self._got += len(data)
        self._hash.update(data)
        if self._got >= self._want and not self.done.called:
            self.done.callback(self._hash.hexdigest())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say why."""
        self.lost.callback(reason.type)


class KcpEndpointTests(TestCase):
    """Both ends from strings."""

    timeout = 60.0

    async def both_ways(self, arguments: str, loss: float = 0.0) -> None:
        """Two streams of bytes at once, client and server each sending."""
        up, down = os.urandom(SIZE), os.urandom(SIZE)
        number = free_port()
        served = Collect(SIZE, down)
        server = serverFromString(reactor, f"kcp:{number}:interface=127.0.0.1{arguments}")
        port: Any = await server.listen(Factory.forProtocol(lambda: served))
        self.addCleanup(port.stopListening)
        if loss:
            relay = LossyUdpRelay(reactor, number, loss)
            self.addCleanup(relay.close)
            number = relay.port
        client = Collect(SIZE, up)
        endpoint = clientFromString(reactor, f"kcp:127.0.0.1:{number}{arguments}")
        await endpoint.connect(Factory.forProtocol(lambda: client))
        self.assertEqual(await served.done, hashlib.sha256(up).hexdigest())
        self.assertEqual(await client.done, hashlib.sha256(down).hexdigest())
        assert client.transport is not None
        client.transport.loseConnection()
        self.assertIs(await client.lost, error.ConnectionDone)
        await deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]

    def test_mika_link(self) -> Any:
        """Mika's link, which has no arguments."""
        return defer.ensureDeferred(self.both_ways(""))

    def test_mika_link_with_loss(self) -> Any:
        """Mika's link where a tenth of the packets is lost."""
        return defer.ensureDeferred(self.both_ways("", loss=0.1))

    def test_ciphered(self) -> Any:
        """A link with a cipher, without FEC."""
        path = Path(self.mktemp())
        path.write_text("a secret of good length\n")
        path.chmod(0o600)
        words = f":block=aes-128-gcm:key-file={quote(str(path.resolve()))}:kdf=paqet:dshard=0:pshard=0:mode=fast3"
        return defer.ensureDeferred(self.both_ways(words))

    def test_first_datagram_of_mika_link(self) -> Any:
        """What Mika's original was seen to send first: an FEC data header, then one PUSH in the clear."""

        async def run() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
                sink.bind(("127.0.0.1", 0))
                sink.settimeout(5)
                endpoint = clientFromString(reactor, f"kcp:127.0.0.1:{sink.getsockname()[1]}")
                client = Collect(1, b"mika")
                await endpoint.connect(Factory.forProtocol(lambda: client))
                datagram = sink.recv(2000)
                client.transport.abortConnection()  # type: ignore[union-attr]
                await client.lost
            self.assertEqual(datagram[:8].hex(), "00000000f1001e00")
            self.assertEqual(datagram[12:16].hex(), "51000004")
            self.assertEqual((datagram[20:32].hex(), datagram[32:]), ("000000000000000004000000", b"mika"))

        return defer.ensureDeferred(run())

    def test_server_that_comes_later(self) -> Any:
        """A server that is not there yet, so that ICMP says no, ends nothing: when it comes, everything arrives."""

        async def run() -> None:
            number = free_port()
            client, served = Collect(1), Collect(5, b"!")
            endpoint = clientFromString(reactor, f"kcp:127.0.0.1:{number}")
            await endpoint.connect(Factory.forProtocol(lambda: client))
            for _ in range(5):
                client.transport.write(b"x")  # type: ignore[union-attr]
                await deferLater(reactor, 0.02, lambda: None)  # type: ignore[arg-type]
            server = serverFromString(reactor, f"kcp:{number}:interface=127.0.0.1")
            port: Any = await server.listen(Factory.forProtocol(lambda: served))
            self.addCleanup(port.stopListening)
            await served.done
            await client.done
            client.transport.abortConnection()  # type: ignore[union-attr]
            await client.lost

        return defer.ensureDeferred(run())

    def test_name_is_resolved(self) -> Any:
        """A client's host may be a name; one that does not exist fails the connection."""

        async def run() -> None:
            endpoint = clientFromString(reactor, "kcp:localhost:9")
            client = Collect(1)
            await endpoint.connect(Factory.forProtocol(lambda: client))
            client.transport.abortConnection()  # type: ignore[union-attr]
            await client.lost
            wrong = clientFromString(reactor, "kcp:no-such-host.invalid:9")
            with self.assertRaises(DestinationError):
                await wrong.connect(Factory.forProtocol(lambda: Collect(1)))

        return defer.ensureDeferred(run())
