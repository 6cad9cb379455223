"""Endpoint strings, with IPv6 addresses as everybody writes them."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from mikanet.address import parse_ip

_BRACKETS = re.compile(r"(?<=[:=])\[([0-9A-Fa-f:.]+)\](?=:|$)")


def escape_brackets(text: str) -> str:
    """An endpoint string whose IPv6 addresses in brackets, as ``tcp:[::1]:443``, have the form that Twisted understands."""
    return _BRACKETS.sub(
        lambda found: found[1].replace(":", "\\:") if parse_ip(found[1]) is not None else found[0], text
    )


def client_from_string(reactor: Any, text: str) -> IStreamClientEndpoint:
    """As Twisted's ``clientFromString``, with IPv6 addresses in brackets as well."""
    found: IStreamClientEndpoint = clientFromString(reactor, escape_brackets(text))
    return found


def server_from_string(reactor: Any, text: str) -> IStreamServerEndpoint:
    """As Twisted's ``serverFromString``, with IPv6 addresses in brackets as well."""
    found: IStreamServerEndpoint = serverFromString(reactor, escape_brackets(text))
    return found
