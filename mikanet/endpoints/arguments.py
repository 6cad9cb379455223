"""Arguments of endpoint strings that more than one prefix has."""

from __future__ import annotations

from collections.abc import Mapping

from mikanet.errors import ConfigError

_YES_NO = {"yes": True, "no": False}


def yes_no(name: str, value: str) -> bool:
    """A switch.

    :raises ConfigError: if it is neither ``yes`` nor ``no``.
    """
    if value not in _YES_NO:
        raise ConfigError(f"{name} is yes or no, not {value!r}")
    return _YES_NO[value]


def no_more(prefix: str, options: Mapping[str, str]) -> None:
    """Nothing may be left when all known arguments were taken.

    :raises ConfigError: naming the first unknown argument.
    """
    if options:
        raise ConfigError(f"{prefix}: knows no argument {next(iter(options))!r}")
