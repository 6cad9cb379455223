"""Packet ciphers, key derivation and the memory of packets, against the original's bytes."""

from __future__ import annotations

import os
import random
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto import packet_seen, packets
from mikanet.crypto.block_salsa20 import plain_salsa20, salsa20
from mikanet.crypto.packet_keys import BLOCKS, Kdf, block_named, derive_key
from mikanet.crypto.packet_seen import SeenPackets
from mikanet.crypto.packets import PacketCipher, packet_cipher
from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.fec.decoder import FecDecoder
from mikanet.fec.encoder import FecEncoder
from mikanet.fec.reedsolomon import ReedSolomon
from mikanet.kcp.arq import Arq
from mikanet.kcp.settings import ArqSettings, Mode
from tests.support.feeding import mutations
from tests.support.peers import missing
from tests.support.vectors import load

VECTORS = load("paqet/ciphers.json")
KEY = bytes(range(32))


def beginning(packet: bytes) -> packets.Nonces:
    """The nonce that a packet begins with."""
    return lambda length: packet[:length]


class KeyTests(SynchronousTestCase):
    """Key derivation and block names."""

    def test_derivation(self) -> None:
        """paqet's and kcptun's keys of the same secrets, the empty one too."""
        for vector in VECTORS["key_derivation"]:
            secret = vector["password_utf8"].encode("utf-8")
            self.assertEqual(derive_key(secret, Kdf.PAQET).hex(), vector["paqet_key"])
            self.assertEqual(derive_key(secret, Kdf.KCPTUN).hex(), vector["kcptun_key"])

    def test_every_block_of_the_program_is_there(self) -> None:
        """The program's fifteen, and the one that its document adds."""
        names = {vector["block"] for vector in VECTORS["cipher_packets"]["ciphers"]}
        self.assertEqual(len(names), 15)
        self.assertEqual(set(BLOCKS), names | {"chacha20"})

    def test_blocks_that_cannot_protect_need_consent(self) -> None:
        """X11: salsa20, chacha20, xor, none and null are refused unless the user said so."""
        weak = {"salsa20", "chacha20", "xor", "none", "null"}
        for name in BLOCKS:
            if name in weak:
                self.assertRaises(ConfigError, block_named, name)
            else:
                block_named(name)
            self.assertEqual(block_named(name, insecure_ok=True).name, name)
        self.assertRaises(ConfigError, block_named, "rot13", insecure_ok=True)


