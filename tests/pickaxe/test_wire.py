"""Tests of mikanet.pickaxe.wire. Expected bytes are written out from the document's tables and the exact framing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import Reason, RemoteProtocolError
from mikanet.pickaxe import wire
from mikanet.pickaxe.wire import Status
from tests.support.feeding import mutations

LID = bytes(range(16))
PID = bytes(range(0x30, 0x40))
NONCE = bytes(range(16, 32))

LOGIN = bytes.fromhex("00 000102030405060708090a0b0c0d0e0f 0100") + b"test"
RESPONSE = bytes.fromhex("01 000102030405060708090a0b0c0d0e0f 0100 01020304 101112131415161718191a1b1c1d1e1f")
TABLE_RESPONSE = bytes.fromhex("01 000102030405060708090a0b0c0d0e0f 0100 101112131415161718191a1b1c1d1e1f")

#: Every body that has a decoder: bytes, decoder, and what it says.
BODIES: tuple[tuple[bytes, Callable[[bytes], Any], Any], ...] = (
    (PID + bytes.fromhex("04 7f000001 5000"), wire.decode_connect, wire.Connect(PID, Address("127.0.0.1", 80))),
    (
        PID + bytes.fromhex("06 20010db8000000000000000000000001 bb01"),
        wire.decode_connect,
        wire.Connect(PID, Address("2001:db8::1", 443)),
    ),
    (PID + b"\x03\x0bexample.com\x50\x00", wire.decode_connect, wire.Connect(PID, Address("example.com", 80))),
    (
        PID + b"\x05\x06\x07\x08\x05",
        wire.decode_connect_response,
        wire.ConnectResponse(PID, b"\x05\x06\x07\x08", Status.REFUSED),
    ),
    (PID + bytes.fromhex("00 0000"), wire.decode_listen, wire.Listen(PID, 0)),
    (PID + bytes.fromhex("01 901f"), wire.decode_listen, wire.Listen(PID, 8080)),
    (PID + bytes.fromhex("00 901f"), wire.decode_listen_response, wire.ListenResponse(PID, 0, 8080)),
    (PID + b"\0", wire.decode_stop_listen, wire.StopListen(PID, 0)),
    (PID + b"\x05\x06\x07\x08\0", wire.decode_accept, wire.Accept(PID, b"\x05\x06\x07\x08", 0)),
    (b"\x05\x06\x07\x08\x02", wire.decode_close, (b"\x05\x06\x07\x08", 2)),
    (bytes.fromhex("03 05060708 0001000000000000"), wire.decode_credit, (b"\x05\x06\x07\x08", 256)),
    (b"\x01" + LID + b"data", wire.decode_echo, (LID, b"data")),
)


class LoginTests(SynchronousTestCase):
    """Messages without a session."""

    def test_login(self) -> None:
        """T=0: LID, V, UID."""
        login = wire.Login(LID, (1, 0), "test")
        self.assertEqual(wire.encode_login(login), LOGIN)
        self.assertEqual(wire.decode_login(LOGIN), login)

    def test_response_with_sid(self) -> None:
        """T=1 as the later document has it: 39 bytes and T."""
        response = wire.LoginResponse(LID, (1, 0), b"\1\2\3\4", NONCE)
        self.assertEqual(wire.encode_login_response(response), RESPONSE)
        self.assertEqual(wire.decode_login_response(RESPONSE), response)
        self.assertLess(len(RESPONSE), 2 * (len(LOGIN) - 3), "an answer is less than twice as long as a question")

    def test_response_by_the_table(self) -> None:
        """T=1 by the document's own table: the SID is the beginning of the nonce."""
        response = wire.LoginResponse(LID, (1, 0), NONCE[:4], NONCE, table=True)
        self.assertEqual(wire.encode_login_response(response), TABLE_RESPONSE)
        self.assertEqual(wire.decode_login_response(TABLE_RESPONSE), response)

    def test_bad_ones(self) -> None:
        """Empty, long and misspelt users, and responses of other lengths."""
        for packet in (b"", LOGIN[:19], LOGIN[:19] + bytes(256), LOGIN[:19] + b"\xff", b"\x02" + LOGIN[1:]):
            with self.assertRaises(RemoteProtocolError):
                wire.decode_login(packet)
        for packet in (b"", RESPONSE[:-1], RESPONSE + b"x", TABLE_RESPONSE[:-1], LOGIN):
            with self.assertRaises(RemoteProtocolError):
                wire.decode_login_response(packet)


class PacketTests(SynchronousTestCase):
    """Headers and numbers."""

    def test_header(self) -> None:
        """T, SID, 24 bits of C, M."""
        head = wire.header(10, b"\1\2\3\4", 0x1122334455, b"MMMMMMMM")
        self.assertEqual(head, bytes.fromhex("0a 01020304 554433") + b"MMMMMMMM")
        self.assertEqual(wire.sid_of(head), b"\1\2\3\4")
        self.assertEqual(wire.low_counter(head), 0x334455)

    def test_mac_input(self) -> None:
        """T, SID, 64 bits of C."""
        self.assertEqual(wire.mac_input(10, b"\1\2\3\4", 0x1122334455), bytes.fromhex("0a 01020304 5544332211000000"))

    @given(st.integers(1, 1 << 48), st.integers(-(1 << 23), (1 << 23) - 1))
    @settings(deadline=None, max_examples=300)
    def test_nearest(self, expected: int, ahead: int) -> None:
        """Any number less than half a circle away is found again from its low 24 bits."""
        self.assertEqual(wire.nearest_counter((expected + ahead) & 0xFFFFFF, expected), expected + ahead)

    def test_nearest_at_the_edges(self) -> None:
        """Around the wraps, and before the first packet."""
        self.assertEqual(wire.nearest_counter(0, (1 << 24) - 1), 1 << 24)
        self.assertEqual(wire.nearest_counter(0xFFFFFF, 1 << 24), (1 << 24) - 1)
        self.assertEqual(wire.nearest_counter(2, (1 << 32) - 3), (1 << 32) + 2)
        self.assertLess(wire.nearest_counter(0xFFFFFF, 1), 1)


