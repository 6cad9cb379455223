"""Carrier URLs: what a user writes to name a way that packets can take, on either end.

``scheme://host:port/path?option=value``. Options never are secrets: those come from files that options name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mikanet.errors import ConfigError
from mikanet.interfaces import IClientCarrier, IServerCarrier

#: Schemes whose path only those know who may use the carrier.
_SECRET_PATHS = frozenset(("ws", "wss", "bosh", "boshs", "http", "https"))


@dataclass(frozen=True)
class CarrierUrl:
    """A carrier URL in its parts.

    :ivar text: as the user wrote it. :ivar host: without brackets. :ivar port: None if not given. :ivar path: from the
        first slash on, percent-decoded nowhere, ``""`` if there is none. :ivar user: the name before ``@``.
    :ivar options: what follows the question mark.
    """

    text: str
    scheme: str
    host: str
    port: int | None
    path: str
    user: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> CarrierUrl:
        """Take a URL apart.

        :raises ConfigError: if it is none, or has a password in it.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as problem:
            raise ConfigError(f"bad carrier URL {text!r}: {problem}") from None
        if not parts.scheme or not parts.netloc:
            raise ConfigError(f"bad carrier URL {text!r}: it must look like tcp://host:port")
        if parts.password is not None:
            raise ConfigError("a carrier URL must not hold a password: write ?password-file=FILE at its end")
        return cls(
            text=text,
            scheme=parts.scheme.lower(),
            host=parts.hostname or "",
            port=port,
            path=parts.path,
            user=None if parts.username is None else unquote(parts.username),
            options=dict(parse_qsl(parts.query, keep_blank_values=True)),
        )

    def reject_unknown(self, *known: str) -> None:
        """Refuse options that this carrier does not have.

        :raises ConfigError: naming the first.
        """
        for name in self.options:
            if name not in known:
                may = f"; it has {', '.join(known)}" if known else "; it has none"
                raise ConfigError(f"carrier {self.text!r} has an unknown option {name!r}{may}")


def shown(name: str) -> str:
    """A carrier's URL as it may be logged: where its path is a secret, no more than scheme, host and port."""
    scheme, separator, rest = name.partition("://")
    return f"{scheme}{separator}{rest.partition('/')[0]}" if scheme.lower() in _SECRET_PATHS else name


@dataclass(frozen=True)
class CarrierContext:
    """What carriers need besides their URL.

    :ivar limits: an :class:`~mikanet.guard.admission.AdmissionLimits`. :ivar decoy: a folder that the web site serves
        beside the tunnel, or None. :ivar counters: a :class:`~mikanet.counters.Counters`. :ivar read_secret: the first line of
        a file that only its owner can read. :ivar read_password: the same, for somebody else's proxy: it may be weak.
    :ivar open_replays: a :class:`~mikanet.crypto.replay.ReplaySet` by its name, which survives a restart.
    """

    reactor: Any
    counters: Any
    limits: Any = None
    refusal_time: float = 75.0
    decoy: str | None = None
    read_secret: Callable[[str], bytes] | None = None
    read_password: Callable[[str], bytes] | None = None
    open_replays: Callable[[str], Any] | None = None


#: For each scheme the module, beside this one, that makes its carriers: it has ``client(url, context)`` and, if servers
#: can listen there, ``server(url, context)``. Modules are imported when they are asked for.
SCHEMES: dict[str, str] = {
    "tcp": "tcp",
    "socks5": "proxied",
    "connect": "proxied",
    "ws": "websocket",
    "wss": "websocket",
    "bosh": "bosh",
    "boshs": "bosh",
    "http": "polling",
    "https": "polling",
    "dns": "dns",
    "icmp": "icmp",
}

#: What answers for a scheme on a server where that is another module: one site serves all that speaks HTTP.
SERVER_SCHEMES: dict[str, str] = {"tcp": "tcp", "http": "site", "https": "site", "dns": "dns", "icmp": "icmp"}


def client_carrier(text: str, context: CarrierContext) -> IClientCarrier:
    """The carrier that a client's URL names.

    :raises ConfigError: if there is none such, or an option is wrong.
    """
    return _make(text, context, SCHEMES, "client")  # type: ignore[no-any-return]


def server_carrier(text: str, context: CarrierContext) -> IServerCarrier:
    """The carrier that a server's URL names.

    :raises ConfigError: if there is none such, or an option is wrong.
    """
    return _make(text, context, SERVER_SCHEMES, "server")  # type: ignore[no-any-return]


def _make(text: str, context: CarrierContext, schemes: Mapping[str, str], side: str) -> Any:
    url = CarrierUrl.parse(text)
    name = schemes.get(url.scheme)
    if name is None:
        raise ConfigError(f"carrier {text!r}: a {side} has no {url.scheme}://, but {', '.join(schemes)}")
    module = import_module(f"mikanet.carriers.{name}")
    make: Callable[[CarrierUrl, CarrierContext], Any] = getattr(module, side)
    return make(url, context)
