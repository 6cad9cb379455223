"""smux streams as transports."""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import LocalProtocolError
from mikanet.smux.connection import HIGH_WATER, SmuxConnection, SmuxStream
from mikanet.smux.frame import HEADER, Cmd
from mikanet.smux.session import SmuxSettings
from tests.filters.contract import Upper
from tests.kcp.test_filter import Producer
from tests.support.transports import LOST, MemoryTransport


class Joined:
    """A client and a server over two transports in memory."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.accepted: list[Upper] = []
        settings = SmuxSettings(**options)

        def build() -> Upper:
            self.accepted.append(Upper())
            return self.accepted[-1]

        clock: Any = self.clock
        self.lost: list[Any] = []
        self.client = SmuxConnection(settings, True, clock, None, self.lost.append)
        self.server = SmuxConnection(settings, False, clock, Factory.forProtocol(build))
        self.wires = {self.client: MemoryTransport(), self.server: MemoryTransport()}
        for end, wire in self.wires.items():
            wire.connect(end)

    def pump(self) -> None:
        """Carry what was written until nothing is left."""
        moved = True
        while moved:
            moved = False
            for end, other in ((self.client, self.server), (self.server, self.client)):
                wire = self.wires[end]
                data = wire.bytes_written
                wire.written.clear()
                if data and other.transport is not None:
                    moved = True
                    other.dataReceived(data)

    def open(self) -> tuple[Upper, SmuxStream, Upper]:
        """A stream: our protocol, its transport, and the protocol at the server."""
        upper = Upper()
        stream = self.client.open(upper)
        self.pump()
        return upper, stream, self.accepted[-1]


class SmuxStreamTests(SynchronousTestCase):
    """Both versions where it matters."""

    def test_bytes_both_ways(self) -> None:
        """Writes arrive; each end has the session's addresses."""
        for version in (1, 2):
            joined = Joined(version=version)
            upper, stream, served = joined.open()
            stream.writeSequence([b"to ", b"server"])
            served.transport.write(b"to client")  # type: ignore[union-attr]
            joined.pump()
            self.assertEqual((b"".join(served.received), upper.received), (b"to server", [b"to client"]))
            self.assertEqual(stream.getPeer(), joined.wires[joined.client].getPeer())

    def test_clean_end(self) -> None:
        """loseConnection sends what was written, then the end; both protocols see a clean one, once."""
        joined = Joined()
        upper, stream, served = joined.open()
        stream.write(b"bye")
        stream.loseConnection()
        stream.loseConnection()
        joined.pump()
        self.assertEqual(served.received, [b"bye"])
        for protocol in (upper, served):
            self.assertEqual(len(protocol.lost), 1)
            self.assertTrue(protocol.lost[0].check(error.ConnectionDone))
        self.assertEqual((joined.client.streams, joined.server.streams), ({}, {}))
        self.assertFalse(joined.client.session.is_open(stream.sid))

    def test_no_half_close(self) -> None:
        """A stream has no half-close to offer, so that a relay does not take it for one."""
        self.assertFalse(hasattr(SmuxStream, "loseWriteConnection"))

    def test_end_waits_for_held_bytes(self) -> None:
        """An end that comes while reading is paused is told after the bytes before it."""
        joined = Joined()
        _, stream, served = joined.open()
        served.transport.pauseProducing()  # type: ignore[union-attr]
        stream.write(b"held")
        stream.loseConnection()
        joined.pump()
        self.assertEqual((served.received, served.lost), ([], []))
        served.transport.resumeProducing()  # type: ignore[union-attr]
        self.assertEqual((served.received, len(served.lost)), ([b"held"], 1))

    def test_stalled_stream_stops_nobody(self) -> None:
        """While one stream is not read, another carries on (version 2)."""
        joined = Joined()
        _, stalled, served = joined.open()
        served.transport.pauseProducing()  # type: ignore[union-attr]
        stalled.write(bytes(1 << 20))
        _, lively, other = joined.open()
        lively.write(bytes(1 << 20))
        joined.pump()
        self.assertEqual((served.received, sum(map(len, other.received))), ([], 1 << 20))
        served.transport.resumeProducing()  # type: ignore[union-attr]
        joined.pump()
        self.assertEqual(sum(map(len, served.received)), 1 << 20)

    def test_small_frames_are_joined(self) -> None:
        """What a paused stream gets in frames of one byte is kept, and handed up, in large pieces, in order."""
        for version in (1, 2):
            joined = Joined(version=version)
            _, stream, served = joined.open()
            served.transport.pauseProducing()  # type: ignore[union-attr]
            frames = b"".join(HEADER.pack(version, Cmd.PSH, 1, stream.sid) + bytes((n % 251,)) for n in range(200_000))
            joined.server.dataReceived(frames)
            kept = joined.server.streams[stream.sid]
            self.assertEqual((len(kept._held), served.received), (4, []))
            served.transport.resumeProducing()  # type: ignore[union-attr]
            self.assertEqual(len(served.received), 4)
            self.assertEqual(b"".join(served.received), bytes(n % 251 for n in range(200_000)))
            self.assertEqual(joined.server.session.unread, 0)

    def test_paused_datagrams_are_bounded(self) -> None:
        """A paused stream that keeps boundaries keeps so many datagrams, whole; those that follow are lost."""
        joined = Joined()
        _, stream, served = joined.open()
        kept: Any = served.transport
        kept.keep_boundaries()
        kept.pauseProducing()
        joined.server.dataReceived(
            b"".join(HEADER.pack(2, Cmd.PSH, 2, stream.sid) + n.to_bytes(2, "big") for n in range(3000))
        )
        self.assertEqual(joined.server.session.unread, 2048)
        kept.resumeProducing()
        self.assertEqual(served.received, [n.to_bytes(2, "big") for n in range(1024)])

    def test_unread_downloads_stop_themselves(self) -> None:
        """Downloads that nobody reads stop; others in the same session, later ones too, arrive whole (version 2)."""
        for unread in (1, 3, 8, 30):
            joined = Joined()
            unread_streams = []
            for _ in range(unread):
                upper, stream, served = joined.open()
                served.transport.write(bytes(1000))  # type: ignore[union-attr]
                joined.pump()
                stream.pauseProducing()
                served.transport.write(bytes(3 << 20))  # type: ignore[union-attr]
                joined.pump()
                unread_streams.append((upper, stream))
                windows = [each.window for each in joined.client.session._streams.values()]
                self.assertLessEqual(sum(window.committed for window in windows), 4 << 20)
            self.assertTrue(joined.wires[joined.client].reading)
            for _ in range(2):
                innocent, _, served = joined.open()
                served.transport.write(bytes(1 << 20))  # type: ignore[union-attr]
                joined.pump()
                self.assertEqual(sum(map(len, innocent.received)), 1 << 20)
            for _, stream in unread_streams:
                stream.resumeProducing()
            joined.pump()
            self.assertEqual([sum(map(len, u.received)) for u, _ in unread_streams], [1000 + (3 << 20)] * unread)

    def test_version_1_stops_reading(self) -> None:
        """With version 1 the connection is not read while too much is unread, and again when it has been."""
        joined = Joined(version=1, receive_buffer=100_000, stream_buffer=100_000)
        _, stream, served = joined.open()
        served.transport.pauseProducing()  # type: ignore[union-attr]
        stream.write(bytes(200_000))
        joined.pump()
        self.assertFalse(joined.wires[joined.server].reading)
        served.transport.resumeProducing()  # type: ignore[union-attr]
        self.assertTrue(joined.wires[joined.server].reading)

    def test_producers(self) -> None:
        """A producer is paused at the high-water mark and goes on when the output has drained."""
        joined = Joined()
        _, stream, _ = joined.open()
        producer = Producer()
        stream.registerProducer(producer, True)  # type: ignore[arg-type]
        joined.client.pauseProducing()
        stream.write(bytes(HIGH_WATER))
        self.assertEqual(producer.told, ["pause"])
        joined.client.resumeProducing()
        joined.pump()
        self.assertEqual(producer.told, ["pause", "resume"])
        stream.loseConnection()
        self.assertTrue(joined.client.streams)
        stream.unregisterProducer()
        self.assertFalse(joined.client.streams)

    def test_idle_streams_cost_nothing(self) -> None:
        """When output goes down only those streams are looked at whose producers wait for it."""
        joined = Joined()
        looked: list[SmuxStream] = []
        real = SmuxStream.drained
        self.patch(SmuxStream, "drained", lambda stream: (looked.append(stream), real(stream)))
        streams = [joined.open()[1] for _ in range(50)]
        for stream in streams:
            stream.registerProducer(Producer(), True)  # type: ignore[arg-type]
        for _ in range(100):
            streams[0].write(b"x")
        self.assertEqual(looked, [])
        joined.client.pauseProducing()
        streams[1].write(bytes(HIGH_WATER))
        joined.client.resumeProducing()
        self.assertEqual(set(looked), {streams[1]})
        self.assertEqual(joined.client.waiting, {})

    def test_abort(self) -> None:
        """abortConnection throws away what is queued and tells the protocol so."""
        joined = Joined()
        upper, stream, served = joined.open()
        joined.client.pauseProducing()
        stream.write(b"never")
        stream.abortConnection()
        joined.client.resumeProducing()
        joined.pump()
        self.assertEqual((served.received, len(served.lost)), ([], 1))
        self.assertTrue(upper.lost[0].check(error.ConnectionAborted))

    def test_session_loss_is_not_clean(self) -> None:
        """When the session goes, each stream ends, and none of them cleanly (X6)."""
        joined = Joined()
        upper, stream, _ = joined.open()
        producer = Producer()
        stream.registerProducer(producer, True)  # type: ignore[arg-type]
        joined.wires[joined.client].lose(LOST)
        self.assertTrue(upper.lost[0].check(error.ConnectionLost))
        self.assertEqual((producer.told, len(joined.lost)), (["stop"], 1))
        self.assertRaises(LocalProtocolError, joined.client.open, Upper())
        stream.write(b"late")

    def test_bad_frames_end_the_session(self) -> None:
        """Bytes that are not smux end the session with a reset."""
        joined = Joined()
        upper, _, _ = joined.open()
        joined.client.dataReceived(b"HTTP/1.1 400 Bad Request\r\n")
        self.assertTrue(joined.wires[joined.client].aborted)
        self.assertEqual(len(upper.lost), 1)

    def test_keepalive(self) -> None:
        """Each end says something in each interval; a peer that does not is gone at the second tick at the latest."""
        joined = Joined(keepalive_interval=2.0, keepalive_timeout=8.0)
        upper, _, _ = joined.open()
        for _ in range(40):
            self.clock_step(joined, 1.0)
        self.assertEqual(upper.lost, [])
        for _ in range(16):
            joined.clock.advance(1.0)
        self.assertTrue(upper.lost[0].check(error.TimeoutError))

    def clock_step(self, joined: Joined, seconds: float) -> None:
        """Time passes and bytes are carried."""
        joined.clock.advance(seconds)
        joined.pump()

    def test_client_takes_no_streams(self) -> None:
        """Without a factory the peer's streams are ended at once."""
        joined = Joined()
        upper = Upper()
        joined.server.open(upper)
        joined.pump()
        self.assertEqual(len(upper.lost), 1)
