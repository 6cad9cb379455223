"""The gate of a server: strangers, verified connections, refusals, and the books about them."""

from __future__ import annotations

from typing import cast

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.filters.base import Filter, FilterFactory
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.refusal import TurnedAway
from mikanet.guard.server import Guard, GuardedFactory
from mikanet.interfaces import IAuthenticatingFactory, IGuardedTransport
from tests.support.transports import MemoryTransport

REFUSAL_TIME = 60.0


class GateProtocol(Protocol):
    """A protocol of one word: ``secret`` proves, anything else is wrong."""

    def __init__(self, factory: GateFactory, host: str) -> None:
        self.guard = Guard(factory, self, host)
        self.over_cap = False

    def connectionMade(self) -> None:
        """Start the clock."""
        self.guard.start()

    def dataReceived(self, data: bytes) -> None:
        """Prove or refuse."""
        if self.guard.refusal is not None:
            self.guard.refusal.data_received(len(data))
        elif data == b"secret":
            self.over_cap = not self.guard.prove("somebody")
        else:
            self.guard.refuse()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Leave."""
        self.guard.lost()


class GateFactory(GuardedFactory[GateProtocol]):
    """Makes them."""

    prefix = "gate"

    def make(self, host: str) -> GateProtocol:
        """One more."""
        return GateProtocol(self, host)


class GateTests(SynchronousTestCase):
    """One server's gate on a clock that the test moves."""

    def setUp(self) -> None:
        """A server with room for two verified connections and ten strangers."""
        self.clock = Clock()
        self.counters = Counters()
        limits = AdmissionLimits(unverified=10, unverified_per_address=4, connections=2, per_user=2)
        self.factory = GateFactory(self.clock, limits, REFUSAL_TIME, self.counters)

    def connect(self, host: str = "192.0.2.1") -> tuple[MemoryTransport, GateProtocol]:
        """A connection that was let in."""
        protocol = self.factory.buildProtocol(IPv4Address("TCP", host, 40000))
        transport = MemoryTransport(host)
        transport.connect(protocol)
        return transport, cast(GateProtocol, protocol)

    def counted(self, name: str) -> int:
        """A counter of this gate."""
        return dict(self.counters.snapshot()).get(f"gate.{name}", 0)

    def test_silence_and_a_wrong_word_end_alike(self) -> None:
        """Both get a FIN at the same time after they came, and not a byte."""
        silent, _ = self.connect()
        wrong, _ = self.connect()
        self.clock.advance(20)
        wrong.receive(b"guess")
        self.clock.advance(REFUSAL_TIME - 20.1)
        self.assertEqual((silent.fin, wrong.fin), (False, False))
        self.clock.advance(0.2)
        self.assertEqual((silent.fin, wrong.fin), (True, True))
        self.assertEqual((silent.written, wrong.written), ([], []))
        self.assertEqual((self.counted("refused.silence"), self.counted("refused.before_proof")), (1, 1))

    def test_an_early_end_changes_nothing(self) -> None:
        """A stranger that sends its FIN gets ours at the usual time."""
        transport, protocol = self.connect()
        protocol.guard.read_ended()
        self.clock.advance(REFUSAL_TIME - 0.1)
        self.assertFalse(transport.fin)
        self.clock.advance(0.2)
        self.assertTrue(transport.fin)

    def test_proof_stops_the_clock(self) -> None:
        """A verified connection may stay; after something wrong its time counts from then."""
        transport, protocol = self.connect()
        transport.receive(b"secret")
        self.assertIn(protocol, self.factory.verified)
        self.clock.advance(10 * REFUSAL_TIME)
        self.assertFalse(transport.fin)
        transport.receive(b"nonsense")
        self.clock.advance(REFUSAL_TIME - 0.1)
        self.assertFalse(transport.fin)
        self.clock.advance(0.2)
        self.assertTrue(transport.fin)
        self.assertEqual(self.counted("refused.after_proof"), 1)

    def test_books(self) -> None:
        """Whoever leaves is counted out, once, whatever it was."""
        stranger, _ = self.connect()
        member, protocol = self.connect()
        member.receive(b"secret")
        self.assertEqual((len(self.factory.connections), self.factory.admission.verified), (2, 1))
        stranger.lose()
        member.lose()
        protocol.guard.lost()
        self.assertEqual((self.factory.connections, self.factory.verified), (set(), set()))
        self.assertEqual((self.factory.admission.verified, self.factory.admission.unverified), (0, 0))

    def test_cap_of_verified_connections(self) -> None:
        """Over the cap a proof is right but gets no place, and takes none."""
        for _ in range(2):
            transport, _ = self.connect()
            transport.receive(b"secret")
        third, protocol = self.connect()
        third.receive(b"secret")
        self.assertTrue(protocol.over_cap)
        self.assertNotIn(protocol, self.factory.verified)
        self.assertEqual(self.counted("limit.verified"), 1)
        third.lose()
        self.assertEqual(self.factory.admission.verified, 2)

    def test_strangers_over_the_cap(self) -> None:
        """The fifth stranger of an address is shown out with a FIN before it is listened to."""
        for _ in range(4):
            self.connect()
        self.clock.advance(5)
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 40000))
        self.assertIsInstance(protocol, TurnedAway)
        self.assertEqual((len(self.factory.connections), self.counted("limit.unverified")), (4, 1))

    def test_proof_is_told_to_the_transport(self) -> None:
        """A transport that keeps less for unauthenticated peers hears of the proof, through filters too, and only then."""
        self.assertTrue(IAuthenticatingFactory.providedBy(self.factory))
        factory = FilterFactory(self.factory, Filter)
        self.assertTrue(IAuthenticatingFactory.providedBy(factory))
        self.assertFalse(IAuthenticatingFactory.providedBy(FilterFactory(Factory(), Filter)))
        transport = GuardedTransport()
        transport.connect(factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 40000)))
        self.assertEqual(transport.told, 0)
        transport.receive(b"secret")
        self.assertEqual(transport.told, 1)


@implementer(IGuardedTransport)
class GuardedTransport(MemoryTransport):
    """One that counts what it is told."""

    told = 0

    def peer_authenticated(self) -> None:
        """Count."""
        self.told += 1
