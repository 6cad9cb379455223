"""Mika's header, chunks and datagrams."""

from __future__ import annotations

import random
import struct
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import AuthenticationError, ProtocolError, RemoteProtocolError
from mikanet.mika import wire
from tests.support.feeding import fragmentations, mutations
from tests.support.vectors import load

VECTORS = load("mika/vectors.json")["streams"]

IV = bytes(range(16))
KEY = bytes(range(32))


def golden_header() -> tuple[bytes, bytes, bytes]:
    """A header of the original program, with its IV and key."""
    vector = VECTORS[1]
    return bytes.fromhex(vector["header_plain"]), bytes.fromhex(vector["iv"]), bytes.fromhex(vector["key"])


def plain_chunks(vector: dict) -> bytes:
    """A vector's chunks in clear: length, MAC and payload as the original program computed them."""
    return b"".join(
        struct.pack("!H", len(chunk["payload"]) // 2) + bytes.fromhex(chunk["hmac"]) + bytes.fromhex(chunk["payload"])
        for chunk in vector["chunks"]
    )


class HeaderTests(SynchronousTestCase):
    """The request header."""

    def test_encodes_as_the_original(self) -> None:
        """Each recorded header comes out of our encoder byte for byte (M2)."""
        for vector in VECTORS:
            host, _, port = vector["address"].rpartition(":")
            header = wire.Header(
                wire.Kind(vector["protocol"]), Address(host.strip("[]"), int(port)), vector["unix_time"]
            )
            encoded = wire.encode_header(header, bytes.fromhex(vector["iv"]), bytes.fromhex(vector["key"]))
            self.assertEqual(encoded.hex(), vector["header_plain"], vector["name"])

    def test_decodes_the_originals(self) -> None:
        """Each recorded header is read, and exactly as long as it is."""
        for vector in VECTORS:
            data = bytes.fromhex(vector["header_plain"])
            decoded = wire.decode_header(
                data + b"next", bytes.fromhex(vector["iv"]), bytes.fromhex(vector["key"]), http_address=True
            )
            assert decoded is not None
            header, end = decoded
            self.assertEqual(end, len(data))
            self.assertEqual(header.kind, vector["protocol"])
            self.assertEqual(str(header.destination), vector["address"])
            self.assertEqual(header.moment, vector["unix_time"])

    def test_waits_for_the_whole(self) -> None:
        """Every proper prefix of a good header is incomplete, not wrong."""
        data, iv, key = golden_header()
        for size in range(len(data)):
            self.assertIsNone(wire.decode_header(data[:size], iv, key, True), size)

    def test_every_flipped_bit_is_refused(self) -> None:
        """No single bit of a header can be changed (M2): it is refused, or stays incomplete, but never accepted."""
        data, iv, key = golden_header()
        for bit in range(len(data) * 8):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            try:
                decoded = wire.decode_header(changed, iv, key, True)
            except AuthenticationError:
                continue
            self.assertIsNone(decoded, bit)

    def test_fixed_bytes_are_checked_at_once(self) -> None:
        """A wrong version, command, reserved field or kind is refused before anything else is waited for (M2, M7)."""
        for prefix in (
            "0201000001",
            "0102000001",
            "0101000101",
            "0101010001",
            "0101000004",
            "0101000005",
            "0101000000",
        ):
            with self.assertRaises(AuthenticationError, msg=prefix):
                wire.decode_header(bytes.fromhex(prefix), IV, KEY, True)

    def test_http_without_address(self) -> None:
        """In the document's form an HTTP header has 23 bytes and no address."""
        encoded = wire.encode_header(wire.Header(wire.Kind.HTTP, None, 1500000000), IV, KEY)
        self.assertEqual(len(encoded), 23)
        self.assertEqual(encoded[:13].hex(), "01010000020000000059682f00")
        decoded = wire.decode_header(encoded, IV, KEY, http_address=False)
        self.assertEqual(decoded, (wire.Header(wire.Kind.HTTP, None, 1500000000), 23))

    def test_never_waits_for_more_than_the_longest(self) -> None:
        """Whatever comes, a decision has fallen when the longest header's length is there."""
        rng = random.Random(5)
        for _ in range(2000):
            data = b"\x01\x01\x00\x00" + bytes([rng.choice((1, 3))]) + rng.randbytes(wire.MAX_HEADER)
            with self.assertRaises(AuthenticationError):
                wire.decode_header(data[: wire.MAX_HEADER], IV, KEY, True)

    def test_mutations(self) -> None:
        """10,000 mutated headers raise only the declared error, and none that differs is accepted."""
        golden = [bytes.fromhex(vector["header_plain"]) for vector in VECTORS]
        for data in mutations(golden, 10_000, seed=1):
            try:
                decoded = wire.decode_header(data, *golden_header()[1:], True)
            except ProtocolError:
                continue
            if decoded is not None:
                self.assertEqual(data[: decoded[1]], golden_header()[0])


class ChunkTests(SynchronousTestCase):
    """Chunks, their ids and the end mark."""

    def writer(self, vector: dict, max_chunk: int = 4096) -> wire.ChunkWriter:
        """A writer at the start of a recorded stream."""
        return wire.ChunkWriter(bytes.fromhex(vector["iv"]), vector["unix_time"], max_chunk)

    def reader(self, vector: dict) -> wire.ChunkReader:
        """A reader at the start of a recorded stream."""
        return wire.ChunkReader(bytes.fromhex(vector["iv"]), vector["unix_time"])

    def test_writes_as_the_original(self) -> None:
        """Each recorded chunk comes out of our writer byte for byte, the id's carry included (M4)."""
        for vector in VECTORS:
            writer = self.writer(vector)
            written = b"".join(writer.write_one(bytes.fromhex(chunk["payload"])) for chunk in vector["chunks"])
            self.assertEqual(written, plain_chunks(vector), vector["name"])

    def test_reads_the_originals_in_any_fragmentation(self) -> None:
        """Recorded chunks give their payloads, however they are cut."""
        for vector in VECTORS:
            expected = b"".join(bytes.fromhex(chunk["payload"]) for chunk in vector["chunks"])
            for pieces in fragmentations(plain_chunks(vector), most_cuts=60):
                reader = self.reader(vector)
                self.assertEqual(b"".join(b"".join(reader.feed(piece)) for piece in pieces), expected)
                self.assertFalse(reader.incomplete)

    def test_cuts_at_the_largest_chunk(self) -> None:
        """More data than a chunk holds becomes several, no more than needed."""
        writer = wire.ChunkWriter(IV, 7, 4096)
        written = writer.write(bytes(10_000))
        self.assertEqual(len(written), 10_000 + 3 * 12)
        self.assertEqual(struct.unpack_from("!H", written)[0], 4096)
        self.assertEqual(b"".join(wire.ChunkReader(IV, 7).feed(written)), bytes(10_000))

    def test_ids_must_match(self) -> None:
        """A chunk that is left out, repeated or swapped breaks the stream there (M4)."""
        writer = wire.ChunkWriter(IV, 7, 4096)
        one, two, three = (writer.write_one(text) for text in (b"one", b"two", b"three"))
        for order in ((two,), (one, one), (one, three), (one, three, two)):
            reader = wire.ChunkReader(IV, 7)
            with self.assertRaises(AuthenticationError):
                for chunk in order:
                    reader.feed(chunk)

    def test_nothing_of_a_bad_chunk_is_delivered(self) -> None:
        """A wrong MAC raises before any of its data comes out."""
        written = bytearray(wire.ChunkWriter(IV, 7, 4096).write_one(b"data"))
        written[-1] ^= 1
        with self.assertRaises(AuthenticationError):
            wire.ChunkReader(IV, 7).feed(bytes(written))

    def test_end_mark(self) -> None:
        """Three empty chunks in a row end the stream, two do not, and data between them starts the count anew (M5)."""
        writer = wire.ChunkWriter(IV, 7, 4096)
        reader = wire.ChunkReader(IV, 7)
        empty = b""
        for payload in (empty, empty, b"x", empty, empty, b"y"):
            reader.feed(writer.write_one(payload))
            self.assertFalse(reader.ended)
        end = writer.end()
        self.assertEqual(len(end), 36)
        reader.feed(end)
        self.assertTrue(reader.ended)

    def test_nothing_may_follow_the_end(self) -> None:
        """Data after the end mark is refused, whole or begun."""
        for more in (b"more", b""):
            writer = wire.ChunkWriter(IV, 7, 4096)
            end = writer.end() + writer.write_one(more)
            for cut in (len(end), len(end) - 1):
                with self.assertRaises(RemoteProtocolError):
                    wire.ChunkReader(IV, 7).feed(end[:cut])

    def test_largest_chunk_is_taken(self) -> None:
        """A receiver takes what the length field can say (M4)."""
        written = wire.ChunkWriter(IV, 7, 65535).write(bytes(65535))
        self.assertEqual(len(written), 65535 + 12)
        self.assertEqual(b"".join(wire.ChunkReader(IV, 7).feed(written)), bytes(65535))

    def test_memory_is_bounded(self) -> None:
        """A chunk that never ends is kept once, not more."""
        reader = wire.ChunkReader(IV, 7)
        tracemalloc.start()
        try:
            reader.feed(b"\xff\xff" + bytes(10))
            for _ in range(65534):
                reader.feed(b"x")
            self.assertLess(tracemalloc.get_traced_memory()[0], 3 * 65535)
        finally:
            tracemalloc.stop()

    @settings(deadline=None, max_examples=60)
    @given(
        payloads=st.lists(st.binary(max_size=9000), max_size=6),
        seed=st.integers(0, 2**32),
        max_chunk=st.sampled_from([1, 100, 4096, 16384]),
    )
    def test_round_trip(self, payloads: list[bytes], seed: int, max_chunk: int) -> None:
        """Whatever is written, with or without shaping, comes out whole in any fragmentation (X1, M6)."""
        rng = random.Random(seed)
        payloads = [payload[: 200 * max_chunk] for payload in payloads if payload]
        shape = wire.shaped_sizes(rng.randrange) if seed % 2 else None
        writer = wire.ChunkWriter(IV, 2**32 - 3, max_chunk, shape)
        written = b"".join(writer.write(payload) for payload in payloads) + writer.end()
        reader = wire.ChunkReader(IV, 2**32 - 3)
        out = b""
        while written:
            size = rng.choice((1, 3, 50, 5000))
            out += b"".join(reader.feed(written[:size]))
            written = written[size:]
        self.assertEqual(out, b"".join(payloads))
        self.assertTrue(reader.ended)

    def test_shape(self) -> None:
        """The first 4 KiB are cut at random edges with at most two empty chunks between, none first (M6)."""
        seen_empty = set()
        for seed in range(50):
            shape = list(wire.shaped_sizes(random.Random(seed).randrange))
            self.assertEqual(sum(size for _, size in shape), wire.SHAPED_START)
            self.assertEqual(shape[0][0], 0)
            self.assertTrue(all(1 <= size <= 1400 for _, size in shape))
            seen_empty |= {empty for empty, _ in shape}
        self.assertEqual(seen_empty, {0, 1, 2})

    def test_mutations(self) -> None:
        """10,000 mutated chunk streams raise only the declared error, and deliver only what was written."""
        vector = VECTORS[1]
        golden = plain_chunks(vector)
        whole = b"".join(bytes.fromhex(chunk["payload"]) for chunk in vector["chunks"])
        for data in mutations([golden], 10_000, seed=2):
            reader = self.reader(vector)
            try:
                delivered = b"".join(reader.feed(data))
            except ProtocolError:
                continue
            self.assertTrue(whole.startswith(delivered))


class DatagramTests(SynchronousTestCase):
    """Datagrams from the server."""

    def test_layout(self) -> None:
        """A 16-bit big-endian length, then the datagram."""
        self.assertEqual(wire.encode_datagram(b"abc"), b"\x00\x03abc")

    def test_any_fragmentation(self) -> None:
        """Edges are kept however the stream is cut."""
        datagrams = [b"one", b"", b"three" * 40, b"4"]
        stream = b"".join(wire.encode_datagram(each) for each in datagrams)
        for pieces in fragmentations(stream):
            reader = wire.DatagramReader()
            self.assertEqual([each for piece in pieces for each in reader.feed(piece)], datagrams)
