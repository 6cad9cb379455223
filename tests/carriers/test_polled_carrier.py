"""Polled links as carriers: a session's view of both ends, on a clock of the test's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.polled_asks import Ask, Asks
from mikanet.carriers.polled_carrier import (
    CLIENT_SILENCE,
    MAX_PACKET,
    Alarm,
    PolledClientCarrier,
    PolledHub,
)
from mikanet.carriers.polled_client import PolledClient
from mikanet.carriers.polled_server import SILENCE, PolledServer
from mikanet.carriers.strangers import Strangers
from mikanet.counters import Counters
from mikanet.interfaces import ICarrier
from tests.carriers.polled_path import CountedNumbers


class User:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.reasons: list[Failure] = []
        self.writable = 0

    def packets_received(self, carrier: Any, packets: Sequence[bytes]) -> None:
        """Keep."""
        self.packets += packets

    def carrier_writable(self, carrier: Any) -> None:
        """Count."""
        self.writable += 1

    def carrier_lost(self, carrier: Any, reason: Failure) -> None:
        """Keep."""
        self.reasons.append(reason)


class CarrierTests(SynchronousTestCase):
    """Both ends, joined by a path of 10 ms that can be cut."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.cut = False
        self.released = 0
        self.accepted: list[Any] = []
        self.counters = Counters()
        self.numbers = CountedNumbers()
        self.hub = PolledHub(
            "dns://here",
            "test",
            self.clock,
            self.counters,
            75.0,
            Strangers(5, 3),
            lambda path: "host" if isinstance(path, int) else path,
            lambda: None,
        )
        self.server = PolledServer(self.reply, self.numbers, self.hub.started)
        self.hub.server = self.server
        self.hub.accept = self.accept
        self.user, self.far = User(), User()
        self.ask(0, wire.hello(b"challeng"))
        self.ask(0, wire.start(self.numbers.last, 0, 1000, 4, 3.0, 0))
        link = PolledClient(self.numbers.last, 140, 4, 3.0, self.clock.seconds())
        self.carrier = PolledClientCarrier("dns://there", "host", self.clock, link, self.transmit, self.release)
        self.carrier.user = self.user
        self.carrier.pump()
        self.run_for(0.1)

    def accept(self, carrier: Any) -> None:
        """A carrier of the server's."""
        carrier.user = self.far
        self.accepted.append(carrier)

    def release(self) -> None:
        """The client's carrier lets go of its socket."""
        self.released += 1

    def ask(self, number: int | str, message: bytes) -> None:
        """A question arrives."""
        self.hub.batch([lambda now: self.server.question(message, number, 1000, now)])

    def transmit(self, questions: Sequence[tuple[int, bytes]]) -> None:
        """Questions leave."""
        for number, message in questions:
            if not self.cut:
                self.clock.callLater(0.01, self.ask, number, message)

    def reply(self, path: Any, message: bytes | None) -> None:
        """An answer leaves."""
        if not self.cut and hasattr(self, "carrier"):
            self.clock.callLater(0.01, lambda: self.carrier.heard([(path, message)]))

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.01] * round(seconds * 100))

    def test_contract(self) -> None:
        """Both ends are carriers, reliable ones for small packets."""
        for carrier in (self.carrier, self.accepted[0]):
            verifyObject(ICarrier, carrier)
            self.assertTrue(carrier.reliable)
            self.assertEqual(carrier.max_packet_size, MAX_PACKET)

    def test_both_ways(self) -> None:
        """Packets arrive in order at either user; one that is too large is dropped."""
        packets = [bytes([n]) * 500 for n in range(100)]
        self.carrier.send([*packets, bytes(MAX_PACKET + 1)])
        self.accepted[0].send(packets)
        self.run_for(10)
        self.assertEqual(self.far.packets, packets)
        self.assertEqual(self.user.packets, packets)
        self.assertEqual((self.carrier.waiting, self.accepted[0].waiting), (0, 0))

    def test_back_pressure(self) -> None:
        """A carrier with much to send is not writable, and says when it is again."""
        for carrier, user in ((self.carrier, self.user), (self.accepted[0], self.far)):
            carrier.send([bytes(4000)] * 10)
            self.assertFalse(carrier.writable)
            self.run_for(20)
            self.assertTrue(carrier.writable)
            self.assertGreater(user.writable, 0)

    def test_client_closes(self) -> None:
        """What waits arrives, then both ends are told of a clean end."""
        self.carrier.send([bytes(4000)] * 5)
        self.carrier.close()
        self.run_for(5)
        self.assertEqual(len(self.far.packets), 5)
        for user in (self.user, self.far):
            self.assertEqual([reason.type for reason in user.reasons], [ConnectionDone])
        self.assertEqual(self.released, 1)
        self.assertEqual(self.server.links, {})

    def test_server_closes(self) -> None:
        """The client hears of it in the answer to a question that was held."""
        self.accepted[0].close()
        self.run_for(5)
        for user in (self.user, self.far):
            self.assertEqual([reason.type for reason in user.reasons], [ConnectionDone])

    def test_abort(self) -> None:
        """Nothing is waited for."""
        self.carrier.abort()
        self.assertEqual(len(self.user.reasons), 1)
        self.run_for(0.1)
        self.assertEqual(len(self.far.reasons), 1)

    def test_cut(self) -> None:
        """Without a word both ends are lost in their time, and only once."""
        self.cut = True
        self.run_for(CLIENT_SILENCE + 5)
        self.assertTrue(self.user.reasons[0].check(ConnectionLost))
        self.run_for(SILENCE)
        self.assertEqual((len(self.user.reasons), len(self.far.reasons)), (1, 1))
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.active()], [])

    def test_strangers_end(self) -> None:
        """A link without a proof ends when a stranger's time is over; a proven one goes on."""
        self.run_for(74)
        self.assertEqual(self.far.reasons, [])
        self.run_for(2)
        self.assertEqual(len(self.far.reasons), 1)
        self.assertEqual(len(self.hub.strangers), 0)

    def test_proven(self) -> None:
        """See the other one."""
        self.accepted[0].proven()
        self.run_for(80)
        self.assertEqual(self.far.reasons, [])

    def test_refused(self) -> None:
        """Who is refused is answered as before, and heard no more."""
        self.accepted[0].refuse()
        self.carrier.send([b"attack"])
        self.run_for(20)
        self.assertEqual(self.far.packets, [])
        self.assertEqual(self.user.reasons, [])
        self.assertEqual(self.counters["test.refused"], 1)

    def test_too_many_strangers(self) -> None:
        """At its cap, an address loses its oldest stranger to the newest; those of others stay."""
        self.begin("198.51.100.1")
        for _ in range(1000):
            self.begin("192.0.2.1")
        self.assertEqual(self.living(), ["host", "198.51.100.1", *["192.0.2.1"] * 3])
        self.assertEqual(len(self.hub.strangers), 5)
        self.assertEqual(self.counters["test.limit.unverified"], 997)
        self.assertEqual(len(self.server.links), 5)

    def test_strangers_of_many_addresses(self) -> None:
        """At the cap of all, the oldest stranger goes; who has proved himself is none."""
        self.accepted[0].proven()
        for number in range(7):
            self.begin(f"192.0.2.{number}")
        self.assertEqual(self.living(), ["host", *(f"192.0.2.{number}" for number in range(2, 7))])
        self.begin("2001:db8::1")
        for number in range(2, 9):
            self.begin(f"2001:db8::{number}")
        self.assertEqual(self.living()[-3:], [f"2001:db8::{number}" for number in (6, 7, 8)])
        self.assertIn("192.0.2.6", self.living())

    def test_segments_of_strangers(self) -> None:
        """Few are kept behind one that is missing; of a proven client, all."""
        for proven, kept in ((False, 65), (True, 1023)):
            self.begin("192.0.2.1")
            carrier = self.accepted[-1]
            if proven:
                carrier.proven()
            for number in range(1, 1024):
                self.ask("192.0.2.1", wire.up(self.numbers.last, number, 0, 0, 8, False, number, bytes(1000)))
            self.assertEqual(carrier.link._receiver.sack.bit_count(), kept)

    def begin(self, host: str) -> None:
        """A link of somebody else's, from this address."""
        self.ask(host, wire.hello(b"whatever"))
        self.ask(host, wire.start(self.numbers.last, 0, 1000, 4, 3.0, 0))

    def living(self) -> list[str]:
        """The addresses of the carriers that are there, oldest first."""
        return [carrier.host for carrier in self.accepted if not carrier.lost]