class CipherTests(SynchronousTestCase):
    """All blocks."""

    def ciphers(self) -> list[tuple[str, PacketCipher]]:
        """Each block under one key."""
        return [(name, packet_cipher(name, KEY, random.Random(1).randbytes)) for name in BLOCKS]

    def test_vectors(self) -> None:
        """The original's packets of each block, sealed and opened."""
        for vector in VECTORS["cipher_packets"]["ciphers"]:
            for packet in vector["packets"]:
                segment, wire = bytes.fromhex(packet["kcp_segment"]), bytes.fromhex(packet["wire"])
                cipher = packet_cipher(vector["block"], bytes.fromhex(vector["key"]), beginning(wire))
                self.assertEqual(cipher.seal([segment]), [wire], vector["block"])
                self.assertEqual(cipher.open([wire]), [segment], vector["block"])

    def test_the_programs_nonce_stands_in_each_packet(self) -> None:
        """The vector's packets, opened in one batch on one context, between packets of any length."""
        rng = random.Random(2)
        for vector in VECTORS["cipher_packets"]["ciphers"]:
            if vector["block"] == "null":
                continue
            cipher = packet_cipher(vector["block"], bytes.fromhex(vector["key"]), os.urandom)
            batch, wanted = [], []
            for packet in vector["packets"] * 3:
                batch += [rng.randbytes(rng.randrange(60)), bytes.fromhex(packet["wire"])]
                wanted += [None, bytes.fromhex(packet["kcp_segment"])]
            self.assertEqual(cipher.open(batch), wanted, vector["block"])

    def test_overhead(self) -> None:
        """Each block adds what the table says."""
        for name, cipher in self.ciphers():
            self.assertEqual(len(cipher.seal([bytes(50)])[0]), 50 + BLOCKS[name].overhead)
            self.assertEqual(cipher.overhead, BLOCKS[name].overhead)

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.binary(max_size=120), max_size=5))
    def test_batches(self, bodies: list[bytes]) -> None:
        """A batch sealed on a long-lived context opens on a fresh one, packet by packet and all together."""
        for name, cipher in self.ciphers():
            cipher.seal([b"something before"])
            sealed = cipher.seal(bodies)
            fresh = packet_cipher(name, KEY, os.urandom)
            self.assertEqual([fresh.open([packet])[0] for packet in sealed], bodies, name)
            self.assertEqual(fresh.open(sealed), bodies, name)

    def test_packets_begin_with_the_nonces(self) -> None:
        """Whatever the block, and whatever was sealed before, a packet begins with the nonce that it was given."""
        for name in BLOCKS:
            if name == "null":
                continue
            rng, same = random.Random(5), random.Random(5)
            cipher = packet_cipher(name, KEY, rng.randbytes)
            length = 12 if name == "aes-128-gcm" else 16
            for sizes in ((30,), (1, 16, 1000), (3,)):
                nonces = same.randbytes(length * len(sizes))
                sealed = cipher.seal([bytes(size) for size in sizes])
                self.assertEqual(b"".join(packet[:length] for packet in sealed), nonces, name)

    def test_chained_packets_are_the_original_layout(self) -> None:
        """Packets that follow others on one context are what a fixed initial vector and a random nonce give."""
        cipher = packet_cipher("aes", KEY, random.Random(3).randbytes)
        context = packets.Cipher(packets.algorithms.AES(KEY), packets.CFB(packets.FIXED_IV))
        starts = set()
        for packet in cipher.seal([b"first"]) + cipher.seal([b"second", b"third" * 30]):
            plain = context.decryptor().update(packet)
            self.assertEqual(plain[16:20], zlib.crc32(plain[20:]).to_bytes(4, "little"))
            starts.add(plain[:16])
        self.assertEqual(len(starts), 3)

    def test_mutations(self) -> None:
        """10,000 mutated packets are refused, or were not changed; nothing else happens."""
        for name, cipher in self.ciphers():
            if name == "null":
                continue
            golden = cipher.seal([b"one", b"number two" * 4])
            batch = list(mutations(golden, 10_000 if name in ("aes", "aes-128-gcm") else 300, seed=4))
            opened = cipher.open(batch)
            self.assertEqual(len(opened), len(batch))
            for packet, body in zip(batch, opened, strict=True):
                if body is not None and packet not in golden:
                    # A changed nonce leaves the CRC of the body right where nothing ties the two together.
                    self.assertIn(body, (b"one", b"number two" * 4), name)

    def test_gcm_counts(self) -> None:
        """An aes-128-gcm key stops at 2**32 packets (Q2)."""
        cipher = packets.GcmCipher(bytes(16), os.urandom)
        cipher.sealed = packets.GCM_MAX_PACKETS - 1
        cipher.seal([b"last"])
        self.assertRaises(LocalProtocolError, cipher.seal, [b"one more"])

    def test_salsa20(self) -> None:
        """The plain key stream is the library's."""
        for length in (0, 1, 63, 64, 65, 500):
            data = random.Random(length).randbytes(length)
            self.assertEqual(plain_salsa20(KEY, bytes(8), data), salsa20(KEY, bytes(8), data))

    def test_stack(self) -> None:
        """KCP, FEC and cipher together: the original's packets opened, and read as its writes."""
        for vector in VECTORS["fec_and_cipher_stack"]:
            key = derive_key(vector["password_utf8"].encode("utf-8"), Kdf.PAQET)
            bodies = packet_cipher(vector["block"], key, os.urandom).open([bytes.fromhex(w) for w in vector["wire"]])
            code = ReedSolomon(vector["data_shards"], vector["parity_shards"])
            decoder = FecDecoder(code)
            direct = [decoder.receive(body or b"", []) for body in bodies]
            datagrams = [datagram for datagram in direct if datagram is not None]
            mtu = vector["mtu"] - BLOCKS[vector["block"]].overhead - 8
            ours, peer = (Arq(vector["conv"], ArqSettings(Mode(), mtu=mtu, rcv_wnd=32)) for _ in range(2))
            shards, encoder = [], FecEncoder(code)
            for write in vector["writes"]:
                ours.send(bytes.fromhex(write))
                shards += encoder.encode(ours.flush(vector["clock_ms"]), vector["clock_ms"])
            self.assertEqual(shards, bodies)
            for datagram in datagrams:
                peer.input(datagram, 100)
            self.assertEqual(peer.receive_stream().hex(), "".join(vector["writes"]))


