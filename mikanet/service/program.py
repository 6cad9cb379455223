"""What every program does with the reactor it runs on."""

from __future__ import annotations

from typing import Any

from mikanet.net.resolve import install_resolver
from mikanet.timing import use_monotonic_clock


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
