"""Tests of mikanet.nitrosocks.wire: framing under the mask, and the text of a challenge."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.nitrosocks.wire import (
    MAX_BODY,
    Challenge,
    EncryptType,
    HeaderMask,
    PacketReader,
    Type,
    decode_challenge,
    encode_challenge,
    header,
    mask_header,
)
from tests.support.feeding import fragmentations, mutations

KEY = bytes(range(32))
SALT = b"s" * 16


def stream(*packets: tuple[int, bytes]) -> bytes:
    """A salt and packets."""
    mask = HeaderMask(KEY)
    return SALT + b"".join(mask_header(header(kind, len(body)), mask) + body for kind, body in packets)


def read(pieces: list[bytes], limit: int = MAX_BODY) -> list[tuple[int, int, bytes]]:
    """Type, phase and body of each packet."""
    reader = PacketReader(limit)
    found = []
    for piece in pieces:
        reader.feed(piece)
        while True:
            packet = reader.next()
            if packet is not None:
                found.append((packet.type, packet.phase, bytes(packet.body)))
            elif reader.salt is not None and reader.mask is None:
                reader.mask = HeaderMask(KEY)
            else:
                break
    return found


class PacketTests(SynchronousTestCase):
    """Packets."""

    def test_any_fragmentation(self) -> None:
        """However the bytes come, the packets are the same."""
        rng = random.Random(1)
        sent = [(kind, rng.randbytes(size)) for kind, size in ((1, 300), (2, 48), (0x84, 1), (4, 700), (0x0A, 16))]
        expected = [(kind & 0x7F, kind & 0x80, body) for kind, body in sent]
        for pieces in fragmentations(stream(*sent)):
            self.assertEqual(read(pieces), expected)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=2000)), max_size=8), st.randoms())
    def test_round_trip(self, packets: list[tuple[int, bytes]], rng: random.Random) -> None:
        """What is written is read."""
        data = stream(*packets)
        pieces = []
        while data:
            size = rng.randint(1, 900)
            pieces.append(data[:size])
            data = data[size:]
        self.assertEqual(read(pieces), [(kind & 0x7F, kind & 0x80, body) for kind, body in packets])

    def test_masks_do_not_repeat(self) -> None:
        """Equal headers look different, also beyond one batch of masks."""
        mask = HeaderMask(KEY)
        masked = {mask_header(header(4, 100), mask) for _ in range(300)}
        self.assertGreater(len(masked), 295)

    def test_limits(self) -> None:
        """A length of zero or above the limit is refused as soon as its header is here."""
        mask = HeaderMask(KEY)
        for number in (4, (1025 << 8) | 4, 0xFFFF04):
            mask = HeaderMask(KEY)
            masked = (number ^ mask.next()).to_bytes(3, "big")
            self.assertRaises(RemoteProtocolError, read, [SALT, masked], 1024)
        self.assertRaises(LocalProtocolError, header, 4, 0)
        self.assertRaises(LocalProtocolError, header, 4, MAX_BODY + 1)

    def test_mutations(self) -> None:
        """Ten thousand broken streams give packets or the one error, and nothing else."""
        golden = [stream((1, b"a" * 300), (4, b"b" * 40), (0x84, b"c" * 900)), stream((2, b"d" * 48))]
        refused = 0
        for data in mutations(golden, 10_000, seed=7):
            try:
                read([data], 1024)
            except RemoteProtocolError:
                refused += 1
        self.assertGreater(refused, 1000)


class ChallengeTests(SynchronousTestCase):
    """The text under the public half."""

    def test_form(self) -> None:
        """R1.TokenTemp.encryptType[.NSVersion], as the document writes it; it fits into one RSA block."""
        challenge = Challenge(bytes(32), b"\xff" * 32, EncryptType.AES_128_GCM, None)
        text = encode_challenge(challenge)
        self.assertEqual(text, b"A" * 43 + b"." + b"_" * 42 + b"8." + b"00000001")
        with_version = encode_challenge(Challenge(bytes(32), b"\xff" * 32))
        self.assertEqual(with_version[-18:], b".00000002.00000001")
        self.assertLessEqual(len(with_version), 190)

    @settings(deadline=None)
    @given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.sampled_from([None, 1]))
    def test_round_trip(self, r1: bytes, token_temp: bytes, version: int | None) -> None:
        """What is encoded is decoded."""
        for encrypt_type in EncryptType:
            challenge = Challenge(r1, token_temp, encrypt_type, version)
            self.assertEqual(decode_challenge(encode_challenge(challenge)), challenge)

    def test_refused(self) -> None:
        """Unknown ciphers and versions, stray bits, padding and other forms are refused."""
        good = encode_challenge(Challenge(bytes(32), bytes(32)))
        bad = [
            good.replace(b"00000002.", b"00000003."),
            good.replace(b"00000002.", b"00000000."),
            good[:-1] + b"2",
            b"B" + good[1:42] + b"B" + good[43:],
            good.replace(b"A.", b"=.", 1),
            good + b".00000001",
            good + b"\n",
            b"",
        ]
        for text in bad:
            self.assertRaises(RemoteProtocolError, decode_challenge, text)

    def test_mutations(self) -> None:
        """Ten thousand broken texts give a challenge or the one error."""
        golden = [
            encode_challenge(Challenge(bytes(range(32)), bytes(32), kind, v)) for kind in EncryptType for v in (1, None)
        ]
        refused = 0
        for data in mutations(golden, 10_000, seed=8):
            try:
                decode_challenge(data)
            except RemoteProtocolError:
                refused += 1
        self.assertGreater(refused, 5000)

    def test_secrets_do_not_show(self) -> None:
        """A challenge's repr has none of its values."""
        self.assertNotIn("\\x07", repr(Challenge(b"\x07" * 32, b"\x07" * 32)))


class TypeTests(SynchronousTestCase):
    """Names and numbers."""

    def test_numbers(self) -> None:
        """The types of the protocol page, from 1 to 12 without a gap."""
        self.assertEqual([int(kind) for kind in Type], list(range(1, 13)))
        self.assertEqual([kind.key_size for kind in EncryptType], [16, 32])
