"""The ``mikanet`` command and its subcommands.

A subcommand is a module with a class ``Options`` (a :class:`mikanet.service.options.Options`) and a function
``run(options)`` that returns the exit status. It is imported when it is called for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from mikanet import __version__

#: Each subcommand: its name, its module, and what it does.
COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("demo", "mikanet.cli.demo", "a server and a client on this machine, and a measured download through them"),
    ("genkey", "mikanet.cli.genkey", "print a new 256-bit secret"),
    ("passwd", "mikanet.cli.passwd", "print the line that lets a user into a Pickaxe server"),
    ("keygen", "mikanet.cli.keygen", "make the keys of a server, and what its clients need of them"),
    ("status", "mikanet.cli.status", "what running servers and clients have counted"),
    ("ping", "mikanet.cli.ping", "whether the server of a paqet client answers, how fast, and in which dialect"),
    ("dump", "mikanet.cli.dump", "what a paqet link carries: segments, frames and messages, captured or from a file"),
    ("doctor", "mikanet.cli.doctor", "what is wrong with a paqet or DNS set-up, and the command that mends it"),
    ("kcptun-server", "mikanet.cli.kcptun_server", "our KCP and smux as the server of kcptun clients"),
    ("kcptun-client", "mikanet.cli.kcptun_client", "our KCP and smux as the client of a kcptun server"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage_text())
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(f"mikanet {__version__}")
        raise SystemExit(0)
    for name, module_name, _ in COMMANDS:
        if name == words[0]:
            module = import_module(module_name)
            options = module.Options()
            options.parseOptions(words[1:])
            raise SystemExit(module.run(options))
    raise SystemExit(f"mikanet: unknown command {words[0]!r}; mikanet --help lists them")


def usage_text() -> str:
    """What ``mikanet --help`` prints."""
    width = max(len(name) for name, _, _ in COMMANDS)
    lines = ["usage: mikanet COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<{width}}  {text}" for name, _, text in COMMANDS]
    lines += ["", "mikanet COMMAND --help says more. Servers and clients run under twistd: twistd --help lists them."]
    return "\n".join(lines)
