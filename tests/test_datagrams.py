"""UDP sockets for flows."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
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
