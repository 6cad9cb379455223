"""Batches, request and answer bodies, and WebSocket frames: bytes only."""

from __future__ import annotations

import random
import struct
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers import http_batches, http_exchange, http_frames
from mikanet.carriers.http_exchange import Answer, Exchange, Open, Opened
from mikanet.carriers.http_frames import Close, FrameReader, Message, Ping, Pong
from mikanet.carriers.http_pacing import EAGER, FIRST, FULL, GATHER, LEAST, Pacer, Sizer
from mikanet.errors import RemoteProtocolError
from mikanet.fec.reedsolomon import plain_combine
from tests.support.feeding import fragmentations, mutations

_PACKETS = st.lists(st.binary(min_size=1, max_size=300), max_size=20)
_KEY = bytes.fromhex("37fa213d")


class BatchTests(SynchronousTestCase):
    """Packets in a row."""

    @settings(deadline=None)
    @given(_PACKETS, st.integers(1, 900))
    def test_round_trip(self, packets: list[bytes], most: int) -> None:
        """What goes into a queue comes out in batches, in order, none larger than asked for unless one packet is."""
        queue = http_batches.PacketQueue()
        queue.push(packets)
        self.assertEqual(queue.waiting, sum(map(len, packets)) + 4 * len(packets))
        got = []
        while queue:
            batch = queue.take(most)
            some = http_batches.split(batch)
            self.assertTrue(len(batch) <= most or len(some) == 1)
            got += some
        self.assertEqual(got, packets)
        self.assertEqual(queue.waiting, 0)
        self.assertEqual(queue.take(most), b"")

    def test_golden(self) -> None:
        """Each packet stands behind its length, 4 bytes, little-endian."""
        queue = http_batches.PacketQueue()
        queue.push([b"abc", b"d"])
        self.assertEqual(queue.take(100), b"\x03\0\0\0abc\x01\0\0\0d")

    def test_refused(self) -> None:
        """A batch that ends within a packet, or has a length out of bounds, is none at all."""
        for bad in (b"\1", b"\1\0\0\0", b"\0\0\0\0", b"\1\0\0\0a\0\0\0\0", b"\1\0\1\0" + bytes(65537), b"\2\0\0\0a"):
            with self.assertRaises(RemoteProtocolError):
                http_batches.split(bad)

    def test_forgets(self) -> None:
        """A queue that is cleared is empty."""
        queue = http_batches.PacketQueue()
        queue.push([b"a"])
        queue.clear()
        self.assertFalse(queue)
        self.assertEqual(queue.waiting, 0)


class ExchangeTests(SynchronousTestCase):
    """The heads of bodies."""

    def test_golden(self) -> None:
        """The heads stand as the protocol page has them."""
        sid = bytes(range(16))
        self.assertEqual(Open(2, 25, 0x0102).encode(b"pad").hex(), "000102190201000000000000706164")
        self.assertEqual(Opened(2, 25, sid).encode().hex(), "00010219" + sid.hex())
        self.assertEqual(
            Exchange(sid, 5, 3, 1).encode(b"!").hex(), f"01{sid.hex()}0500000000000000030000000000000001" + "21"
        )
        self.assertEqual(Answer(5, 2).encode(b"!").hex(), "01050000000000000002" + "21")

    @settings(deadline=None)
    @given(st.binary(min_size=16, max_size=16), st.integers(1, 2**62), st.integers(0, 2**62), st.integers(0, 255))
    def test_round_trip(self, sid: bytes, rid: int, ack: int, flags: int) -> None:
        """What is encoded is decoded."""
        exchange = Exchange(sid, rid, ack, flags)
        self.assertEqual(http_exchange.decode_request(exchange.encode(b"rest")), exchange)
        self.assertEqual(http_exchange.sid_of(exchange.encode()[:17]), sid)
        self.assertEqual(http_exchange.decode_request(Open(flags, 1, rid).encode(b"rest")), Open(flags, 1, rid))
        self.assertEqual(Answer.decode(Answer(rid, flags).encode(b"rest")), Answer(rid, flags))
        self.assertEqual(Opened.decode(Opened(1, 2, sid).encode(b"rest")), Opened(1, 2, sid))

    def test_refused(self) -> None:
        """Anything else is no request, and no answer."""
        for bad in (
            b"",
            b"\0",
            b"\1" * 33,
            b"\2" * 99,
            b"\0\2" + bytes(20),
            Open(1, 1, 2**63).encode(),
            Open(1, 1, 0).encode(),
        ):
            with self.assertRaises(RemoteProtocolError):
                http_exchange.decode_request(bad)
        for bad in (b"", b"\1" * 9, b"\2" * 99, b"<html>", Exchange(bytes(16), 2**63, 0).encode()[:9]):
            with self.assertRaises(RemoteProtocolError):
                Answer.decode(bad)
            with self.assertRaises(RemoteProtocolError):
                Opened.decode(bad)
        with self.assertRaises(RemoteProtocolError):
            Opened.decode(Opened(200, 1, bytes(16)).encode())
        with self.assertRaises(RemoteProtocolError):
            Opened.decode(Opened(1, 200, bytes(16)).encode())
        self.assertIsNone(http_exchange.sid_of(b"\1" * 16))
        self.assertIsNone(http_exchange.sid_of(b"\0" * 30))

    def test_mutated(self) -> None:
        """10,000 mutated bodies bring the one error or nothing."""
        golden = [
            Open(2, 25, 9).encode(),
            Exchange(bytes(16), 9, 8).encode(b"\3\0\0\0abc"),
            Answer(9).encode(b"\3\0\0\0abc"),
            Opened(2, 25, bytes(16)).encode(),
        ]
        for data in mutations(golden, 10_000, 1):
            for parse in (http_exchange.decode_request, Answer.decode, Opened.decode, http_batches.split):
                try:
                    parse(data)
                except RemoteProtocolError:
                    pass


