"""Golden vectors: files under ``tests/data``, each of which names the program that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"


def load(name: str) -> Any:
    """The JSON file ``tests/data/<name>``."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))
