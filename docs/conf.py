"""Sphinx settings: only what comes with Sphinx, and nothing that needs a network."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

from mikanet import __version__  # noqa: E402 - after the path above

project = "mikanet"
version = release = __version__
extensions = ["changelog"]
exclude_patterns = ["_build", "changes"]
html_theme = "alabaster"
html_theme_options = {"description": "Five secure tunnels as one Twisted toolbox", "page_width": "72em"}
html_show_copyright = False
smartquotes = False
highlight_language = "none"