class PacerTests(SynchronousTestCase):
    """When what waits goes out."""

    def test_little_goes_at_once(self) -> None:
        """A keystroke does not wait, and neither does a full body."""
        for waiting in (1, EAGER, FULL, 10 * FULL):
            self.assertEqual(Pacer().due(waiting, 5.0), 5.0)

    def test_a_stream_gathers(self) -> None:
        """What lies between waits for more, but no longer than a moment from its first byte on."""
        pacer = Pacer()
        self.assertEqual(pacer.due(EAGER + 1, 5.0), 5.0 + GATHER)
        self.assertEqual(pacer.due(EAGER + 9, 5.0 + GATHER / 2), 5.0 + GATHER)
        pacer.sent()
        self.assertEqual(pacer.due(EAGER + 9, 6.0), 6.0 + GATHER)
        self.assertEqual(pacer.due(0, 7.0), 7.0)
        self.assertEqual(pacer.due(EAGER + 9, 8.0), 8.0 + GATHER)


class SizerTests(SynchronousTestCase):
    """How large a batch may be."""

    def test_fast_path(self) -> None:
        """Batches that arrive soon become larger, up to the limit; small ones say nothing."""
        sizer = Sizer(1_000_000)
        self.assertEqual(sizer.most, FIRST)
        sizer.arrived(100, 0.1)
        self.assertEqual(sizer.most, FIRST)
        for _ in range(5):
            sizer.arrived(sizer.most, 0.1)
        self.assertEqual(sizer.most, 1_000_000)
        self.assertEqual(Sizer(1000).most, 1000)

    def test_slow_path(self) -> None:
        """Batches that take long become smaller, but one packet of any size always fits; in between all stays."""
        sizer = Sizer(1_000_000)
        sizer.arrived(FIRST, 1.5)
        self.assertEqual(sizer.most, FIRST)
        for _ in range(5):
            sizer.arrived(sizer.most, 2.5)
        self.assertEqual(sizer.most, LEAST)
        self.assertGreater(LEAST, 65_535 + 4)


