"""``--help`` of every program and command."""

from __future__ import annotations

import re

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.main import COMMANDS, PROGRAMS
from mikanet.service.help import GROUPS, format_help, group_of


class HelpTests(SynchronousTestCase):
    """What a user reads first."""

    def test_layout(self) -> None:
        """Groups in their order, options of a group by name, defaults, an example."""
        rows = [
            ("listen", True, "where"),
            ("max-things", True, "things at a time"),
            ("odd", False, "odd ways"),
            ("a-name-that-is-longer-than-the-column", True, "text"),
        ]
        text = format_help(
            "mikanet x --listen ENDPOINT", "An x.", "mikanet x --listen tcp:1", rows, {"max-things": "7"}
        )
        self.assertEqual(
            text.splitlines(),
            [
                "usage: mikanet x --listen ENDPOINT",
                "",
                "An x.",
                "",
                "for example:",
                "  mikanet x --listen tcp:1",
                "",
                "needed:",
                "  --listen VALUE                  where",
                "",
                "limits:",
                "  --max-things VALUE              things at a time (default 7)",
                "",
                "advanced:",
                "  --odd                           odd ways",
                "  --a-name-that-is-longer-than-the-column VALUE",
                "                                  text",
            ],
        )

    def test_groups(self) -> None:
        """Limits by the form of their names, the rest by name."""
        self.assertEqual(
            [group_of(name) for name in ("drain-time", "max-users", "socks", "names")],
            [
                "limits",
                "limits",
                "doors for applications",
                "advanced",
            ],
        )
        names = [name for _, group in GROUPS for name in group]
        self.assertEqual(len(names), len(set(names)))

    def test_every_program(self) -> None:
        """An example that names the program, every option explained by itself, nothing twice, nothing said of others."""
        makers = {maker.tapname: maker for maker in getPlugins(IServiceMaker) if maker.module.startswith("mikanet.")}
        self.assertEqual(set(makers), {name for name, _ in PROGRAMS})
        classes = [maker.options for maker in makers.values()]
        classes += [namedAny(f"{module}.Options") for _, module, _ in COMMANDS]
        for options in classes:
            text = str(options())
            if options.command in makers:
                self.assertIn(f"\n  mikanet {options.command} --", text)
            names = re.findall(r"^  --([a-z0-9-]+)", text, re.M)
            self.assertEqual(len(names), len(set(names)), options.command)
            for row in re.split(r"^  --", text, flags=re.M)[1:]:
                explanation = row.partition(" ")[2].replace("VALUE", "").strip()
                self.assertGreater(len(explanation), 5, f"{options.command} --{row}")
                self.assertNotRegex(explanation, r"^(the same|as --|as above)", f"{options.command} --{row}")
