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
        lines.append(_printable(f"{service['service']} (process {service['pid']}){_summary(service)}"))
        counters = service["counters"]
        width = max(map(len, counters), default=0)
        lines += [_printable(f"  {name:<{width}}  {value:>12,}") for name, value in sorted(counters.items())]
        if not counters:
            lines.append("  nothing counted yet")
    return lines


def _summary(service: Mapping[str, Any]) -> str:
    """How long it has been running, how many connections there are, and what was carried."""
    said = []
    if "uptime" in service:
        said.append(f"up {format_time(int(service['uptime']))}")
    if "connections" in service:
        said.append(f"{int(service['connections']):,} connections")
    if "bytes_up" in service:
        said.append(f"{format_bytes(int(service['bytes_up']))} up")
        said.append(f"{format_bytes(int(service['bytes_down']))} down")
    return f": {', '.join(said)}" if said else ""


def format_time(seconds: int) -> str:
    """Seconds in the two largest units that they fill."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        if seconds >= size or (name == "s" and not parts):
            parts.append(f"{seconds // size} {name}")
            seconds %= size
    return " ".join(parts[:2])


def format_bytes(count: float) -> str:
    """Bytes with three digits and a unit of a power of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def _printable(line: str) -> str:
    """A service of another user may say anything: nothing of it is to steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)