class FrameTests(SynchronousTestCase):
    """WebSocket frames."""

    def test_rfc_examples(self) -> None:
        """The examples of RFC 6455 section 5.7, as far as they are not text."""
        reader = FrameReader(False, 100_000)
        self.assertEqual(reader.feed(bytes.fromhex("890548656c6c6f")), [Ping(b"Hello")])
        self.assertEqual(FrameReader(True, 9).feed(bytes.fromhex("8a8537fa213d7f9f4d5158")), [Pong(b"Hello")])
        self.assertEqual(http_frames.pong(b"Hello", _KEY).hex(), "8a8537fa213d7f9f4d5158")
        self.assertEqual(http_frames.ping(b"Hello", None).hex(), "890548656c6c6f")
        self.assertEqual(http_frames.message(bytes(256), None)[:4].hex(), "827e0100")
        self.assertEqual(http_frames.message(bytes(65536), None)[:10].hex(), "827f0000000000010000")
        self.assertEqual(http_frames.close(1000, None).hex(), "880203e8")
        self.assertEqual(reader.feed(bytes.fromhex("020348656c80026c6f")), [Message(b"Hello")])

    def test_accept(self) -> None:
        """The example of RFC 6455 section 1.3."""
        self.assertEqual(http_frames.accept(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        self.assertTrue(http_frames.is_key(b"dGhlIHNhbXBsZSBub25jZQ=="))
        for bad in (b"", b"AAAA", b"dGhlIHNhbXBsZSBub25jZQ=", b"dGhlIHNhbXBsZSBub25jZQ==\n", b"!" * 24):
            self.assertFalse(http_frames.is_key(bad), bad)

    @settings(deadline=None)
    @given(st.binary(max_size=2000), st.binary(min_size=4, max_size=4))
    def test_mask(self, data: bytes, key: bytes) -> None:
        """Each byte is XORed with the byte of the key whose turn it is, with and without the C extension."""
        expected = bytes(byte ^ key[i % 4] for i, byte in enumerate(data))
        self.assertEqual(http_frames.mask(data, key), expected)
        with mock.patch.object(http_frames, "combine", plain_combine):
            self.assertEqual(http_frames.mask(data, key), expected)

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=70_000), max_size=4), st.booleans(), st.integers(0, 1000))
    def test_round_trip(self, messages: list[bytes], masked: bool, seed: int) -> None:
        """Messages arrive whole in whatever pieces their bytes come."""
        rng = random.Random(seed)
        data = b"".join(http_frames.message(each, rng.randbytes(4) if masked else None) for each in messages)
        reader = FrameReader(masked, 70_000)
        events = []
        while data:
            size = rng.choice((1, 2, 7, 1000, 65536))
            events += reader.feed(data[:size])
            data = data[size:]
        self.assertEqual(events, [Message(each) for each in messages])

    def test_fragments(self) -> None:
        """However a stream of frames is cut, the events are the same; control frames may stand between fragments."""
        stream = b"".join(
            (
                bytes.fromhex("0203") + b"abc",
                http_frames.ping(b"p", None),
                bytes.fromhex("0000"),
                bytes.fromhex("8002") + b"de",
                http_frames.message(b"x" * 300, None),
                http_frames.close(1001, None),
                b"more",
            )
        )
        expected = [Ping(b"p"), Message(b"abcde"), Message(b"x" * 300), Close(1001)]
        for pieces in fragmentations(stream):
            reader = FrameReader(False, 1000)
            self.assertEqual([event for piece in pieces for event in reader.feed(piece)], expected)

    def test_refused(self) -> None:
        """Every rule that is broken is the one error."""
        for bad in (
            "c100",  # a reserved bit
            "8101" + "61",  # text
            "8280" + "00000000",  # masked by a server
            "80" + "00",  # a continuation of nothing
            "0200" + "8200",  # a message within a message
            "8b00",  # an unknown control frame
            "0900",  # a fragmented ping
            "897e",  # a long ping
            "827e0001",  # a length in more bytes than it needs
            "827f0000000000000080",
            "827f8000000000000000",
            "827e03e9",  # above the limit
            "027e03e8" + "00" * 1000 + "8001" + "00",  # above it in pieces
            "880103",  # half a close code
        ):
            with self.assertRaises(RemoteProtocolError, msg=bad):
                FrameReader(False, 1000).feed(bytes.fromhex(bad))
        with self.assertRaises(RemoteProtocolError):
            FrameReader(True, 1000).feed(bytes.fromhex("8201"))
        self.assertEqual(FrameReader(False, 1).feed(bytes.fromhex("8800")), [Close(1005)])

    def test_too_many_pieces(self) -> None:
        """A message in pieces without end is refused, however small they are."""
        reader = FrameReader(False, 1000)
        with self.assertRaises(RemoteProtocolError):
            reader.feed(b"\x02\0" + b"\0\0" * (http_frames.MAX_FRAGMENTS + 1))

    def test_mutated(self) -> None:
        """10,000 mutated streams bring the one error or events within the limit."""
        rng = random.Random(2)
        golden = [
            http_frames.message(b"abcdef", _KEY) + http_frames.ping(b"q", _KEY),
            http_frames.message(bytes(300), _KEY),
            bytes([0x02, 0x83]) + _KEY + b"abc" + bytes([0x80, 0x80]) + _KEY + http_frames.close(1000, _KEY),
            struct.pack("!BBH", 0x82, 0xFE, 400) + _KEY + bytes(400),
        ]
        for data in mutations(golden, 10_000, 2):
            reader = FrameReader(True, 500)
            cut = rng.randint(0, len(data))
            try:
                events = reader.feed(data[:cut]) + reader.feed(data[cut:])
            except RemoteProtocolError:
                continue
            self.assertTrue(all(len(event.data) <= 500 for event in events if isinstance(event, Message)))