class BodyTests(SynchronousTestCase):
    """Every message of the document."""

    def test_decode(self) -> None:
        """Each body says what it should."""
        for body, decode, expected in BODIES:
            self.assertEqual(decode(body), expected)

    def test_lengths(self) -> None:
        """A byte more or less is refused, where nothing of variable length is at the end."""
        for body, decode, _ in BODIES:
            if decode is not wire.decode_echo:
                for wrong in (body[:-1], body + b"x", b""):
                    with self.assertRaises(RemoteProtocolError):
                        decode(wrong)

    def test_encode(self) -> None:
        """Each is written as it is read."""
        cid = b"\x05\x06\x07\x08"
        self.assertEqual(
            [
                wire.encode_connect(PID, Address("127.0.0.1", 80)),
                wire.encode_connect(PID, Address("2001:db8::1", 443)),
                wire.encode_connect(PID, Address("example.com", 80)),
                wire.encode_connect_response(PID, cid, Status.REFUSED),
                wire.encode_listen(PID, 0),
                wire.encode_listen(PID, 8080),
                wire.encode_listen_response(PID, 0, 8080),
                wire.encode_stop_listen(PID),
                wire.encode_accept(PID, cid),
                wire.encode_credit(cid, 256),
                wire.encode_echo(wire.ECHO_REQUEST, LID, b"data"),
            ],
            [body for body, decode, _ in BODIES if decode is not wire.decode_close],
        )

    def test_connect_oddities(self) -> None:
        """An unknown kind of target is told from a broken one; names that are none are refused."""
        with self.assertRaises(wire.UnknownProtoError) as caught:
            wire.decode_connect(PID + b"\x07rest")
        self.assertEqual(caught.exception.pid, PID)
        for name in (b"\x01 ", b"\x02\xff\xfe", b"\x01\n", b"\x00"):
            with self.assertRaises(RemoteProtocolError):
                wire.decode_connect(PID + b"\x03" + name + b"\x50\x00")
        with self.assertRaises(ValueError):
            wire.encode_connect(PID, Address("x" * 256, 80))

    def test_listen_oddities(self) -> None:
        """A kind that does not exist, and port 0 that was asked for by name."""
        for body in (PID + bytes.fromhex("02 901f"), PID + bytes.fromhex("01 0000")):
            with self.assertRaises(RemoteProtocolError):
                wire.decode_listen(body)

    def test_progress(self) -> None:
        """An echo request's data: what was processed, and what waits."""
        self.assertEqual(wire.encode_progress(258, b"\x05"), bytes.fromhex("0201000000000000 05"))
        self.assertEqual(wire.decode_progress(bytes.fromhex("0201000000000000 05")), (258, b"\x05"))
        self.assertEqual(wire.decode_progress(b"short"), None)

    def test_status(self) -> None:
        """Reasons travel as statuses; an unknown status is a failure."""
        for reason in Reason:
            self.assertEqual(Status.of(reason).reason, reason)
        self.assertEqual(wire.status_of(200), Status.FAILURE)

    def test_mutations(self) -> None:
        """Decoders refuse with one error and nothing else."""
        decoders = {decode for _, decode, _ in BODIES} | {
            wire.decode_login,
            wire.decode_login_response,
            wire.decode_fragment,
        }
        golden = [body for body, _, _ in BODIES] + [LOGIN, RESPONSE, TABLE_RESPONSE]
        golden += list(wire.fragment(bytes(300), 110))
        for data in mutations(golden, 10_000, seed=4):
            for decode in decoders:
                try:
                    decode(data)
                except RemoteProtocolError:
                    pass


class FragmentTests(SynchronousTestCase):
    """Pieces of packets (P2b)."""

    def test_exact(self) -> None:
        """0xff, SID, C, total, offset, bytes."""
        packet = b"\x0a\1\2\3\4\x55\x44\x33" + bytes(range(72))
        first, second = wire.fragment(packet, 12 + 70)
        self.assertEqual(first, bytes.fromhex("ff 01020304 554433 5000 0000") + packet[:70])
        self.assertEqual(second, bytes.fromhex("ff 01020304 554433 5000 4600") + packet[70:])
        self.assertEqual(wire.decode_fragment(second), wire.Fragment(b"\1\2\3\4", 0x334455, 80, 70, packet[70:]))

    def test_too_small(self) -> None:
        """A path that has no room for the smallest fragment is refused at our own end."""
        with self.assertRaises(ValueError):
            list(wire.fragment(bytes(30), wire.FRAGMENT_OVERHEAD + wire.MIN_FRAGMENT - 1))

    def test_bad_ones(self) -> None:
        """Empty ones, ones that go beyond their packet, and crumbs that are not its end."""
        good = bytes.fromhex("ff 01020304 554433 4800 0000") + bytes(32)
        wire.decode_fragment(good)
        wire.decode_fragment(bytes.fromhex("ff 01020304 554433 4800 4700") + bytes(1))
        for packet in (
            good[:12],
            good[:-1],
            bytes.fromhex("ff 01020304 554433 4800 4600") + bytes(1),
            b"\x0a" + good[1:],
            good + bytes(41),
            bytes.fromhex("ff 01020304 554433 0500 0000 01"),
        ):
            with self.assertRaises(RemoteProtocolError):
                wire.decode_fragment(packet)
