"""Tests of mikanet.wire.socks_server. Expected bytes are written out from RFC 1928, RFC 1929 and the SOCKS4(a) texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import LocalProtocolError
from mikanet.wire.socks import Command, Rep
from mikanet.wire.socks_server import Request, ServerHandshake, SocksRefusedError, State
from tests.support.feeding import fragmentations, mutations

GREETING = bytes.fromhex("05 01 00")
GREETING_BOTH = bytes.fromhex("05 02 00 02")
CREDENTIALS = bytes.fromhex("01 05") + b"alice" + bytes.fromhex("06") + b"secret"
CONNECT_IPV4 = bytes.fromhex("05 01 00 01 c0000207 0050")
CONNECT_NAME = bytes.fromhex("05 01 00 03 0b") + b"example.com" + bytes.fromhex("01bb")
CONNECT_IPV6 = bytes.fromhex("05 01 00 04 20010db8000000000000000000000001 01bb")
ASSOCIATE = bytes.fromhex("05 03 00 01 00000000 0000")
BIND = bytes.fromhex("05 02 00 01 c0000207 0050")
SOCKS4 = bytes.fromhex("04 01 0050 c0000207") + b"me\0"
SOCKS4A = bytes.fromhex("04 01 01bb 00000001") + b"\0example.com\0"
SOCKS4_BIND = bytes.fromhex("04 02 0050 c0000207") + b"\0"

Check = Callable[[bytes, bytes], bool]


def check(user: bytes, password: bytes) -> bool:
    """The one user of these tests."""
    return (user, password) == (b"alice", b"secret")


def run(pieces: Iterable[bytes], check: Check | None = None) -> tuple[bytes, Request | None, bytes, bool | None]:
    """What a handshake answers to pieces: bytes, request, rest, and on refusal whether for want of a password."""
    handshake = ServerHandshake(check)
    answer = rest = b""
    for piece in pieces:
        if handshake.request is not None:
            rest += piece
            continue
        try:
            answer += handshake.feed(piece)
        except SocksRefusedError as refusal:
            return answer + refusal.answer, None, b"", refusal.bad_password
        if handshake.request is not None:
            rest = handshake.rest()
    return answer, handshake.request, rest, None


class ServerHandshakeTests(SynchronousTestCase):
    """From the first byte to the request, however the bytes are cut."""

    def assert_run(
        self, data: bytes, answer: bytes, request: Request | None, rest: bytes = b"", check: Check | None = None
    ) -> None:
        """Every fragmentation gives the same answer, request and rest."""
        for pieces in fragmentations(data):
            self.assertEqual(run(pieces, check), (answer, request, rest, None), pieces)

    def assert_refused(
        self, data: bytes, answer: bytes, check: Check | None = None, bad_password: bool = False
    ) -> None:
        """Every fragmentation is refused with the same answer."""
        for pieces in fragmentations(data):
            self.assertEqual(run(pieces, check), (answer, None, b"", bad_password), pieces)

    def test_connect(self) -> None:
        """Without a password the server chooses method 0; all three kinds of address arrive."""
        for request, address in (
            (CONNECT_IPV4, Address("192.0.2.7", 80)),
            (CONNECT_NAME, Address("example.com", 443)),
            (CONNECT_IPV6, Address("2001:db8::1", 443)),
        ):
            self.assert_run(GREETING + request, b"\x05\x00", Request(5, Command.CONNECT, address))

    def test_rest(self) -> None:
        """Bytes behind the request are kept for whoever takes over."""
        expected = Request(5, Command.CONNECT, Address("192.0.2.7", 80))
        self.assert_run(GREETING + CONNECT_IPV4 + b"early\x05\x01", b"\x05\x00", expected, b"early\x05\x01")
        large = b"e" * 70000
        self.assertEqual(run([GREETING + CONNECT_IPV4 + large]), (b"\x05\x00", expected, large, None))

    def test_other_commands(self) -> None:
        """BIND and UDP ASSOCIATE are requests too."""
        self.assert_run(GREETING + ASSOCIATE, b"\x05\x00", Request(5, Command.UDP_ASSOCIATE, Address("0.0.0.0", 0)))
        self.assert_run(GREETING + BIND, b"\x05\x00", Request(5, Command.BIND, Address("192.0.2.7", 80)))

    def test_password(self) -> None:
        """With a password, method 2 is chosen even if 0 is offered, and the right one is answered 01 00."""
        request = Request(5, Command.CONNECT, Address("192.0.2.7", 80))
        self.assert_run(GREETING_BOTH + CREDENTIALS + CONNECT_IPV4, bytes.fromhex("0502 0100"), request, check=check)

    def test_wrong_password(self) -> None:
        """A wrong or empty user name or password is answered 01 01."""
        for user, password in ((b"alice", b"secreT"), (b"bob", b"secret"), (b"", b""), (b"alice", b"")):
            raw = b"\x01" + bytes((len(user),)) + user + bytes((len(password),)) + password
            self.assert_refused(GREETING_BOTH + raw, bytes.fromhex("0502 0101"), check, bad_password=True)

    def test_no_common_method(self) -> None:
        """A client without the needed method is answered 05 FF."""
        self.assert_refused(GREETING, bytes.fromhex("05ff"), check, bad_password=True)
        self.assert_refused(bytes.fromhex("05 01 02"), bytes.fromhex("05ff"))
        self.assert_refused(bytes.fromhex("05 00"), bytes.fromhex("05ff"))

    def test_not_credentials(self) -> None:
        """Something else in the place of the user name and password is answered 01 01."""
        self.assert_refused(GREETING_BOTH + CONNECT_IPV4, bytes.fromhex("0502 0101"), check)

    def test_bad_requests(self) -> None:
        """Unknown commands are answered 7, unknown address types 8, anything else that is wrong 1."""
        for request, rep in (
            ("05 04 00 01 c0000207 0050", 7),
            ("05 00 00 01 c0000207 0050", 7),
            ("05 01 00 02 c0000207 0050", 8),
            ("05 01 00 00", 8),
            ("05 01 01 01 c0000207 0050", 1),
            ("04 01 00 01 c0000207 0050", 1),
            ("05 01 00 03 00 0050", 1),
            ("05 01 00 03 01 00 0050", 1),
        ):
            answer = bytes((5, 0, 5, rep, 0, 1, 0, 0, 0, 0, 0, 0))
            self.assert_refused(GREETING + bytes.fromhex(request), answer)

    def test_socks4(self) -> None:
        """SOCKS4 carries an IPv4 address and a user id, which is not used."""
        self.assert_run(SOCKS4 + b"rest", b"", Request(4, Command.CONNECT, Address("192.0.2.7", 80)), b"rest")
        self.assert_run(SOCKS4_BIND, b"", Request(4, Command.BIND, Address("192.0.2.7", 80)))

    def test_socks4a(self) -> None:
        """An address 0.0.0.x with x not 0 means that a name follows the user id."""
        self.assert_run(SOCKS4A + b"rest", b"", Request(4, Command.CONNECT, Address("example.com", 443)), b"rest")
        zero = bytes.fromhex("04 01 01bb 00000000 00")
        self.assert_run(zero, b"", Request(4, Command.CONNECT, Address("0.0.0.0", 443)))

    def test_bad_socks4(self) -> None:
        """Unknown commands, texts without an end and bad names are answered 00 5B."""
        rejected = bytes.fromhex("005b 0000 00000000")
        for raw in (
            bytes.fromhex("04 03 0050 c0000207 00"),
            bytes.fromhex("04 01 0050 c0000207") + b"u" * 256,
            bytes.fromhex("04 01 0050 00000001 00") + b"h" * 256,
            bytes.fromhex("04 01 0050 00000001 00 00"),
            bytes.fromhex("04 01 0050 00000001 00") + b"a\nb\0",
        ):
            self.assert_refused(raw, rejected)

    def test_longest_socks4_texts(self) -> None:
        """A user id and a name of 255 bytes each are accepted."""
        raw = bytes.fromhex("04 01 0050 00000001") + b"u" * 255 + b"\0" + b"h" * 255 + b"\0"
        self.assert_run(raw, b"", Request(4, Command.CONNECT, Address("h" * 255, 80)))

    def test_socks4_where_a_password_is_needed(self) -> None:
        """SOCKS4 has no password, so it is answered 00 5B at its first byte."""
        self.assert_refused(SOCKS4, bytes.fromhex("005b 0000 00000000"), check, bad_password=True)

    def test_not_socks(self) -> None:
        """Any other first byte is refused without an answer."""
        for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\x00", b"\xff" * 1000):
            self.assert_refused(raw, b"")

    def test_replies(self) -> None:
        """The reply speaks the version of the request."""
        handshake = ServerHandshake()
        handshake.feed(GREETING + CONNECT_IPV4)
        self.assertEqual(handshake.reply(Rep.SUCCEEDED), bytes.fromhex("05 00 00 01 00000000 0000"))
        self.assertEqual(handshake.reply(Rep.CONNECTION_REFUSED), bytes.fromhex("05 05 00 01 00000000 0000"))
        bound = Address("::1", 4660)
        raw = bytes.fromhex("05 00 00 04 00000000000000000000000000000001 1234")
        self.assertEqual(handshake.reply(Rep.SUCCEEDED, bound), raw)
        handshake = ServerHandshake()
        handshake.feed(SOCKS4A)
        self.assertEqual(handshake.reply(Rep.SUCCEEDED), bytes.fromhex("00 5a 0000 00000000"))
        self.assertEqual(handshake.reply(Rep.HOST_UNREACHABLE), bytes.fromhex("00 5b 0000 00000000"))

    def test_used_against_its_rules(self) -> None:
        """Feeding a finished handshake, or replying before a request, is our own error and changes nothing."""
        handshake = ServerHandshake()
        self.assertRaises(LocalProtocolError, handshake.reply, Rep.SUCCEEDED)
        handshake.feed(GREETING + CONNECT_IPV4)
        self.assertRaises(LocalProtocolError, handshake.feed, b"x")
        self.assertIs(handshake.state, State.DONE)
        handshake = ServerHandshake()
        self.assertRaises(SocksRefusedError, handshake.feed, b"GET")
        self.assertRaises(LocalProtocolError, handshake.feed, GREETING)
        self.assertIs(handshake.state, State.FAILED)

    @settings(deadline=None)
    @given(st.binary(max_size=700), st.integers(1, 40), st.booleans())
    def test_arbitrary_bytes(self, data: bytes, size: int, password: bool) -> None:
        """Arbitrary bytes give the same result in pieces as at once, and only the declared error."""
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        wanted = check if password else None
        self.assertEqual(run(pieces, wanted), run([data], wanted))

    def test_mutations(self) -> None:
        """10,000 mutated handshakes end in a request, wait for more, or are refused with the declared error."""
        golden = [
            GREETING + CONNECT_NAME + b"data",
            GREETING + CONNECT_IPV6,
            GREETING + ASSOCIATE,
            SOCKS4 + b"data",
            SOCKS4A,
            GREETING_BOTH + CREDENTIALS + CONNECT_IPV4,
        ]
        for seed, wanted in ((4, None), (5, check)):
            for raw in mutations(golden, 5_000, seed):
                answer, _, _, _ = run([raw], wanted)
                self.assertLessEqual(len(answer), 2 + 2 + 22)
