"""The command line of ``twistd paqet-server``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.errors import ConfigError
from mikanet.paqet.options import load_setup
from mikanet.paqet.service import PaqetServer, PaqetServerSettings
from mikanet.paqet.tap_common import CONFIG_OPTIONS, wants_firewall
from mikanet.service.options import ServerOptions
from mikanet.service.program import program_reactor, start_program


class Options(ServerOptions):
    """Options of the server."""

    command = "paqet-server"
    has_users = False
    synopsis = "[options] --config FILE"
    example = "mikanet paqet-server --config server.yaml"
    longdesc = "The server of a tunnel in packets that look like TCP, or in UDP. It answers nobody without the key."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        *CONFIG_OPTIONS,
        ["max-sessions", None, "1024", "sessions of clients"],
        ["max-sessions-per-address", None, "64", "sessions of one client address"],
    ]

    settings: PaqetServerSettings

    def __init__(self) -> None:
        super().__init__()
        # What is unverified here is a session, and what a user has are the streams of one.
        for name, value in (("max-unverified", "256"), ("max-per-user", "1024"), ("refusal-time", "5")):
            self[name] = self.defaults[name] = value

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        setup = load_setup(self.required("config"), bool(self["insecure-ok"]))
        if not setup.config.is_server:
            raise ConfigError(f"{setup.path} has the role of a client: start it with paqet-client")
        firewall = wants_firewall(self)
        limits = self.limits()
        probation = float(self.number("refusal-time", 0.1, 3600, float))
        link = replace(
            setup.link,
            patience=replace(setup.link.patience, probation=probation),
            max_sessions=self.number("max-sessions", 1, 1_000_000),
            max_sessions_per_host=self.number("max-sessions-per-address", 1, 1_000_000),
            max_probation=limits.unverified,
            max_probation_per_host=limits.unverified_per_address,
        )
        self.state_folder(f"{setup.config.carrier}:{setup.config.port}")
        self.settings = PaqetServerSettings(
            setup=setup,
            link=link,
            policy=self.egress_policy(reactor, frozenset({setup.config.port})),
            firewall=firewall,
            max_streams=limits.connections,
            max_per_session=limits.per_user,
            budget=self.budget(reactor),
            drain_time=self.number("drain-time", 0, 3600, float),
            log_destinations=bool(self["verbose"]),
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    return PaqetServer(reactor, options.settings)
