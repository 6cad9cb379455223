"""BOSH: both ends of the exchange over a link that fails, request ids, windows, holding and ends."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.carriers import bosh, http_asking, http_held
from mikanet.carriers.http_batches import split
from mikanet.carriers.http_exchange import (
    ANSWER_HEAD,
    END,
    EXCHANGE_HEAD,
    MAX_BODY,
    MAX_STRANGER_BODY,
    Answer,
    Exchange,
    decode_request,
)
from mikanet.carriers.http_held import HeldCarrier
from mikanet.carriers.http_pacing import HIGH_WATER
from mikanet.carriers.urls import CarrierUrl, client_carrier
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.filters.packetizer import frame
from mikanet.interfaces import ICarrier, IClientCarrier
from tests.carriers.webs import FIRST_RID, Link, Remembering, context


class PairTestCase(SynchronousTestCase):
    """A client and a server over a link."""

    def start(self, **settings_: float) -> Link:
        """Make them."""
        link = Link(Clock(), **settings_)  # type: ignore[arg-type]  # words of Link
        self.near, self.far = Remembering(link.client), Remembering(link.server)
        return link


class LinkTests(PairTestCase):
    """Everything arrives, once and in order."""

    def test_interfaces(self) -> None:
        """Both ends are carriers, and what opens them opens carriers."""
        link = self.start()
        verifyObject(ICarrier, link.client)
        verifyObject(ICarrier, link.server)
        verifyObject(IClientCarrier, client_carrier("bosh://h/p", context(Clock())))

    def test_both_ways(self) -> None:
        """Packets of both ends arrive; half a round trip after they were sent, as a request waits at the server."""
        link = self.start()
        link.client.send([b"up1", b"up2"])
        link.run(0.011)
        self.assertEqual(self.far.got, [b"up1", b"up2"])
        link.run(1.0)
        sent = link.clock.seconds()
        link.server.send([b"down"])
        link.run(0.011)
        self.assertEqual(self.near.got, [b"down"])
        self.assertLess(link.clock.seconds() - sent, 0.015)

    def test_the_second_thing_finds_a_request_too(self) -> None:
        """While the answer to one held request is on its way another takes what comes next."""
        link = self.start()
        link.run(1.0)
        link.server.send([b"a"])
        link.run(0.004)
        link.server.send([b"b"])
        link.run(0.013)
        self.assertEqual(self.near.got, [b"a", b"b"])

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 2**32), st.sampled_from([0, 1, 2, 4]), st.sampled_from([0.0, 0.05, 0.25]))
    def test_random_failures(self, seed: int, hold: int, loss: float) -> None:
        """With losses of requests, answers and connections at any stage, and delays that let one overtake another,
        what is delivered is always a prefix of what was sent, and finally all of it."""
        rng = random.Random(seed)
        link = Link(Clock(), hold=hold, wait=2 if hold else 0, seed=seed, loss=loss)
        link.delay = (0.001, 0.05)
        near, far = Remembering(link.client), Remembering(link.server)
        sent: dict[str, list[bytes]] = {"up": [], "down": []}
        link.client.send([b"hello"])
        sent["up"].append(b"hello")
        for number in range(60):
            for way, carrier, user in (("up", link.client, far), ("down", link.server, near)):
                if rng.random() < 0.5:
                    some = [
                        b"%s %d %d." % (way.encode(), number, i) * rng.choice((1, 1, 50))
                        for i in range(rng.randint(1, 5))
                    ]
                    sent[way] += some
                    carrier.send(some)
                self.assertEqual(user.got, sent[way][: len(user.got)])
            if rng.random() < 0.05:
                link.cut_all()
            link.run(rng.choice((0.0, 0.005, 0.1)), 0.003)
        link.loss = 0.0
        link.run(12.0, 0.02)
        self.assertEqual(near.got, sent["down"])
        self.assertEqual(far.got, sent["up"])
        self.assertEqual((near.lost, far.lost), ([], []))

    def test_lost_answer_comes_again(self) -> None:
        """An answer whose connection broke is fetched with the same request, byte for byte, and is the same answer."""
        link = self.start()
        link.client.send([b"prove"])
        link.run(1.0)
        link.server.send([b"lost on the way"])
        link.run(0.004)  # it has left the server
        self.assertEqual(self.near.got, [])
        link.cut_all()
        before = len(link.bodies)
        link.run(0.1)
        self.assertEqual(self.near.got, [b"lost on the way"])
        self.assertIn(link.bodies[before], link.bodies[:before])

    def test_a_minute_of_nothing(self) -> None:
        """With nothing to send, requests are held for the time agreed on, so that there are few."""
        link = self.start()
        link.client.send([b"prove"])
        link.run(1.0)
        before = len(link.bodies)
        link.run(60.0, 0.1)
        self.assertLessEqual(len(link.bodies) - before, 6)
        self.assertEqual(self.near.lost + self.far.lost, [])


class WindowTests(PairTestCase):
    """Limits on what is under way and what waits."""

    def test_no_more_requests_than_agreed(self) -> None:
        """One more request than the server holds is under way at most, whatever waits to be sent."""
        link = self.start()
        for _ in range(100):
            link.client.send([bytes(1000)] * 10)
            link.run(0.002)
            self.assertLessEqual(len(link.under_way), 3)
        link.run(1.0)
        self.assertEqual(len(self.far.got), 1000)

    def test_bodies_have_a_largest_size(self) -> None:
        """A body has at most a mebibyte, and before the server knows the client far less; answers too."""
        link = self.start()
        link.client.send([bytes(60_000)] * 10)
        link.run(0.003)
        self.assertTrue(all(len(body) <= MAX_STRANGER_BODY for body in link.bodies))
        self.assertFalse(self.far.got)
        link.run(1.0)
        link.client.proven()
        link.client.send([bytes(60_000)] * 90)
        link.server.send([bytes(60_000)] * 90)
        link.run(1.0)
        self.assertEqual(len(self.far.got), 100)
        self.assertEqual(len(self.near.got), 90)
        self.assertLessEqual(max(map(len, link.bodies)), MAX_BODY)
        self.assertGreater(max(map(len, link.bodies)), MAX_BODY - 70_000)

    def test_writable(self) -> None:
        """A carrier that has a mebibyte waiting wants no more until most of it is gone, and says when."""
        for side in ("client", "server"):
            link = self.start()
            link.client.proven()
            link.run(1.0)
            link.client.send([b"prove"])
            link.run(1.0)
            carrier = getattr(link, side)
            user = self.near if side == "client" else self.far
            self.assertTrue(carrier.writable)
            carrier.send([bytes(60_000)] * 50)
            self.assertFalse(carrier.writable)
            self.assertGreater(carrier.waiting, HIGH_WATER)
            self.assertEqual(user.writable, 0)
            link.run(2.0)
            self.assertTrue(carrier.writable)
            self.assertEqual(user.writable, 1)
            self.assertEqual(carrier.waiting, 0)

    def test_request_beyond_the_window(self) -> None:
        """A request id further ahead than the window is refused as on any other path, and changes nothing."""
        link = self.start()
        link.client.abort()
        for rid in (FIRST_RID + 3, FIRST_RID + 2**40):
            held = _Held()
            link.server.request(held, Exchange(bytes(16), rid, 0), Exchange(bytes(16), rid, 0).encode())
            self.assertEqual(held.log, ["refused"])

    def test_old_request(self) -> None:
        """A request that was answered, and whose answer the client has, is refused; one without is answered again."""
        link = self.start()
        link.client.abort()
        first, again, old = _Held(), _Held(), _Held()
        link.server.send([b"a"])
        self._request(link.server, first, FIRST_RID)
        link.clock.advance(0.01)
        self._request(link.server, again, FIRST_RID)
        self.assertEqual(first.log, again.log)
        self.assertEqual(split(again.bodies[0][ANSWER_HEAD:]), [b"a"])
        self._request(link.server, _Held(), FIRST_RID + 1, ack=FIRST_RID)
        self._request(link.server, old, FIRST_RID)
        self.assertEqual(old.log, ["refused"])

    def test_answers_kept_are_bounded(self) -> None:
        """A client that never says what it got makes the server keep no more answers than the window has."""
        link = self.start()
        link.client.abort()
        helds = [_Held() for _ in range(20)]
        for number, held in enumerate(helds):
            self._request(link.server, held, FIRST_RID + number)
        last = _Held()
        self._request(link.server, last, FIRST_RID + 14)
        self.assertEqual(last.log, ["refused"])
        again = _Held()
        self._request(link.server, again, FIRST_RID + 17)
        self.assertEqual(len(again.bodies), 1)

    def test_repeated_while_held(self) -> None:
        """A request that comes again while it is held takes the place of the first, whose connection is cut."""
        link = self.start()
        link.client.abort()
        first, again = _Held(), _Held()
        self._request(link.server, first, FIRST_RID)
        self._request(link.server, again, FIRST_RID)
        self.assertEqual(first.log, ["dropped"])
        link.server.send([b"x"])
        link.clock.advance(0.01)
        self.assertEqual(len(again.bodies), 1)

    def test_repeated_while_early(self) -> None:
        """The same for one whose turn has not come."""
        link = self.start()
        link.client.abort()
        first, again = _Held(), _Held()
        self._request(link.server, first, FIRST_RID + 1, packets=[b"b"])
        self._request(link.server, again, FIRST_RID + 1, packets=[b"b"])
        self.assertEqual(first.log, ["dropped"])
        self._request(link.server, _Held(), FIRST_RID, packets=[b"a"])
        self.assertEqual(self.far.got, [b"a", b"b"])

    def test_bad_batch(self) -> None:
        """A request whose batch is none is refused, and may come again right."""
        link = self.start()
        link.client.abort()
        held = _Held()
        exchange = Exchange(bytes(16), FIRST_RID, 0)
        link.server.request(held, exchange, exchange.encode(b"\0\0\0\0"))
        self.assertEqual(held.log, ["refused"])
        self._request(link.server, _Held(), FIRST_RID, packets=[b"a"])
        self.assertEqual(self.far.got, [b"a"])

    @staticmethod
    def _request(server: HeldCarrier, held: _Held, rid: int, ack: int = 0, packets: list[bytes] | None = None) -> None:
        exchange = Exchange(bytes(16), rid, ack)
        server.request(held, exchange, exchange.encode(frame(packets or [])))


class _Held:
    """A request that writes down what happens to it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.bodies: list[bytes] = []

    def answer(self, body: bytes) -> None:
        self.log.append("answered")
        self.bodies.append(body)

    def refuse(self) -> None:
        self.log.append("refused")

    def drop(self) -> None:
        self.log.append("dropped")


