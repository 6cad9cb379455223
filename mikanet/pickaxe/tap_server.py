"""The command line of ``twistd pickaxe-server``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.address import parse_ip
from mikanet.carriers.urls import server_carrier
from mikanet.counters import Counters
from mikanet.egress import Egress
from mikanet.errors import ConfigError
from mikanet.pickaxe.listening import ListenPolicy, parse_port_range
from mikanet.pickaxe.login import Throttle
from mikanet.pickaxe.options import PickaxeOptions
from mikanet.pickaxe.server import PickaxeServerConfig
from mikanet.pickaxe.service import PickaxeServerSettings, make_server
from mikanet.pickaxe.users import parse_users
from mikanet.service.options import ServerOptions
from mikanet.service.program import program_reactor, start_program
from mikanet.service.secret_files import read_private_file


class Options(ServerOptions, PickaxeOptions):
    """Options of the server."""

    command = "pickaxe-server"
    synopsis = "[options] --users FILE --carrier URL ..."
    example = "mikanet pickaxe-server --users users --carrier tcp://0.0.0.0:8865 --carrier http://0.0.0.0:8080/tunnel"
    longdesc = "The server of sessions that outlive their carriers: it opens what its users ask for."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["users", None, None, "file of users, as mikanet passwd prints them (required)"],
        ["listen-address", None, "127.0.0.1", "where ports that clients ask for are opened"],
        ["decoy", None, None, "folder that the web site of an http:// carrier serves to everybody"],
        [
            "throttle",
            None,
            "network",
            "whose logins are limited: a user's from one network, or a user's from everywhere",
        ],
        ["login-response", None, "full", "form of the login response: full, or table as the document's table has it"],
    ]

    settings: PickaxeServerSettings

    def __init__(self) -> None:
        ServerOptions.__init__(self)
        self.carrier_urls: list[str] = []
        self.listen_ranges: list[tuple[int, int]] = []

    def opt_allow_listen(self, ports: str) -> None:
        """PORT[-PORT] on which clients may listen; repeatable, none without it."""
        try:
            self.listen_ranges.append(parse_port_range(ports))
        except ConfigError as error:
            raise ConfigError(f"--allow-listen: {error}") from None

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        counters = Counters()
        kdf = self.kdf()
        file = self.required("users")
        users = parse_users(file, read_private_file(file), kdf)
        limits = self.limits()
        drain_time = self.number("drain-time", 0, 3600, float)
        if not self.carrier_urls:
            raise ConfigError("--carrier is missing")
        if parse_ip(self["listen-address"]) is None:
            raise ConfigError(f"--listen-address takes an IP address, not {self['listen-address']!r}")
        if self["decoy"] and not Path(self["decoy"]).is_dir():
            raise ConfigError(f"--decoy {self['decoy']!r} is no folder")
        try:
            throttle = Throttle(self["throttle"])
        except ValueError:
            raise ConfigError(f"--throttle is network or name, not {self['throttle']!r}") from None
        if self["login-response"] not in ("full", "table"):
            raise ConfigError(f"--login-response is full or table, not {self['login-response']!r}")
        keep_session = self.keep_session()
        where = " ".join(self.carrier_urls)
        state = self.state_folder(where)
        context = self.carrier_context(
            reactor,
            counters,
            limits=limits,
            refusal_time=self.refusal_time(state),
            decoy=self["decoy"],
            open_replays=lambda name: state.open_replays(time.time(), name)[0],
        )
        config = PickaxeServerConfig(
            users=users.get,
            egress=Egress(reactor, self.egress_policy(reactor), verbose=bool(self["verbose"])),
            listen=ListenPolicy(tuple(self.listen_ranges), self["listen-address"]),
            limits=limits,
            budget=self.budget(reactor),
            counters=counters,
            kdf=kdf,
            throttle=throttle,
            table_response=self["login-response"] == "table",
            keep_session=keep_session,
        )
        self.settings = PickaxeServerSettings(self.check_carriers(server_carrier, context), config, drain_time)


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    return make_server(reactor, options.settings)
