"""Endpoint strings, with IPv6 addresses as everybody writes them, and queues that bursts of connections fit into."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from mikanet.address import parse_ip

_BRACKETS = re.compile(r"(?<=[:=])\[([0-9A-Fa-f:.]+)\](?=:|$)")

#: Connections that may wait to be accepted, where the user says nothing. Twisted's 50 makes a burst of 1,000 wait for the kernel's
#: retries of one and three seconds; the kernel takes at most its ``net.core.somaxconn``, 4,096 on most machines.
BACKLOG = 1024
#: What listens, and the positional arguments up to its backlog.
_LISTENS = {"tcp": 3, "tcp4": 3, "tcp6": 3, "ssl": 6, "unix": 3}
_SEPARATOR = re.compile(r"(?<!\\):")


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
    """As Twisted's ``serverFromString``, with IPv6 addresses in brackets as well, and :data:`BACKLOG`."""
    found: IStreamServerEndpoint = serverFromString(reactor, with_backlog(escape_brackets(text)))
    return found


def with_backlog(text: str) -> str:
    """An endpoint string that says how many connections may wait to be accepted, where that can be said and is not."""
    kind, *arguments = _SEPARATOR.split(text)
    most = _LISTENS.get(kind)
    if most is None or any(argument.startswith("backlog=") for argument in arguments):
        return text
    if sum("=" not in argument for argument in arguments) >= most:
        return text  # by its place
    return f"{text}:backlog={BACKLOG}"
