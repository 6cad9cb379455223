"""``mikanet kcptun-server``: our KCP and smux as a kcptun server (its peer runs with ``--nocomp``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from twisted.internet.interfaces import IStreamServerEndpoint

from mikanet.address import Address, parse_address
from mikanet.cli.kcptun_common import KcptunOptions, serve
from mikanet.endpoint_strings import server_from_string
from mikanet.errors import ConfigError
from mikanet.kcp.endpoints import KcpServerEndpoint
from mikanet.net.endpoint import TcpEndpoint
from mikanet.service.program import program_reactor
from mikanet.smux.forward import SmuxServerFactory


class Options(KcptunOptions):
    """Options of ``mikanet kcptun-server``."""

    command = "mikanet kcptun-server"
    longdesc = "Takes kcptun clients and forwards their streams to one target."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["listen", None, None, "endpoint, such as kcp:29900:block=aes:key-file=FILE:dshard=10:pshard=3"],
        ["target", None, None, "HOST:PORT that streams are forwarded to"],
    ]

    target: Address

    def check(self) -> None:
        """See :meth:`Options.check`."""
        super().check()
        self.required("listen")
        self.target = parse_address(self.required("target"))

    def endpoint(self, reactor: Any) -> IStreamServerEndpoint:
        """The endpoint to listen on."""
        try:
            made = server_from_string(reactor, self["listen"])
        except (ValueError, TypeError) as problem:
            raise ConfigError(f"--listen {self['listen']}: {problem}") from None
        return made.with_proof() if isinstance(made, KcpServerEndpoint) else made


def run(options: Options, reactor: Any = None) -> int:
    """Serve until stopped."""
    reactor = program_reactor(reactor)
    try:
        endpoint = options.endpoint(reactor)
    except ConfigError as problem:
        raise SystemExit(f"{options.command}: {problem}") from None
    target = TcpEndpoint(reactor, options.target)
    return serve(reactor, lambda: endpoint.listen(SmuxServerFactory(options.smux, reactor, target)))
