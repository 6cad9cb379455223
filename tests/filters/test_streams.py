"""Streams of a multiplexer: credit both ways, ends, aborts, producers."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mikanet.errors import RemoteProtocolError
from mikanet.filters.streams import HIGH_WATER, CreditStream, IStreamOwner
from mikanet.relay import RelayEnd, join
from tests.support.transports import MemoryTransport


@implementer(IStreamOwner)
class Owner:
    """Notes what its streams say."""

    def __init__(self) -> None:
        self.ready: list[int] = []
        self.credits: list[int] = []
        self.events: list[str] = []

    def stream_ready(self, stream: CreditStream) -> None:
        """Note it."""
        self.ready.append(stream.sid)

    def stream_credit(self, stream: CreditStream, total: int) -> None:
        """Note it."""
        self.credits.append(total)

    def stream_aborted(self, stream: CreditStream) -> None:
        """Note it."""
        self.events.append("aborted")

    def stream_closed(self, stream: CreditStream) -> None:
        """Note it."""
        self.events.append("closed")

    def stream_peer(self) -> IPv4Address:
        """Somebody."""
        return IPv4Address("TCP", "192.0.2.1", 1)

    stream_host = stream_peer


@implementer(IHalfCloseableProtocol)
class Upper(Protocol):
    """Notes what comes up."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[str] = []
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Note it."""
        self.data += data

    def readConnectionLost(self) -> None:
        """Note it."""
        self.ends.append("read")

    def writeConnectionLost(self) -> None:
        """Note it."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note it."""
        self.ends.append("lost")
        self.reason = reason


class Producer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        """Note it."""
        self.told.append("pause")

    def resumeProducing(self) -> None:
        """Note it."""
        self.told.append("resume")

    def stopProducing(self) -> None:
        """Note it."""
        self.told.append("stop")


class StreamTestCase(SynchronousTestCase):
    """A stream with an upper protocol and 1,000 bytes of credit and window."""

    def setUp(self) -> None:
        """Make it."""
        self.owner = Owner()
        self.stream = CreditStream(self.owner, 7, credit=1000, window=1000)
        self.upper = Upper()
        self.stream.connect(self.upper)

    def failure_type(self) -> Any:
        """How the upper protocol was told of the end."""
        assert self.upper.reason is not None
        return self.upper.reason.type


class OutputTests(StreamTestCase):
    """From the protocol to the owner."""

    def test_interfaces(self) -> None:
        """It is what it says."""
        verifyObject(IStreamOwner, self.owner)
        for interface in CreditStream.__implemented__:  # type: ignore[attr-defined]  # zope's
            verifyObject(interface, self.stream)

    def test_ready_is_told_once_for_what_waits(self) -> None:
        """The owner hears of the first bytes and not of the next, until all was taken."""
        self.stream.write(b"ab")
        self.stream.write(b"cd")
        self.assertEqual(self.owner.ready, [7])
        self.assertEqual(self.stream.take(100), b"abcd")
        self.assertFalse(self.stream.ready)
        self.stream.write(b"e")
        self.assertEqual(self.owner.ready, [7, 7])

    @given(st.lists(st.binary(max_size=40), max_size=30), st.lists(st.integers(1, 50), min_size=1))
    @settings(deadline=None)
    def test_any_pieces(self, pieces: list[bytes], limits: list[int]) -> None:
        """However it is written and taken, the same bytes come out, never more than asked for."""
        self.stream.allow(10_000)
        before = self.stream.sent
        for piece in pieces:
            self.stream.write(piece)
        out = []
        while self.stream.ready:
            limit = limits[len(out) % len(limits)]
            out.append(self.stream.take(limit))
            self.assertTrue(0 < len(out[-1]) <= limit)
        whole = b"".join(pieces)
        self.assertEqual(b"".join(out), whole)
        self.assertEqual(self.stream.sent - before, len(whole))

    def test_credit_stops_and_starts(self) -> None:
        """No more than the credit is given out; more credit makes the stream ready again, less changes nothing."""
        self.stream.write(bytes(1500))
        self.assertEqual(len(self.stream.take(4096)), 1000)
        self.assertFalse(self.stream.ready)
        self.stream.allow(900)
        self.assertEqual((self.stream.take(4096), self.owner.ready), (b"", [7]))
        self.stream.allow(1200)
        self.assertEqual(self.owner.ready, [7, 7])
        self.assertEqual(len(self.stream.take(4096)), 200)

    def test_producer(self) -> None:
        """A producer is paused when much waits, and resumed when it went."""
        producer = Producer()
        self.stream.allow(10 * HIGH_WATER)
        self.stream.registerProducer(producer, True)
        self.stream.write(bytes(HIGH_WATER))
        self.assertEqual(producer.told, ["pause"])
        self.stream.take(HIGH_WATER)
        self.assertEqual(producer.told, ["pause", "resume"])

    def test_end_follows_the_bytes(self) -> None:
        """The end of our direction is taken once, after the last byte."""
        self.stream.write(b"last")
        self.stream.loseWriteConnection()
        self.stream.write(b"too late")
        self.assertFalse(self.stream.take_end())
        self.assertEqual(self.stream.take(100), b"last")
        self.assertTrue(self.stream.ready)
        self.assertTrue(self.stream.take_end())
        self.assertFalse(self.stream.take_end())
        self.assertEqual(self.upper.ends, [])

    def test_an_end_alone_makes_ready(self) -> None:
        """With nothing waiting the owner is told of the end at once."""
        self.stream.loseWriteConnection()
        self.assertEqual(self.owner.ready, [7])


