"""Reed-Solomon, the FEC encoder and decoder, against kcp-go's bytes."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.fec import reedsolomon
from mikanet.fec.autotune import MEMORY
from mikanet.fec.decoder import KEPT_GROUPS, FecDecoder
from mikanet.fec.encoder import STALE_MS, FecEncoder
from mikanet.fec.galois import PRODUCTS, interpolation_rows
from mikanet.fec.header import DATA, HEADER, OUT_OF_BAND, PARITY, wrap_of
from mikanet.fec.reedsolomon import Combine, ReedSolomon, parity_rows, plain_combine
from tests.support.feeding import mutations
from tests.support.vectors import load

VECTORS = load("paqet/fec.json")


def hexes(texts: list[str]) -> list[bytes]:
    """Bytes of each."""
    return [bytes.fromhex(text) for text in texts]


def slow_product(a: int, b: int) -> int:
    """Long multiplication without carry, reduced by the polynomial."""
    total = 0
    for bit in range(8):
        if b >> bit & 1:
            total ^= a << bit
    for bit in range(15, 7, -1):
        if total >> bit & 1:
            total ^= 0x11D << (bit - 8)
    return total


def value_at(coefficients: list[int], x: int) -> int:
    """A polynomial's value, by Horner's rule."""
    total = 0
    for coefficient in reversed(coefficients):
        total = slow_product(total, x) ^ coefficient
    return total


class GaloisTests(SynchronousTestCase):
    """The field, and interpolation in it."""

    def test_products_are_carryless_multiplication(self) -> None:
        """The tables agree with long multiplication reduced by the polynomial."""
        for a in range(256):
            self.assertEqual(PRODUCTS[a], bytes(slow_product(a, b) for b in range(256)))

    def test_interpolation(self) -> None:
        """The values of a polynomial at any points give its values at any others."""
        rng = random.Random(1)
        for count in (1, 2, 6, 40, 128):
            points = rng.sample(range(256), 256)
            points, wanted = points[:count], points[count : count + 5]
            coefficients = [rng.randrange(256) for _ in range(count)]
            values = [value_at(coefficients, point) for point in points]
            for at, row in zip(wanted, interpolation_rows(points, wanted), strict=True):
                total = 0
                for factor, value in zip(row, values, strict=True):
                    total ^= slow_product(factor, value)
                self.assertEqual(total, value_at(coefficients, at))


class PlainCodecTests(SynchronousTestCase):
    """The codec in plain Python; the class below runs the same with the C extension."""

    combine: Combine = staticmethod(plain_combine)

    def code(self, data_shards: int, parity_shards: int) -> ReedSolomon:
        """A code under test."""
        return ReedSolomon(data_shards, parity_shards, self.combine)

    def test_matrices(self) -> None:
        """The parity rows are kcp-go's for each size in the vectors."""
        for vector in VECTORS["fec"]:
            rows = parity_rows(vector["data_shards"], vector["parity_shards"])
            self.assertEqual([row.hex() for row in rows], vector["parity_matrix_rows"])

    def test_encode(self) -> None:
        """Data packets get kcp-go's headers, and each full group its parity packets, over the seqid wrap too."""
        for vector in VECTORS["fec"]:
            encoder = FecEncoder(self.code(vector["data_shards"], vector["parity_shards"]), vector["first_seqid"])
            for group in vector["groups"]:
                data = hexes(group["data_packets"])
                out = encoder.encode([packet[8:] for packet in data], 1)
                self.assertEqual(out, data + hexes(group["parity_packets"]))

    def test_decode(self) -> None:
        """The lost shards of each group come back, read off kcp-go's packets."""
        for vector in VECTORS["fec"]:
            decoder = FecDecoder(self.code(vector["data_shards"], vector["parity_shards"]))
            for group in vector["groups"]:
                recovered: list[bytes] = []
                lost = set(group.get("decode_lost_index", ()))
                data = hexes(group["data_packets"])
                for index, packet in enumerate(data + hexes(group["parity_packets"])):
                    if index not in lost:
                        decoder.receive(packet, recovered)
                self.assertEqual(recovered, [data[index][8:] for index in sorted(lost)])
                regions = hexes(group.get("decode_recovered_size_plus_payload_zero_padded", []))
                self.assertEqual(recovered, [region[2 : int.from_bytes(region[:2], "little")] for region in regions])

    # The same examples for the codec in C: the class is another, what is tested is not.
    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.differing_executors])
    @given(st.integers(2, 12), st.integers(1, 6), st.randoms(use_true_random=False), st.data())
    def test_any_loss_up_to_parity(self, ds: int, ps: int, rng: random.Random, data: st.DataObject) -> None:
        """Whatever arrives of a group, in whatever order, is enough if it is as many shards as there are data."""
        packets = [rng.randbytes(rng.randint(1, 200)) for _ in range(ds)]
        shards = FecEncoder(self.code(ds, ps)).encode(packets, 1)
        lost = data.draw(st.sets(st.integers(0, ds + ps - 1), max_size=ps))
        arriving = [shard for index, shard in enumerate(shards) if index not in lost]
        rng.shuffle(arriving)
        decoder = FecDecoder(self.code(ds, ps))
        recovered: list[bytes] = []
        direct = [decoder.receive(shard, recovered) for shard in arriving]
        have = {d for d in direct if d is not None} | set(recovered)
        self.assertEqual(have, set(packets))

    def test_three_of_thirteen(self) -> None:
        """Of 10,000 groups of 10 and 3, with any 3 of 13 packets lost, every packet arrives."""
        code = self.code(10, 3)
        encoder, decoder = FecEncoder(code), FecDecoder(code)
        rng = random.Random(13)
        for group in range(10_000):
            packets = [rng.randbytes(rng.randint(20, 60)) for _ in range(10)]
            shards = encoder.encode(packets, group)
            lost = set(rng.sample(range(13), 3))
            recovered: list[bytes] = []
            direct = [decoder.receive(shard, recovered) for i, shard in enumerate(shards) if i not in lost]
            self.assertEqual({d for d in direct if d is not None} | set(recovered), set(packets))


