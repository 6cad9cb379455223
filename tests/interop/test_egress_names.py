"""Names that the system's own resolver reads as inner addresses: octal, hexadecimal, short forms."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from mikanet.address import Address
from mikanet.egress import Egress, EgressPolicy
from mikanet.errors import MikanetError
from tests.test_egress import HOSTILE, HOSTILE_NAMES


class HostileNameTests(TestCase):
    """Real resolution, real reactor, a real listener that nobody may reach."""

    timeout = 120

    @inlineCallbacks
    def test_nothing_inside_is_reached(self) -> Any:
        """Of 200 hostile targets none is reached, though a server listens on every inner address (X4)."""
        reached: list[object] = []

        class Trap(Protocol):
            def connectionMade(self) -> None:
                reached.append(self.transport.getHost())

        port = global_reactor.listenTCP(0, Factory.forProtocol(Trap), interface="0.0.0.0")
        self.addCleanup(port.stopListening)
        egress = Egress(global_reactor, EgressPolicy(), timeout=2)
        targets = [*HOSTILE, *HOSTILE_NAMES]
        self.assertGreater(len(targets), 199)
        for host in targets:
            try:
                yield egress.connect(Address(host, port.getHost().port), Factory.forProtocol(Protocol))
            except MikanetError:
                continue
            except Exception as error:  # noqa: BLE001 - a resolver may refuse a form in its own way
                self.assertIn("DNSLookupError", type(error).__name__, host)
            else:
                self.fail(f"{host} was reached")
        self.assertEqual(reached, [])
