"""WebSocket: the client's handshake, and the carrier of both ends."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, TimeoutError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.carriers import http_frames
from mikanet.carriers.http_client import WebPlace
from mikanet.carriers.http_exchange import MAX_STRANGER_BODY
from mikanet.carriers.urls import CarrierUrl, client_carrier
from mikanet.carriers.websocket import PING_TIME, SILENCE, WebSocketCarrier, WebSocketClientCarrier
from mikanet.errors import ConfigError, DestinationError, Reason, reason_of
from mikanet.filters.packetizer import frame
from mikanet.interfaces import ICarrier, IClientCarrier
from tests.carriers.webs import Remembering, WebTransport, context
from tests.support.feeding import fragmentations, mutations

_KEY = b"\0\1\2\3"
_GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: %s\r\nServer: nginx\r\n\r\n"
)


class _Client:
    """A client that opens, with the connection in the test's hand."""

    def __init__(self, url: str = "ws://127.0.0.1:8080/path?query=no".partition("?")[0]) -> None:
        self.reactor = MemoryReactorClock()
        made = context(self.reactor)
        place = WebPlace.of(CarrierUrl.parse(url), made)
        carrier = WebSocketClientCarrier(place, made, random.Random(1).randbytes)
        self.opening: Deferred[ICarrier] = carrier.open()

    def connect(self) -> WebTransport:
        """The TCP connection stands."""
        self.transport = WebTransport("127.0.0.1")
        factory: Any = self.reactor.tcpClients[0][2]
        self.transport.connect(factory.buildProtocol(None))
        return self.transport

    def answer(self) -> bytes:
        """What a server answers."""
        line = self.transport.bytes_written.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        return _GOOD % http_frames.accept(line)


