"""The reference pages say what the programs take: neither more nor less."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.plugin import IPlugin
from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.main import COMMANDS
from mikanet.mika import tap_client, tap_server
from mikanet.service.options import Options

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def documented_options() -> dict[str, set[str]]:
    """The options in docs/reference/options.rst for each program."""
    found: dict[str, set[str]] = {}
    program = ""
    for line in (DOCS / "reference" / "options.rst").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\.\. program:: (.+)", line):
            program = match[1]
        elif match := re.match(r"\.\. option:: --([a-z-]+)", line):
            found.setdefault(program, set()).add(match[1])
    return found


def taken_options(options: type[Options]) -> set[str]:
    """The options that a program takes."""
    return {name.rstrip("=") for name in options().longOpt}


def plugins() -> list[Any]:
    """What the plugin module shows to Twisted."""
    module = import_module("twisted.plugins.mikanet_plugins")
    return [value for value in vars(module).values() if IPlugin.providedBy(value)]


def all_programs() -> dict[str, type[Options]]:
    """The options of every program, by its name."""
    programs: dict[str, type[Options]] = {
        plugin.tapname: import_module(plugin.module).Options for plugin in plugins() if hasattr(plugin, "tapname")
    }
    return programs | {f"mikanet {name}": import_module(module).Options for name, module, _ in COMMANDS}


class OptionTests(SynchronousTestCase):
    """The page of options."""

    def test_every_program_has_help(self) -> None:
        """``--help`` names each option."""
        for name, options in all_programs().items():
            shown = str(options())
            for option in taken_options(options):
                self.assertIn(f"--{option}", shown, name)

    def test_every_option_is_documented(self) -> None:
        """Each program's options are those of its section."""
        programs = all_programs()
        documented = documented_options()
        self.assertEqual(set(documented), set(programs))
        for name, options in programs.items():
            self.assertEqual(documented[name], taken_options(options), name)

    def test_defaults(self) -> None:
        """A default that a program has is named in the text of its option."""
        text = (DOCS / "reference" / "options.rst").read_text(encoding="utf-8")
        for options in (tap_server.Options, tap_client.Options):
            section = text.partition(f".. program:: {options.command}\n")[2].partition(".. program::")[0]
            for name, default in options().defaults.items():
                if isinstance(default, str):
                    paragraph = section.partition(f".. option:: --{name}")[2].partition("..")[0]
                    self.assertRegex(paragraph, rf"[Dd]efault\W+{re.escape(default)}\b", f"{options.command} {name}")


class EndpointTests(SynchronousTestCase):
    """The page of endpoint strings."""

    def test_every_prefix_is_documented(self) -> None:
        """The page has a section for each endpoint parser, with the sides that it has."""
        text = (DOCS / "reference" / "endpoints.rst").read_text(encoding="utf-8")
        documented = set(re.findall(r"^([a-z0-9-]+): (client and server|client|server)\n-+$", text, re.MULTILINE))
        existing = set()
        for plugin in plugins():
            sides = [side for side in ("Client", "Server") if hasattr(plugin, f"parseStream{side}")]
            if sides:
                existing.add((plugin.prefix, " and ".join(sides).lower()))
        self.assertEqual(documented, existing)

    def test_quoting(self) -> None:
        """The nested strings of the how-tos are what quoting gives."""
        from mikanet.endpoints import quote

        text = (DOCS / "howto" / "chaining.rst").read_text(encoding="utf-8")
        inner = f"socks5:FIRST:8388:server={quote('tcp:127.0.0.1:9050')}"
        self.assertIn(f"server={quote(inner)}'", text)
        self.assertIn(f"server={quote('tcp:FIRST:8388')}:", text)


class UnitFileTests(SynchronousTestCase):
    """The systemd unit of the how-to."""

    def setUp(self) -> None:
        """Read it."""
        lines = (DOCS / "howto" / "mika-server.service").read_text(encoding="utf-8").splitlines()
        self.unit = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def test_time_to_drain(self) -> None:
        """systemd waits longer than the server drains."""
        self.assertGreater(float(self.unit["TimeoutStopSec"]), float(tap_server.Options().defaults["drain-time"]))

    def test_hardening(self) -> None:
        """The unit has what the security page leans on (X9)."""
        self.assertEqual(self.unit["NoNewPrivileges"], "yes")
        self.assertEqual(self.unit["ProtectSystem"], "strict")
        self.assertEqual(self.unit["LimitNOFILE"], "65536")
        self.assertEqual(f"/var/lib/{self.unit['StateDirectory']}", self.unit["WorkingDirectory"])

    def test_command_line(self) -> None:
        """The server takes the options of the unit."""
        words = shlex.split(self.unit["ExecStart"])
        arguments = words[words.index("mika-server") + 1 :]
        names = [word.removeprefix("--") for word in arguments if word.startswith("--")]
        self.assertLessEqual(set(names), taken_options(tap_server.Options))
        self.assertIn(self.unit["WorkingDirectory"], arguments)


class ExampleTests(SynchronousTestCase):
    """The example program."""

    def test_it_compiles(self) -> None:
        """The program in the how-to is Python that imports."""
        sys.path.insert(0, str(DOCS / "howto"))
        self.addCleanup(sys.path.remove, str(DOCS / "howto"))
        self.addCleanup(sys.modules.pop, "from_twisted", None)
        self.assertTrue(callable(import_module("from_twisted").main))
