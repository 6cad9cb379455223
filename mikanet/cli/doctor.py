"""``mikanet doctor``: what is wrong with a set-up, and the command that mends it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, ClassVar

from twisted.python import usage

from mikanet.cli.doctor_findings import Finding, Status, ok, problem, show, show_json
from mikanet.cli.doctor_link import client_findings, server_findings
from mikanet.cli.doctor_machine import Machine, machine_findings
from mikanet.cli.doctor_program import program_findings
from mikanet.cli.words import WordsOptions as BaseOptions
from mikanet.errors import ConfigError
from mikanet.paqet.options import PaqetSetup, load_setup
from mikanet.service.program import program_reactor

#: Programs whose command lines can be looked at.
PROGRAM_NAMES = frozenset(
    f"{system}-{end}" for system in ("mika", "pickaxe", "nitrosocks", "paqet", "megaki") for end in ("server", "client")
)

#: Modules that look at what a URL names, by its scheme. Each has ``findings(url, seconds)``, which gives tuples of
#: status (``ok``, ``note`` or ``PROBLEM``), what was looked at, what was seen, and the command that mends it or "".
URL_CHECKS = {"dns": "mikanet.carriers.dns_check"}


class Options(BaseOptions):
    """Options of ``mikanet doctor``."""

    command = "mikanet doctor"
    synopsis = "[options] PROGRAM ITS-OPTIONS | CONFIG | URL"
    longdesc = (
        "Finds what is wrong with a set-up, and says what puts it right. Write it before the command line of a server or a "
        "client, which is looked at instead of run; or give it a paqet YAML file, or a dns:// carrier's URL."
    )
    example = "mikanet doctor mika-client --server tcp:SERVER:8388 --password-file password --socks tcp:1080"

    optFlags: ClassVar[Sequence[Sequence[object]]] = [["json", None, "one JSON object a line instead of a table"]]
    optParameters: ClassVar[Sequence[Sequence[object]]] = [
        ["seconds", None, "15", "how long to ask a server, or to watch a port"],
    ]

    what = ""
    seconds: float
    program_words: Sequence[str] = ()

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As :meth:`Options.parseOptions`; what follows the name of a program is that program's."""
        words = list(sys.argv[1:] if options is None else options)
        at = next((at for at, word in enumerate(words) if word in PROGRAM_NAMES), len(words))
        self.program_words = words[at + 1 :]
        super().parseOptions(words[: at + 1])

    def parseArgs(self, *words: str) -> None:
        """One file or URL.

        :raises UsageError: for none or more.
        """
        if len(words) != 1:
            raise usage.UsageError(
                "give the command line of a server or a client, a paqet YAML file, or a URL such as dns://192.0.2.53:53/t.example"
            )
        (self.what,) = words

    def check(self) -> None:
        """See :meth:`Options.check`."""
        self.seconds = self.number("seconds", 0.1, 86400, float)
        scheme, separator, _ = self.what.partition("://")
        if separator and scheme not in URL_CHECKS:
            raise ConfigError(
                f"{self.what}: the doctor knows paqet's YAML files and URLs of {', '.join(URL_CHECKS)}://"
            )


def run(options: Options) -> int:
    """Look, and print; the status is 1 if something must be mended."""
    findings = _findings(options)
    if options["json"]:
        return 1 if show_json(findings, sys.stdout) else 0
    print(f"{options.what}:")
    problems = show(findings, sys.stdout)
    print("nothing is wrong" if not problems else f"{problems} to fix, the first one first")
    return 1 if problems else 0


def _findings(options: Options) -> Iterator[Finding]:
    if options.what in PROGRAM_NAMES:
        return program_findings(options.what, options.program_words, options.seconds)
    return url_findings(options) if "://" in options.what else file_findings(options)


def url_findings(options: Options) -> Iterator[Finding]:
    """What the module of the URL's scheme finds."""
    module: Any = import_module(URL_CHECKS[options.what.partition("://")[0]])
    for status, check, text, mend in module.findings(options.what, options.seconds):
        yield Finding(Status(status), check, text, mend)


def file_findings(options: Options) -> Iterator[Finding]:
    """What a paqet file, this machine and the link say; the link is left alone while the machine has a problem."""
    try:
        setup = load_setup(options.what, bool(options["insecure-ok"]))
    except ConfigError as error:
        yield problem("file", str(error), _mend_file(str(error), options.what))
        return
    yield ok("file", _summary(setup))
    problems = 0
    for finding in machine_findings(setup, Machine()):
        problems += finding.status is Status.PROBLEM
        yield finding
    if problems:
        return
    if setup.config.is_server:
        yield from server_findings(setup, options.seconds)
    else:
        yield from client_findings(setup, program_reactor(), options.seconds)


def _summary(setup: PaqetSetup) -> str:
    config = setup.config
    end = f"server on port {config.port}" if config.is_server else f"client of {config.server}"
    fec = f", FEC {config.kcp.data_shards}/{config.kcp.parity_shards}" if setup.link.has_fec else ""
    return f"{end}, carrier {config.carrier}, block {config.kcp.block}{fec}"


def _mend_file(text: str, path: str) -> str:
    """The command that mends a file; its own text says what is wrong."""
    if "chmod" in text:
        return f"chmod 600 {path}"
    if "too easy to guess" in text or "needs a secret" in text:
        return "mikanet genkey   (and write it as transport.kcp.key, at both ends)"
    return f"$EDITOR {path}"
