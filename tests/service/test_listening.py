"""Listening services, and the orderly end (X9)."""

from __future__ import annotations

import os
import signal
import sys
from io import StringIO
from typing import Any
from unittest import mock

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.service.listening import DrainingService, ListeningService


class Port:
    """A listening port in memory."""

    stopped = False

    def getHost(self) -> IPv4Address:
        """Its address."""
        return IPv4Address("TCP", "127.0.0.1", 8388)

    def stopListening(self) -> Deferred[None]:
        """Note it."""
        self.stopped = True
        return succeed(None)


class Endpoint:
    """An endpoint whose listening comes out as the test wants."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def listen(self, factory: object) -> Any:
        """The outcome."""
        return self.outcome() if callable(self.outcome) else self.outcome


class ListeningServiceTests(SynchronousTestCase):
    """One listening port."""

    def service(self, outcome: Any) -> ListeningService:
        """A service on such an endpoint."""
        return ListeningService("tcp:8388", Endpoint(outcome), Factory(), "test")

    def test_opens_before_privileges_are_dropped(self) -> None:
        """The port opens in privilegedStartService and closes in stopService."""
        port = Port()
        service = self.service(succeed(port))
        service.privilegedStartService()
        service.startService()
        self.successResultOf(service.stopService())
        self.assertTrue(port.stopped)

    def test_failure_is_one_line_on_stderr(self) -> None:
        """A port in use, a bad address, whatever: one line that names the endpoint, and a non-zero exit."""

        def impossible() -> Any:
            raise OverflowError("port must be 0-65535")

        for outcome in (fail(CannotListenError("", 8388, OSError(98, "Address already in use"))), impossible):
            with mock.patch.object(sys, "__stderr__", StringIO()) as stderr:
                with self.assertRaises(SystemExit) as caught:
                    self.service(outcome).privilegedStartService()
                self.assertIsInstance(caught.exception, Exception)  # so that twistd tells a daemon's parent
                self.assertRegex(stderr.getvalue(), r"\Acannot listen on tcp:8388: [^\n]+\n\Z")
                self.assertEqual(f"{caught.exception}\n", stderr.getvalue())
                self.assertEqual(caught.exception.code, 1)  # not the text, which the interpreter would print again

    def test_stopping_without_a_port(self) -> None:
        """Stopping a service that never listened is fine; a port that comes later is closed at once."""
        listening: Deferred[Port] = Deferred()
        service = self.service(listening)
        service.privilegedStartService()
        self.successResultOf(service.stopService())
        port = Port()
        listening.callback(port)
        self.assertTrue(port.stopped)


class Connection:
    """Something that can be cut."""

    def __init__(self, connections: set[Any]) -> None:
        self.connections = connections
        connections.add(self)

    def abort(self) -> None:
        """Be cut."""
        self.connections.discard(self)


class DrainingServiceTests(SynchronousTestCase):
    """The end of a server."""

    def setUp(self) -> None:
        """A draining service with a listening child."""
        self.clock = Clock()
        self.connections: set[Any] = set()
        self.port = Port()
        self.service = DrainingService(self.clock, self.connections, 30.0)
        ListeningService("tcp:1", Endpoint(succeed(self.port)), Factory(), "test").setServiceParent(self.service)
        self.service.privilegedStartService()
        self.service.startService()
        self.handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def tearDown(self) -> None:
        """Signal handlers are as they were."""
        self.assertEqual({number: signal.getsignal(number) for number in self.handlers}, self.handlers)

    def stop(self) -> Deferred[None]:
        """Begin the end."""
        stopping: Deferred[None] = self.service.stopService()
        self.assertTrue(self.port.stopped)
        return stopping

    def advance(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def test_without_connections_it_ends_at_once(self) -> None:
        """Nobody is waited for."""
        stopping = self.stop()
        self.clock.advance(0.01)
        self.successResultOf(stopping)

    def test_waits_for_connections(self) -> None:
        """It ends as soon as the last connection has."""
        connection = Connection(self.connections)
        stopping = self.stop()
        self.advance(10)
        self.assertNoResult(stopping)
        self.connections.discard(connection)
        self.advance(0.2)
        self.successResultOf(stopping)

    def test_cuts_after_the_drain_time(self) -> None:
        """What is left after the drain time is reset."""
        Connection(self.connections)
        stopping = self.stop()
        self.advance(29.5)
        self.assertNoResult(stopping)
        self.advance(1)
        self.successResultOf(stopping)
        self.assertEqual(self.connections, set())

    def test_a_second_signal_cuts_at_once(self) -> None:
        """SIGTERM again means now."""
        Connection(self.connections)
        stopping = self.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        self.advance(0.3)
        self.successResultOf(stopping)
