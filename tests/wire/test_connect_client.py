"""Tests of mikanet.wire.connect_client. Expected bytes are written out from RFC 9110 and RFC 7617."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.wire.connect_client import MAX_HEAD, ConnectHandshake
from mikanet.wire.socks_client import CredentialsRefusedError
from tests.support.feeding import fragmentations, mutations

TARGET = Address("example.com", 443)
GOOD = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nrest"


class ConnectTests(SynchronousTestCase):
    """One request, one answer."""

    def test_request(self) -> None:
        """Authority form, a Host field, and Basic where there is a user."""
        self.assertEqual(
            ConnectHandshake(TARGET).start(), b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"
        )
        self.assertIn(
            b"\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n",
            ConnectHandshake(TARGET, "Aladdin", "open sesame").start(),
        )
        for bad in ((Address("a b", 1),), (TARGET, "a:b", "c")):
            with self.assertRaises(LocalProtocolError):
                ConnectHandshake(*bad)  # type: ignore[arg-type]  # mistakes on purpose

    def test_granted_in_any_fragmentation(self) -> None:
        """A 2xx grants; what comes behind the head is the destination's."""
        for pieces in fragmentations(GOOD):
            handshake, rest = ConnectHandshake(TARGET), b""
            for piece in pieces:
                if handshake.reply is None:
                    self.assertEqual(handshake.feed(piece), b"")
                    rest = handshake.rest() if handshake.reply is not None else b""
                else:
                    rest += piece
            self.assertEqual(rest, b"rest")

    def test_refused(self) -> None:
        """407 and 401 want credentials; other answers are told; what is no HTTP is none."""
        for answer in (b"HTTP/1.1 407 X\r\n\r\n", b"HTTP/1.0 401 Unauthorized\r\n\r\n"):
            with self.assertRaises(CredentialsRefusedError):
                ConnectHandshake(TARGET).feed(answer)
        for answer in (
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"ICY 200",
            b"HTTP/1.1 200 OK\r\n" + b"x" * MAX_HEAD,
        ):
            with self.assertRaises(RemoteProtocolError):
                ConnectHandshake(TARGET).feed(answer)
        handshake = ConnectHandshake(TARGET)
        handshake.feed(GOOD)
        with self.assertRaises(LocalProtocolError):
            handshake.feed(b"more")

    def test_mutations(self) -> None:
        """10,000 mutated answers: granted, waiting, or the one error."""
        for data in mutations([GOOD, b"HTTP/1.1 407 X\r\n\r\n"], 10_000, seed=9):
            try:
                ConnectHandshake(TARGET).feed(data)
            except RemoteProtocolError:
                pass