class HandshakeTests(SynchronousTestCase):
    """Opening."""

    def test_request(self) -> None:
        """The request is RFC 6455's, with the port in the Host field unless it is the usual one."""
        client = _Client()
        written = client.connect().bytes_written
        self.assertTrue(written.startswith(b"GET /path HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUpgrade: websocket\r\n"))
        self.assertIn(b"\r\nConnection: Upgrade\r\n", written)
        self.assertIn(b"\r\nSec-WebSocket-Version: 13\r\n", written)
        for url, host in (("ws://127.0.0.1", b"127.0.0.1"), ("ws://[::1]:81/", b"[::1]:81")):
            client = _Client(url)
            self.assertIn(b" / HTTP/1.1\r\nHost: " + host + b"\r\n", client.connect().bytes_written)

    def test_opens(self) -> None:
        """After a good answer, in whatever pieces, there is a carrier, which has what came right behind it."""
        client = _Client()
        client.connect()
        first = client.answer()
        message = http_frames.message(frame([b"early"]), None)
        for pieces in fragmentations(first, most_cuts=30):
            client = _Client()
            client.connect()
            for piece in pieces[:-1]:
                client.transport.receive(piece)
            self.assertNoResult(client.opening)
            got: list[Remembering] = []
            client.opening.addCallback(lambda carrier: got.append(Remembering(carrier)))  # noqa: B023  # called in this turn of the loop
            client.transport.receive(pieces[-1] + message)
            self.assertEqual(got[0].got, [b"early"])
            verifyObject(ICarrier, got[0].carrier)
            client.transport.lose()
            self.assertEqual(len(got[0].lost), 1)
            self.assertEqual(client.reactor.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """Any other answer fails, in words that say what is wrong, and the connection is cut."""
        for change, words in (
            (lambda good: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
            (lambda good: b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "answered 302"),
            (lambda good: good.replace(b"Accept: ", b"Accept: x"), "another key"),
            (lambda good: good.replace(b"WebSocket\r\n", b"h2c\r\n"), "another protocol"),
            (lambda good: good.replace(b"Server: nginx", b"Sec-WebSocket-Extensions: x"), "not offered"),
            (lambda good: b"HTTP/1.1 102 Wait\r\n\r\n", "does not switch"),
            (lambda good: b"SSH-2.0-x\r\n\r\n", "not a WebSocket server"),
            (lambda good: b"HTTP/1.1 101 x\r\n" + b"X: y\r\n" * 9000, "not a WebSocket server"),
        ):
            client = _Client()
            client.connect()
            client.transport.receive(change(client.answer()))
            problem = self.failureResultOf(client.opening, DestinationError).value
            self.assertIn(words, str(problem))
            self.assertNotIn("/path", str(problem), "which is a secret")
            self.assertTrue(client.transport.aborted)
            client.transport.settle()

    def test_mutated_answers(self) -> None:
        """2,000 mutated answers raise nothing and keep the client in bounds."""
        client = _Client()
        client.connect()
        golden = client.answer() + http_frames.message(frame([b"early"]), None)
        for data in mutations([golden], 2000, 7):
            client = _Client()
            client.connect()
            client.opening.addErrback(lambda failure: failure.trap(DestinationError))
            client.transport.receive(data)
            client.transport.lose()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_time_limit(self) -> None:
        """A server that does not answer is given up after 10 s."""
        client = _Client()
        client.connect()
        client.reactor.advance(9)
        self.assertNoResult(client.opening)
        client.reactor.advance(2)
        self.assertEqual(reason_of(self.failureResultOf(client.opening, DestinationError).value), Reason.TIMEOUT)
        self.assertTrue(client.transport.aborted)
        client.transport.settle()

    def test_closed_early(self) -> None:
        """A server that closes in the handshake is one error."""
        client = _Client()
        client.connect().lose()
        self.failureResultOf(client.opening, DestinationError)

    def test_connection_refused(self) -> None:
        """A port where nobody listens is told as that."""
        client = _Client()
        connector: Any = client.reactor.tcpClients[0][2]
        connector.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.assertEqual(reason_of(self.failureResultOf(client.opening, DestinationError).value), Reason.REFUSED)

    def test_cancelled(self) -> None:
        """Cancelling cuts the connection."""
        client = _Client()
        client.connect()
        client.opening.cancel()
        self.failureResultOf(client.opening)
        self.assertTrue(client.transport.aborted)
        client.transport.settle()

    def test_urls(self) -> None:
        """What a URL may say."""
        verifyObject(IClientCarrier, client_carrier("ws://h/p", context(Clock())))
        self.assertEqual(client_carrier("wss://h/p", context(Clock())).name, "wss://h/p")
        for bad in ("ws://h/?ca-file=x", "wss://h/?ca-file=/no/such", "ws://u@h/", "ws:///p"):
            with self.assertRaises(ConfigError, msg=bad):
                client_carrier(bad, context(Clock()))


class CarrierTests(SynchronousTestCase):
    """An open WebSocket, at either end."""

    def setUp(self) -> None:
        """Both ends, with the bytes between them carried by :meth:`carry`."""
        self.clock = Clock()
        self.ends = [
            WebSocketCarrier(self.clock, "client", "", random.Random(2).randbytes),
            WebSocketCarrier(self.clock, "server", "", None),
        ]
        self.transports = [WebTransport(), WebTransport()]
        for carrier, transport in zip(self.ends, self.transports, strict=True):
            transport.connect(carrier)
        self.users = [Remembering(carrier) for carrier in self.ends]

    def carry(self, piece: int = 1000) -> None:
        """Give each end what the other wrote."""
        for _ in range(5):
            for number in (0, 1):
                data = self.transports[number].bytes_written
                self.transports[number].written.clear()
                for at in range(0, len(data), piece):
                    if not self.transports[1 - number].gone:
                        self.transports[1 - number].receive(data[at : at + piece])

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.binary(min_size=1, max_size=9000), min_size=1, max_size=9), st.integers(1, 5000))
    def test_round_trip(self, packets: list[bytes], piece: int) -> None:
        """Packets arrive in order, both ways, in whatever pieces."""
        self.setUp()
        for carrier in self.ends:
            carrier.send(packets)
        self.carry(piece)
        self.assertEqual([user.got for user in self.users], [packets, packets])

    def test_several_packets_in_one_message(self) -> None:
        """What is sent at once is one message."""
        self.ends[1].send([b"a", b"b", b"c"])
        self.assertEqual(self.transports[1].bytes_written, http_frames.message(frame([b"a", b"b", b"c"]), None))

    def test_frames_of_clients_are_masked(self) -> None:
        """Each frame of a client has a masking key of its own."""
        self.ends[0].send([b"aaaa"])
        self.ends[0].send([b"aaaa"])
        first, second = (frame_[2:6] for frame_ in self.transports[0].written[-2:])
        self.assertNotEqual(first, second)
        self.assertTrue(all(each[1] & 0x80 for each in self.transports[0].written))

    def test_until_proven_a_client_s_messages_are_small(self) -> None:
        """A client that proved nothing sends one packet of any size at a time, and is refused what is larger."""
        self.ends[0].send([bytes(40_000)] * 3)
        self.assertLess(max(len(each) for each in self.transports[0].written), MAX_STRANGER_BODY)
        self.carry()
        self.assertEqual(len(self.users[1].got), 3)
        self.ends[0].proven()
        self.ends[0].send([bytes(40_000)] * 5)
        self.assertEqual(len(self.transports[0].written), 1)
        self.carry()
        self.assertEqual(len(self.users[1].got), 8)
        self.setUp()
        self.transports[1].receive(http_frames.message(bytes(MAX_STRANGER_BODY + 1), _KEY)[:100])
        self.assertTrue(self.transports[1].aborted)

    def test_a_server_that_knows_the_session_sends_much_at_once(self) -> None:
        """The first message of a server that was shown a session's key may be a large one."""
        self.ends[1].proven()
        self.ends[1].send([bytes(60_000)] * 4)
        self.assertGreater(len(self.transports[1].bytes_written), 240_000)
        self.assertEqual(len(self.transports[1].written), 1)
        self.carry()
        self.assertEqual(len(self.users[0].got), 4)

    def test_back_pressure(self) -> None:
        """While the transport is full packets wait here, and go out in few messages; the user hears of room."""
        carrier, transport, user = self.ends[1], self.transports[1], self.users[1]
        carrier.proven()
        transport.producer.pauseProducing()
        self.assertFalse(carrier.writable)
        for _ in range(50):
            carrier.send([b"x" * 1000])
        self.assertEqual(transport.written, [])
        self.assertEqual(carrier.waiting, 50 * 1004)
        transport.producer.resumeProducing()
        self.assertEqual(len(transport.written), 1)
        self.assertEqual((carrier.waiting, carrier.writable, user.writable), (0, True, 1))
        self.carry()
        self.assertEqual(len(self.users[0].got), 50)

    def test_ping_is_answered(self) -> None:
        """A ping brings a pong with the same payload."""
        self.transports[1].receive(http_frames.ping(b"hello", _KEY))
        self.assertEqual(self.transports[1].bytes_written, http_frames.pong(b"hello", None))

    def test_pings_keep_it_open(self) -> None:
        """The client pings often enough for proxies, and with that neither end misses the other."""
        self.assertLess(PING_TIME, 30)
        for _ in range(600):
            self.clock.advance(1)
            self.carry()
        self.assertEqual([user.lost for user in self.users], [[], []])

    def test_silence_is_loss(self) -> None:
        """A peer of whom nothing was heard for a minute is lost, at once for the user."""
        for _ in range(int(SILENCE + PING_TIME) + 2):
            self.clock.advance(1)
        for user, transport in zip(self.users, self.transports, strict=True):
            self.assertTrue(user.lost[0].check(TimeoutError))
            self.assertTrue(transport.aborted)
            transport.settle()
            self.assertEqual(len(user.lost), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close(self) -> None:
        """A close comes after what waits, with a close frame, and is answered with one."""
        for end in (0, 1):
            self.setUp()
            self.transports[end].producer.pauseProducing()
            self.ends[end].send([b"last"])
            self.ends[end].close()
            self.ends[end].send([b"too late"])
            self.assertFalse(self.transports[end].closed)
            self.transports[end].producer.resumeProducing()
            self.assertTrue(self.transports[end].closed)
            self.carry()
            self.assertEqual(self.users[1 - end].got, [b"last"])
            self.assertTrue(self.transports[1 - end].closed)
            for transport in self.transports:
                transport.settle()
            self.assertEqual([len(user.lost) for user in self.users], [1, 1])

    def test_abort(self) -> None:
        """An abort is a reset; nothing can be done with a carrier that is gone."""
        carrier = self.ends[0]
        carrier.abort()
        self.assertTrue(self.transports[0].aborted)
        self.transports[0].settle()
        for call in (carrier.abort, carrier.close, carrier.proven, carrier.refuse):
            call()
        carrier.send([b"x"])
        self.assertEqual(len(self.users[0].lost), 1)

    def test_bad_batch(self) -> None:
        """A message that is no batch ends the carrier."""
        self.transports[0].receive(http_frames.message(b"\0\0\0\0", None))
        self.assertTrue(self.transports[0].aborted)
