"""``--help`` of programs and commands: grouped, an explanation for each option, and a line that works."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

#: Titles of groups in their order, with the options that belong there wherever they appear.
GROUPS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "needed",
        frozenset(
            [
                "listen",
                "server",
                "password-file",
                "users",
                "user",
                "carrier",
                "key",
                "worker",
                "certificate",
                "public-key",
                "tokens",
                "server-name",
                "private-key",
                "token-file",
                "server-key",
                "listen-http",
                "config",
                "target",
            ]
        ),
    ),
    ("doors for applications", frozenset(["socks", "http", "forward", "forward-udp", "remote-forward", "proxy-auth"])),
    ("where clients may go", frozenset(["allow-egress", "deny-egress", "allow-listen", "listen-address"])),
    (
        "limits",
        frozenset(["memory", "worker-memory", "syn-rate", "resume-rate", "warm-sessions", "workers", "throttle"]),
    ),
    ("advanced", frozenset()),
    ("about", frozenset(["help", "version"])),
)
_LIMITS, _ADVANCED = GROUPS[3][0], GROUPS[4][0]

#: Widths: of the column of names at the most, and of a line where nothing else is known.
_NAMES, _LINE = 30, 100


def group_of(name: str) -> str:
    """The title of an option's group."""
    for title, names in GROUPS:
        if name in names:
            return title
    return _LIMITS if name.startswith("max-") or name.endswith("-time") else _ADVANCED


def format_help(
    usage: str, about: str, example: str, options: Iterable[tuple[str, bool, str]], defaults: Mapping[str, Any]
) -> str:
    """The whole text.

    :param options: name, whether it takes a value, and what it means. :param defaults: of those that have one.
    """
    width = max(60, min(shutil.get_terminal_size((_LINE, 24)).columns, 120))
    lines = [f"usage: {usage}"]
    if about:
        lines += ["", *textwrap.wrap(about, width)]
    if example:
        lines += ["", "for example:", f"  {example}"]
    by_group: dict[str, list[tuple[str, str]]] = {title: [] for title, _ in GROUPS}
    for name, takes_value, text in options:
        default = defaults.get(name)
        if takes_value and default not in (None, "", False) and "default" not in text:
            text = f"{text} (default {default})"
        by_group[group_of(name)].append((f"--{name}{' VALUE' if takes_value else ''}", text))
    for title, rows in by_group.items():
        if rows:
            lines += ["", f"{title}:"]
            for name, text in rows:
                lines += _row(name, text, width)
    return "\n".join(lines)


def _row(name: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, width - _NAMES - 4) or [""]
    if len(name) > _NAMES:
        return [f"  {name}", *(f"  {'':<{_NAMES}}  {line}" for line in wrapped)]
    first, *rest = wrapped
    return [f"  {name:<{_NAMES}}  {first}".rstrip(), *(f"  {'':<{_NAMES}}  {line}" for line in rest)]
