"""A UDP flow's far end: datagrams that cannot be sent are lost, and nothing else is."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

from twisted.internet import error, reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from mikanet.address import Address
from mikanet.egress import Egress, EgressPolicy, parse_rule
from mikanet.guard.targets import Place, TargetLimits, Targets
from mikanet.udp_target import UdpTarget


class _Collector(DatagramProtocol):
    """Notes datagrams."""

    def __init__(self) -> None:
        self.first: Deferred[bytes] = Deferred()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Tell of the first."""
        if not self.first.called:
            self.first.callback(datagram)


class LostDatagramTests(TestCase):
    """A real socket on loopback."""

    async def test_too_long_for_the_path(self) -> None:
        """A datagram that the socket refuses is lost; the flow goes on with the next."""
        collector = _Collector()
        port = cast(Any, reactor).listenUDP(0, collector, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        egress = Egress(reactor, EgressPolicy((parse_rule("127.0.0.1/32"),), (), frozenset(), lambda ip: False))
        target = UdpTarget(reactor, egress, lambda datagram: None, lambda: None)
        self.addCleanup(target.close)
        target.open(Address("127.0.0.1", port.getHost().port))
        while target._port is None:
            await _turn()

        sent = target._port.write

        def refuse(data: bytes) -> None:
            target._port.write = sent
            raise error.MessageLengthError("message too long")

        target._port.write = refuse
        target.send(b"x" * 1000)
        target.send(b"next")
        self.assertEqual(await collector.first, b"next")


class FlowTests(TestCase):
    """Real sockets on loopback, and what the network says about them."""

    def target(self, failed: list[bool]) -> UdpTarget:
        """A target that may be on loopback."""
        egress = Egress(reactor, EgressPolicy((parse_rule("127.0.0.1/32"),), (), frozenset(), lambda ip: False))
        target = UdpTarget(reactor, egress, self.got.append, lambda: failed.append(True))
        self.addCleanup(target.close)
        return target

    def setUp(self) -> None:
        """Nothing has come."""
        self.got: list[bytes] = []

    async def test_refused_for_a_while(self) -> None:
        """A target whose port is closed and then open is heard: what the network reports of it does not end the flow."""
        first = cast(Any, reactor).listenUDP(0, _Collector(), interface="127.0.0.1")
        number = first.getHost().port
        await first.stopListening()
        failed: list[bool] = []
        target = self.target(failed)
        target.open(Address("127.0.0.1", number))
        for _ in range(5):
            target.send(b"nobody hears this")
            await _turn()
        port = cast(Any, reactor).listenUDP(number, _Echo(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        target.send(b"somebody hears this")
        while not self.got:
            await _turn()
        self.assertEqual((self.got, failed), ([b"somebody hears this"], []))

    async def test_empty_datagrams(self) -> None:
        """They pass both ways; what cannot carry them drops them."""
        port = cast(Any, reactor).listenUDP(0, _Echo(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        target = self.target([])
        target.open(Address("127.0.0.1", port.getHost().port))
        for datagram in (b"one", b"", b"three"):
            target.send(datagram)
        while len(self.got) < 3:
            await _turn()
        self.assertEqual(self.got, [b"one", b"", b"three"])

    async def test_after_the_end(self) -> None:
        """A datagram for a flow that has ended is dropped."""
        target = self.target([])
        target.open(Address("127.0.0.1", 9))
        target.close()
        for _ in range(3):
            target.send(b"late")
            await _turn()
        self.assertEqual(target._held, [])

    async def test_names_that_are_none(self) -> None:
        """A flow to a name that cannot be one fails at once, without a look-up."""
        for name in ("a..example", "a" * 64 + ".example", "\u00df" * 64 + ".example"):
            failed: list[bool] = []
            self.target(failed).open(Address(name, 53))
            await _turn()
            self.assertEqual(failed, [True], name)


class _Echo(DatagramProtocol):
    """Sends back what comes."""

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Back."""
        cast(Any, self.transport).write(datagram, addr)


def _turn() -> Deferred[None]:
    """The reactor's next turn."""
    done: Deferred[None] = Deferred()
    cast(Any, reactor).callLater(0.01, done.callback, None)
    return done


class _Names:
    """Stands for an egress that finds these addresses."""

    def __init__(self, *texts: str) -> None:
        self._found = [ip_address(text) for text in texts]
        self.waiting: Deferred[Any] | None = None

    def take(self, user: object) -> Place | None:
        """There is always room."""
        return Targets(TargetLimits(1, 1)).take(user)

    def find(self, destination: Address, user: object = None) -> Deferred[Any]:
        """All of them; without any, no answer."""
        if not self._found:
            self.waiting = Deferred()
            return self.waiting
        return succeed(list(self._found))


class AddressTests(TestCase):
    """Names with several addresses, on loopback."""

    def target(self, names: _Names, failed: list[str] | None = None) -> tuple[UdpTarget, list[bytes]]:
        """A target and what it delivers."""
        got: list[bytes] = []
        ended = failed if failed is not None else []
        target = UdpTarget(reactor, cast(Any, names), got.append, lambda: ended.append("failed"))
        self.addCleanup(target.close)
        return target, got

    async def test_next_address(self) -> None:
        """An address to which there is no way, and one where nobody listens, lose nothing: the next one gets it."""
        collector = _Collector()
        port = cast(Any, reactor).listenUDP(0, collector, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        target, _ = self.target(_Names("255.255.255.255", "127.0.0.66", "127.0.0.1"))
        target.open(Address("several.example", port.getHost().port))
        target.send(b"hello")
        self.assertEqual(await collector.first, b"hello")

    async def test_no_address_is_left(self) -> None:
        """If there is a way to none of them the flow fails, once."""
        failed: list[str] = []
        target, _ = self.target(_Names("255.255.255.255"), failed)
        target.open(Address("one.example", 9))
        target.send(b"hello")
        self.assertEqual(failed, ["failed"])

    async def test_closed_while_looking(self) -> None:
        """The look-up ends with the flow, and nothing is opened any more."""
        failed: list[str] = []
        names = _Names()
        target, _ = self.target(names, failed)
        target.open(Address("slow.example", 9))
        target.close()
        assert names.waiting is not None
        self.assertTrue(names.waiting.called)
        self.assertEqual(failed, [])
