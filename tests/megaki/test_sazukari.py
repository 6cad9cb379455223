"""The client library, against our server in memory."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import LocalProtocolError, RemoteProtocolError
from mikanet.megaki import sealing
from mikanet.megaki.bank import TokenBank
from mikanet.megaki.sazukari import (
    KeyStock,
    SavedSession,
    ServerRefusedError,
    SessionLostError,
    TimedOutError,
)
from mikanet.megaki.wire import MAX_MESSAGE
from tests.megaki.golden import CLIENT_KEY
from tests.megaki.memory import MemoryServer


class SazukariTestCase(SynchronousTestCase):
    """A server and a client in memory."""

    def setUp(self) -> None:
        """Both."""
        self.clock = Clock()
        self.server = MemoryServer(self.clock)
        self.client = self.server.client()

    def answer(self, data: bytes) -> None:
        """The oldest request gets this."""
        self.server.pool.asked.pop(0)[2].callback(data)
        self.server.pump()


class ClientTests(SazukariTestCase):
    """Connecting, resuming, asking."""

    def test_coroutine(self) -> None:
        """The whole use as one coroutine: connect, ask, save, resume, ask."""

        async def use() -> list[bytes]:
            session = await self.client.connect()
            first = await session.send_message(b"one")
            saved = SavedSession.from_bytes(session.saved.to_bytes())
            await session.close()
            session = await self.client.resume(saved)
            assert session.resumed
            return [first, await session.send_message(b"two")]

        done = ensureDeferred(use())
        for answer in (b"1", b"2"):
            self.server.pump()
            self.answer(answer)
        self.server.pump()
        self.assertEqual(self.successResultOf(done), [b"1", b"2"])

    def test_requests_in_order(self) -> None:
        """Requests that are sent at once are answered one after another."""
        session = self.server.session(self.client)
        done = [session.send_message(bytes([65 + n])) for n in range(3)]
        self.assertFalse(session.idle)
        for number in range(3):
            self.server.pump()
            self.assertEqual(self.server.pool.asked[0][1], bytes([65 + number]))
            self.answer(bytes([97 + number]))
        self.assertEqual([self.successResultOf(each) for each in done], [b"a", b"b", b"c"])
        self.assertTrue(session.idle)

    def test_sizes(self) -> None:
        """Empty and overlong requests are our own fault."""
        session = self.server.session(self.client)
        for request in (b"", bytes(MAX_MESSAGE + 1)):
            with self.assertRaises(LocalProtocolError):
                session.send_message(request)

    def test_server_closes(self) -> None:
        """If the server closes, all requests fail with the reason, and so do later ones."""
        session = self.server.session(self.client)
        done = [session.send_message(b"1"), session.send_message(b"2")]
        self.server.pump()
        self.server.wires[0].far.protocol._close()
        self.server.pump()
        for each in (*done, session.send_message(b"3")):
            self.assertIn("closed", str(self.failureResultOf(each, SessionLostError).value))
        self.assertFalse(session.alive)

    def test_spent_key(self) -> None:
        """After the last request of a key nothing more is sent: what waits fails, and the session can be resumed (K4)."""
        self.patch(sealing, "MAX_MESSAGES", 2)
        session = self.server.session(self.client)
        done = [session.send_message(b"%d" % number) for number in range(4)]
        self.server.pump()
        self.answer(b"a")
        self.answer(b"b")
        self.assertEqual([self.successResultOf(each) for each in done[:2]], [b"a", b"b"])
        for each in done[2:]:
            self.assertIn("resume", str(self.failureResultOf(each, SessionLostError).value))
        self.failureResultOf(session.send_message(b"x"), SessionLostError)
        self.assertFalse(session.alive)
        self.assertEqual(self.server.pool.asked, [])
        opening = self.client.resume(session.saved)
        self.server.pump()
        self.assertTrue(self.successResultOf(opening).resumed)

    def test_request_time(self) -> None:
        """A request without an answer fails in time, and its session with it."""
        session = self.server.session(self.client)
        done = session.send_message(b"q")
        self.server.pump()
        self.clock.advance(25)
        self.failureResultOf(done, TimedOutError)
        self.assertTrue(self.server.wires[0].near.aborted)

    def test_connect_time(self) -> None:
        """Connecting and shaking hands have one time together."""
        self.server.reachable = False
        opening = self.client.connect()
        self.clock.advance(10)
        self.failureResultOf(opening, TimedOutError)
        self.server.reachable = True
        opening = self.client.connect()
        self.clock.advance(10)  # connected, and nothing is carried
        self.failureResultOf(opening, TimedOutError)
        self.assertTrue(self.server.wires[-1].near.aborted)

    def test_refused(self) -> None:
        """A server without room says so, and its code arrives (K6)."""
        self.server = MemoryServer(self.clock, bank=TokenBank(capacity=1))
        client = self.server.client()
        self.server.session(client)
        opening = client.connect()
        self.server.pump()
        self.failureResultOf(opening, ServerRefusedError)

    def test_wrong_server(self) -> None:
        """Without the pinned key's owner there is no session: nothing is answered, or garbage is refused."""
        client = self.server.client()
        client.server_key = CLIENT_KEY.public_key()
        opening = client.connect()
        self.server.pump()
        self.assertNoResult(opening)
        self.server.wires[0].near.receive(b"HTTP/1.1 400")
        self.failureResultOf(opening, RemoteProtocolError)

    def test_cancelled_request(self) -> None:
        """Giving up a request ends the session: its answer would be taken for the next one's."""
        session = self.server.session(self.client)
        done = session.send_message(b"q")
        done.addErrback(lambda _: None)
        done.cancel()
        self.server.pump()
        self.assertFalse(session.alive)

    def test_rehandshake(self) -> None:
        """A session that the server forgot becomes a new one on the same connection."""
        opening = self.client.resume(SavedSession(os.urandom(16), os.urandom(32)))
        self.server.pump()
        session = self.successResultOf(opening)
        self.assertFalse(session.resumed)
        self.assertEqual(len(self.server.wires), 1)


