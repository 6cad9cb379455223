"""Plain HTTP: requests that are answered at once, and how often they are made."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.carriers import http_asking, http_held, polling
from mikanet.carriers.http_batches import split
from mikanet.carriers.http_exchange import EXCHANGE_HEAD
from mikanet.carriers.urls import CarrierUrl, client_carrier
from mikanet.errors import ConfigError
from tests.carriers.webs import Link, Remembering, context


class PollTests(SynchronousTestCase):
    """How a client asks."""

    def start(self) -> Link:
        """A client and a server over a link with a round trip of 20 ms."""
        link = Link(Clock(), hold=0, wait=0)
        self.near, self.far = Remembering(link.client), Remembering(link.server)
        link.client.send([b"prove"])
        link.run(0.1)
        return link

    def test_answered_at_once(self) -> None:
        """No request stays open: a round trip after it was made its answer is there."""
        link = self.start()
        for _ in range(300):
            link.run(0.01)
            self.assertLessEqual(len(link.under_way), 1)
        link.run(0.1)
        busy = 0
        for _ in range(200):
            link.run(0.01)
            busy += bool(link.under_way)
        self.assertLess(busy, 20)

    def test_less_and_less_often(self) -> None:
        """While nothing comes the time between requests grows, up to three seconds."""
        link = self.start()
        counts = []
        for _ in range(4):
            before = len(link.bodies)
            link.run(6.0, 0.005)
            counts.append(len(link.bodies) - before)
        self.assertEqual(counts, sorted(counts, reverse=True))
        self.assertLessEqual(counts[-1], 2)
        self.assertGreaterEqual(counts[-1], 1)
        link.run(60, 0.05)
        self.assertEqual(self.near.lost + self.far.lost, [])

    def test_often_again(self) -> None:
        """Whatever comes or goes makes the client ask often again."""
        link = self.start()
        link.run(30, 0.01)
        link.server.send([b"down"])
        link.run(http_asking.POLL[1] + 0.1, 0.005)
        self.assertEqual(self.near.got, [b"down"])
        link.run(30, 0.01)
        link.client.send([b"up"])
        link.run(0.05)
        self.assertEqual(self.far.got, [b"prove", b"up"])
        link.server.send([b"answer"])
        link.run(0.08)
        self.assertEqual(self.near.got, [b"down", b"answer"])

    def test_lingers_for_what_it_brought_about(self) -> None:
        """A request that carries something waits a moment for what that brings about."""
        link = self.start()
        link.run(30, 0.01)
        link.client.send([b"question"])
        link.run(0.012)
        self.assertEqual(self.far.got[-1], b"question")
        link.clock.callLater(http_held.LINGER / 2, link.server.send, [b"answer"])
        link.run(0.012 + http_held.LINGER)
        self.assertEqual(self.near.got, [b"answer"])

    def test_two_at_once_for_a_stream(self) -> None:
        """While the server says that it has more, two requests are under way."""
        link = self.start()
        link.client.proven()
        link.server.send([bytes(60_000)] * 60)
        link.run(5.0)
        self.assertEqual(len(self.near.got), 60)
        most = 0
        link.server.send([bytes(60_000)] * 60)
        for _ in range(100):
            link.run(0.01)
            most = max(most, len(link.under_way))
        self.assertEqual(most, 2)
        self.assertEqual(len(self.near.got), 120)

    def test_stream_up_is_few_big_bodies(self) -> None:
        """A stream goes up in bodies that hold what gathered in a round trip."""
        link = self.start()
        link.client.proven()
        before = len(link.bodies)
        for _ in range(100):
            link.client.send([bytes(16_384)])
            link.run(0.002)
        link.run(1.0)
        self.assertEqual(self.far.got[1:], [bytes(16_384)] * 100)
        carrying = [body for body in link.bodies[before:] if split(body[EXCHANGE_HEAD:])]
        self.assertLess(len(carrying), 40)

    def test_closes(self) -> None:
        """An end of either side reaches the other with the next request."""
        for side in ("client", "server"):
            link = self.start()
            getattr(link, side).send([b"last"])
            getattr(link, side).close()
            link.run(4.0)
            self.assertEqual((len(self.near.lost), len(self.far.lost)), (1, 1))
            self.assertIn(b"last", self.near.got + self.far.got)


class UrlTests(SynchronousTestCase):
    """What a URL may say."""

    def test_urls(self) -> None:
        """A URL names a place, without a password."""
        self.assertEqual(client_carrier("http://h:80/p", context(Clock())).name, "http://h:80/p")
        for bad in ("http://h/?ca-file=x", "https://h/?proxied=yes", "http://:80/"):
            with self.assertRaises(ConfigError, msg=bad):
                polling.client(CarrierUrl.parse(bad), context(Clock()))
