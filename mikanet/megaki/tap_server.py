"""The command line of ``twistd megaki-server``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.logger import Logger

from mikanet.crypto import rsa_oaep
from mikanet.errors import ConfigError
from mikanet.megaki.arcangelo import WorkerCommand, parse_variable, parse_worker
from mikanet.megaki.bank import GROUP_SHARE
from mikanet.megaki.harness import PoolSettings
from mikanet.megaki.service import MegakiServerSettings, make_server
from mikanet.service.options import ServerOptions, server_endpoint
from mikanet.service.program import program_reactor, start_program
from mikanet.service.secret_files import read_private_file, read_secret

_log = Logger()


class Options(ServerOptions):
    """Options of the server."""

    command = "megaki-server"
    has_users = False
    synopsis = "[options] --listen ENDPOINT --key FILE --worker php:FILE"
    example = "mikanet megaki-server --listen tcp:6363 --key keys/server-private.pem --worker php:worker.php"
    longdesc = (
        "The server of a request and response protocol with a pinned key. Requests are answered by a pool of workers. "
        "SIGHUP loads the workers' script anew; SIGUSR2 logs figures."
    )

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["listen", None, None, "where clients connect, as tcp:6363 (required)"],
        ["key", None, None, "private key in PEM, as server-private.pem (required; mikanet keygen megaki makes one)"],
        ["passphrase-file", None, None, "file whose first line is the key's passphrase"],
        ["worker", None, None, "php:FILE, python:FILE or exec:COMMAND (required)"],
        ["workers", None, "4", "worker processes"],
        ["worker-uid", None, None, "user id that workers run as; needs root"],
        ["worker-memory", None, "256", "MiB of address space of a worker; 0 for no limit"],
        ["syn-rate", None, "5", "handshakes a second of one network (/24 or /48), bursts of 50; 0 for no limit"],
        ["resume-rate", None, "50", "resumptions a second of one network, bursts of 500; 0 for no limit"],
        ["request-time", None, "10", "seconds that a worker may take, then it is killed"],
        ["max-requests", None, "1000", "requests after which a worker is replaced"],
        ["queue", None, "64", "requests that may wait for a worker"],
        ["queue-time", None, "10", "seconds that they may wait"],
        ["slow-time", None, "1", "seconds from which a request is logged as slow"],
        ["start-time", None, "10", "seconds that a worker may take to load its script, then it is killed"],
        ["idle-time", None, "60", "seconds that a session may say nothing"],
    ]

    settings: MegakiServerSettings

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[str, str] = {}

    def opt_worker_env(self, variable: str) -> None:
        """NAME=VALUE: a variable of the workers' environment; NAME alone: as it is in the server's; repeatable."""
        name, value = parse_variable(variable)
        self.variables[name] = value

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        listen = self.required("listen")
        if self["max-per-user"] is None:
            self["max-per-user"] = str(max(1, self.number("max-connections", 1, 10_000_000) // GROUP_SHARE))
        endpoint = server_endpoint(reactor, "listen", listen)
        key = self._key()
        worker = self._worker()
        state = self.state_folder(listen)
        self.settings = MegakiServerSettings(
            listen=listen,
            endpoint=endpoint,
            key=key,
            worker=worker,
            pool=PoolSettings(
                size=self.number("workers", 1, 1000),
                deadline=self.number("request-time", 0.1, 3600, float),
                queue_length=self.number("queue", 0, 100_000),
                queue_time=self.number("queue-time", 0.1, 3600, float),
                max_requests=self.number("max-requests", 1, 10**9),
                slow_time=self.number("slow-time", 0.001, 3600, float),
                start_time=self.number("start-time", 0.1, 3600, float),
            ),
            limits=self.limits(),
            refusal_time=self.refusal_time(state),
            memory=self.number("memory", 1, 1024 * 1024) * 1024 * 1024,
            drain_time=self.number("drain-time", 0, 3600, float),
            idle_time=self.number("idle-time", 1, 86400, float),
            syn_rate=self.number("syn-rate", 0, 1_000_000, float),
            resume_rate=self.number("resume-rate", 0, 1_000_000, float),
            verbose=bool(self["verbose"]),
        )

    def opt_allow_egress(self, rule: str) -> None:
        """Refused: this server opens no connections, and what its workers may reach is their user's matter."""
        raise _no_egress(rule)

    # Not the same method by two names: Twisted's help does not bear that.
    def opt_deny_egress(self, rule: str) -> None:
        """Refused, as --allow-egress."""
        raise _no_egress(rule)

    def _key(self) -> rsa_oaep.PrivateKey:
        path = self.required("key")
        passphrase = None
        if self["passphrase-file"]:
            # The passphrase of a key that exists is not ours to judge.
            passphrase = read_secret(self["passphrase-file"], insecure_ok=True)
        return rsa_oaep.load_private(read_private_file(path), path, passphrase)

    def _worker(self) -> WorkerCommand:
        uid = None
        if self["worker-uid"] is not None:
            uid = self.number("worker-uid", 0, 2**32 - 2)
            if os.geteuid() not in (0, uid):
                raise ConfigError("--worker-uid needs a server that runs as root")
        memory = self.number("worker-memory", 0, 1024 * 1024) * 1024 * 1024
        return parse_worker(self.required("worker"), uid, memory, self.variables)


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    if os.geteuid() == 0 and options.settings.worker.uid is None:
        _log.warn("workers run as root: --worker-uid gives them a user of their own")
    return make_server(reactor, options.settings)


def _no_egress(rule: str) -> ConfigError:
    return ConfigError(f"this server opens no connections, so that it has no use for the egress rule {rule}")
