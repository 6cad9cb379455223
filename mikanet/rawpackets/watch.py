"""Told by the kernel that something about its network has changed: addresses, interfaces, routes, neighbours. Linux, netlink.

What has changed is not read: whoever is told looks for what it needs, see :mod:`mikanet.rawpackets.routes`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

# <linux/rtnetlink.h>: links, neighbours, addresses and routes of both families.
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400
#: Seconds of quiet that are waited for, as changes come in groups, and the longest wait.
SETTLE_TIME, LONGEST_WAIT = 0.3, 1.0

_log = Logger()


@implementer(IReadDescriptor)
class NetworkWatch:
    """Calls ``changed`` soon after the network has changed, once for all changes of a moment.

    :param open_socket: gives the socket; for tests.
    """

    def __init__(
        self, reactor: Any, changed: Callable[[], object], open_socket: Callable[[], socket.socket] | None = None
    ) -> None:
        self._reactor = reactor
        self._changed = changed
        self._open_socket = open_socket or _netlink_socket
        self._socket: socket.socket | None = None
        self._call: Any = None
        self._latest = 0.0

    def start(self) -> None:
        """Watch. Without netlink there is a line in the log, and nothing is told."""
        try:
            self._socket = self._open_socket()
        except OSError as problem:
            _log.warn(
                "changes of the network will be noticed late: {problem}; a systemd unit must have AF_NETLINK in "
                "RestrictAddressFamilies=",
                problem=problem.strerror or str(problem),
            )
            return
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Watch no more."""
        found, self._socket = self._socket, None
        if found is not None:
            self._reactor.removeReader(self)
            found.close()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def fileno(self) -> int:
        """As IReadDescriptor."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """As IReadDescriptor."""
        return "NetworkWatch"

    def doRead(self) -> None:
        """Something has changed."""
        assert self._socket is not None
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # more than the socket's buffer took: that is a change too
        now = self._reactor.seconds()
        if self._call is None:
            self._latest = now + LONGEST_WAIT
        else:
            self._call.cancel()
        self._call = self._reactor.callLater(max(0.0, min(SETTLE_TIME, self._latest - now)), self._tell)

    def connectionLost(self, reason: Failure) -> None:
        """As IReadDescriptor: an overrun shows as an error of the descriptor. We stay."""
        if self._socket is not None:
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._reactor.addReader(self)
            self.doRead()

    def _tell(self) -> None:
        self._call = None
        self._changed()


def _netlink_socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        made.bind((0, _GROUPS))
    except OSError:
        made.close()
        raise
    return made