class SpeedupCodecTests(PlainCodecTests):
    """The same with the C extension, where it is built."""

    combine: Combine = staticmethod(reedsolomon.combine)

    def setUp(self) -> None:
        """Nothing to compare if the extension is not there."""
        if reedsolomon.combine is plain_combine:
            raise self.missing()

    def missing(self) -> BaseException:
        """Why this cannot run."""
        from tests.support.peers import missing

        return missing("the C extension mikanet._speedups (setup.py build_ext --inplace)")

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.binary(max_size=80), min_size=1, max_size=6), st.integers(1, 4), st.randoms())
    def test_agrees_with_plain(self, shards: list[bytes], rows: int, rng: random.Random) -> None:
        """C and Python give the same sums for any rows, shards and lengths, the longest shard cut by none."""
        matrix = [rng.randbytes(len(shards)) for _ in range(rows)]
        length = max(map(len, shards)) + rng.randrange(3)
        self.assertEqual(self.combine(matrix, shards, length), plain_combine(matrix, shards, length))


class EncoderTests(SynchronousTestCase):
    """Rules of the sending side."""

    def test_stale_group_has_no_parity(self) -> None:
        """A last packet 500 ms after the one before leaves the group without parity; seqid moves on all the same."""
        encoder = FecEncoder(ReedSolomon(2, 1))
        encoder.encode([b"a"], 0)
        self.assertEqual(len(encoder.encode([b"b"], STALE_MS)), 1)
        self.assertEqual(HEADER.unpack_from(encoder.encode([b"c"], STALE_MS)[0])[0], 3)
        self.assertEqual(len(encoder.encode([b"d"], 2 * STALE_MS - 1)), 2)

    def test_single_data_shard(self) -> None:
        """With one data shard, the first packet has no parity and a close second one has."""
        encoder = FecEncoder(ReedSolomon(1, 1))
        self.assertEqual(len(encoder.encode([b"a"], 1000)), 1)
        self.assertEqual(len(encoder.encode([b"b"], 1001)), 2)

    def test_wrap(self) -> None:
        """seqid goes back to 0 at the last whole group below 2**32, and the receiver follows."""
        wrap = wrap_of(3)
        encoder = FecEncoder(ReedSolomon(2, 1), wrap - 3)
        decoder = FecDecoder(ReedSolomon(2, 1))
        seqids, recovered = [], list[bytes]()
        for number in range(4):
            for i, shard in enumerate(encoder.encode([b"x%d" % number, b"y%d" % number], 1)):
                seqids.append(HEADER.unpack_from(shard)[0])
                if i != 1:
                    decoder.receive(shard, recovered)
        self.assertEqual(seqids, [wrap - 3, wrap - 2, wrap - 1, *range(9)])
        self.assertEqual(recovered, [b"y0", b"y1", b"y2", b"y3"])

    def test_limits(self) -> None:
        """Shard counts that cannot be are refused by name."""
        for counts in ((0, 1), (1, 0), (200, 57)):
            self.assertRaises(ConfigError, ReedSolomon, *counts)


