"""Tests of mikanet.wire.socks_client. Expected bytes are written out from RFC 1928 and RFC 1929."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.wire.socks import Command
from mikanet.wire.socks_client import ClientHandshake, CredentialsRefusedError, Reply
from tests.support.feeding import fragmentations, mutations

DESTINATION = Address("example.com", 443)
REQUEST = bytes.fromhex("05 01 00 03 0b") + b"example.com" + bytes.fromhex("01bb")
CREDENTIALS = bytes.fromhex("01 05") + b"alice" + bytes.fromhex("06") + b"secret"
SUCCESS = bytes.fromhex("05 00 00 01 c0000201 1234")


def run(pieces: Iterable[bytes], handshake: ClientHandshake) -> tuple[bytes, Reply | None, bytes]:
    """What a handshake answers to pieces: bytes sent, reply, rest."""
    sent, rest = handshake.start(), b""
    for piece in pieces:
        if handshake.reply is not None:
            rest += piece
            continue
        sent += handshake.feed(piece)
        if handshake.reply is not None:
            rest = handshake.rest()
    return sent, handshake.reply, rest


class ClientHandshakeTests(SynchronousTestCase):
    """From the greeting to the reply, however the bytes are cut."""

    def test_without_password(self) -> None:
        """One method offered, the request, the reply; bytes behind it are kept."""
        for pieces in fragmentations(b"\x05\x00" + SUCCESS + b"early"):
            sent = b"\x05\x01\x00" + REQUEST
            self.assertEqual(
                run(pieces, ClientHandshake(DESTINATION)), (sent, Reply(0, Address("192.0.2.1", 0x1234)), b"early")
            )

    def test_with_password(self) -> None:
        """Both methods offered; user name and password are given when the server asks for them."""
        for pieces in fragmentations(b"\x05\x02\x01\x00" + SUCCESS):
            sent = b"\x05\x02\x00\x02" + CREDENTIALS + REQUEST
            done = run(pieces, ClientHandshake(DESTINATION, "alice", "secret"))
            self.assertEqual(done, (sent, Reply(0, Address("192.0.2.1", 0x1234)), b""))

    def test_password_not_wanted(self) -> None:
        """They are not given to a server that does not ask for them."""
        done = run([b"\x05\x00" + SUCCESS], ClientHandshake(DESTINATION, "alice", "secret"))
        self.assertEqual(done[0], b"\x05\x02\x00\x02" + REQUEST)

    def test_udp_associate(self) -> None:
        """Other commands stand in the request."""
        handshake = ClientHandshake(Address("0.0.0.0", 0), command=Command.UDP_ASSOCIATE)
        handshake.start()
        self.assertEqual(handshake.feed(b"\x05\x00"), bytes.fromhex("05 03 00 01 00000000 0000"))

    def test_failure_reply(self) -> None:
        """A reply with another code than 0 is a reply, with names and IPv6 addresses too."""
        for raw, reply in (
            ("05 05 00 01 00000000 0000", Reply(5, Address("0.0.0.0", 0))),
            ("05 ff 00 04 00000000000000000000000000000001 0001", Reply(255, Address("::1", 1))),
            ("05 01 00 03 01 78 0001", Reply(1, Address("x", 1))),
        ):
            self.assertEqual(run([b"\x05\x00" + bytes.fromhex(raw)], ClientHandshake(DESTINATION))[1], reply)

    def test_credentials_refused(self) -> None:
        """No acceptable method, and a status other than 0, have an error of their own."""
        for raw in (b"\x05\xff", b"\x05\x02\x01\x01", b"\x05\x02\x01\xff"):
            with self.assertRaises(CredentialsRefusedError):
                run([raw], ClientHandshake(DESTINATION, "alice", "secret"))

    def test_not_socks5(self) -> None:
        """Wrong versions, methods that were not offered and broken replies are refused."""
        for raw in (
            b"HTTP/1.1 400 Bad Request\r\n",
            b"\x04\x00",
            b"\x05\x02",
            b"\x05\x01",
            b"\x05\x00\x04",
            b"\x05\x00\x05\x00\x00\x02",
            b"\x05\x00\x05\x00\x00\x03\x00\x00",
        ):
            for pieces in fragmentations(raw):
                with self.assertRaises(RemoteProtocolError, msg=raw):
                    run(pieces, ClientHandshake(DESTINATION))

    def test_what_has_no_form_is_refused(self) -> None:
        """User names and passwords have 1 to 255 bytes; a finished handshake takes no more bytes."""
        for user, password in (("", "x"), ("x", ""), ("x" * 256, "x"), ("x", "\xfc" * 128)):
            self.assertRaises(LocalProtocolError, ClientHandshake, DESTINATION, user, password)
        handshake = ClientHandshake(DESTINATION)
        handshake.feed(b"\x05\x00" + SUCCESS)
        self.assertRaises(LocalProtocolError, handshake.feed, b"x")

    @settings(deadline=None)
    @given(st.binary(max_size=400), st.integers(1, 40))
    def test_arbitrary_bytes(self, data: bytes, size: int) -> None:
        """Arbitrary bytes end in a reply, wait for more, or raise the declared error; pieces change nothing."""

        def outcome(pieces: list[bytes]) -> object:
            try:
                return run(pieces, ClientHandshake(DESTINATION, "alice", "secret"))
            except RemoteProtocolError as error:
                return str(error)

        self.assertEqual(outcome([data[i : i + size] for i in range(0, len(data), size)]), outcome([data]))

    def test_mutations(self) -> None:
        """10,000 mutated answers raise nothing but the declared error."""
        golden = [b"\x05\x00" + SUCCESS + b"data", b"\x05\x02\x01\x00" + SUCCESS, b"\x05\x00\x05\x03\x00\x03\x01x\0\0"]
        for raw in mutations(golden, 10_000, seed=1929):
            try:
                run([raw], ClientHandshake(DESTINATION, "alice", "secret"))
            except RemoteProtocolError:
                continue
