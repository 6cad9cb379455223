"""Session keys: sealing, opening, and remembering."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import AuthenticationError, LocalProtocolError
from mikanet.megaki import sealing
from mikanet.megaki.sealing import SavedSession, SessionKey, mix
from mikanet.megaki.wire import Kind, Message, PacketReader
from tests.megaki.golden import HANDSHAKE, MASTER, STEPS, TOKEN, VECTORS, Draws, hexed, packets


def read(packet: bytes) -> Message:
    """A message packet."""
    reader = PacketReader()
    reader.feed(packet)
    message = reader.next(frozenset(Kind))
    assert isinstance(message, Message)
    return message


class RecordedTests(SynchronousTestCase):
    """The original's keys and messages."""

    def test_master(self) -> None:
        """The master key is the recorded one, and so is every key of a resumption."""
        self.assertEqual(mix(hexed(HANDSHAKE, "server_symmetric"), hexed(HANDSHAKE, "client_symmetric")), MASTER)
        for name in ("resume 1 (new connection)", "resume 2 (new connection)"):
            step = STEPS[name]
            middle = mix(hexed(step, "master_before"), hexed(step, "client_key_augment"))
            self.assertEqual(middle, hexed(step, "intermediate_key"))
            self.assertEqual(mix(middle, hexed(step, "server_key_augment")), hexed(step, "master_after"))

    def test_messages_in_both_roles(self) -> None:
        """Every recorded message is sealed byte for byte and opened, several of them on one key's contexts."""
        by_master: dict[str, tuple[SessionKey, SessionKey]] = {}
        for step in VECTORS["steps"]:
            if "request_plain" not in step:
                continue
            master = step["master"]
            client, server = by_master.setdefault(
                master, (SessionKey(bytes.fromhex(master)), SessionKey(bytes.fromhex(master)))
            )
            request, response = packets(step)
            for packet, plain, tail, sender, receiver in (
                (request, "request_plain", "request_padding_tail", client, server),
                (response, "response_plain", "response_padding_tail", server, client),
            ):
                draws = Draws(packet[58:74] + hexed(step, tail))
                token = bytes.fromhex(step["token"])
                self.assertEqual(sender.seal(Kind.MSG, token, hexed(step, plain), draws).hex(), packet.hex())
                self.assertEqual(receiver.open(read(packet), token), hexed(step, plain))
        self.assertEqual(len(by_master), 3)


class KeyTests(SynchronousTestCase):
    """What a key refuses."""

    def setUp(self) -> None:
        """Two ends with one key."""
        self.client, self.server = SessionKey(MASTER), SessionKey(MASTER)

    def test_every_flipped_bit(self) -> None:
        """No bit of token, MAC, IV or ciphertext can be changed."""
        packet = self.client.seal(Kind.MSG, TOKEN, b"hello", os.urandom)
        for bit in range(10 * 8, len(packet) * 8):
            changed = bytearray(packet)
            changed[bit // 8] ^= 1 << bit % 8
            with self.assertRaises(AuthenticationError, msg=bit):
                self.server.open(read(bytes(changed)), TOKEN)
        self.assertEqual(self.server.open(read(packet), TOKEN), b"hello")

    def test_replay(self) -> None:
        """A message is accepted once (K4)."""
        message = read(self.client.seal(Kind.MSG, TOKEN, b"pay once", os.urandom))
        self.server.open(message, TOKEN)
        with self.assertRaises(AuthenticationError):
            self.server.open(message, TOKEN)

    def test_reflection(self) -> None:
        """What one end sent is not accepted by the same end (K4)."""
        message = read(self.server.seal(Kind.MSG, TOKEN, b"an answer", os.urandom))
        with self.assertRaises(AuthenticationError):
            self.server.open(message, TOKEN)

    def test_retype(self) -> None:
        """A message comes back under another type: refused, because the MAC is the same (K4)."""
        message = read(self.client.seal(Kind.MSG, TOKEN, bytes(32), os.urandom))
        self.server.open(message, TOKEN)
        with self.assertRaises(AuthenticationError):
            self.server.open(message._replace(kind=Kind.MSG_RSTOR), TOKEN)

    def test_length_within_the_last_block(self) -> None:
        """The known weakness (K7): the length may be changed by up to 15 bytes within the last block, and no further."""
        for length in range(1, 17):
            message = read(self.client.seal(Kind.MSG, TOKEN, b"0123456789", os.urandom))
            plain = self.server.open(message._replace(length=length), TOKEN)
            self.assertEqual(plain[:10], b"0123456789"[:length])
        message = read(self.client.seal(Kind.MSG, TOKEN, b"0123456789", os.urandom))
        cut = message._replace(length=0, sealed=message.sealed[:16])
        with self.assertRaises(AuthenticationError):
            self.server.open(cut, TOKEN)

    def test_rest(self) -> None:
        """A key that rested goes on as if it had not, and has kept nothing meanwhile but itself and its memory."""
        ours, theirs = SessionKey(bytes(32)), SessionKey(bytes(32))
        for number in range(3):
            for near, far in ((ours, theirs), (theirs, ours)):
                packet = near.seal(Kind.MSG, TOKEN, b"%d" % number * 40, os.urandom)
                self.assertEqual(far.open(read(packet), TOKEN), b"%d" % number * 40)
            ours.rest()
            self.assertEqual((ours._encryptor, ours._decryptor, ours._tag), (None, None, None))
            self.assertEqual(ours.remembered, 2 * (number + 1))
        with self.assertRaises(AuthenticationError):
            theirs.open(read(packet), TOKEN)

    def test_spent(self) -> None:
        """After 4,096 requests and their answers a key is spent, and holds no more than their marks."""
        for count in range(sealing.MAX_MESSAGES):
            self.assertFalse(self.server.spent, count)
            self.server.open(read(self.client.seal(Kind.MSG, TOKEN, b"q", os.urandom)), TOKEN)
            self.client.open(read(self.server.seal(Kind.MSG, TOKEN, b"a", os.urandom)), TOKEN)
        self.assertTrue(self.server.spent)
        self.assertEqual(self.server.remembered, 2 * sealing.MAX_MESSAGES)

    @settings(deadline=None, max_examples=100)
    @given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=8))
    def test_any_sequence(self, messages: list[tuple[bool, bytes]]) -> None:
        """Any messages in any order of directions come through whole, each as one-shot ciphers would have it."""
        client, server = SessionKey(MASTER), SessionKey(MASTER)
        for up, plain in messages:
            sender, receiver = (client, server) if up else (server, client)
            message = read(sender.seal(Kind.MSG, TOKEN, plain, os.urandom))
            self.assertEqual(sealing.cbc_decrypt(MASTER, message.sealed)[: len(plain)], plain)
            self.assertEqual(receiver.open(message, TOKEN), plain)


class SavedTests(SynchronousTestCase):
    """What a client keeps."""

    def test_bytes(self) -> None:
        """Token and master key as the original stores them; neither shows in its repr."""
        saved = SavedSession(TOKEN, MASTER)
        self.assertEqual(saved.to_bytes(), TOKEN + MASTER)
        again = SavedSession.from_bytes(TOKEN + MASTER)
        self.assertEqual((again.token, again.master), (TOKEN, MASTER))
        self.assertNotIn(MASTER.hex(), repr(saved))
        with self.assertRaises(LocalProtocolError):
            SavedSession.from_bytes(b"short")
