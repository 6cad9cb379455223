"""Megaki's packets."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto import rsa_oaep
from mikanet.errors import RemoteProtocolError
from mikanet.megaki import wire
from mikanet.megaki.wire import Kind
from tests.megaki.golden import ERRORS, HANDSHAKE, SERVER_KEY, VECTORS, hexed, packets
from tests.support.feeding import fragmentations, mutations

ALL = frozenset(Kind)
RECORDED = [packet for step in [*VECTORS["steps"], *ERRORS] for packet in packets(step)]


def encode(packet: wire.Packet) -> bytes:
    """The bytes of a packet, by our encoders."""
    if isinstance(packet, wire.Message):
        return wire.encode_message(packet.kind, packet.length, packet.token, packet.mac, packet.sealed)
    if isinstance(packet, wire.SynAck):
        return wire.encode_synack(*packet)
    if isinstance(packet, wire.Ack):
        return wire.encode_ack(*packet)
    if isinstance(packet, wire.Syn):
        return wire.MAGIC + b"\1" + packet.digest + packet.blocks
    return wire.encode_bare(packet.kind)


def read_all(pieces: list[bytes], allowed: frozenset[Kind] = ALL) -> list[wire.Packet]:
    """Every packet of a stream that comes in these pieces."""
    reader = wire.PacketReader()
    found = []
    for piece in pieces:
        reader.feed(piece)
        while (packet := reader.next(allowed)) is not None:
            found.append(packet)
    return found


class RecordedTests(SynchronousTestCase):
    """The original's packets."""

    def test_every_packet_is_read_and_written(self) -> None:
        """Each recorded packet is decoded, and encoded again to the same bytes (K1)."""
        self.assertEqual({packet[5] for packet in RECORDED}, {1, 2, 3, 4, 5, 6, 7, 8})
        for data in RECORDED:
            (packet,) = read_all([data])
            self.assertEqual(encode(packet).hex(), data.hex())

    def test_sizes(self) -> None:
        """Sizes are those of the page."""
        sizes = {packet[5]: len(packet) for packet in RECORDED if packet[5] != Kind.MSG}
        self.assertEqual(sizes, {1: 550, 2: 310, 3: 118, 8: 6, 5: 106, 6: 106, 7: 6})
        self.assertEqual([wire.message_size(n) for n in (0, 1, 16, 17)], [74, 90, 90, 106])

    def test_any_fragmentation_and_several_at_once(self) -> None:
        """Packets come out the same however the stream is cut, several of them in one read included."""
        handshake = b"".join(packets(HANDSHAKE))
        messages = b"".join(packets(VECTORS["steps"][2]) + packets(VECTORS["steps"][4]))
        for stream, cuts in ((messages, 400), (handshake, 60)):
            expected = read_all([stream])
            for pieces in fragmentations(stream, most_cuts=cuts):
                self.assertEqual(read_all(pieces), expected)

    def test_syn(self) -> None:
        """SYN's hash, split, and chaining are the original's; its blocks decrypt to the recorded content."""
        plain, recorded = hexed(HANDSHAKE, "syn_plain"), packets(HANDSHAKE)[0]
        blocks = wire.chain_blocks(plain)
        self.assertEqual(blocks[0], hexed(HANDSHAKE, "syn_oaep_block_0"))
        self.assertEqual(blocks[1], hexed(HANDSHAKE, "syn_oaep_block_1_as_sent"))
        ciphertext = dict(zip(blocks, (recorded[38:294], recorded[294:]), strict=True))
        self.assertEqual(wire.encode_syn(plain, ciphertext.__getitem__), recorded)
        (syn,) = read_all([recorded])
        assert isinstance(syn, wire.Syn)
        raw, ephemeral, version = wire.open_syn(syn, lambda block: rsa_oaep.decrypt(SERVER_KEY, block))
        self.assertEqual(wire.syn_plain(raw, ephemeral, version), plain)
        self.assertEqual((ephemeral, version), (hexed(HANDSHAKE, "ephemeral"), wire.VERSION))

    def test_syn_with_another_hash(self) -> None:
        """A flipped bit of the hash, or blocks of a wrong length, are refused."""
        (syn,) = read_all([packets(HANDSHAKE)[0]])
        assert isinstance(syn, wire.Syn)
        plain = hexed(HANDSHAKE, "syn_plain")
        wrong = wire.Syn(bytes([syn.digest[0] ^ 1]) + syn.digest[1:], syn.blocks)
        with self.assertRaises(RemoteProtocolError):
            wire.open_syn(wrong, lambda block: rsa_oaep.decrypt(SERVER_KEY, block))
        for first, second in ((213, 80), (214, 79), (214, 81), (0, 0)):
            contents = iter((plain[:first], bytes(second)))
            with self.assertRaises(RemoteProtocolError):
                wire.open_syn(syn, lambda block, contents=contents: next(contents))


