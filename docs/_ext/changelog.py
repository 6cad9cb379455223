"""``.. changelog:: FOLDER``: the change fragments of a folder as lists, one for each kind of change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

#: Kinds of fragments, in the order in which they are shown.
KINDS = {
    "feature": "New",
    "bugfix": "Mended",
    "removal": "Removed or changed",
    "doc": "Documentation",
    "misc": "Other",
}


class Changelog(SphinxDirective):
    """Reads ``<slug>.<kind>.rst`` files; a file of another name, but the folder's README, is an error."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The lists."""
        self.env.note_reread()  # a new fragment is a change of no file that Sphinx knows
        folder = Path(self.env.srcdir) / self.arguments[0]
        found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        for file in sorted(folder.glob("*.rst")):
            self.env.note_dependency(str(file))
            kind = file.name.split(".")[-2]
            if kind in found:
                found[kind].append(file)
            elif file.name != "README.rst":
                raise self.error(f"{file.name} is not <slug>.<{'|'.join(KINDS)}>.rst")
        result: list[nodes.Node] = []
        for kind, files in found.items():
            if files:
                result += [nodes.rubric(text=KINDS[kind]), self._list(files)]
        return result

    def _list(self, files: list[Path]) -> nodes.Node:
        bullets = nodes.bullet_list()
        for file in files:
            item = nodes.list_item()
            lines = file.read_text(encoding="utf-8").splitlines()
            self.state.nested_parse(StringList(lines, source=str(file)), 0, item)
            bullets += item
        return bullets


def setup(app: Any) -> dict[str, bool]:
    """For Sphinx."""
    app.add_directive("changelog", Changelog)
    return {"parallel_read_safe": True}
