"""DNS over TCP at the server: whole messages, idle time, and how many connections there may be."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers.dns_lines import IDLE, MAX_LINES, MAX_STRANGERS, MAX_UNREAD, STRANGERS_UNREAD, TcpLine, TcpLines
from mikanet.counters import Counters
from tests.support.transports import MemoryTransport


class Slow(MemoryTransport):
    """Keeps what is written, as a socket that takes nothing."""

    @property
    def _tempDataLen(self) -> int:
        return len(self.bytes_written)


class TcpLinesTests(SynchronousTestCase):
    """A server's connections."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.messages: list[bytes] = []
        self.lines = TcpLines(self.clock, self.received, 32, self.counters, "test")

    def received(self, line: TcpLine, messages: list[bytes]) -> None:
        """Keep."""
        self.messages += messages

    def connect(self, host: str = "192.0.2.1") -> MemoryTransport:
        """A new connection; one that has no place is reset."""
        transport = Slow(host)
        line = self.lines.buildProtocol(transport.getPeer())
        if line is None:
            transport.aborted = True
        else:
            transport.connect(line)
        return transport

    def test_messages(self) -> None:
        """They come whole, however they are cut."""
        transport = self.connect()
        for byte in b"\0\3abc\0\0\0\2de":
            transport.receive(bytes([byte]))
        self.assertEqual(self.messages, [b"abc", b"", b"de"])
        transport.protocol.send([b"xyz", b""])
        self.assertEqual(transport.bytes_written, b"\0\3xyz\0\0")

    def test_only_whole_messages_keep_it_open(self) -> None:
        """Bytes that never become a message do not count against silence."""
        dripping, speaking = self.connect(), self.connect()
        for _ in range(3):
            dripping.receive(b"\x10")
            speaking.receive(b"\0\1x")
            self.clock.advance(IDLE / 2 - 1)
        self.assertEqual((dripping.aborted, speaking.aborted), (True, False))

    def test_silent_connections_of_one_address(self) -> None:
        """Connections count from their first moment; one address has no more than its share, the newest."""
        others = self.connect("192.0.2.2")
        transports = [self.connect() for _ in range(1500)]
        self.assertEqual([transport.aborted for transport in transports], [True] * 1468 + [False] * 32)
        self.assertFalse(others.aborted)
        self.assertEqual(self.counters["test.limit.connections"], 1468)

    def test_silent_connections_of_many_addresses(self) -> None:
        """There are no more than so many strangers' in all."""
        hosts = [f"10.{n >> 8}.{n & 255}.1" for n in range(MAX_STRANGERS + 50)]
        transports = [self.connect(host) for host in hosts]
        self.assertEqual([transport.aborted for transport in transports], [True] * 50 + [False] * MAX_STRANGERS)

    def test_places_of_those_that_end(self) -> None:
        """A connection that is gone leaves its place."""
        for _ in range(100):
            self.connect().lose()
        kept = [self.connect() for _ in range(32)]
        self.assertFalse(any(transport.aborted for transport in kept))
        self.assertEqual(self.counters["test.limit.connections"], 0)

    def test_proven(self) -> None:
        """A proven client's connection gives way to nobody, and may have more that waits; there is an end to those too."""
        transport = self.connect()
        self.lines.proven(transport.protocol)
        for _ in range(100):
            self.connect()
        self.assertFalse(transport.aborted)
        while len(self.lines._lines) < MAX_LINES:
            self.lines.proven(self.connect().protocol)
        self.assertTrue(self.connect("192.0.2.77").aborted)

    def test_who_does_not_read(self) -> None:
        """A reader that is far behind is cut off; a stranger sooner."""
        for proven, most in ((False, STRANGERS_UNREAD), (True, MAX_UNREAD)):
            transport = self.connect()
            if proven:
                self.lines.proven(transport.protocol)
            while not transport.aborted:
                transport.protocol.send([bytes(16_000)])
            self.assertGreater(len(transport.bytes_written), most)
            self.assertLess(len(transport.bytes_written), most + 17_000)

    def test_close(self) -> None:
        """All are closed at the end."""
        transports = [self.connect() for _ in range(3)]
        self.lines.close()
        self.assertTrue(all(transport.aborted for transport in transports))
        for transport in transports:
            transport.settle()
        self.assertEqual(self.clock.getDelayedCalls(), [])