class ReaderTests(SynchronousTestCase):
    """What the reader refuses."""

    def test_refused_as_soon_as_it_shows(self) -> None:
        """A wrong magic byte, a type that may not come now and a length that is too long are refused at once."""
        for prefix in (
            "00",
            "4d474c",
            "4d474baacb",
            "4d474baaca00",
            "4d474baaca09",
            "4d474baacae4",
            "4d474baaca04001000 01",
        ):
            with self.assertRaises(RemoteProtocolError, msg=prefix):
                read_all([bytes.fromhex(prefix)])
        with self.assertRaises(RemoteProtocolError):
            read_all([wire.MAGIC + b"\4"], frozenset({Kind.SYN}))
        with self.assertRaises(RemoteProtocolError):
            read_all([b"M"], frozenset())
        for kind in (Kind.MSG_RSTOR, Kind.RSTORACK):
            with self.assertRaises(RemoteProtocolError):
                read_all([wire.MAGIC + bytes([kind]) + (33).to_bytes(4)])

    def test_prefixes_wait(self) -> None:
        """Every proper prefix of a good packet is incomplete, not wrong."""
        for data in (packets(HANDSHAKE)[2], packets(VECTORS["steps"][2])[0], packets(VECTORS["steps"][5])[0]):
            for size in range(len(data)):
                self.assertEqual(read_all([data[:size]]), [])

    def test_length_limits(self) -> None:
        """A message of exactly 1 MiB is taken, one byte more is not; huge lengths cost no memory."""
        head = wire.MAGIC + b"\4" + wire.MAX_MESSAGE.to_bytes(4)
        (packet,) = read_all([head + bytes(wire.message_size(wire.MAX_MESSAGE) - len(head))])
        assert isinstance(packet, wire.Message)
        self.assertEqual((packet.length, len(packet.sealed)), (wire.MAX_MESSAGE, wire.MAX_MESSAGE + 16))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for length in (wire.MAX_MESSAGE + 1, 2**31, 2**32 - 1):
            with self.assertRaises(RemoteProtocolError):
                read_all([wire.MAGIC + b"\4" + length.to_bytes(4)])
        self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)

    def test_mutations(self) -> None:
        """10,000 mutated packets raise only the declared error, and what is read encodes to what came."""
        for data in mutations([each for each in RECORDED if len(each) < 600], 10_000, seed=3):
            reader = wire.PacketReader(max_message=4096)
            reader.feed(data)
            try:
                while (packet := reader.next(ALL)) is not None:
                    self.assertIn(encode(packet), data)
            except RemoteProtocolError:
                pass
            self.assertLessEqual(len(reader), len(data))

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 2**32))
    def test_messages_of_any_size(self, lengths: list[int], seed: int) -> None:
        """Messages of any lengths, cut anywhere, come out in order."""
        rng = random.Random(seed)
        sent = [
            wire.Message(Kind.MSG, n, rng.randbytes(16), rng.randbytes(32), rng.randbytes(16 + n + -n % 16))
            for n in lengths
        ]
        stream = b"".join(map(encode, sent))
        pieces = []
        while stream:
            cut = rng.randint(1, 300)
            pieces.append(stream[:cut])
            stream = stream[cut:]
        self.assertEqual(read_all(pieces), sent)
