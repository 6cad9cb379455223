"""UDP sockets for flows."""

from __future__ import annotations

import errno
import socket
from typing import Any
from unittest import mock

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from mikanet.datagrams import open_flow


class Echo(DatagramProtocol):
    """Sends back what comes; notes it too."""

    noisy = False

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.first: Deferred[bytes] = Deferred()
        self.stopped = 0

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Note it, and answer a question."""
        self.received.append(datagram)
        if datagram.endswith(b"?"):
            self.transport.write(datagram[:-1], addr)
        if not self.first.called:
            self.first.callback(datagram)

    def stopProtocol(self) -> None:
        """Note it."""
        self.stopped += 1


class OpenFlowTests(TestCase):
    """A real socket on loopback."""

    timeout = 20

    @inlineCallbacks
    def test_works_and_says_nothing(self) -> Any:
        """Datagrams pass both ways, the port closes, and the log stays empty."""
        lines: list[Any] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        near, far = Echo(), Echo()
        far_port: Any = open_flow(global_reactor, far, "127.0.0.1")
        near_port: Any = open_flow(global_reactor, near, "127.0.0.1")
        near_port.connect("127.0.0.1", far_port.getHost().port)
        near_port.write(b"x" * 60000 + b"?")
        answer = yield near.first
        self.assertEqual(answer, b"x" * 60000)
        for port in (near_port, far_port):
            yield maybeDeferred(port.stopListening)
        self.assertEqual((near.stopped, far.stopped), (1, 1))
        self.assertEqual(lines, [])

    def test_failure(self) -> None:
        """An address that is not this machine's cannot be listened on."""
        with self.assertRaises(CannotListenError):
            open_flow(global_reactor, Echo(), "203.0.113.7")


class _Connected(DatagramProtocol):
    """Counts refusals and notes what comes."""

    noisy = False

    def __init__(self) -> None:
        self.refusals = 0
        self.first: Deferred[bytes] = Deferred()

    def connectionRefused(self) -> None:
        """An ICMP message."""
        self.refusals += 1

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Tell of the first."""
        if not self.first.called:
            self.first.callback(datagram)


class RefusalTests(TestCase):
    """A connected socket whose peer is not there for a while."""

    timeout = 20

    @inlineCallbacks
    def test_it_survives_icmp(self) -> Any:
        """Ports unreachable again and again, with nothing to read beside, end nothing: the peer that comes up is heard."""
        mine = _Connected()
        port = open_flow(global_reactor, mine, "127.0.0.1")
        self.addCleanup(port.stopListening)
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind(("127.0.0.1", 0))
        where = peer.getsockname()
        peer.close()
        port.connect(*where)
        for number in range(1, 4):
            port.write(b"anybody?")
            while mine.refusals < number:
                yield deferLater(global_reactor, 0.01)
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind(where)
        peer.sendto(b"here", ("127.0.0.1", port.getHost().port))
        heard = yield mine.first
        self.assertEqual(heard, b"here")

    @inlineCallbacks
    def test_stopped_by_icmp(self) -> Any:
        """A protocol may stop its port when it hears of it: nothing of the port is left in the reactor."""
        mine = _Connected()
        port = open_flow(global_reactor, mine, "127.0.0.1")
        stopped: list[Any] = []
        mine.connectionRefused = lambda: stopped.append(port.stopListening())  # type: ignore[method-assign]
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind(("127.0.0.1", 0))
        where = peer.getsockname()
        peer.close()
        port.connect(*where)
        port.write(b"anybody?")
        while not stopped:
            yield deferLater(global_reactor, 0.01)
        yield stopped[0]
        self.assertNotIn(port, global_reactor.getReaders())

    @inlineCallbacks
    def test_other_errors(self) -> Any:
        """What else the network says of an earlier datagram ends nothing, also with something to read behind it."""
        mine = _Connected()
        port = open_flow(global_reactor, mine, "127.0.0.1")
        self.addCleanup(port.stopListening)
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(peer.close)
        peer.bind(("127.0.0.1", 0))
        port.connect(*peer.getsockname())
        for number in (errno.EMSGSIZE, errno.EHOSTUNREACH, errno.ENETUNREACH):
            real, port.socket = (
                port.socket,
                mock.Mock(recvfrom=mock.Mock(side_effect=OSError(number, "of the network"))),
            )
            port.doRead()
            port.socket = real
        peer.sendto(b"here", ("127.0.0.1", port.getHost().port))
        heard = yield mine.first
        self.assertEqual(heard, b"here")