class DecoderTests(SynchronousTestCase):
    """Rules of the receiving side."""

    def test_autotune(self) -> None:
        """A decoder with other counts finds the sender's when kcp-go's would, and recovers from then on."""
        vector = VECTORS["fec_autotune"]
        decoder = FecDecoder(ReedSolomon(*vector["decoder_initial"]))
        for number, step in enumerate(vector["steps"]):
            recovered: list[bytes] = []
            if step["delivered"]:
                decoder.receive(bytes.fromhex(step["packet"]), recovered)
            if "decoder_params_after" in step:
                self.assertEqual([decoder.data_shards, decoder.parity_shards], step["decoder_params_after"], number)
            wanted = [r[2 : int.from_bytes(r[:2], "little")] for r in hexes(step.get("recovered", []))]
            self.assertEqual(recovered, wanted, number)

    def kcp_go(self, sender: tuple[int, int], decoder: FecDecoder, lost: set[int], count: int) -> list[tuple[int, ...]]:
        """The decoder's counts after each packet of a sender with other counts."""
        encoder = FecEncoder(ReedSolomon(*sender))
        shards = [s for n in range(count) for s in encoder.encode([b"packet %d" % n], 1)]
        self.recovered = list[bytes]()
        counts = []
        for number, shard in enumerate(shards):
            if number not in lost:
                decoder.receive(shard, self.recovered)
            counts.append((decoder.data_shards, decoder.parity_shards))
        return counts

    def test_search_goes_on_with_every_packet(self) -> None:
        """After the first packet in a wrong place the search goes on with each, also those that fit by chance: the counts
        are adopted with the first packet that shows the second edge, as kcp-go does."""
        # 5 and 1 at 1 and 1: d d d d d p d, of which 1 is the first in a wrong place. The run of one parity has both its
        # edges with packet 6, and that of data with packet 11, which stands where 1 and 1 has its parity too.
        counts = self.kcp_go((5, 1), FecDecoder(ReedSolomon(1, 1)), set(), 15)
        self.assertEqual(counts[:11], [(1, 1)] * 11)
        self.assertEqual(counts[11:], [(5, 1)] * (len(counts) - 11))

    def test_nothing_is_stored_during_a_search(self) -> None:
        """What fits the old counts by chance is not collected while the counts are in doubt."""
        decoder = FecDecoder(ReedSolomon(1, 1))
        self.kcp_go((5, 1), decoder, set(), 5)
        self.assertEqual(list(decoder._groups), [0])  # of packet 0, before the first in a wrong place
        self.assertEqual(self.recovered, [])

    def test_found_counts_that_are_ours_end_the_search(self) -> None:
        """One packet in a wrong place, of whoever, costs what is lost during the search and no more."""
        decoder = FecDecoder(ReedSolomon(3, 2))
        decoder.receive(HEADER.pack(4, DATA) + bytes(20), [])
        self.kcp_go((3, 2), decoder, {20, 500, 506}, 330)
        # The search goes on for as long as the packet is remembered among those that followed it.
        self.assertEqual(self.recovered, [b"packet 300", b"packet 304"])

    def test_adoption_is_rare(self) -> None:
        """Counts that change all the time are not adopted more than once in so many packets as are remembered."""
        decoder = FecDecoder(ReedSolomon(10, 3))
        adopted, before, seqid = 0, (10, 3), 0
        for round_ in range(400):
            for kind in [DATA] * (1 + round_ % 3) + [PARITY] * (1 + round_ % 2) + [DATA, PARITY]:
                decoder.receive(HEADER.pack(seqid, kind) + bytes(20), [])
                seqid += 1
            now = (decoder.data_shards, decoder.parity_shards)
            adopted, before = adopted + (now != before), now
            seqid += 50
        packets = seqid - 400 * 50
        self.assertLessEqual(adopted, 1 + packets // MEMORY)

    def test_unauthenticated_peer(self) -> None:
        """Of a peer that is not authenticated nothing is collected, tuned to or rebuilt; afterwards all of it is."""
        decoder = FecDecoder(ReedSolomon(10, 3), authenticated=False)
        shards = FecEncoder(ReedSolomon(3, 2)).encode([b"packet %d" % n for n in range(300)], 1)
        parity_rows.cache_clear()
        given = [decoder.receive(shard, []) for shard in shards]
        self.assertEqual([data for data in given if data is not None], [b"packet %d" % n for n in range(300)])
        self.assertEqual((decoder.data_shards, len(decoder._groups), len(decoder._tune._samples)), (10, 0, 0))
        self.assertEqual(parity_rows.cache_info().misses, 0)
        decoder.authenticated = True
        for shard in shards:
            decoder.receive(shard, [])
        self.assertEqual((decoder.data_shards, decoder.parity_shards), (3, 2))

    def test_codes_are_made_when_needed(self) -> None:
        """A code that nobody uses costs nothing, and one that many use is made once."""
        parity_rows.cache_clear()
        codes = [ReedSolomon(128, 128) for _ in range(1000)]
        self.assertEqual(parity_rows.cache_info().misses, 0)
        for code in codes[:3]:
            code.encode([b"x"] * 128)
        self.assertEqual(parity_rows.cache_info().misses, 1)

    def test_bare_packets_pass(self) -> None:
        """A packet without an FEC header passes unchanged; out of band ones and short ones are dropped."""
        decoder = FecDecoder(ReedSolomon(2, 1))
        bare = bytes.fromhex("443322115100040014000000000000000000000000000000")
        self.assertEqual(decoder.receive(bare, []), bare)
        self.assertIsNone(decoder.receive(HEADER.pack(0xFFFFFFFF, OUT_OF_BAND) + bytes(8), []))
        self.assertIsNone(decoder.receive(b"short", []))

    def test_memory_is_bounded(self) -> None:
        """Only the newest groups are kept, whatever arrives."""
        decoder = FecDecoder(ReedSolomon(10, 3))
        rng = random.Random(5)
        for _ in range(5000):
            number, index = rng.randrange(1 << 24), rng.randrange(13)
            decoder.receive(HEADER.pack(number * 13 + index, DATA if index < 10 else PARITY) + bytes(20), [])
            self.assertLessEqual(len(decoder._groups), KEPT_GROUPS + 1)

    def test_mutations(self) -> None:
        """10,000 mutated packets raise nothing and keep memory bounded."""
        golden = [
            p for v in VECTORS["fec"] for g in v["groups"] for p in hexes(g["data_packets"] + g["parity_packets"])
        ]
        decoder = FecDecoder(ReedSolomon(10, 3))
        for packet in mutations(golden, 10_000, seed=3):
            decoder.receive(packet, [])
            self.assertLessEqual(len(decoder._groups), KEPT_GROUPS + 1)
