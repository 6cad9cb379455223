"""Carriers over TCP through somebody's proxy: ``socks5://proxy:1080/host:8865`` and ``connect://proxy:3128/host:8865``.

The server behind it listens with ``tcp://``. A proxy that wants a password gets the user of the URL (``user@proxy``) and
the first line of the file named by ``?password-file=``.
"""

from __future__ import annotations

from mikanet.address import Address, parse_address
from mikanet.carriers.base import OPEN_TIMEOUT
from mikanet.carriers.tcp import DEFAULT_PORT, StreamClientCarrier
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import ConfigError, LocalProtocolError
from mikanet.filters.connect_client import ConnectClientEndpoint
from mikanet.filters.socks_client import Socks5ClientEndpoint
from mikanet.interfaces import IClientCarrier
from mikanet.net.endpoint import TcpEndpoint

#: The ports of proxies that are named without one.
PROXY_PORTS = {"socks5": 1080, "connect": 3128}

_EXAMPLES = {"socks5": "socks5://proxy:1080/host:8865", "connect": "connect://proxy:3128/host:8865"}
_KINDS = {"socks5": Socks5ClientEndpoint, "connect": ConnectClientEndpoint}


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """A carrier through a proxy."""
    url.reject_unknown("password-file")
    example = _EXAMPLES[url.scheme]
    if not url.host:
        raise ConfigError(f"carrier {url.text!r}: write it as {example}")
    destination = _destination(url, example)
    password = None
    if "password-file" in url.options:
        assert context.read_password is not None
        password = context.read_password(url.options["password-file"]).decode("utf-8", "replace")
    if (password is None) != (url.user is None):
        raise ConfigError(f"carrier {url.text!r}: a user (user@proxy) and ?password-file=FILE go together")
    proxy = TcpEndpoint(context.reactor, Address(url.host, url.port or PROXY_PORTS[url.scheme]), OPEN_TIMEOUT)
    try:
        endpoint = _KINDS[url.scheme](
            proxy, destination, url.user, password, clock=context.reactor, timeout=OPEN_TIMEOUT
        )
    except LocalProtocolError as error:
        raise ConfigError(f"carrier {url.text!r}: {error}") from None
    return StreamClientCarrier(url.text, endpoint)


def _destination(url: CarrierUrl, example: str) -> Address:
    text = url.path.removeprefix("/").removesuffix("/")
    try:
        bare = text.endswith("]") or ":" not in text
        return parse_address(f"{text}:{DEFAULT_PORT}" if bare and text else text)
    except ConfigError as error:
        raise ConfigError(f"carrier {url.text!r}: {error}; write it as {example}") from None
