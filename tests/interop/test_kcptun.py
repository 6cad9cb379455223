"""Live: our KCP and smux with Debian's kcptun (kcp-go 5.6.1, smux 1.5.16), both roles, ``--nocomp``.

Eight streams at once, bytes both ways by SHA-256, through a relay that may lose a tenth of the packets.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mikanet.crypto.packet_keys import Kdf, derive_key
from mikanet.kcp.endpoints import KcpClientEndpoint, KcpServerEndpoint
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.settings import KCPTUN_MODES
from mikanet.smux.forward import ForwardListenFactory, SmuxDialer, SmuxServerFactory
from mikanet.smux.session import SmuxSettings
from tests.support.lossy_udp import LossyUdpRelay
from tests.support.peers import missing
from tests.support.processes import Process, free_port, wait_listening

SECRET = "a secret for interop tests"
#: Every cipher of Debian's program; the second value is how many bytes each stream carries each way.
CIPHERS = {
    "aes": 200_000,
    "aes-128": 200_000,
    "aes-192": 200_000,
    "salsa20": 60_000,
    "blowfish": 200_000,
    "twofish": 20_000,
    "cast5": 200_000,
    "3des": 200_000,
    "tea": 20_000,
    "xtea": 20_000,
    "xor": 200_000,
    "sm4": 200_000,
    "none": 200_000,
}
STREAMS = 8
TIMEOUT = 60.0
_REQUEST = struct.Struct("!II")


def peer_program(name: str) -> str:
    """Debian's kcptun."""
    path = shutil.which(name)
    if path is None:
        raise missing(f"the program {name} (Debian package kcptun)")
    return path


class Target(Protocol):
    """Takes so many bytes, answers with their hash and with as many seeded bytes as asked for."""

    def connectionMade(self) -> None:
        """Wait for the request."""
        self._buffer = b""
        self._hash = hashlib.sha256()
        self._missing: int | None = None
        self._down = 0

    def dataReceived(self, data: bytes) -> None:
        """Request and upload."""
        if self._missing is None:
            self._buffer += data
            if len(self._buffer) < _REQUEST.size:
                return
            self._missing, self._down = _REQUEST.unpack_from(self._buffer)
            data = self._buffer[_REQUEST.size :]
        self._hash.update(data)
        self._missing -= len(data)
        if self._missing == 0:
            assert self.transport is not None
            self.transport.write(self._hash.digest() + seeded(self._down))
            self.transport.loseConnection()


def seeded(length: int) -> bytes:
    """The bytes that a download of this length carries."""
    return random.Random(length).randbytes(length)


