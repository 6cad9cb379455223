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

from mikanet.cli.main import COMMANDS, PROGRAMS
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
    """The units for systemd of the how-tos."""

    def setUp(self) -> None:
        """Read them."""
        self.units: dict[str, dict[str, str]] = {}
        for file in (DOCS / "howto" / "units").glob("*.service"):
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
            self.units[file.stem] = dict(line.split("=", 1) for line in lines if "=" in line)

    def test_every_program_has_one(self) -> None:
        """Servers and clients of all systems, and of kcptun; each is on the page that offers them."""
        programs = {name for name, _ in PROGRAMS} | {"kcptun-server", "kcptun-client"}
        self.assertEqual(set(self.units), programs)
        page = (DOCS / "howto" / "units.rst").read_text(encoding="utf-8")
        for name in programs:
            self.assertIn(f"<units/{name}.service>", page)

    def test_command_lines(self) -> None:
        """Each runs its program with options that the program takes."""
        programs = all_programs()
        for name, unit in self.units.items():
            path, command, *words = shlex.split(unit["ExecStart"])
            self.assertEqual((path, command), ("/usr/local/lib/mikanet/bin/mikanet", name))
            options = programs.get(name) or programs[f"mikanet {name}"]
            for word in words:
                if word.startswith("--"):
                    self.assertIn(word.removeprefix("--"), taken_options(options), name)

    def test_time_to_drain(self) -> None:
        """systemd waits longer than the programs drain."""
        for name, unit in self.units.items():
            self.assertGreater(float(unit["TimeoutStopSec"]), float(tap_server.Options().defaults["drain-time"]), name)

    def test_reload(self) -> None:
        """A unit has a reload where SIGHUP loads something anew."""
        reloading = {name for name, unit in self.units.items() if "ExecReload" in unit}
        self.assertEqual(reloading, {"nitrosocks-server", "megaki-server"})

    def test_hardening(self) -> None:
        """The units have what the security page leans on (X9)."""
        for name, unit in self.units.items():
            self.assertEqual(unit["NoNewPrivileges"], "yes", name)
            self.assertEqual(unit["ProtectSystem"], "strict", name)
            self.assertEqual(unit["LimitNOFILE"], "65536", name)
            self.assertEqual(f"/var/lib/{unit['StateDirectory']}", unit["WorkingDirectory"], name)
            self.assertEqual(unit["User"], "mikanet", name)
            # Where root's mikanet status looks, and which does not go with the first of them that ends.
            self.assertEqual((unit["RuntimeDirectory"], unit["RuntimeDirectoryPreserve"]), ("mikanet", "yes"), name)


class ExampleTests(SynchronousTestCase):
    """The example program."""

    def test_it_compiles(self) -> None:
        """The program in the how-to is Python that imports."""
        sys.path.insert(0, str(DOCS / "howto"))
        self.addCleanup(sys.path.remove, str(DOCS / "howto"))
        self.addCleanup(sys.modules.pop, "from_twisted", None)
        self.assertTrue(callable(import_module("from_twisted").main))
