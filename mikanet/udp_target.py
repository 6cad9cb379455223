"""The server's side of a UDP flow: one connected UDP socket to one permitted target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import error, udp
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import DatagramProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address, IPAddress
from mikanet.datagrams import open_flow
from mikanet.egress import Egress

#: The most that UDP over IPv4 can carry in one datagram, in bytes.
MAX_DATAGRAM = 65507

#: A flow that carries nothing either way for this long, in seconds, is ended.
IDLE_TIME = 120.0

#: Datagrams held while the target's name is being resolved.
MAX_HELD = 16


@implementer(IPushProducer)
class UdpTarget(DatagramProtocol):
    """Passes datagrams to and from one target; as a producer, it drops them while the client's link is full.

    :param deliver: called with each datagram that the target sends.
    :param fail: called when the target cannot be had, or the flow has been idle for too long.
    :param max_datagram: larger ones are dropped, either way.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        egress: Egress,
        deliver: Callable[[bytes], None],
        fail: Callable[[], None],
        max_datagram: int = MAX_DATAGRAM,
    ) -> None:
        self._reactor = reactor
        self._egress = egress
        self._deliver = deliver
        self._fail = fail
        self._max_datagram = max_datagram
        self._port: udp.Port | None = None
        self._target: tuple[str, int] | None = None
        self._held: list[bytes] = []
        self._closed = False
        self._active = True
        self._full = False
        self._timer = reactor.callLater(IDLE_TIME, self._check_idle)

    def open(self, destination: Address) -> None:
        """Resolve, check and open; datagrams sent meanwhile are held, a few of them."""

        def resolved(ip: IPAddress) -> None:
            if self._closed:
                return
            host = str(ip)
            self._port = open_flow(self._reactor, self, "::" if ip.version == 6 else "")
            # Connected, so that nobody but the target can answer.
            self._port.connect(host, destination.port)
            self._target = (host, destination.port)
            held, self._held = self._held, []
            for datagram in held:
                self.send(datagram)

        def failed(_: Failure) -> None:
            if not self._closed:
                self._fail()

        maybeDeferred(self._egress.resolve, destination).addCallback(resolved).addErrback(failed)

    def send(self, data: bytes) -> None:
        """One datagram to the target; what cannot be sent is dropped, as UDP does."""
        self._active = True
        if len(data) > self._max_datagram or self._closed:
            return
        if self._port is None:
            if len(self._held) < MAX_HELD:
                self._held.append(data)
        else:
            try:
                self._port.write(data)
            except (error.MessageLengthError, OSError):
                pass  # too long for the path, or no buffer: lost

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """One datagram from the target."""
        self._active = True
        if 0 < len(datagram) <= self._max_datagram and not self._full:
            self._deliver(datagram)

    def connectionRefused(self) -> None:
        """An ICMP port unreachable: the target may come up later, so the flow lives on."""

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
        self._held = []
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
