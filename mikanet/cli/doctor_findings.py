"""What ``mikanet doctor`` finds, and how it is shown. No I/O."""

from __future__ import annotations

import enum
import json
import textwrap
from collections.abc import Iterator
from typing import NamedTuple, TextIO

_WIDTH = 118
_CHECK_WIDTH = 16


class Status(enum.Enum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


class Finding(NamedTuple):
    """One line of the table.

    :ivar check: what was looked at. :ivar text: what was seen.
    :ivar mend: the command, or the line of the file, that mends it.
    """

    status: Status
    check: str
    text: str
    mend: str = ""


def ok(check: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(Status.OK, check, text)


def note(check: str, text: str, mend: str = "") -> Finding:
    """Nothing that must be done."""
    return Finding(Status.NOTE, check, text, mend)


def problem(check: str, text: str, mend: str) -> Finding:
    """Something that keeps the link from working."""
    return Finding(Status.PROBLEM, check, text, mend)


def show_json(findings: Iterator[Finding], out: TextIO) -> int:
    """Print findings as they come, a JSON object a line with ``status``, ``check``, ``text`` and ``fix``."""
    problems = 0
    for finding in findings:
        problems += finding.status is Status.PROBLEM
        row = {"status": finding.status.name.lower(), "check": finding.check, "text": finding.text, "fix": finding.mend}
        out.write(json.dumps(row) + "\n")
        out.flush()
    return problems


def show(findings: Iterator[Finding], out: TextIO) -> int:
    """Print findings as they come; how many problems there were."""
    problems = 0
    for finding in findings:
        problems += finding.status is Status.PROBLEM
        indent = " " * (2 + 9 + _CHECK_WIDTH)
        first = f"  {finding.status.value:<9}{finding.check:<{_CHECK_WIDTH}}"
        out.write(textwrap.fill(finding.text, _WIDTH, initial_indent=first, subsequent_indent=indent) + "\n")
        for line in finding.mend.splitlines():
            out.write(f"{indent}  {line}\n")  # never wrapped: it is there to be copied
        out.flush()
    return problems
