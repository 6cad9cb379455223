"""What every program does with the reactor it runs on."""

from __future__ import annotations

import os
from typing import Any

from twisted.logger import Logger

from mikanet import __version__
from mikanet.net.resolve import install_resolver
from mikanet.service.listening import raise_file_limit
from mikanet.timing import use_monotonic_clock

_log = Logger()


def start_program(command: str, reactor: Any = None) -> Any:
    """What a program does first: more files, and a line that says what it is; its reactor, as :func:`program_reactor`."""
    raise_file_limit()
    _log.info("mikanet {version}: {command}, process {pid}", version=__version__, command=command, pid=os.getpid())
    return program_reactor(reactor)


def program_reactor(reactor: Any = None) -> Any:
    """The reactor of this process: timers that a step of the wall clock does not touch, look-ups that can be cancelled.

    :param reactor: another one, which is returned as it is; tests pass theirs.
    """
    if reactor is not None:
        return reactor
    from twisted.internet import reactor as installed

    use_monotonic_clock(installed)
    install_resolver(installed)
    return installed
