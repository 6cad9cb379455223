"""Forwarding connections through smux, in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.smux.forward import LAST_WORDS_TIME, ForwardListenFactory, SmuxDialer, SmuxServerFactory
from mikanet.smux.session import SmuxSettings
from tests.support.transports import DONE, LOST, MemoryTransport


class Dial:
    """An endpoint that connects to a transport in memory, or fails, or waits."""

    def __init__(self) -> None:
        self.transports: list[MemoryTransport] = []
        self.refuse = False
        self.waiting: list[tuple[Any, Deferred[Any]]] = []
        self.hold = False

    def connect(self, factory: Any) -> Deferred[Any]:
        """As an endpoint."""
        if self.refuse:
            return fail(ConnectionRefusedError())
        if self.hold:
            done: Deferred[Any] = Deferred()
            self.waiting.append((factory, done))
            return done
        return succeed(self.made(factory))

    def made(self, factory: Any) -> Any:
        """A connected protocol."""
        transport = MemoryTransport()
        self.transports.append(transport)
        return transport.connect(factory.buildProtocol(None))


class ForwardTests(SynchronousTestCase):
    """A front, a session, a target."""

    def setUp(self) -> None:
        """Join all of it."""
        self.clock: Any = Clock()
        self.target, self.link = Dial(), Dial()
        settings = SmuxSettings(2)
        self.server = SmuxServerFactory(settings, self.clock, self.target)  # type: ignore[arg-type]
        self.dialer = SmuxDialer(settings, self.clock, self.link)  # type: ignore[arg-type]
        self.front = ForwardListenFactory(self.dialer)
        self.server_wire: MemoryTransport | None = None

    def accept(self) -> MemoryTransport:
        """A local connection."""
        transport = MemoryTransport()
        transport.connect(self.front.buildProtocol(None))
        return transport

    def pump(self) -> None:
        """Carry the session's bytes both ways."""
        if self.server_wire is None:
            self.server_wire = MemoryTransport()
            self.server_wire.connect(self.server.buildProtocol(None))
        client_wire = self.link.transports[-1]
        while client_wire.written or self.server_wire.written:
            for source, sink in ((client_wire, self.server_wire), (self.server_wire, client_wire)):
                data = source.bytes_written
                source.written.clear()
                if data:
                    sink.receive(data)

    def test_bytes_and_end(self) -> None:
        """Early bytes reach the target, its answer comes back, and its end ends the local connection cleanly."""
        local = self.accept()
        local.receive(b"question")
        self.pump()
        (target,) = self.target.transports
        self.assertEqual(target.bytes_written, b"question")
        target.receive(b"answer")
        target.receive_fin()
        self.pump()
        self.assertEqual(local.bytes_written, b"answer")
        self.assertTrue(local.closed or local.fin)
        self.assertFalse(local.aborted)

    def test_local_end_ends_both(self) -> None:
        """The wire has no half-close: when the local side ends, the target gets what was sent, and its end."""
        local = self.accept()
        local.receive(b"all of it")
        local.receive_fin()
        self.pump()
        (target,) = self.target.transports
        self.assertEqual(target.bytes_written, b"all of it")
        self.assertTrue(target.closed or target.fin)
        self.assertTrue(local.closed)

    def test_one_session_for_many(self) -> None:
        """Connections share one session; when that is lost they are reset, and the next one opens another."""
        locals_ = [self.accept() for _ in range(3)]
        self.pump()
        self.assertEqual((len(self.link.transports), len(self.target.transports)), (1, 3))
        self.link.transports[0].lose(LOST)
        self.assertTrue(all(local.aborted for local in locals_))
        self.accept()
        self.assertEqual(len(self.link.transports), 2)

    def test_target_refuses(self) -> None:
        """A target that cannot be reached ends the stream."""
        self.target.refuse = True
        local = self.accept()
        self.pump()
        self.assertTrue(local.closed or local.aborted)

    def test_server_cannot_be_reached(self) -> None:
        """When no session can be opened the local connection is reset."""
        self.link.refuse = True
        self.assertTrue(self.accept().aborted)

    def test_local_gives_up_while_waiting(self) -> None:
        """A local connection that is gone before the session stands leaves nothing behind."""
        self.link.hold = True
        local = self.accept()
        local.lose(DONE)
        factory, done = self.link.waiting[0]
        done.callback(self.link.made(factory))
        self.pump()
        self.clock.advance(LAST_WORDS_TIME + 1)
        self.assertTrue(all(target.closed or target.aborted for target in self.target.transports))

    def test_early_end(self) -> None:
        """A client that sends and closes before the target has answered: all of it reaches the target, then an end."""
        self.target.hold = True
        local = self.accept()
        local.receive(b"all of it")
        local.receive_fin()
        self.pump()
        self.assertTrue(local.closed)
        factory, done = self.target.waiting[0]
        done.callback(self.target.made(factory))
        (target,) = self.target.transports
        self.assertEqual((target.bytes_written, target.fin, target.closed), (b"all of it", True, False))
        target.receive(b"nobody hears this")
        self.assertTrue(target.reading)
        target.receive_fin()
        self.assertEqual((target.closed, target.aborted), (True, False))

    def test_target_that_goes_on_after_the_end(self) -> None:
        """A target that does not end after its client has is left after a while."""
        local = self.accept()
        local.receive(b"all of it")
        local.receive_fin()
        self.pump()
        (target,) = self.target.transports
        self.assertEqual((target.fin, target.closed), (True, False))
        self.clock.advance(LAST_WORDS_TIME + 1)
        self.assertTrue(target.closed)

    def test_end_without_a_word(self) -> None:
        """A client that goes without having said anything takes its dial along."""
        cancelled: list[object] = []
        dial: Deferred[object] = Deferred(cancelled.append)
        self.target.connect = lambda factory: dial  # type: ignore[method-assign]
        local = self.accept()
        local.receive_fin()
        self.pump()
        self.assertEqual(cancelled, [dial])

    def test_close(self) -> None:
        """Closing the dialer ends its session."""
        self.accept()
        self.dialer.close()
        self.assertTrue(self.link.transports[0].aborted)
