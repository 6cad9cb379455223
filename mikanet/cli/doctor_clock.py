"""``mikanet doctor``: whether it is the clock that keeps a Mika client out.

A Mika server is silent to a header whose time is more than half a minute off, as it is to a wrong password. A header that
pretends to be of another time tells them apart: if one is answered, the password is right, and by how much the clocks differ
is known too.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mikanet.address import Address
from mikanet.cli.doctor_findings import Finding, note, problem
from mikanet.cli.doctor_net import place_of
from mikanet.mika.client import MikaClientConfig
from mikanet.mika.session import Keys
from mikanet.mika.wire import Kind

#: How far off clocks are tried, in seconds: some minutes, and whole hours, as wrong time zones make them. Each is right for
#: half a minute to both sides. Two turns, each below the 32 connections that a server takes from one address.
OFFSETS = (
    tuple(sign * minutes * 60 for minutes in range(1, 9) for sign in (1, -1)),
    tuple(sign * hours * 3600 for hours in range(1, 13) for sign in (1, -1)),
)

#: How long an answer may take, in seconds.
_PATIENCE = 3.0

_UNREACHABLE = Address("::1", 1)


def clock_findings(options: Any) -> Iterator[Finding]:
    """Try other times; options are those of ``mika-client``."""
    place = place_of(str(options["server"]))
    if place is None or place.udp or not str(options["server"]).startswith(("tcp:", "host:")):
        yield note("clock", "cannot be tried over this link", "date   (at both ends: they must agree within 30 s)")
        return
    for offsets in OFFSETS:
        found = _try(options.derived, (place.host, place.port), offsets)
        if found is not None:
            ahead = "behind" if found > 0 else "ahead of"
            text = f"the password is right: this clock is about {_words(abs(found))} {ahead} the server's"
            yield problem("clock", text, "timedatectl set-ntp true   (on the machine whose clock is wrong)")
            return
    yield note("clock", "no other time is answered either: it is the password, --method or --profile")


def _words(seconds: int) -> str:
    if seconds % 3600 == 0:
        return "an hour" if seconds == 3600 else f"{seconds // 3600} hours"
    return "a minute" if seconds == 60 else f"{seconds // 60} minutes"


def _try(keys: Keys, server: tuple[str, int], offsets: Sequence[int]) -> int | None:
    """The offset at which the server knows us; None if it is none of these."""
    waiting: dict[socket.socket, int] = {}
    try:
        for offset in offsets:
            config = MikaClientConfig(keys, wall_clock=lambda offset=offset: time.time() + offset)  # type: ignore[misc]
            connection = socket.create_connection(server, _PATIENCE)
            waiting[connection] = offset
            connection.sendall(config.new_session(Kind.TCP, _UNREACHABLE).open())
        until = time.monotonic() + _PATIENCE
        while waiting and (left := until - time.monotonic()) > 0:
            for connection in select.select(list(waiting), [], [], left)[0]:
                offset = waiting.pop(connection)
                if _was_reset(connection):
                    return offset
    except OSError:
        pass
    finally:
        for connection in waiting:
            connection.close()
    return None


def _was_reset(connection: socket.socket) -> bool:
    with connection:
        try:
            connection.recv(1)
        except ConnectionResetError:
            return True
    return False
