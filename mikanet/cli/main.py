"""The ``mikanet`` command and its subcommands.

A subcommand is a module with a class ``Options`` (a :class:`mikanet.service.options.Options`) and a function
``run(options)`` that returns the exit status. It is imported when it is called for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from twisted.python.usage import UsageError

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
    ("doctor", "mikanet.cli.doctor", "what is wrong with a set-up of any server or client, and what puts it right"),
    ("speedtest", "mikanet.cli.speedtest", "how fast a tunnel is: latency, down, up, loss, through any client"),
    ("kcptun-server", "mikanet.cli.kcptun_server", "our KCP and smux as the server of kcptun clients"),
    ("kcptun-client", "mikanet.cli.kcptun_client", "our KCP and smux as the client of a kcptun server"),
)


#: Servers and clients. Each is twistd's plugin of that name, in the foreground.
PROGRAMS: tuple[tuple[str, str], ...] = (
    ("mika-server", "Mika: the server of a private way out"),
    ("mika-client", "Mika: the client, with its front doors"),
    ("pickaxe-server", "Pickaxe: sessions that outlive their carriers"),
    ("pickaxe-client", "Pickaxe: the client, with its front doors"),
    ("nitrosocks-server", "NitroSocks: a tunnel inside TLS that may be intercepted"),
    ("nitrosocks-client", "NitroSocks: the client, with its front doors"),
    ("paqet-server", "paqet: a tunnel in packets like TCP's"),
    ("paqet-client", "paqet: the client, with its front doors"),
    ("megaki-server", "Megaki: requests to a pool of workers"),
    ("megaki-client", "Megaki: an HTTP gateway to a server"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its status."""
    try:
        _run(arguments)
    except BrokenPipeError:
        # Who read our output has read enough, as head does; Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _run(arguments: Sequence[str] | None) -> None:
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
    if words[0] in dict(PROGRAMS):
        run_program(words)
        raise SystemExit(0)
    names = [name for name, *_ in (*COMMANDS, *PROGRAMS)]
    near = get_close_matches(words[0], names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SystemExit(f"mikanet: unknown command {words[0]!r}; {hint}mikanet --help lists them")


def run_program(words: Sequence[str]) -> None:
    """Run a server or a client in the foreground, as ``twistd --nodaemon --pidfile=`` does with the same words."""
    from twisted.scripts._twistd_unix import ServerOptions
    from twisted.scripts.twistd import runApp

    config = ServerOptions()
    try:
        config.parseOptions(["--nodaemon", "--pidfile=", *words])
    except UsageError as problem:
        raise SystemExit(f"{words[0]}: {problem}") from None
    runApp(config)


def usage_text() -> str:
    """What ``mikanet --help`` prints."""
    rows = [("servers and clients:", PROGRAMS), ("commands:", [(name, text) for name, _, text in COMMANDS])]
    width = max(len(name) for _, group in rows for name, _ in group)
    lines = ["usage: mikanet COMMAND [OPTIONS]"]
    for title, group in rows:
        lines += ["", title, *(f"  {name:<{width}}  {text}" for name, text in group)]
    lines += [
        "",
        "mikanet COMMAND --help says more. Servers and clients run under twistd as well: twistd --help lists them.",
    ]
    return "\n".join(lines)
