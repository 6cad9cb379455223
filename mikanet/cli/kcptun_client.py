"""``mikanet kcptun-client``: our KCP and smux as a kcptun client (its peer runs with ``--nocomp``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mikanet.cli.kcptun_common import KcptunOptions, serve
from mikanet.endpoint_strings import client_from_string, server_from_string
from mikanet.errors import ConfigError
from mikanet.service.program import program_reactor
from mikanet.smux.forward import ForwardListenFactory, SmuxDialer


class Options(KcptunOptions):
    """Options of ``mikanet kcptun-client``."""

    command = "mikanet kcptun-client"
    longdesc = "Forwards connections to the target of a kcptun server."

    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["server", None, None, "endpoint, such as kcp:HOST:29900:block=aes:key-file=FILE:dshard=10:pshard=3"],
        ["forward", None, None, "endpoint to take connections on, such as tcp:12948:interface=127.0.0.1"],
    ]

    def check(self) -> None:
        """See :meth:`Options.check`."""
        super().check()
        self.required("server")
        self.required("forward")


def run(options: Options, reactor: Any = None) -> int:
    """Forward until stopped."""
    reactor = program_reactor(reactor)
    try:
        name = "server"
        server = client_from_string(reactor, options[name])
        name = "forward"
        listen = server_from_string(reactor, options[name])
    except (ConfigError, ValueError, TypeError) as problem:
        raise SystemExit(f"{options.command}: --{name} {options[name]}: {problem}") from None
    dialer = SmuxDialer(options.smux, reactor, server)
    return serve(reactor, lambda: listen.listen(ForwardListenFactory(dialer)))
