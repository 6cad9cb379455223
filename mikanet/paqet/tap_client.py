"""The command line of ``twistd paqet-client``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint

from mikanet.address import Address
from mikanet.endpoint_strings import BACKLOG
from mikanet.errors import ConfigError
from mikanet.frontdoors.credentials import Credentials
from mikanet.paqet.config import PaqetConfig
from mikanet.paqet.options import PaqetSetup, load_setup
from mikanet.paqet.service import PaqetClient
from mikanet.paqet.tap_common import CONFIG_OPTIONS, wants_firewall
from mikanet.service.doors import FrontDoors
from mikanet.service.options import ClientOptions
from mikanet.service.program import program_reactor, start_program
from mikanet.service.secret_files import read_credentials


class Options(ClientOptions):
    """Options of the client."""

    command = "paqet-client"
    synopsis = "[options] --config FILE"
    example = "mikanet paqet-client --config client.yaml"
    longdesc = (
        "The client of a tunnel in packets that look like TCP, or in UDP. Doors of the file and of options add up."
    )

    optParameters: ClassVar[Sequence[Sequence[object]]] = [*CONFIG_OPTIONS]

    setup: PaqetSetup
    front: FrontDoors
    firewall: bool

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        self.setup = load_setup(self.required("config"), bool(self["insecure-ok"]))
        if self.setup.config.is_server:
            raise ConfigError(f"{self.setup.path} has the role of a server: start it with paqet-server")
        self.firewall = wants_firewall(self)
        self.front = add_doors(reactor, FrontDoors.from_options(reactor, self), self.setup.config)

    def check_doors(self) -> None:
        """As :meth:`ClientOptions.check_doors`; the file may have doors too."""
        if not (self.setup.config.doors or self.setup.config.forwards):
            super().check_doors()
        elif self["proxy-auth"]:
            self.credentials = read_credentials(self["proxy-auth"])


def add_doors(reactor: Any, front: FrontDoors, config: PaqetConfig) -> FrontDoors:
    """The doors of the file behind those of the options."""
    doors = tuple(
        (
            "socks",
            str(door.listen),
            _listen(reactor, door.listen),
            Credentials({door.username: door.password}) if door.username or door.password else None,
        )
        for door in config.doors
    )
    forwards = tuple(
        (str(each.listen), _listen(reactor, each.listen), each.target) for each in config.forwards if not each.udp
    )
    udp_forwards = tuple((each.listen, each.target) for each in config.forwards if each.udp)
    return replace(
        front,
        own_doors=front.own_doors + doors,
        forwards=front.forwards + forwards,
        udp_forwards=front.udp_forwards + udp_forwards,
    )


def _listen(reactor: Any, where: Address) -> IStreamServerEndpoint:
    make = TCP6ServerEndpoint if ":" in where.host else TCP4ServerEndpoint
    return make(reactor, where.port, backlog=BACKLOG, interface=where.host)


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    return PaqetClient(reactor, options.setup, options.front, options.firewall, bool(options["verbose"]))
