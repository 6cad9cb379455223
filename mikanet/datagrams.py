"""UDP sockets for flows: Twisted's port without its two log lines for each, and not ended by what the network reports.

A name server's answers are flows of a few datagrams; with a line at each end of every one, a log says nothing else.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

from twisted.internet import base, udp
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import DatagramProtocol

#: Largest datagram that is read, in bytes; more does not exist.
MAX_READ = 65536


class QuietPort(udp.Port):
    """A UDP port that logs nothing, and that an ICMP message about something that it sent does not close."""

    def _bindSocket(self) -> None:
        try:
            self.socket = self.createInternetSocket()
            self.socket.bind((self.interface, self.port))
        except OSError as problem:
            raise CannotListenError(self.interface, self.port, problem) from problem
        self._realPortNumber = self.socket.getsockname()[1]
        self.connected = 1
        self.fileno = self.socket.fileno  # type: ignore[method-assign]  # as Twisted's own

    def doRead(self) -> None:
        """As Port; whatever else the network reports of an earlier datagram, that one is lost and nothing more.

        "Fragmentation needed" and "prohibited" come here as errors of a read, and Twisted lets them out, which is the end.
        """
        try:
            super().doRead()  # type: ignore[no-untyped-call]  # untyped in Twisted
        except OSError:
            pass  # read by now: the next event brings what is behind it

    def connectionLost(self, reason: Any = None) -> None:
        """Close the socket, if that is what was asked for.

        The kernel reports an unreachable peer as an error without anything to read, which to the reactor is a clean end; at
        its own end it has another reason.
        """
        if reason is not None and reason.check(ConnectionDone) and self.connected:
            self.startReading()  # type: ignore[no-untyped-call]  # untyped in Twisted
            if not self._read_error():  # whose protocol may stop the port
                return
            self.stopReading()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._realPortNumber = None
        base.BasePort.connectionLost(self, reason)
        self.protocol.doStop()
        self.socket.close()
        del self.socket, self.fileno
        if hasattr(self, "d"):
            self.d.callback(None)
            del self.d

    def _read_error(self) -> bool:
        """Take what the kernel reports of a connected socket; whether the socket is of no use any more."""
        try:
            number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError:
            return True
        if number == errno.ECONNREFUSED and self._connectedAddr:
            self.protocol.connectionRefused()
        return number in (errno.EBADF, errno.ENOTSOCK)


def open_flow(reactor: Any, protocol: DatagramProtocol, interface: str = "") -> udp.Port:
    """Open a UDP socket on any free port of ``interface``.

    :raises CannotListenError: if that cannot be done.
    """
    if not isinstance(reactor, PosixReactorBase):  # reactors of tests have no sockets
        return cast(udp.Port, reactor.listenUDP(0, protocol, interface=interface, maxPacketSize=MAX_READ))
    port = QuietPort(0, protocol, interface, MAX_READ, reactor)  # type: ignore[no-untyped-call]  # untyped in Twisted
    port.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
    return port
