"""Sphinx settings: Sphinx, the theme of the extra ``docs``, and nothing that needs a network."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

from mikanet import __version__  # noqa: E402 - after the path above

project = "mikanet"
version = release = __version__
extensions = ["changelog"]
exclude_patterns = ["_build", "changes"]
html_theme = "furo"
html_title = f"mikanet {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
html_show_copyright = False
smartquotes = False
highlight_language = "none"
