"""Tests of mikanet.nitrosocks.frames and mikanet.nitrosocks.resend."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import RemoteProtocolError
from mikanet.nitrosocks.frames import (
    MAX_DATAGRAM,
    MAX_PAYLOAD,
    Command,
    DatagramReader,
    decode,
    decode_destination,
    encode,
    encode_datagram,
    encode_number,
)
from mikanet.nitrosocks.resend import ACK_BYTES, ACK_BYTES_ALONE, MAX_UNACKNOWLEDGED, Ledger
from mikanet.wire.socks import encode_address
from tests.support.feeding import fragmentations, mutations

GOLDEN = [
    bytes.fromhex("00000001000301610050"),
    bytes.fromhex("000000010100"),
    bytes.fromhex("000000010268656c6c6f"),
    bytes.fromhex("0000000103"),
    bytes.fromhex("0000000104"),
    bytes.fromhex("000000010500020000"),
    bytes.fromhex("00000000060000000000000009"),
    bytes.fromhex("0000000007000000000000000a"),
    bytes.fromhex("ffffffff0801010203040035"),
]


class FrameTests(SynchronousTestCase):
    """Frames in DATA packets."""

    def test_written_down(self) -> None:
        """Each command as the protocol page has it."""
        self.assertEqual(encode(1, Command.BYTES, b"hello"), GOLDEN[2])
        self.assertEqual(encode(1, Command.EOF), GOLDEN[3])
        self.assertEqual(encode_number(1, Command.CREDIT, 131072), GOLDEN[5])
        self.assertEqual(encode_number(0, Command.RESUME, 9), GOLDEN[6])
        self.assertEqual(decode(GOLDEN[7]), (0, Command.ACK, bytes(7) + b"\n"))
        sid, command, payload = decode(GOLDEN[8])
        self.assertEqual((sid, command), (0xFFFFFFFF, Command.OPEN_DATAGRAMS))
        self.assertEqual(decode_destination(payload), Address("1.2.3.4", 53))

    def test_refused(self) -> None:
        """Wrong sizes, wrong streams and unknown commands are refused, and so is an address with something behind."""
        bad = [b"", GOLDEN[0][:4], b"\0\0\0\1\x09", GOLDEN[1] + b"\0", GOLDEN[3] + b"x", GOLDEN[5][:-1]]
        bad += [b"\0\0\0\0" + GOLDEN[2][4:], b"\0\0\0\1" + GOLDEN[6][4:]]
        for frame in bad:
            self.assertRaises(RemoteProtocolError, decode, frame)
        for payload in (b"", b"\x01\x02", encode_address(Address("a", 1)) + b"x"):
            self.assertRaises(RemoteProtocolError, decode_destination, payload)

    def test_one_packet_is_one_record(self) -> None:
        """A full packet of ours fills one TLS record, and no more."""
        self.assertEqual(3 + 16 + len(encode(1, Command.BYTES, bytes(MAX_PAYLOAD))), 16384)

    def test_mutations(self) -> None:
        """Ten thousand broken frames are frames or refused with the one error."""
        for data in mutations(GOLDEN, 10_000, seed=3):
            try:
                _, command, payload = decode(data)
                if command in (Command.OPEN, Command.OPEN_DATAGRAMS):
                    decode_destination(payload)
            except RemoteProtocolError:
                pass


class DatagramTests(SynchronousTestCase):
    """Datagrams in a stream."""

    def test_any_fragmentation(self) -> None:
        """However the stream comes, the datagrams are the same, empty ones among them."""
        sent = [b"a", b"b" * 300, b"", b"c" * 2, b"", b""]
        data = b"".join(map(encode_datagram, sent)) + encode_datagram(b"last")
        for pieces in fragmentations(data):
            reader = DatagramReader()
            got = [datagram for piece in pieces for datagram in reader.feed(piece)]
            self.assertEqual(got, [*sent, b"last"])

    def test_too_long(self) -> None:
        """A length that no datagram has is refused at once."""
        self.assertRaises(RemoteProtocolError, DatagramReader().feed, (MAX_DATAGRAM + 1).to_bytes(2, "big"))


class LedgerTests(SynchronousTestCase):
    """Counting and sending again."""

    def test_resume(self) -> None:
        """After a new connection exactly what the peer has not is sent again, in order."""
        ledger = Ledger()
        for number in range(10):
            ledger.keep(b"%d" % number)
        ledger.acknowledged(3)
        ledger.resume(5)
        again = [ledger.next_again() for _ in range(6)]
        self.assertEqual(again, [b"5", b"6", b"7", b"8", b"9", None])
        self.assertEqual(ledger.kept, 5)

    def test_second_cut_while_sending_again(self) -> None:
        """A cut in the middle of sending again begins anew from what the peer says then."""
        ledger = Ledger()
        for number in range(6):
            ledger.keep(b"%d" % number)
        ledger.resume(1)
        self.assertEqual(ledger.next_again(), b"1")
        ledger.resume(2)
        self.assertEqual([ledger.next_again() for _ in range(5)], [b"2", b"3", b"4", b"5", None])

    def test_impossible_counts(self) -> None:
        """Counts that go back, or beyond what was sent on this connection, are refused."""
        ledger = Ledger()
        for _ in range(4):
            ledger.keep(b"x")
        ledger.acknowledged(2)
        self.assertRaises(RemoteProtocolError, ledger.acknowledged, 1)
        self.assertRaises(RemoteProtocolError, ledger.acknowledged, 5)
        ledger.resume(2)
        self.assertRaises(RemoteProtocolError, ledger.acknowledged, 3)
        self.assertRaises(RemoteProtocolError, ledger.resume, 5)

    def test_room(self) -> None:
        """At 4 MiB without acknowledgement nothing more is sent."""
        ledger = Ledger()
        while ledger.has_room:
            ledger.keep(bytes(65536))
        self.assertEqual(ledger.kept, MAX_UNACKNOWLEDGED)
        ledger.acknowledged(1)
        self.assertTrue(ledger.has_room)

    def test_acknowledgements(self) -> None:
        """They are due after 64 KiB with something else, after 256 KiB alone, and never when there is nothing new."""
        ledger = Ledger()
        self.assertFalse(ledger.wants_ack)
        ledger.count(ACK_BYTES)
        self.assertEqual(
            (ledger.wants_ack, ledger.ack_due(alone=False), ledger.ack_due(alone=True)), (True, True, False)
        )
        ledger.count(ACK_BYTES_ALONE - ACK_BYTES)
        self.assertTrue(ledger.ack_due(alone=True))
        self.assertEqual(ledger.tell(), 2)
        self.assertEqual((ledger.wants_ack, ledger.ack_due(alone=False)), (False, False))

    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, 2**32))
    def test_any_history(self, seed: int) -> None:
        """Whatever is lost at whatever cuts, the receiver gets every frame once and in order."""
        rng = random.Random(seed)
        ledger, got, sent, on_the_way = Ledger(), [], 0, []
        for _ in range(200):
            what = rng.random()
            if what < 0.5 and not ledger._again:
                frame = b"%d" % sent
                sent += 1
                ledger.keep(frame)
                on_the_way.append(frame)
            elif what < 0.6:
                again = ledger.next_again()
                if again is not None:
                    on_the_way.append(again)
            elif what < 0.85 and on_the_way:
                got.append(on_the_way.pop(0))
            elif what < 0.95:
                ledger.acknowledged(len(got))
            else:
                on_the_way.clear()
                ledger.resume(len(got))
        while (again := ledger.next_again()) is not None:
            on_the_way.append(again)
        self.assertEqual(got + on_the_way, [b"%d" % number for number in range(sent)])
