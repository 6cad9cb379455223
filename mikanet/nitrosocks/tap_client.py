"""The command line of ``twistd nitrosocks-client``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.nitrosocks.client import Server
from mikanet.nitrosocks.client_protocol import NitroClientConfig
from mikanet.nitrosocks.options import make_client_config, refuse_tls_in_tls
from mikanet.nitrosocks.service import make_client_service
from mikanet.service.doors import FrontDoors
from mikanet.service.options import ClientOptions, client_endpoint
from mikanet.service.program import program_reactor, start_program


class Options(ClientOptions):
    """Options of the client."""

    command = "nitrosocks-client"
    synopsis = "[options] --server ENDPOINT --server-name NAME --private-key PEM --token-file FILE --socks ENDPOINT ..."
    example = (
        "mikanet nitrosocks-client --server tcp:SERVER:443 --server-name SERVER"
        " --private-key keys/client.key --token-file keys/token --socks tcp:1080:interface=127.0.0.1"
    )
    longdesc = "The client of a tunnel inside TLS: it listens for applications, and takes them out at the server."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["server-name", None, None, "the name in the server's certificate; also tells realms apart (required)"],
        ["private-key", None, None, "private half of the key pair, as client.key (required)"],
        ["token-file", None, None, "file whose first line is the token (required)"],
        ["tls-verify", None, "system", "who may have signed the certificate: system, a PEM file, or off for anybody"],
        ["cipher", None, "aes-256-gcm", "weakest cipher that the server may choose: aes-256-gcm or aes-128-gcm"],
        ["tls-binding", None, "off", "require: refuse to work through an interceptor of TLS (both ends must say so)"],
    ]

    front: FrontDoors
    config: NitroClientConfig

    def __init__(self) -> None:
        super().__init__()
        self.server_texts: list[str] = []
        self.servers: list[Server] = []
        self.counters = Counters()

    def opt_server(self, endpoint: str) -> None:
        """The server, as tcp:HOST:443 (required); repeatable, the others are for when the first does not answer."""
        self.server_texts.append(endpoint)

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        if not self.server_texts:
            raise ConfigError("--server is missing")
        for text in self.server_texts:
            refuse_tls_in_tls("--server", text, "tcp:HOST:443", "its certificate is checked by --tls-verify")
        self.servers = [Server(text, client_endpoint(reactor, "server", text)) for text in self.server_texts]
        self.front = FrontDoors.from_options(reactor, self)
        self.config = make_client_config(
            server_name=self.required("server-name"),
            private_key=self.required("private-key"),
            token_file=self.required("token-file"),
            tls_verify=self["tls-verify"],
            cipher=self["cipher"],
            tls_binding=self["tls-binding"],
            insecure_ok=bool(self["insecure-ok"]),
            counters=self.counters,
            verbose=bool(self["verbose"]),
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    return make_client_service(reactor, options.servers, options.config, options.front, options.counters)
