"""The command line of ``twistd mika-server``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.errors import ConfigError
from mikanet.mika.options import MikaOptions, warn_of_profile
from mikanet.mika.service import MikaServerSettings, make_server
from mikanet.service.options import ServerOptions, server_endpoint
from mikanet.service.program import program_reactor, start_program


class Options(ServerOptions, MikaOptions):
    """Options of the server."""

    command = "mika-server"
    has_users = False
    synopsis = "[options] --listen ENDPOINT --password-file FILE"
    example = "mikanet mika-server --listen tcp:8388 --password-file password"
    longdesc = "The server of a private way out: it opens what its clients ask for, as far as its egress rules permit."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["listen", None, None, "where clients connect, as tcp:8388 or obfs-http:tcp\\:8388 (required)"],
    ]

    settings: MikaServerSettings

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        listen = self.required("listen")
        endpoint = server_endpoint(reactor, "listen", listen)
        limits = self.limits()
        drain_time = self.number("drain-time", 0, 3600, float)
        keys = self.derive_keys()
        state = self.state_folder(listen)
        self.settings = MikaServerSettings(
            listen=listen,
            endpoint=endpoint,
            keys=keys,
            policy=self.egress_policy(reactor),
            limits=limits,
            state=state,
            refusal_time=self.refusal_time(state),
            budget=self.budget(reactor),
            drain_time=drain_time,
            log_destinations=bool(self["verbose"]),
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    warn_of_profile(options.settings.keys.profile)
    try:
        return make_server(reactor, options.settings)
    except ConfigError as error:
        raise SystemExit(f"{options.command}: {error}") from None
