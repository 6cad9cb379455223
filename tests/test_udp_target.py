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


def _turn() -> Deferred[None]:
    """The reactor's next turn."""
    done: Deferred[None] = Deferred()
    cast(Any, reactor).callLater(0.01, done.callback, None)
    return done
