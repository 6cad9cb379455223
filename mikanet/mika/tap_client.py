"""The command line of ``twistd mika-client``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService, Service
from twisted.internet.interfaces import IStreamClientEndpoint

from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.mika.client import MikaClientConfig, MikaTunnel
from mikanet.mika.health import ServerHealth
from mikanet.mika.options import MikaOptions, warn_of_profile
from mikanet.mika.session import Keys, Profile
from mikanet.service.doors import FrontDoors, make_client
from mikanet.service.options import ClientOptions, client_endpoint
from mikanet.service.program import program_reactor, start_program


class Options(ClientOptions, MikaOptions):
    """Options of the client."""

    command = "mika-client"
    synopsis = "[options] --server ENDPOINT --password-file FILE --socks ENDPOINT ..."
    example = (
        "mikanet mika-client --server tcp:SERVER:8388 --password-file password --socks tcp:1080:interface=127.0.0.1"
    )
    longdesc = "The client of a private way out: it listens for applications, and takes them out at the server."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        [
            "server",
            None,
            None,
            "the server, as tcp:HOST:8388, host:NAME:8388 or obfs-http:tcp\\:HOST\\:8388 (required)",
        ],
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["iv-printable", None, "begin each connection with six printable bytes"],
    ]

    server: IStreamClientEndpoint
    front: FrontDoors
    derived: Keys

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        self.server = client_endpoint(reactor, "server", self.required("server"))
        self.front = FrontDoors.from_options(reactor, self)
        if self.front.udp_forwards and self.profile() is Profile.GO:
            raise ConfigError("--forward-udp does not go with --profile go: the original program carries no datagrams")
        self.derived = self.derive_keys()


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    warn_of_profile(options.derived.profile)
    counters = Counters()
    config = MikaClientConfig(
        options.derived,
        counters,
        printable_iv=bool(options["iv-printable"]),
        log_destinations=bool(options["verbose"]),
    )
    tunnel = MikaTunnel(reactor, options.server, config, options["server"])
    service = make_client(reactor, tunnel, options.front, counters)
    _HealthService(tunnel.health).setServiceParent(service)  # type: ignore[no-untyped-call]  # untyped in Twisted
    return service


class _HealthService(Service):
    """Asks the server at the start whether it lets us in."""

    def __init__(self, health: ServerHealth) -> None:
        self._health = health

    def startService(self) -> None:
        """Ask."""
        super().startService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._health.start()

    def stopService(self) -> None:
        """Ask no more."""
        super().stopService()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._health.stop()