class SeenTests(SynchronousTestCase):
    """Packets that passed before (Q3), in plain Python; the class below runs the same with the C extension."""

    check: packet_seen.CheckAndAdd = staticmethod(packet_seen.plain_check_and_add)

    def seen(self, generation: int = packet_seen.GENERATION) -> SeenPackets:
        """A memory under test."""
        return SeenPackets(generation, self.check)

    def test_twice(self) -> None:
        """A packet is new once."""
        seen = self.seen()
        rng = random.Random(1)
        first, second = rng.randbytes(40), rng.randbytes(40)
        self.assertEqual(seen.passed_before([first, second, first]), [False, False, True])
        self.assertEqual(seen.passed_before([second]), [True])

    def test_generations(self) -> None:
        """The last whole generation is always remembered; the one before the last is not."""
        seen = self.seen(generation=100)
        rng = random.Random(2)
        packets = [rng.randbytes(20) for _ in range(350)]
        for packet in packets:
            self.assertFalse(seen.check_and_add(packet))
        self.assertTrue(all(seen.check_and_add(packet) for packet in packets[200:240]))
        self.assertFalse(any(seen.check_and_add(packet) for packet in packets[:50]))

    def test_false_hits_are_rare(self) -> None:
        """At the end of a generation fewer than two new packets in ten thousand are taken for old ones."""
        seen = self.seen()
        rng = random.Random(3)
        for at in range(len(seen._newer)):
            # A tenth of the bits, as a full generation leaves them.
            seen._newer[at] = seen._older[at] = 1 << (at & 7) if rng.random() < 0.8 else 0
        hits = sum(seen.check_and_add(rng.randbytes(12)) for _ in range(20_000))
        self.assertLessEqual(hits, 8)

    def test_short_packets(self) -> None:
        """What is too short to have random bytes is never seen."""
        seen = self.seen()
        self.assertEqual([seen.check_and_add(b"short") for _ in range(2)], [False, False])


class SpeedupSeenTests(SeenTests):
    """The same in C, where the extension is built."""

    check: packet_seen.CheckAndAdd = staticmethod(packet_seen.check_and_add)

    def setUp(self) -> None:
        """Nothing to test if it is not there."""
        if packet_seen.check_and_add is packet_seen.plain_check_and_add:
            raise missing("the C extension mikanet._speedups (setup.py build_ext --inplace)")

    def test_agrees_with_plain(self) -> None:
        """C and Python set and find the same bits."""
        rng = random.Random(9)
        maps = [bytearray(1 << 21) for _ in range(4)]
        maps[1][:] = maps[3][:] = rng.randbytes(1 << 21)
        packets = [rng.randbytes(12 + n % 9) for n in range(400)]
        found = [self.check(maps[0], maps[1], packet) for packet in packets * 2]
        plain = [packet_seen.plain_check_and_add(maps[2], maps[3], packet) for packet in packets * 2]
        self.assertEqual((found, maps[0]), (plain, maps[2]))
