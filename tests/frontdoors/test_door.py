"""Tests of mikanet.frontdoors.door, by way of the SOCKS door: deadlines, caps, and clients that go away."""

from __future__ import annotations

from twisted.internet import error

from mikanet.relay import PAUSED_COST, MemoryBudget
from tests.frontdoors.support import CONNECT, GREETING, SOCKS4A, SUCCESS, SocksTestCase, failure
from tests.support.feeding import mutations


class LimitTests(SocksTestCase):
    """Deadlines, caps, and clients that are no SOCKS clients or go away."""

    def test_handshake_deadline(self) -> None:
        """A client that does not finish its handshake is closed, after the lingering time at the latest."""
        client = self.open(handshake_timeout=30)
        client.deliver(GREETING)
        self.reactor.advance(29.9)
        client.deliver(CONNECT[:3])
        self.reactor.advance(0.2)
        self.assertTrue(client.half_closed)
        self.reactor.advance(2)
        self.assertEqual(client.outcome, "closed")
        self.assertEqual(self.counted("frontdoor.socks.refused.timeout"), 1)
        self.assert_nothing_left()

    def test_dial_deadline(self) -> None:
        """A tunnel that takes too long is cancelled, and the client told."""
        client = self.open(dial_timeout=60)
        client.deliver(GREETING + CONNECT)
        self.reactor.advance(60)
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assertEqual(client.read(), b"\x05\x00" + failure(6))

    def test_no_deadline_in_the_relay(self) -> None:
        """Once the bytes flow, no clock ends the connection."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        self.tunnel.dialled[0].accept()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_client_gone_while_dialling(self) -> None:
        """A client that is lost has its dial cancelled; a tunnel that comes all the same is aborted."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        client.lose(error.ConnectionLost())
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assert_nothing_left()

    def test_client_ends_while_dialling(self) -> None:
        """So has one that closes before the reply and has sent nothing for the destination."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        client.deliver_end()
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()

    def test_early_bytes_and_end(self) -> None:
        """One that has sent its bytes and its end together gets them carried, and the answer."""
        client = self.open()
        client.deliver(GREETING + CONNECT + b"whole request")
        client.deliver_end()
        far = self.tunnel.dialled[0].accept()
        self.assertEqual(far.read(), b"whole request")
        self.assertTrue(far.half_closed)
        far.deliver(b"response")
        far.deliver_end()
        self.assertEqual(client.read(), b"\x05\x00" + SUCCESS + b"response")
        self.assertEqual(client.outcome, "closed")

    def test_client_ends_in_the_handshake(self) -> None:
        """A connection that ends before its request is closed."""
        for data in (b"", b"\x05", GREETING, GREETING + CONNECT[:-1]):
            client = self.open()
            client.deliver(data)
            client.deliver_end()
            self.assertEqual(client.outcome, "closed")
            self.assert_nothing_left()

    def test_not_socks(self) -> None:
        """Other protocols are closed without an answer, and what more they send is dropped."""
        client = self.open()
        client.deliver(b"GET / HTTP/1.1\r\n")
        client.deliver(b"x" * 100000)
        self.assertEqual((client.read(), client.half_closed, client.reading), (b"", True, True))
        self.assertEqual(self.counted("frontdoor.socks.refused.protocol"), 1)

    def test_connection_cap(self) -> None:
        """Above the cap connections are closed at once; when one ends there is room again."""
        first = self.open(max_connections=2)
        self.connect()
        self.assertEqual(self.connect().outcome, "closed")
        self.assertEqual(self.counted("frontdoor.refused.connections"), 1)
        first.lose(error.ConnectionDone())
        self.assertEqual(self.connect().outcome, "open")

    def test_memory_budget(self) -> None:
        """While the memory is used up, new connections are closed at once."""
        client = self.open(budget=MemoryBudget(PAUSED_COST))
        client.deliver(GREETING + CONNECT)
        far = self.tunnel.dialled[0].accept()
        client.deliver(b"x" * 70000)
        self.assertEqual(self.connect().outcome, "closed")
        self.assertEqual(self.counted("frontdoor.refused.memory"), 1)
        far.read()
        self.assertEqual(self.connect().outcome, "open")

    def test_abort_all(self) -> None:
        """All of a factory's connections can be ended at once."""
        clients = [self.open(), self.connect()]
        clients[0].deliver(GREETING + CONNECT)
        far = self.tunnel.dialled[0].accept()
        self.factory.abort_all()
        self.assertEqual([client.outcome for client in (*clients, far)], ["aborted"] * 3)
        self.assert_nothing_left()

    def test_mutations(self) -> None:
        """10,000 mutated conversations leave nothing behind but a refused, waiting or served client."""
        golden = [GREETING + CONNECT + b"data", SOCKS4A, GREETING + bytes.fromhex("05 03 00 01 00000000 0000")]
        self.open().lose(error.ConnectionLost())
        for data in mutations(golden, 10_000, seed=1080):
            client = self.connect()
            client.deliver(data)
            client.lose(error.ConnectionLost())
            for port in self.reactor.ports:
                self.assertFalse(port.listening)
            self.reactor.ports.clear()
        self.assertTrue(all(dialled.cancelled for dialled in self.tunnel.dialled))
        self.assert_nothing_left()
