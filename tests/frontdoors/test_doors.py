"""Tests of mikanet.frontdoors.doors: the factories that the service layer uses."""

from __future__ import annotations

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocolFactory, IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.address import Address
from mikanet.frontdoors.door import Door
from mikanet.frontdoors.doors import Credentials, DoorSettings, forward_factory, http_factory, socks_factory
from tests.frontdoors.support import FakeTunnel


class FactoryTests(SynchronousTestCase):
    """All doors look alike from outside."""

    def test_contracts(self) -> None:
        """Each factory is one, and its doors can be half-closed, paused and aborted."""
        tunnel, settings = FakeTunnel(), DoorSettings(reactor=Clock())
        destination = Address("192.0.2.1", 80)
        for factory in (
            socks_factory(tunnel, settings),
            http_factory(tunnel, settings),
            forward_factory(tunnel, destination, settings),
        ):
            verifyObject(IProtocolFactory, factory)
            door = factory.buildProtocol(None)
            self.assertIsInstance(door, Door)
            verifyObject(IHalfCloseableProtocol, door)
            verifyObject(IPushProducer, door)

    def test_settings_tell_no_secrets(self) -> None:
        """No password and no user is in the repr of the settings."""
        settings = DoorSettings(reactor=None, credentials=Credentials({"alice": "secret"}))
        self.assertNotIn("secret", repr(settings))
        self.assertNotIn("alice", repr(settings))
