"""Endpoint string parsers: every tunnel and link of this package for ``clientFromString`` and ``serverFromString``.

Strings are those of ``docs/reference/endpoints.rst``. The inner endpoint of a wrapping one is its first argument,
quoted as :func:`quote` does it.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

from mikanet.address import Address, parse_port
from mikanet.dial import TcpEndpoint
from mikanet.errors import ConfigError
from mikanet.filters.obfs_http import obfs_http_client, obfs_http_server
from mikanet.filters.socks_client import Socks5ClientEndpoint
from mikanet.kcp.endpoints import parse_kcp_client, parse_kcp_server
from mikanet.mika.client import MikaClientConfig, MikaTunnel
from mikanet.mika.session import Profile, derive_keys
from mikanet.service.secret_files import read_credentials, read_secret

_YES_NO = {"yes": True, "no": False}


def quote(argument: str) -> str:
    """``argument`` so that it can stand in an endpoint string: backslash, colon and equals sign are escaped."""
    return argument.replace("\\", "\\\\").replace(":", "\\:").replace("=", "\\=")


def _yes_no(name: str, value: str) -> bool:
    if value not in _YES_NO:
        raise ConfigError(f"{name} is yes or no, not {value!r}")
    return _YES_NO[value]


def _profile(value: str) -> Profile:
    try:
        return Profile(value)
    except ValueError:
        raise ConfigError(f"unknown profile {value!r}: use spec or go") from None


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class HostParser:
    """``host:HOST:PORT[:timeout=30]``: TCP with happy eyeballs over all addresses of a name."""

    prefix = "host"

    def parseStreamClient(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, host: str, port: str, timeout: str = "30"
    ) -> IStreamClientEndpoint:
        """A client endpoint."""
        try:
            seconds = float(timeout)
        except ValueError:
            raise ConfigError(f"timeout is a number of seconds, not {timeout!r}") from None
        return TcpEndpoint(reactor, Address(host, parse_port(port)), seconds)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class Socks5Parser:
    """``socks5:HOST:PORT:server=ENDPOINT[:credentials-file=FILE]``: TCP through a SOCKS5 proxy.

    The first line of the file is ``user:password``.
    """

    prefix = "socks5"

    def parseStreamClient(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, host: str, port: str, server: str, **options: str
    ) -> IStreamClientEndpoint:
        """A client endpoint."""
        file = options.pop("credentials-file", None)
        _no_more(self.prefix, options)
        user = password = None
        if file is not None:
            user, password = next(iter(read_credentials(file).items()))
        proxy = clientFromString(reactor, server)
        return cast(IStreamClientEndpoint, Socks5ClientEndpoint(proxy, Address(host, parse_port(port)), user, password))


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class MikaParser:
    """``mika:HOST:PORT:server=ENDPOINT:password-file=FILE[:profile=spec][:method=aes-256-cfb][:insecure-ok=no]``.

    TCP to HOST and PORT through a Mika server. Keys are derived once per server, password and profile.
    """

    prefix = "mika"

    def __init__(self) -> None:
        self._tunnels: dict[tuple[object, ...], MikaTunnel] = {}

    def parseStreamClient(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, host: str, port: str, server: str, **options: str
    ) -> IStreamClientEndpoint:
        """A client endpoint."""
        file = options.pop("password-file", None)
        if file is None:
            raise ConfigError("mika: needs password-file=FILE")
        profile = _profile(options.pop("profile", "spec"))
        method = options.pop("method", "aes-256-cfb")
        insecure_ok = _yes_no("insecure-ok", options.pop("insecure-ok", "no"))
        _no_more(self.prefix, options)
        password = read_secret(file, insecure_ok)
        key = (reactor, server, password, profile, method)
        tunnel = self._tunnels.get(key)
        if tunnel is None:
            config = MikaClientConfig(derive_keys(password, profile, method))
            tunnel = self._tunnels[key] = MikaTunnel(reactor, clientFromString(reactor, server), config, server)
        return tunnel.stream_endpoint(Address(host, parse_port(port)))


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor, IStreamServerEndpointStringParser)
class ObfsHttpParser:
    """``obfs-http:ENDPOINT[:url=http\\://www.example.com/]``: an HTTP head in front of each direction."""

    prefix = "obfs-http"

    def parseStreamClient(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, endpoint: str = "", *rest: str, url: str = "http://www.example.com/", **options: str
    ) -> IStreamClientEndpoint:
        """A client endpoint."""
        self._check(endpoint, rest, "obfs-http:tcp\\:HOST\\:8388")
        _no_more(self.prefix, options)
        return obfs_http_client(clientFromString(reactor, endpoint), url)

    def parseStreamServer(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, endpoint: str = "", *rest: str, **options: str
    ) -> IStreamServerEndpoint:
        """A server endpoint."""
        self._check(endpoint, rest, "obfs-http:tcp\\:8388")
        _no_more(self.prefix, options)
        return obfs_http_server(serverFromString(reactor, endpoint))

    @staticmethod
    def _check(endpoint: str, rest: tuple[str, ...], example: str) -> None:
        if not endpoint or rest:
            raise ConfigError(f"obfs-http: takes one endpoint, with its colons escaped: {example}")


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor, IStreamServerEndpointStringParser)
class KcpParser:
    """``kcp:HOST:PORT[:...]`` and ``kcp:PORT[:interface=ADDRESS][:...]``: a byte stream over KCP over UDP.

    Without more arguments it is the link of Mika's original; with them, the outer layers of kcptun.
    """

    prefix = "kcp"

    def parseStreamClient(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, host: str, port: str, **options: str
    ) -> IStreamClientEndpoint:
        """A client endpoint."""
        return parse_kcp_client(reactor, host, port, **options)

    def parseStreamServer(  # type: ignore[override]  # arguments are those of the string
        self, reactor: Any, port: str, interface: str = "", **options: str
    ) -> IStreamServerEndpoint:
        """A server endpoint."""
        return parse_kcp_server(reactor, port, interface, **options)


def _no_more(prefix: str, options: dict[str, str]) -> None:
    if options:
        raise ConfigError(f"{prefix}: knows no argument {next(iter(options))!r}")