class EndTests(PairTestCase):
    """How carriers end."""

    def test_client_closes(self) -> None:
        """A close comes after what waits, and both ends learn of it at once."""
        link = self.start()
        link.client.send([b"last"])
        link.client.close()
        link.client.send([b"too late"])
        self.assertFalse(link.client.writable)
        link.run(0.2)
        self.assertEqual(self.far.got, [b"last"])
        self.assertEqual((len(self.near.lost), len(self.far.lost)), (1, 1))
        self.assertTrue(link.forgotten)
        self.assertEqual(link.under_way, set())

    def test_server_closes(self) -> None:
        """The same from the other end."""
        link = self.start()
        link.run(0.1)
        link.server.send([b"last"])
        link.server.close()
        self.assertFalse(link.server.writable)
        link.run(0.3)
        self.assertEqual(self.near.got, [b"last"])
        self.assertEqual((len(self.near.lost), len(self.far.lost)), (1, 1))

    def test_server_aborts(self) -> None:
        """Requests that are held bring the client the news."""
        link = self.start()
        link.run(0.1)
        link.server.abort()
        link.run(0.05)
        self.assertEqual((len(self.near.lost), len(self.far.lost)), (1, 1))
        last = link.server
        last.send([b"nothing"])
        last.proven()
        self.assertFalse(last.writable)

    def test_refused(self) -> None:
        """A stranger that the session refuses gets the answer of any other path, now and later."""
        link = self.start()
        link.run(0.1)
        link.server.refuse()
        link.run(0.1)
        self.assertEqual(link.refused, 2)
        self.assertEqual(len(self.near.lost), 1)

    def test_stranger_has_little_time(self) -> None:
        """A carrier on which nobody proves anything ends after 10 s."""
        link = Link(Clock())
        user = Remembering(link.server, prove=False)
        near = Remembering(link.client, prove=False)
        link.client.send([b"who knows"])
        link.run(http_held.STRANGER_TIME + 1, 0.1)
        self.assertEqual((len(user.lost), len(near.lost)), (1, 1))

    def test_client_that_vanishes(self) -> None:
        """Without requests the server gives a carrier up after 30 s, not before, and keeps no timer."""
        link = self.start()
        link.client.send([b"prove"])
        link.run(1.0)
        link.client.abort()
        link.run(http_held.IDLE_TIME - 2, 0.5)
        self.assertEqual(self.far.lost, [])
        link.run(3, 0.5)
        self.assertEqual(len(self.far.lost), 1)
        link.run(http_asking.GRACE + 60, 1.0)
        self.assertEqual(link.clock.getDelayedCalls(), [])

    def test_server_that_vanishes(self) -> None:
        """A client whose requests all fail gives the carrier up in 12 s, and tries only now and then until then."""
        link = self.start()
        link.run(1.0)
        link.down = True
        link.cut_all()
        before = len(link.bodies)
        link.run(http_asking.PATIENCE - 2, 0.01)
        self.assertEqual(self.near.lost, [])
        link.run(5, 0.01)
        self.assertEqual(len(self.near.lost), 1)
        self.assertLess(len(link.bodies) - before, 60)

    def test_outage(self) -> None:
        """An outage of some seconds costs nothing but its time."""
        link = self.start()
        link.client.send([b"prove"])
        link.run(1.0)
        link.down = True
        link.cut_all()
        link.client.send([b"up"])
        link.server.send([b"down"])
        link.run(5.0, 0.01)
        link.down = False
        link.run(3.0, 0.01)
        self.assertEqual(self.far.got, [b"prove", b"up"])
        self.assertEqual(self.near.got, [b"down"])

    def test_slow_answer(self) -> None:
        """An answer of which pieces come is waited for, however long it takes."""
        link = self.start(wait=5)
        link.client.send([b"prove"])
        link.run(1.0)
        under_way, link._arrive = len(link.bodies), lambda request, body: None  # type: ignore[method-assign]
        for _ in range(60):
            link.client._progress()
            link.run(1.0, 0.1)
        self.assertEqual(self.near.lost, [])
        self.assertLessEqual(len(link.bodies), under_way + 2)  # the two that were held were answered in time
        link.run(30.0, 0.1)
        self.assertEqual(len(self.near.lost), 1)

    def test_silent_path(self) -> None:
        """A request that nobody answers counts as lost some seconds after the server's wait."""
        link = self.start(wait=5)
        link.client.send([b"prove"])
        link.run(1.0)
        link._arrive = lambda request, body: None  # type: ignore[method-assign]  # a black hole
        link.run(40, 0.1)
        self.assertEqual(len(self.near.lost), 1)

    def test_forgotten_carrier(self) -> None:
        """When the server does not know the carrier any more, the client loses it at once."""
        link = self.start()
        link.run(0.1)
        link.forgotten = True
        link.client.send([b"x"])
        link.run(0.1)
        self.assertEqual(len(self.near.lost), 1)

    def test_nonsense_from_the_server(self) -> None:
        """An answer that is none, or another request's, ends the carrier."""
        for body in (b"<html>hello</html>", Answer(FIRST_RID + 5).encode(), Answer(FIRST_RID).encode(b"\1")):
            link = self.start()
            link.forged = body
            link.client.send([b"x"])
            link.run(60, 0.5)
            self.assertTrue(self.near.lost[0].check(RemoteProtocolError), body)

    def test_end_flag_is_sent(self) -> None:
        """What closes is a flag in a request of its own, behind everything else."""
        link = self.start()
        link.client.close()
        link.run(0.1)
        last = decode_request(link.bodies[-1])
        assert isinstance(last, Exchange)
        self.assertEqual(last.flags, END)
        self.assertEqual(len(link.bodies[-1]), EXCHANGE_HEAD)


class UrlTests(SynchronousTestCase):
    """What a URL may say."""

    def test_urls(self) -> None:
        """A URL names a place; its options are the known ones, and secrets are not among them."""
        for good in ("bosh://h", "bosh://h:80/p", "boshs://[::1]:8443/p/q", "bosh://user.example/%20"):
            self.assertEqual(client_carrier(good, context(Clock())).name, good)
        for bad in (
            "bosh://user@h/",
            "bosh://h/?x=y",
            "bosh:///p",
            "bosh://h/p#f",
            "bosh://h/ä",
            "boshs://h/?ca-file=/no",
        ):
            with self.assertRaises(ConfigError, msg=bad):
                bosh.client(CarrierUrl.parse(bad), context(Clock()))