class InputTests(StreamTestCase):
    """From the owner to the protocol."""

    def test_credit_is_renewed_as_bytes_are_taken(self) -> None:
        """At half of the window the peer gets the whole window again."""
        self.stream.data_received(bytes(499))
        self.assertEqual(self.owner.credits, [])
        self.stream.data_received(bytes(1))
        self.assertEqual(self.owner.credits, [1500])

    def test_paused_input_gives_no_credit(self) -> None:
        """A slow reader's peer gets nothing until the reader goes on; not a byte is lost."""
        self.stream.pauseProducing()
        self.stream.data_received(b"x" * 1000)
        self.assertEqual((self.upper.data, self.owner.credits), (b"", []))
        self.stream.resumeProducing()
        self.assertEqual((len(self.upper.data), self.owner.credits), (1000, [2000]))

    def test_more_than_the_credit_is_an_error(self) -> None:
        """The peer must not send what it was not granted."""
        self.stream.pauseProducing()
        self.stream.data_received(bytes(1000))
        self.assertRaises(RemoteProtocolError, self.stream.data_received, b"x")

    def test_bytes_after_the_end_are_an_error(self) -> None:
        """An end is an end."""
        self.stream.read_ended()
        self.assertRaises(RemoteProtocolError, self.stream.data_received, b"x")

    def test_early_bytes_wait_for_a_protocol(self) -> None:
        """What comes before the target is there, its end included, is delivered when it is."""
        stream = CreditStream(self.owner, 8, credit=10, window=10)
        stream.data_received(b"early")
        stream.read_ended()
        upper = Upper()
        stream.connect(upper)
        self.assertEqual((upper.data, upper.ends), (b"early", ["read"]))

    def test_end_waits_for_held_bytes(self) -> None:
        """The end is told after the bytes before it."""
        self.stream.pauseProducing()
        self.stream.data_received(b"held")
        self.stream.read_ended()
        self.assertEqual(self.upper.ends, [])
        self.stream.resumeProducing()
        self.assertEqual((self.upper.data, self.upper.ends), (b"held", ["read"]))

    def test_a_smaller_window_never_takes_credit_back(self) -> None:
        """The sum only grows."""
        self.stream.window = 100
        for _ in range(100):
            self.stream.data_received(bytes(50))
        self.assertEqual(self.owner.credits, sorted(set(self.owner.credits)))
        self.assertLessEqual(self.stream.granted - self.stream.consumed, 100)


class EndTests(StreamTestCase):
    """How streams end."""

    def test_close_after_both_ends(self) -> None:
        """When both directions are over a close is told at once."""
        self.stream.read_ended()
        self.stream.loseWriteConnection()
        self.assertTrue(self.stream.take_end())
        self.stream.loseConnection()
        self.assertEqual((self.upper.ends, self.owner.events), (["read", "lost"], ["closed"]))
        self.assertIs(self.failure_type(), error.ConnectionDone)

    def test_close_sends_what_waits_first(self) -> None:
        """The protocol learns of its own close when the end was taken."""
        self.stream.write(b"bye")
        self.stream.loseConnection()
        self.assertEqual(self.upper.ends, [])
        self.stream.take(100)
        self.assertTrue(self.stream.take_end())
        self.assertEqual((self.upper.ends, self.owner.events), (["lost"], ["closed"]))
        self.assertFalse(self.stream.read_over)

    def test_close_waits_for_a_producer(self) -> None:
        """As on any transport."""
        producer = Producer()
        self.stream.registerProducer(producer, True)
        self.stream.loseConnection()
        self.stream.write(b"more")
        self.assertFalse(self.stream.take_end())
        self.stream.unregisterProducer()
        self.assertEqual(self.stream.take(100), b"more")
        self.assertTrue(self.stream.take_end())

    def test_abort(self) -> None:
        """Everything that waits is lost, once, and nothing more comes out."""
        self.stream.write(b"lost")
        self.stream.abortConnection()
        self.stream.abortConnection()
        self.assertEqual((self.owner.events, self.upper.ends), (["aborted"], ["lost"]))
        self.assertEqual((self.stream.take(100), self.stream.take_end()), (b"", False))
        self.assertIs(self.failure_type(), error.ConnectionAborted)

    def test_lost(self) -> None:
        """What the peer or the session ends is told with its reason, and stops the producer."""
        producer = Producer()
        self.stream.registerProducer(producer, True)
        self.stream.write(b"never")
        self.stream.lost(Failure(error.ConnectionLost()))
        self.assertEqual((producer.told, self.upper.ends, self.owner.events), (["stop"], ["lost"], []))
        self.assertFalse(self.stream.ready)
        self.stream.write(b"nor this")
        self.assertFalse(self.stream.ready)

    def test_a_protocol_without_half_close(self) -> None:
        """It takes the peer's end as the end of all."""
        stream = CreditStream(self.owner, 9, credit=10, window=10)
        stream.connect(Protocol())
        stream.read_ended()
        self.assertTrue(stream.closing)
        self.assertTrue(stream.take_end())


class RelayTests(SynchronousTestCase):
    """Under the relay that joins streams to sockets."""

    def test_a_whole_exchange(self) -> None:
        """A request, its end, an answer and its end travel through, and both sides are let go cleanly."""
        owner, socket = Owner(), MemoryTransport()
        stream = CreditStream(owner, 1, credit=1000, window=1000)
        inside, outside = RelayEnd(), RelayEnd()
        stream.connect(inside)
        socket.connect(outside)
        join(inside, outside)
        stream.data_received(b"request")
        stream.read_ended()
        self.assertEqual((socket.bytes_written, socket.fin), (b"request", True))
        socket.receive(b"answer")
        socket.receive_fin()
        self.assertEqual(stream.take(100), b"answer")
        self.assertTrue(stream.take_end())
        socket.settle()
        self.assertEqual(owner.events, ["closed"])
        self.assertTrue(socket.closed)