class KeyStockTests(SynchronousTestCase):
    """Keys made ahead (K6)."""

    def setUp(self) -> None:
        """A stock whose threads are the test's."""
        self.running: list[Deferred[Any]] = []
        self.stock = KeyStock(65537, run=self.run_later)

    def run_later(self, *_: object) -> Deferred[Any]:
        """Note it."""
        self.running.append(Deferred())
        return self.running[-1]

    def test_two_ahead(self) -> None:
        """Two keys are kept ready, made one at a time, and each is given once."""
        self.stock.fill()
        for number in range(2):
            self.assertEqual(len(self.running), number + 1)
            self.running[-1].callback(f"key {number}")
        self.assertEqual(len(self.running), 2)
        self.assertEqual(self.successResultOf(self.stock.take()), "key 0")
        self.assertEqual(self.successResultOf(self.stock.take()), "key 1")
        waiting = self.stock.take()
        self.assertNoResult(waiting)
        self.running[-1].callback("key 2")
        self.assertEqual(self.successResultOf(waiting), "key 2")

    def test_failure(self) -> None:
        """If no key can be made, who waits for one learns of it, and the next one tries again."""
        waiting = self.stock.take()
        self.running[-1].errback(MemoryError("no"))
        self.failureResultOf(waiting, MemoryError)
        self.stock.take()
        self.assertEqual(len(self.running), 2)

    def test_real_keys(self) -> None:
        """What it makes is a key of 2,048 bits with the server's exponent."""
        stock = KeyStock(3, size=0, run=lambda call, *arguments: succeed(call(*arguments)))
        key = self.successResultOf(stock.take())
        self.assertEqual((key.key_size, key.public_key().public_numbers().e), (2048, 3))
        failing = KeyStock(3, run=lambda *_: fail(ValueError("no")))
        self.failureResultOf(failing.take(), ValueError)