class Client(Protocol):
    """Uploads, then checks what comes back; ``done`` fires with what was wrong, or None."""

    def __init__(self, up: bytes, down: int) -> None:
        self.done: defer.Deferred[str | None] = defer.Deferred()
        self._up = up
        self._down = down
        self._got = bytearray()

    def connectionMade(self) -> None:
        """Send everything."""
        assert self.transport is not None
        self.transport.write(_REQUEST.pack(len(self._up), self._down) + self._up)

    def dataReceived(self, data: bytes) -> None:
        """Collect."""
        self._got += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Compare."""
        wanted = hashlib.sha256(self._up).digest() + seeded(self._down)
        problem = None if self._got == wanted else f"{len(self._got)} of {len(wanted)} bytes right: {reason.value}"
        self.done.callback(problem)


class KcptunTests(TestCase):
    """One class for both roles; the tests are made below, one for each case."""

    timeout = TIMEOUT

    def setUp(self) -> None:
        """Start a target."""
        self.target = reactor.listenTCP(0, Factory.forProtocol(Target), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.closing: list[Callable[[], Any]] = [self.target.stopListening]

    def tearDown(self) -> Any:
        """Stop everything, newest first."""
        return defer.gatherResults([defer.maybeDeferred(close) for close in reversed(self.closing)])

    def link(self, block: str, fec: bool, client: bool) -> LinkSettings:
        """kcptun's settings for one end."""
        shards = {"data_shards": 10, "parity_shards": 3} if fec else {}
        return LinkSettings(
            block,
            derive_key(SECRET.encode(), Kdf.KCPTUN),
            KCPTUN_MODES["fast2"],
            snd_wnd=128 if client else 1024,
            rcv_wnd=512 if client else 1024,
            require_proof=not client,
            **shards,  # type: ignore[arg-type]
        )

    def peer(self, program: str, arguments: list[str], block: str, fec: bool, smux: int) -> Process:
        """Start kcptun. Its secret goes by the environment."""
        shards = ["--ds", "10", "--ps", "3"] if fec else ["--ds", "0", "--ps", "0"]
        options = ["--crypt", block, "--nocomp", "--smuxver", str(smux), "--mode", "fast2", *shards]
        process = Process([peer_program(program), *arguments, *options], env={"KCPTUN_KEY": SECRET})
        self.closing.append(process.stop)
        return process

    def relayed(self, port: int, loss: float) -> int:
        """The port to use instead of ``port``."""
        if not loss:
            return port
        relay = LossyUdpRelay(reactor, port, loss, seed=port)
        self.closing.append(relay.close)
        return relay.port

    async def our_client(self, block: str, fec: bool, smux: int, size: int, loss: float) -> None:
        """Our client and kcptun-server."""
        port = free_port()
        target = f"127.0.0.1:{self.target.getHost().port}"
        server = self.peer("kcptun-server", ["-l", f"127.0.0.1:{port}", "-t", target], block, fec, smux)
        wait_listening(port, udp=True, process=server)
        endpoint = KcpClientEndpoint(reactor, "127.0.0.1", self.relayed(port, loss), self.link(block, fec, True))
        dialer = SmuxDialer(SmuxSettings(smux), reactor, endpoint)  # type: ignore[arg-type]
        front = reactor.listenTCP(0, ForwardListenFactory(dialer), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.closing += [front.stopListening, dialer.close]
        await self.transfer(front.getHost().port, size)

    async def our_server(self, block: str, fec: bool, smux: int, size: int, loss: float) -> None:
        """kcptun-client and our server."""
        target = TCP4ClientEndpoint(reactor, "127.0.0.1", self.target.getHost().port)
        factory = SmuxServerFactory(SmuxSettings(smux), reactor, target)  # type: ignore[arg-type]
        endpoint = KcpServerEndpoint(reactor, 0, "127.0.0.1", self.link(block, fec, False))
        port: Any = await endpoint.listen(factory)
        self.closing.append(port.stopListening)
        front = free_port()
        remote = f"127.0.0.1:{self.relayed(port.getHost().port, loss)}"
        client = self.peer("kcptun-client", ["-l", f"127.0.0.1:{front}", "-r", remote], block, fec, smux)
        wait_listening(front, process=client)
        await self.transfer(front, size)

    async def transfer(self, port: int, size: int) -> None:
        """Streams at once through the front port."""
        clients = [Client(os.urandom(size + 7 * number), size + 11 * number) for number in range(STREAMS)]
        for client in clients:
            await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(Factory.forProtocol(lambda c=client: c))  # type: ignore[misc]
        problems = await defer.gatherResults([client.done for client in clients])
        self.assertEqual(problems, [None] * STREAMS)


def _add(name: str, role: str, block: str, fec: bool, smux: int, size: int, loss: float) -> None:
    def test(self: KcptunTests) -> defer.Deferred[None]:
        return defer.ensureDeferred(getattr(self, role)(block, fec, smux, size, loss))

    what = f"{role.replace('_', ' ')}, {block}, {'FEC 10/3' if fec else 'no FEC'}, smux {smux}, {loss:.0%} loss"
    test.__doc__ = f"Eight streams arrive whole both ways: {what}."
    setattr(KcptunTests, f"test_{role}_{name}", test)


for _number, (_block, _size) in enumerate(CIPHERS.items()):
    for _role in ("our_client", "our_server"):
        _add(_block.replace("-", "_"), _role, _block, bool(_number % 2), 1 + _number // 2 % 2, _size, 0.0)
for _fec in (False, True):
    for _smux in (1, 2):
        for _role in ("our_client", "our_server"):
            _add(f"lossy_{'fec' if _fec else 'bare'}_smux{_smux}", _role, "aes", _fec, _smux, 100_000, 0.1)
