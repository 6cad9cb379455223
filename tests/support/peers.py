"""Real peer programs for tests: finding them, and what happens when one is missing."""

from __future__ import annotations

import os
import shutil
from unittest import SkipTest


def missing(what: str) -> SkipTest | AssertionError:
    """What to raise when a test cannot run because ``what`` is not here.

    A skip with the reason; a failure when ``MIKANET_REQUIRE_PEERS=1``, so that nothing passes by being absent.
    """
    if os.environ.get("MIKANET_REQUIRE_PEERS") == "1":
        return AssertionError(f"{what} is required here (MIKANET_REQUIRE_PEERS=1) and missing")
    return SkipTest(f"needs {what}")


def require_program(name: str) -> str:
    """The path of a peer program.

    :raises SkipTest: if it is not installed (AssertionError when peers are required).
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise missing(f"the program {name}")
    return path


def require_root() -> None:
    """Raise unless the test runs as root, which raw sockets and network namespaces need."""
    if os.geteuid() != 0:
        raise missing("root")