class AlarmTests(SynchronousTestCase):
    """One timer, set often."""

    def test_alarm(self) -> None:
        """It fires once, at the last time that was set; not if that was taken back."""
        clock, fired = Clock(), []
        alarm = Alarm(clock, lambda: fired.append(clock.seconds()))
        alarm.set(1.0)
        alarm.set(2.0)
        clock.advance(1.0)
        self.assertEqual(fired, [])
        clock.advance(1.0)
        self.assertEqual(fired, [2.0])
        alarm.set(5.0)
        alarm.set(3.0)
        clock.advance(1.0)
        self.assertEqual(fired, [2.0, 3.0])
        alarm.set(4.0)
        alarm.set(None)
        clock.advance(5.0)
        self.assertEqual(fired, [2.0, 3.0])
        alarm.set(20.0)
        alarm.cancel()
        self.assertEqual(clock.getDelayedCalls(), [])


class AskTests(SynchronousTestCase):
    """A handshake's questions."""

    def test_repeats(self) -> None:
        """A question is asked after 1, 1.5, 2.25 s .. until it was asked often enough."""
        asks: Asks[Ask] = Asks()
        asks.all.append(Ask("what", b"?", 0.0, 3))
        times = []
        now = 0.0
        while asks.deadline is not None:
            now = asks.deadline
            times += [now for _ in asks.take_due(now)]
        self.assertEqual(times, [0.0, 1.0, 2.5])

    def test_answered(self) -> None:
        """An answer ends it, and says how far it is."""
        asks: Asks[Ask] = Asks()
        asks.all.append(Ask("what", b"?", 0.0))
        (ask,) = asks.take_due(0.0)
        asks.answered(ask, b"!", 0.2)
        self.assertIsNone(asks.deadline)
        self.assertEqual(asks.timeout, 0.5)
