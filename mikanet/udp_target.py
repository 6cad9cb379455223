"""The server's side of a UDP flow: one connected UDP socket to one permitted target."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from twisted.internet import error, udp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import DatagramProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address, IPAddress
from mikanet.datagrams import open_flow
from mikanet.egress import Egress
from mikanet.guard.targets import Place

#: The most that UDP over IPv4 can carry in one datagram, in bytes.
MAX_DATAGRAM = 65507

#: A flow that carries nothing either way for this long, in seconds, is ended.
IDLE_TIME = 120.0

#: Datagrams held while the target's name is being resolved.
MAX_HELD = 16


class _Socket(DatagramProtocol):
    """What one address sends."""

    noisy = False

    def __init__(self, target: UdpTarget) -> None:
        self._target = target

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """One datagram."""
        self._target.datagram_received(datagram)

    def connectionRefused(self) -> None:
        """An ICMP port unreachable."""
        self._target.refused(self)


@implementer(IPushProducer)
class UdpTarget:
    """Passes datagrams to and from one target; as a producer, it drops them while the client's link is full.

    :param deliver: called with each datagram that the target sends; an empty one is one, too.
    :param fail: called when the target cannot be had, or the flow has been idle for too long.
    :param max_datagram: larger ones are dropped, either way. :param user: whose flow it is, for fair look-ups.
    """

    def __init__(
        self,
        reactor: Any,
        egress: Egress,
        deliver: Callable[[bytes], None],
        fail: Callable[[], None],
        max_datagram: int = MAX_DATAGRAM,
        user: Hashable = None,
    ) -> None:
        self._reactor = reactor
        self._egress = egress
        self._deliver = deliver
        self._fail = fail
        self._max_datagram = max_datagram
        self._user = user
        self._place: Place | None = None
        self._finding: Deferred[list[IPAddress]] | None = None
        self._port: udp.Port | None = None
        self._socket: _Socket | None = None
        self._addresses: deque[IPAddress] = deque()
        self._destination_port = 0
        self._unanswered: bytes | None = None
        self._held: list[bytes] = []
        self._closed = False
        self._active = True
        self._full = False
        self._timer = reactor.callLater(IDLE_TIME, self._check_idle)

    def open(self, destination: Address) -> None:
        """Resolve, check and open; datagrams sent meanwhile are buffered, a few of them."""

        def found(addresses: list[IPAddress]) -> None:
            self._finding = None
            self._place = self._egress.take(self._user)
            if self._place is None:
                self._fail()
                return
            self._addresses = deque(addresses)
            self._destination_port = destination.port
            self._open_next()

        def failed(_: Failure) -> None:
            self._finding = None
            if not self._closed:
                self._fail()

        self._finding = finding = self._egress.find(destination, self._user)
        finding.addCallbacks(found, failed)

    def _open_next(self) -> None:
        """A connected socket, so that nobody but the target can answer, to the next address that there is a way to."""
        while self._addresses and not self._closed:
            host, port = str(self._addresses.popleft()), self._destination_port
            flow = None
            self._socket = _Socket(self)
            try:
                flow = open_flow(self._reactor, self._socket, "::" if ":" in host else "")
                flow.connect(host, port)
            except (error.CannotListenError, OSError):
                if flow is not None:
                    flow.stopListening()
                continue
            self._port = flow
            held, self._held = self._held, []
            for datagram in held:
                self.send(datagram)
            return
        if not self._closed:
            self._fail()

    def send(self, data: bytes) -> None:
        """One datagram to the target; what cannot be sent is dropped, as UDP does."""
        self._active = True
        if len(data) > self._max_datagram or self._closed:
            return
        if self._port is None:
            if len(self._held) < MAX_HELD:
                self._held.append(data)
        else:
            if self._addresses:
                self._unanswered = data
            try:
                self._port.write(data)
            except (error.MessageLengthError, OSError):
                pass  # too long for the path, or no buffer: lost

    def datagram_received(self, datagram: bytes) -> None:
        """One datagram from the target."""
        self._active = True
        self._addresses.clear()  # this one is it
        if len(datagram) <= self._max_datagram and not self._full:
            self._deliver(datagram)

    def refused(self, which: _Socket) -> None:
        """An ICMP port unreachable: another address is tried if there is one, with what was sent last.

        Without one the flow lives on, as the target may come up later.
        """
        if self._addresses and self._port is not None and which is self._socket:
            refused, self._port = self._port, None
            refused.stopListening()
            if self._unanswered is not None:
                self._held = [self._unanswered]
            self._open_next()

    def pauseProducing(self) -> None:
        """The client's link is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """The client's link has room."""
        self._full = False

    def stopProducing(self) -> None:
        """The client's link is gone; its connectionLost closes this flow."""

    def close(self) -> None:
        """Let go of the socket."""
        if self._closed:
            return
        self._closed = True
        if self._place is not None:
            self._place.release()
        self._held = []
        if self._finding is not None:
            self._finding.cancel()
        if self._timer.active():
            self._timer.cancel()
        if self._port is not None:
            self._port.stopListening()
            self._port = None

    def _check_idle(self) -> None:
        if self._active:
            self._active = False
            self._timer = self._reactor.callLater(IDLE_TIME, self._check_idle)
        else:
            self._fail()
