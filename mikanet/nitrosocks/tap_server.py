"""The command line of ``twistd nitrosocks-server``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.application.service import IService

from mikanet.egress import Egress
from mikanet.errors import ConfigError
from mikanet.nitrosocks.options import parse_binding, parse_cipher, parse_realm, read_realm, refuse_tls_in_tls
from mikanet.nitrosocks.protocol import NitroServerConfig
from mikanet.nitrosocks.service import NitroServerSettings, make_server
from mikanet.nitrosocks.tls_options import ServerTls
from mikanet.service.options import ServerOptions, server_endpoint
from mikanet.service.program import program_reactor, start_program
from mikanet.service.secret_files import read_private_file


class Options(ServerOptions):
    """Options of the server."""

    command = "nitrosocks-server"
    synopsis = "[options] --listen ENDPOINT --certificate PEM --public-key PEM --tokens FILE"
    example = (
        "mikanet nitrosocks-server --listen tcp:443 --certificate cert.pem --public-key keys/server.pub"
        " --tokens keys/tokens"
    )
    longdesc = (
        "The server of a tunnel inside TLS that stays private when TLS is intercepted. "
        "SIGHUP loads certificate and tokens anew and ends the sessions of tokens that are gone."
    )

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["listen", None, None, "where clients connect, as tcp:443 (required)"],
        ["certificate", None, None, "PEM file with private key, certificate and those above it (required)"],
        ["public-key", None, None, "public half of the key pair, as server.pub (required; mikanet keygen nitrosocks)"],
        ["tokens", None, None, "file with lines of a name and a token (required)"],
        ["cipher", None, "aes-256-gcm", "what packets are sealed with: aes-256-gcm or aes-128-gcm"],
        ["tls-binding", None, "off", "require: refuse to work through an interceptor of TLS (both ends must say so)"],
    ]
    optFlags: ClassVar[Sequence[Sequence[object]]] = [
        ["wait-first", None, "say nothing inside TLS before the client has"],
    ]

    settings: NitroServerSettings

    def __init__(self) -> None:
        super().__init__()
        self.realms: dict[str, tuple[str, str]] = {}

    def opt_realm(self, realm: str) -> None:
        """NAME=PUBLIC-KEY,TOKENS: other keys for clients that ask for this server name; repeatable."""
        name, public_key, tokens = parse_realm(realm)
        if name in self.realms:
            raise ConfigError(f"--realm {name} is given twice")
        self.realms[name] = (public_key, tokens)

    def check(self) -> None:
        """See :meth:`Options.check`."""
        reactor = program_reactor()
        listen = self.required("listen")
        refuse_tls_in_tls("--listen", listen, "tcp:443", "the certificate comes with --certificate")
        endpoint = server_endpoint(reactor, "listen", listen)
        certificate = self.required("certificate")
        tls = ServerTls(read_private_file(certificate), certificate)
        files = {"": (self.required("public-key"), self.required("tokens")), **self.realms}
        insecure_ok = bool(self["insecure-ok"])
        realms = {name: read_realm(name, *both, insecure_ok) for name, both in files.items()}
        limits = self.limits()
        drain_time = self.number("drain-time", 0, 3600, float)
        cipher, binding = parse_cipher(self["cipher"]), parse_binding(self["tls-binding"])
        state = self.state_folder(listen)
        config = NitroServerConfig(
            realms=realms,
            egress=Egress(reactor, self.egress_policy(reactor), verbose=bool(self["verbose"])),
            refusal_time=self.refusal_time(state),
            limits=limits,
            budget=self.budget(reactor),
            encrypt_type=cipher,
            wait_first=bool(self["wait-first"]),
            binding=binding,
        )
        self.settings = NitroServerSettings(
            listen=listen,
            endpoint=endpoint,
            tls=tls,
            certificate=certificate,
            config=config,
            token_files={name: tokens for name, (_, tokens) in files.items()},
            drain_time=drain_time,
            insecure_ok=insecure_ok,
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """The service that twistd runs."""
    reactor = start_program(options.command, reactor)
    return make_server(reactor, options.settings)
