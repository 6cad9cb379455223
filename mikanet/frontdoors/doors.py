"""Front doors: the one place where the service layer gets them from, all with the same few arguments."""

from __future__ import annotations

from mikanet.address import Address
from mikanet.frontdoors.credentials import Credentials
from mikanet.frontdoors.door import DoorFactory, DoorSettings
from mikanet.frontdoors.forward import ForwardDoor, UdpForward
from mikanet.frontdoors.http import HttpDoor
from mikanet.frontdoors.socks import SocksDoor
from mikanet.interfaces import ITunnel

__all__ = [
    "Credentials",
    "DoorFactory",
    "DoorSettings",
    "UdpForward",
    "forward_factory",
    "http_factory",
    "socks_factory",
]


def socks_factory(tunnel: ITunnel, settings: DoorSettings) -> DoorFactory:
    """A SOCKS server: 5 with CONNECT and UDP ASSOCIATE; 4 and 4a too, where no password is needed."""
    return DoorFactory(tunnel, settings, SocksDoor)


def http_factory(tunnel: ITunnel, settings: DoorSettings) -> DoorFactory:
    """An HTTP proxy: CONNECT, and requests for ``http://`` URLs."""
    return DoorFactory(tunnel, settings, HttpDoor)


def forward_factory(tunnel: ITunnel, destination: Address, settings: DoorSettings) -> DoorFactory:
    """A forward: every connection goes to ``destination``. It asks for no password, whatever the settings say."""
    return DoorFactory(tunnel, settings, lambda factory: ForwardDoor(factory, destination))
