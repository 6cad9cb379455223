"""Endpoint strings: every tunnel and link of this package for ``clientFromString`` and ``serverFromString``.

The strings are those of ``docs/reference/endpoints.rst``. The inner endpoint of a wrapping one is its first argument,
quoted as :func:`quote` does it. Each prefix has a module here with ``parse_client`` or ``parse_server``, or both, whose
arguments are those of the string; it is imported when the first such string is met, so that a look at the list of
plugins stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer


def quote(argument: str) -> str:
    """``argument`` so that it can stand in an endpoint string: backslash, colon and equals sign are escaped."""
    return argument.replace("\\", "\\\\").replace(":", "\\:").replace("=", "\\=")


class _Parser:
    """Finds the module of a prefix.

    :param prefix: what strings begin with; the module has its name, with underscores.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def _module(self) -> Any:
        return import_module(f"{__name__}.{self.prefix.replace('-', '_')}")


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class ClientParser(_Parser):
    """A prefix of client endpoints."""

    def parseStreamClient(self, reactor: Any, *arguments: Any, **options: Any) -> IStreamClientEndpoint:
        """A client endpoint."""
        return self._module().parse_client(reactor, *arguments, **options)  # type: ignore[no-any-return]


@implementer(IStreamServerEndpointStringParser)
class ClientAndServerParser(ClientParser):
    """A prefix of client and of server endpoints."""

    def parseStreamServer(self, reactor: Any, *arguments: Any, **options: Any) -> IStreamServerEndpoint:
        """A server endpoint."""
        return self._module().parse_server(reactor, *arguments, **options)  # type: ignore[no-any-return]
