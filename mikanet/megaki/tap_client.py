"""The command line of ``twistd megaki-client``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.crypto import rsa_oaep
from mikanet.errors import ConfigError
from mikanet.megaki.sazukari import REQUEST_TIME
from mikanet.megaki.service import MegakiClientSettings, make_client
from mikanet.megaki.warm import MAX_SESSIONS, WARM_SESSIONS
from mikanet.service.options import Options as BaseOptions
from mikanet.service.options import client_endpoint, server_endpoint
from mikanet.service.program import program_reactor, start_program


class Options(BaseOptions):
    """Options of the client."""

    command = "megaki-client"
    synopsis = "[options] --server ENDPOINT --server-key FILE --listen-http ENDPOINT"
    example = (
        "mikanet megaki-client --server tcp:SERVER:6363 --server-key keys/server.cert"
        " --listen-http tcp:8080:interface=127.0.0.1"
    )
    longdesc = "An HTTP gateway to a Megaki server: POST a request body, get the response body."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["server", None, None, "the server, as tcp:HOST:6363 (required)"],
        ["server-key", None, None, "its public key, as server.cert or server.pub (required)"],
        ["listen-http", None, None, "where HTTP requests come in, as tcp:8080:interface=127.0.0.1 (required)"],
        ["request-time", None, f"{REQUEST_TIME:g}", "seconds until a request is answered with 504"],
        ["warm-sessions", None, str(WARM_SESSIONS), "sessions kept ready"],
        ["max-sessions", None, str(MAX_SESSIONS), "most sessions at once; more requests wait"],
        ["drain-time", None, "30", "seconds that requests may go on after SIGTERM"],
        ["state-dir", None, None, "folder for what must survive a restart (clients keep nothing yet)"],
    ]

    settings: MegakiClientSettings

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.hosts: list[str] = []

    def opt_allow_host(self, name: str) -> None:
        """A name that HTTP clients know this gateway by; localhost, this machine's own and addresses need none; repeatable."""
        self.hosts.append(name)

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        server, listen = self.required("server"), self.required("listen-http")
        most = self.number("max-sessions", 1, 10_000)
        self.settings = MegakiClientSettings(
            server=client_endpoint(reactor, "server", server),
            server_name=server,
            server_key=self._server_key(),
            listen=server_endpoint(reactor, "listen-http", listen),
            listen_text=listen,
            drain_time=self.number("drain-time", 0, 3600, float),
            request_time=self.number("request-time", 0.1, 3600, float),
            warm=self.number("warm-sessions", 0, most),
            most=most,
            verbose=bool(self["verbose"]),
            hosts=tuple(self.hosts),
        )

    def _server_key(self) -> rsa_oaep.PublicKey:
        path = self.required("server-key")
        try:
            content = Path(path).read_bytes()
        except OSError as problem:
            raise ConfigError(f"cannot read {path}: {problem.strerror or problem}") from None
        return rsa_oaep.load_public(content, path)


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    return make_client(reactor, options.settings)
