"""A UDP flow's far end: datagrams that cannot be sent are lost, and nothing else is."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import error, reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from mikanet.address import Address
from mikanet.egress import Egress, EgressPolicy, parse_rule
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
