"""smux sessions against the original's bytes, and their rules."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.smux.frame import HEADER, UPDATE, Cmd, FrameError, FrameReader
from mikanet.smux.session import (
    INITIAL_WINDOW,
    Event,
    Session,
    SmuxSettings,
    StreamData,
    StreamEnded,
    StreamOpened,
)
from tests.support.feeding import fragmentations, mutations
from tests.support.vectors import load

VECTORS = load("paqet/smux.json")["smux"]
MOST = 1 << 20


def frame(version: int, cmd: int, sid: int, body: bytes = b"") -> bytes:
    """One frame's bytes."""
    return HEADER.pack(version, cmd, len(body), sid) + body


class Pair:
    """A client and a server joined, whose applications read at once unless told otherwise."""

    def __init__(self, client: Session, server: Session, read: bool = True) -> None:
        self.ends = {"client": client, "server": server}
        self.events: dict[str, list[Event]] = {"client": [], "server": []}
        self.read = read

    def pump(self) -> dict[str, str]:
        """Carry bytes until none are left; what each end sent, in hex."""
        sent = {"client": b"", "server": b""}
        while True:
            moved = False
            for name, other in (("client", "server"), ("server", "client")):
                data = self.ends[name].take_output(MOST)
                if data:
                    moved = True
                    sent[name] += data
                    self.take(other, data)
            if not moved:
                return {name: data.hex() for name, data in sent.items()}

    def take(self, name: str, data: bytes) -> None:
        """Let one end have bytes."""
        events = self.ends[name].data_received(data)
        self.events[name] += events
        for event in events:
            if self.read and isinstance(event, StreamData):
                self.ends[name].consumed(event.sid, len(event.data))


class VectorTests(SynchronousTestCase):
    """The original's conversation, for both versions."""

    def converse(self, vector: dict[str, object]) -> None:
        """Do what the original's ends did, and compare what is sent after each step."""
        version = int(vector["version"])  # type: ignore[call-overload]
        client = Session(
            SmuxSettings(version, max_frame=65535, stream_buffer=1000, receive_buffer=1 << 20), client=True
        )
        server = Session(SmuxSettings(version, max_frame=64, stream_buffer=1000, receive_buffer=1 << 20), client=False)
        pair = Pair(client, server, read=False)
        written: list[bytes] = [b""]

        def write(end: Session, data: bytes) -> None:
            written[0] = data
            end.send(3, data)

        def read_all(end: Session) -> None:
            end.consumed(3, end.unread)

        events = vector["events"]
        assert isinstance(events, list)
        five = bytes.fromhex(events[1]["after"].split()[2])
        reply = bytes.fromhex(events[3]["after"].split()[-1])
        big = bytes.fromhex(events[6]["client_to_server"])[8:]

        def big_write() -> None:
            write(client, big)
            pair.pump_first = pair.ends["client"].take_output(MOST)  # type: ignore[attr-defined]
            pair.take("server", pair.pump_first)  # type: ignore[attr-defined]
            read_all(server)

        def close_all() -> None:
            server.close(2)
            client.close(2)
            client.close(5)

        def nops() -> None:
            client.nop()
            server.nop()

        steps = [
            client.open,
            lambda: write(client, five),
            lambda: read_all(server),
            lambda: write(server, reply),
            lambda: client.consumed(3, 10),
            lambda: read_all(client),
            big_write,
            server.open,
            client.open,
            lambda: client.close(3),
            lambda: server.close(3),
            close_all,
            nops,
        ]
        self.assertEqual(len(steps), len(events))
        for step, event in zip(steps, events, strict=True):
            pair.pump_first = b""  # type: ignore[attr-defined]
            step()
            sent = pair.pump()
            sent["client"] = pair.pump_first.hex() + sent["client"]  # type: ignore[attr-defined]
            self.assertEqual(sent["client"], event.get("client_to_server", ""), event["after"])
            self.assertEqual(sent["server"], event.get("server_to_client", ""), event["after"])

    def test_version_1(self) -> None:
        """Version 1, byte for byte."""
        self.converse(VECTORS[0])

    def test_version_2(self) -> None:
        """Version 2 with its window updates, byte for byte."""
        self.converse(VECTORS[1])


