"""``mikanet status``: what the services that run now have counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from mikanet.service.counters_socket import read_all, readable_dirs, runtime_dir
from mikanet.service.options import Options as BaseOptions


class Options(BaseOptions):
    """Options of ``mikanet status``."""

    command = "mikanet status"
    longdesc = "Shows the counters of your running servers and clients: connections, refusals by reason, bytes, limits."
    optFlags: ClassVar[list[list[Any]]] = [["json", None, "one JSON object a line instead of a table"]]


def run(options: Options) -> int:
    """Print them; 1 if nothing runs."""
    services = [each for folder in readable_dirs() for each in read_all(folder)]
    if options["json"]:
        for service in services:
            print(json.dumps(service))
    elif services:
        print("\n".join(table(services)))
    else:
        print(f"no running service has a socket in {runtime_dir()}; those of other users have theirs elsewhere")
    return 0 if services else 1


def table(services: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of a table, a block for each service."""
    lines: list[str] = []
    for service in services:
        lines.append(_printable(f"{service['service']} (process {service['pid']})"))
        counters = service["counters"]
        width = max(map(len, counters), default=0)
        lines += [_printable(f"  {name:<{width}}  {value:>12,}") for name, value in sorted(counters.items())]
        if not counters:
            lines.append("  nothing counted yet")
    return lines


def _printable(line: str) -> str:
    """A service of another user may say anything: nothing of it is to steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)
