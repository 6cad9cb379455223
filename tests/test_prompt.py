"""Prompt writes, on real sockets of the reactor and on transports that are something else."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from mikanet import prompt
from tests.support.transports import MemoryTransport


class OtherTransportTests(SynchronousTestCase):
    """Whatever is no plain socket gets ordinary calls."""

    def test_ordinary_calls(self) -> None:
        """write and loseWriteConnection, nothing else."""
        transport = MemoryTransport()
        prompt.send(transport, b"data")
        prompt.send_all(transport, [b"more ", b"data"])
        prompt.end_writing(transport)
        self.assertEqual((transport.written, transport.fin), ([b"data", b"more data"], True))
        prompt.receive(transport)
        prompt.close(transport)
        self.assertTrue(transport.closed)


@implementer(IHalfCloseableProtocol)
class Ends(Protocol):
    """Notes ends."""

    def __init__(self) -> None:
        self.write_ended = 0
        self.lost: Deferred[Any] = Deferred()

    def readConnectionLost(self) -> None:
        """The peer's end."""

    def writeConnectionLost(self) -> None:
        """Our own."""
        self.write_ended += 1

    def connectionLost(self, reason: Any = None) -> None:
        """All of it."""
        self.lost.callback(reason.type)  # not the Failure, which would fail the Deferred


class SocketTests(TestCase):
    """A plain TCP transport of Twisted against a plain socket."""

    timeout = 20

    @inlineCallbacks
    def connect(self) -> Any:
        """A connected protocol and the socket at its other end."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        endpoint = TCP4ClientEndpoint(global_reactor, "127.0.0.1", listener.getsockname()[1])
        wrapper = yield endpoint.connect(Factory.forProtocol(Ends))
        peer, _ = listener.accept()
        peer.settimeout(5)
        self.addCleanup(peer.close)
        return wrapper, peer

    @inlineCallbacks
    def test_small_writes_arrive_at_once(self) -> Any:
        """The bytes are there before the reactor turns, in order, and the end after them."""
        protocol, peer = yield self.connect()
        transport = protocol.transport
        for piece in (b"one ", b"two ", b"three"):
            prompt.send(transport, piece)
        self.assertEqual(peer.recv(100), b"one two three")
        prompt.end_writing(transport)
        self.assertEqual(peer.recv(100), b"")
        self.assertEqual(protocol.write_ended, 1)
        transport.loseConnection()
        yield protocol.lost

    @inlineCallbacks
    def test_first_bytes(self) -> Any:
        """What has come before the connection is made is taken at once; nothing, or an end, is left to the reactor."""
        protocol, peer = yield self.connect()
        got: list[bytes] = []
        protocol.dataReceived = got.append
        prompt.receive(protocol.transport)
        peer.sendall(b"first")
        prompt.receive(protocol.transport)
        self.assertEqual(got, [b"first"])
        peer.shutdown(socket.SHUT_WR)
        prompt.receive(protocol.transport)
        self.assertEqual(got, [b"first"])
        protocol.transport.loseConnection()
        yield protocol.lost

    @inlineCallbacks
    def test_close_after_the_peer(self) -> Any:
        """An end that answers the peer's is there before the reactor turns, as a FIN; with bytes left, after those."""
        protocol, peer = yield self.connect()
        transport = protocol.transport
        protocol.readConnectionLost = lambda: prompt.close(transport)
        peer.shutdown(socket.SHUT_WR)
        reason = yield protocol.lost
        self.assertIs(reason, ConnectionDone)
        self.assertEqual(peer.recv(1), b"")
        protocol, peer = yield self.connect()
        transport = protocol.transport
        prompt.send(transport, bytes(20_000_000))
        prompt.close(transport)
        size = 0
        peer.setblocking(False)
        while True:
            try:
                data = peer.recv(1 << 20)
            except BlockingIOError:
                yield deferLater(global_reactor, 0.001)
                continue
            if not data:
                break
            size += len(data)
        self.assertEqual(size, 20_000_000)
        yield protocol.lost

    @inlineCallbacks
    def test_order_is_kept_when_the_socket_is_full(self) -> Any:
        """What does not fit waits in the transport; later writes and the end queue up behind it."""
        protocol, peer = yield self.connect()
        transport = protocol.transport
        pieces = [bytes([number]) * 300_000 for number in range(40)]
        for piece in pieces:
            prompt.send(transport, piece)
        prompt.end_writing(transport)
        self.assertEqual(protocol.write_ended, 0)
        got = bytearray()
        peer.setblocking(False)
        while True:
            try:
                data = peer.recv(1 << 20)
            except BlockingIOError:
                yield deferLater(global_reactor, 0.001)
                continue
            if not data:
                break
            got += data
        self.assertEqual(bytes(got), b"".join(pieces))
        transport.loseConnection()
        yield protocol.lost

    @inlineCallbacks
    def test_a_producer_is_paused(self) -> Any:
        """Back-pressure is the transport's own: a full socket pauses, a drained one resumes."""
        protocol, peer = yield self.connect()
        states: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                states.append("paused")

            def resumeProducing(self) -> None:
                states.append("resumed")

            def stopProducing(self) -> None:
                states.append("stopped")

        protocol.transport.registerProducer(Producer(), True)
        for _ in range(40):
            prompt.send(protocol.transport, bytes(300_000))
        self.assertEqual(states[:1], ["paused"])
        while "resumed" not in states:
            peer.recv(1 << 20)
            yield deferLater(global_reactor, 0.001)
        protocol.transport.unregisterProducer()
        protocol.transport.abortConnection()
        yield protocol.lost

    @inlineCallbacks
    def test_a_reset_is_no_clean_end(self) -> Any:
        """Whichever call meets the reset first: bytes from before it are delivered, and connectionLost says that it was one."""
        calls: dict[str, Callable[[Any], None]] = {
            "send": lambda transport: prompt.send(transport, b"x"),
            "send_all": lambda transport: prompt.send_all(transport, [b"x", b"y"]),
            "receive": prompt.receive,
            "end_writing": prompt.end_writing,
            "send twice": lambda transport: [prompt.send(transport, b"x") for _ in range(2)] and None,
        }
        for name, call in calls.items():
            for before in (b"", b"half of a response"):
                if name == "receive" and before:
                    continue  # takes the bytes, and leaves the reset to the reactor
                protocol, peer = yield self.connect()
                got: list[bytes] = []
                protocol.dataReceived = got.append
                protocol.readConnectionLost = lambda: self.fail("a clean end")
                peer.sendall(before)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                peer.close()
                time.sleep(0.02)  # until the reset is here, before the reactor turns
                call(protocol.transport)
                reason = yield protocol.lost
                self.assertIs(reason, ConnectionLost, (name, before))
                self.assertEqual(b"".join(got), before, name)

    @inlineCallbacks
    def test_a_lost_connection_is_reported_the_ordinary_way(self) -> Any:
        """Writing to a reset connection raises nothing; connectionLost says it."""
        protocol, peer = yield self.connect()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()
        transport = protocol.transport
        prompt.send(transport, b"x" * 1000)
        prompt.send(transport, b"x" * 1000)
        yield protocol.lost
        prompt.send(transport, b"late")
        prompt.end_writing(transport)