class ReaderTests(SynchronousTestCase):
    """Cutting frames."""

    golden = b"".join(
        [
            frame(2, Cmd.SYN, 3),
            frame(2, Cmd.PSH, 3, b"hello"),
            frame(2, Cmd.UPD, 3, UPDATE.pack(5, 1000)),
            frame(2, Cmd.PSH, 3, b""),
            frame(2, Cmd.NOP, 0),
            frame(2, Cmd.FIN, 3),
        ]
    )

    def test_fragments(self) -> None:
        """The same frames come out however the bytes are cut."""
        wanted = FrameReader(2).feed(self.golden)
        self.assertEqual(len(wanted), 6)
        for pieces in fragmentations(self.golden):
            reader = FrameReader(2)
            self.assertEqual([f for piece in pieces for f in reader.feed(piece)], wanted)

    def test_refusals(self) -> None:
        """Another version, an unknown command, and UPD in version 1 are errors."""
        for version, data in ((2, frame(1, 0, 3)), (2, frame(2, 5, 3)), (1, frame(1, 4, 3, bytes(8)))):
            self.assertRaises(FrameError, FrameReader(version).feed, data)

    def test_mutations(self) -> None:
        """10,000 mutated sessions end in FrameError or go on, in bounded memory."""
        refused = 0
        for data in mutations([self.golden], 10_000, seed=11):
            session = Session(SmuxSettings(2), client=False)
            try:
                session.data_received(data)
            except FrameError:
                refused += 1
            self.assertLessEqual(len(session._skipped), 64)
        self.assertGreater(refused, 1000)


