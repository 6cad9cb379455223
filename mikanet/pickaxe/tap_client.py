"""The command line of ``twistd pickaxe-client``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.address import Address, parse_address, parse_port
from mikanet.carriers.urls import client_carrier
from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.interfaces import IClientCarrier
from mikanet.pickaxe.client import PickaxeClient, PickaxeClientConfig
from mikanet.pickaxe.keys import Secret, normal_user
from mikanet.pickaxe.options import PickaxeOptions
from mikanet.pickaxe.policy import Policy
from mikanet.pickaxe.service import make_pickaxe_client
from mikanet.pickaxe.tunnel import Names, PickaxeTunnel
from mikanet.service.doors import FrontDoors
from mikanet.service.options import ClientOptions
from mikanet.service.program import program_reactor, start_program
from mikanet.service.secret_files import read_secret


class Options(ClientOptions, PickaxeOptions):
    """Options of the client."""

    command = "pickaxe-client"
    synopsis = "[options] --user NAME --password-file FILE --carrier URL ... --socks ENDPOINT ..."
    example = (
        "mikanet pickaxe-client --user me --password-file password --carrier tcp://SERVER:8865"
        " --socks tcp:1080:interface=127.0.0.1"
    )
    longdesc = "The client of sessions that outlive their carriers: it goes on when the path under it changes."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["user", None, None, "the name under which the server knows us (required)"],
        ["password-file", None, None, "file whose first line is the password (required)"],
        ["policy", None, "ordered", "which carrier carries the data: ordered, race or spread"],
        ["names", None, "server", "who looks up the names of destinations: server or client"],
    ]

    front: FrontDoors
    carriers: list[IClientCarrier]
    config: PickaxeClientConfig
    names: Names

    def __init__(self) -> None:
        ClientOptions.__init__(self)
        self.carrier_urls: list[str] = []
        self.remote_forwards: list[tuple[int, Address]] = []

    def opt_remote_forward(self, forward: str) -> None:
        """PORT=HOST:PORT: take connections to that port of the server to a destination here; repeatable, 0 is any port."""
        port, equals, destination = forward.partition("=")
        if not equals:
            raise ConfigError(f"--remote-forward {forward!r} is not PORT=HOST:PORT")
        try:
            self.remote_forwards.append((0 if port == "0" else parse_port(port), parse_address(destination)))
        except ConfigError as error:
            raise ConfigError(f"--remote-forward: {error}") from None

    def check_doors(self) -> None:
        """See :meth:`ClientOptions.check_doors`; a forward from the server is a door, too."""
        if self.udp_forwards:
            raise ConfigError("--forward-udp: Pickaxe carries no datagrams")
        if self.remote_forwards and not (self.doors or self.forwards):
            return
        super().check_doors()

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        counters = Counters()
        try:
            user = normal_user(self.required("user"))
        except ConfigError as error:
            raise ConfigError(f"--user: {error}") from None
        file = self.required("password-file")
        kdf = self.kdf()
        try:
            policy = Policy(self["policy"])
        except ValueError:
            raise ConfigError(f"--policy is ordered, race or spread, not {self['policy']!r}") from None
        try:
            self.names = Names(self["names"])
        except ValueError:
            raise ConfigError(f"--names is server or client, not {self['names']!r}") from None
        self.front = FrontDoors.from_options(reactor, self)
        self.carriers = self.check_carriers(client_carrier, self.carrier_context(reactor, counters))
        password = read_secret(file, bool(self["insecure-ok"]))
        self.config = PickaxeClientConfig(
            user=user,
            secret=Secret.of_password(kdf, user, password),
            policy=policy,
            keep_session=self.keep_session(),
            remote_forwards=tuple(self.remote_forwards),
            counters=counters,
            log_destinations=bool(self["verbose"]),
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    client = PickaxeClient(reactor, options.config, options.carriers)
    tunnel = PickaxeTunnel(client, options.names)
    return make_pickaxe_client(reactor, tunnel, options.front, options.config.counters)
