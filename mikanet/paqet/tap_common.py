"""What the command lines of paqet's server and client share."""

from __future__ import annotations

from collections.abc import Sequence

from mikanet.errors import ConfigError
from mikanet.service.options import Options

FIREWALL_OPTION: Sequence[object] = [
    "firewall",
    None,
    "auto",
    "auto: keep the kernel from answering raw packets; off: that is done already",
]
CONFIG_OPTIONS: Sequence[Sequence[object]] = [
    ["config", None, None, "paqet's YAML file (required)"],
    FIREWALL_OPTION,
]


def wants_firewall(options: Options) -> bool:
    """Whether rules are to be installed.

    :raises ConfigError: for another word.
    """
    word = options["firewall"]
    if word not in ("auto", "off"):
        raise ConfigError(f"--firewall is auto or off, not {word!r}")
    return bool(word == "auto")