class SessionTests(SynchronousTestCase):
    """Streams, windows, turns, limits."""

    def pair(self, **options: object) -> Pair:
        """Both ends with the same settings."""
        made = SmuxSettings(**options)  # type: ignore[arg-type]
        return Pair(Session(made, client=True), Session(made, client=False))

    @settings(deadline=None, max_examples=40)
    @given(st.sampled_from([1, 2]), st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=5000)), max_size=30))
    def test_bytes_arrive(self, version: int, writes: list[tuple[int, bytes]]) -> None:
        """Whatever is written to streams arrives on them, in order, before their end."""
        pair = self.pair(version=version, max_frame=700, stream_buffer=900)
        client = pair.ends["client"]
        sids = [client.open() for _ in range(4)]
        for number, data in writes:
            client.send(sids[number], data)
        for sid in sids:
            client.close(sid)
        pair.pump()
        for number, sid in enumerate(sids):
            got = b"".join(e.data for e in pair.events["server"] if isinstance(e, StreamData) and e.sid == sid)
            self.assertEqual(got, b"".join(data for n, data in writes if n == number))
            self.assertEqual([e for e in pair.events["server"] if e.sid == sid][-1], StreamEnded(sid))

    def test_turns(self) -> None:
        """A stream with much to send lets others take turns frame by frame."""
        session = Session(SmuxSettings(max_frame=100), client=True)
        first, second = session.open(), session.open()
        session.send(first, bytes(1000))
        session.send(second, bytes(200))
        reader = FrameReader(2)
        order = [sid for cmd, sid, _ in reader.feed(session.take_output(MOST)) if cmd is Cmd.PSH]
        self.assertEqual(order[:5], [first, second, first, second, first])

    def test_window_stops_one_stream_only(self) -> None:
        """A stream that is not read stops at its window; another goes on; reading lets the first go on."""
        pair = self.pair()
        client, server = pair.ends["client"], pair.ends["server"]
        pair.read = False
        stalled, lively = client.open(), client.open()
        client.send(stalled, bytes(INITIAL_WINDOW + 5))
        client.send(lively, b"news")
        pair.pump()
        got = {
            sid: sum(len(e.data) for e in pair.events["server"] if isinstance(e, StreamData) and e.sid == sid)
            for sid in (stalled, lively)
        }
        self.assertEqual(got, {stalled: INITIAL_WINDOW, lively: 4})
        server.consumed(stalled, 1)
        pair.pump()
        self.assertEqual(client.queued(stalled), 0)

    def test_overrun_of_window_is_fatal(self) -> None:
        """A peer that sends more than the window ends the session."""
        session = Session(SmuxSettings(stream_buffer=1000), client=False)
        session.data_received(frame(2, Cmd.SYN, 3))
        for _ in range(INITIAL_WINDOW // 32768):
            session.data_received(frame(2, Cmd.PSH, 3, bytes(32768)))
        self.assertRaises(FrameError, session.data_received, frame(2, Cmd.PSH, 3, b"x"))

    def test_impossible_update_is_fatal(self) -> None:
        """A peer that read more than was sent ends the session."""
        session = Session(SmuxSettings(), client=True)
        session.open()
        self.assertRaises(FrameError, session.data_received, frame(2, Cmd.UPD, 3, UPDATE.pack(1, 1000)))

    def test_ids(self) -> None:
        """The peer's ids have its parity, are taken once, and may change places."""
        session = Session(SmuxSettings(), client=False)
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, 3)), [StreamOpened(3)])
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, 3)), [])
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, 9)), [StreamOpened(9)])
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, 5)), [StreamOpened(5)])
        session.close(3)
        session.take_output(MOST)
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, 3)), [])
        self.assertRaises(FrameError, session.data_received, frame(2, Cmd.SYN, 4))

    def test_first_ids_may_change_places(self) -> None:
        """Streams opened at the same time may arrive in any order, the very first ones too (kcptun does that)."""
        session = Session(SmuxSettings(), client=False)
        for sid in (7, 3, 5):
            self.assertEqual(session.data_received(frame(2, Cmd.SYN, sid)), [StreamOpened(sid)])

    def test_ids_passed_over_are_kept_as_runs(self) -> None:
        """Ids that each SYN passes over cost the same however many they are; those that come later are still taken."""
        session = Session(SmuxSettings(max_streams=4000), client=False)
        for number in range(1, 2000):
            session.data_received(frame(2, Cmd.SYN, 2048 * number + 1))
            self.assertLessEqual(len(session._skipped), 64)
        last = 2048 * 1999 + 1
        taken = [sid for sid in range(last - 200, last, 2) if session.data_received(frame(2, Cmd.SYN, sid))]
        self.assertEqual(taken, list(range(last - 200, last, 2)))
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, last - 100)), [])
        self.assertEqual(session.data_received(frame(2, Cmd.SYN, 3)), [])

    def test_ended_streams_do_not_count(self) -> None:
        """A stream whose end only waits to be sent leaves its place to another, up to as many again."""
        session = Session(SmuxSettings(max_streams=2), client=True)
        for _ in range(2):
            sids = [session.open() for _ in range(2)]
            self.assertTrue(session.full)
            for sid in sids:
                session.send(sid, b"last words")
                session.close(sid)
        self.assertRaises(LocalProtocolError, session.open)
        session.take_output(MOST)
        self.assertFalse(session.full)
        session.open()

    def test_end_leaves_before_the_stream_that_takes_its_place(self) -> None:
        """The FIN of a stream with nothing left to send is on the wire before the SYN of the next one, so that a peer with as
        many streams as it may have takes that; so is a FIN that answers the peer's."""
        client, server = (Session(SmuxSettings(max_streams=2), client=side) for side in (True, False))
        sids = [client.open() for _ in range(2)]
        server.data_received(client.take_output(MOST))
        client.close(sids[0])
        third = client.open()
        events = server.data_received(client.take_output(MOST))
        self.assertEqual(events, [StreamEnded(sids[0]), StreamOpened(third)])
        self.assertEqual(server.refused, 0)

    def test_datagram_larger_than_the_window(self) -> None:
        """A datagram that the peer's whole window cannot take is lost, and does not stop those behind it."""
        session = Session(SmuxSettings(), client=True)
        sid = session.open()
        session.keep_boundaries(sid)
        session.data_received(frame(2, Cmd.UPD, sid, UPDATE.pack(0, 1000)))
        session.take_output(MOST)
        session.send(sid, bytes(2000))
        session.send(sid, b"small")
        self.assertEqual(session.take_output(MOST), frame(2, Cmd.PSH, sid, b"small"))
        self.assertEqual(session.queued(sid), 0)

    def test_most_streams(self) -> None:
        """Above the limit the peer's streams are ended at once, and ours refused."""
        session = Session(SmuxSettings(max_streams=2), client=False)
        for sid in (3, 5, 7):
            session.data_received(frame(2, Cmd.SYN, sid))
        self.assertEqual((session.refused, session.take_output(MOST)), (1, frame(2, Cmd.FIN, 7)))
        self.assertRaises(LocalProtocolError, session.open)

    def test_unknown_streams_are_ignored(self) -> None:
        """Frames for ids that are not open are thrown away."""
        session = Session(SmuxSettings(), client=False)
        data = frame(2, Cmd.PSH, 9, b"x") + frame(2, Cmd.FIN, 9) + frame(2, Cmd.UPD, 9, bytes(8))
        self.assertEqual(session.data_received(data), [])

    def test_boundaries(self) -> None:
        """A stream that keeps boundaries neither cuts nor joins writes, and waits for room for a whole one."""
        pair = self.pair(stream_buffer=300_000)
        client = pair.ends["client"]
        sid = client.open()
        client.keep_boundaries(sid)
        pair.read = False
        sizes = [10, 20, 4096] + [30_000] * 9
        for size in sizes:
            client.send(sid, bytes(size))
        pair.pump()
        got = [len(e.data) for e in pair.events["server"] if isinstance(e, StreamData)]
        self.assertEqual(got, sizes[:11])
        self.assertRaises(LocalProtocolError, client.send, sid, bytes(32769))

    def test_close_while_bytes_are_taken(self) -> None:
        """A stream that is closed by whoever takes its bytes gives them back once, not twice."""
        session = Session(SmuxSettings(), client=False)
        events = session.data_received(frame(2, Cmd.SYN, 3) + frame(2, Cmd.PSH, 3, b"12345"))
        self.assertEqual((len(events), session.unread), (2, 5))
        session.close(3)
        session.consumed(3, 5)
        self.assertEqual(session.unread, 0)

    def test_first_write_alone(self) -> None:
        """The first write is a frame of its own where that is asked for, or several if it is too long for one."""
        for size, frames in ((300, [300, 70]), (40_000, [32768, 7232, 70])):
            pair = self.pair()
            client = pair.ends["client"]
            sid = client.open()
            client.keep_first_alone(sid)
            for part in (size, 30, 40):
                client.send(sid, bytes(part))
            pair.pump()
            self.assertEqual([len(e.data) for e in pair.events["server"] if isinstance(e, StreamData)], frames)

    def test_end_of_peer_drops_output(self) -> None:
        """After the peer's FIN nothing of ours is sent but our own FIN."""
        session = Session(SmuxSettings(), client=True)
        sid = session.open()
        session.take_output(MOST)
        session.send(sid, b"late")
        self.assertEqual(session.data_received(frame(2, Cmd.FIN, sid)), [StreamEnded(sid)])
        session.close(sid)
        self.assertEqual(session.take_output(MOST), frame(2, Cmd.FIN, sid))
        self.assertFalse(session.is_open(sid))

    def test_congestion(self) -> None:
        """Unread bytes of all streams together tell the owner to stop reading, and closing a stream forgets its own."""
        pair = self.pair(version=1, receive_buffer=1000, stream_buffer=1000)
        pair.read = False
        client, server = pair.ends["client"], pair.ends["server"]
        sids = [client.open(), client.open()]
        for sid in sids:
            client.send(sid, bytes(600))
        pair.pump()
        self.assertTrue(server.congested)
        server.close(sids[0])
        self.assertFalse(server.congested)
        self.assertEqual(server.unread, 600)

    def test_settings(self) -> None:
        """Numbers that cannot be are refused."""
        for wrong in ({"version": 3}, {"max_frame": 0}, {"stream_buffer": 5 << 20}, {"keepalive_timeout": 1.0}):
            self.assertRaises(ConfigError, SmuxSettings, **wrong)

    def test_random_traffic(self) -> None:
        """A seeded mix of opens, writes, reads and closes both ways loses nothing."""
        rng = random.Random(7)
        pair = self.pair(max_frame=2000, stream_buffer=5000)
        wrote: dict[int, bytes] = {}
        for _ in range(500):
            name = rng.choice(["client", "server"])
            end = pair.ends[name]
            if len(wrote) < 20:
                wrote[end.open()] = b""
            sid = rng.choice(list(wrote))
            if sid % 2 == (name == "client"):
                data = rng.randbytes(rng.randrange(4000))
                end.send(sid, data)
                wrote[sid] += data
            if rng.random() < 0.3:
                pair.pump()
        pair.pump()
        for sid, data in wrote.items():
            other = "server" if sid % 2 else "client"
            got = b"".join(e.data for e in pair.events[other] if isinstance(e, StreamData) and e.sid == sid)
            self.assertEqual(got, data)
