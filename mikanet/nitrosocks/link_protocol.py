"""NitroSocks: a link as a Twisted protocol over TLS. What server and client share."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IConsumer, IDelayedCall, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.errors import RemoteProtocolError
from mikanet.nitrosocks.link import Event, Link
from mikanet.nitrosocks.mux import Mux

#: What is asked of TLS for the transcript, where both ends want it there (N11).
BINDING_LABEL = b"EXPORTER-ns1"
BINDING_SIZE = 32


#: Bytes of answers that may gather while the peer does not read; with more, nothing more is read from it. It cannot be at
#: the first byte that waits: two ends that are full would wait for each other. Our choice.
MAX_ANSWERS = 64 * 1024


@implementer(IPushProducer)
class LinkProtocol(Protocol):
    """One TLS connection. Subclasses make the link when the handshake is done, and say what its events mean.

    :ivar link: the state machine; None before the handshake and after the end.
    :ivar mux: the session's streams, once there is a session.
    :ivar writable: whether the connection takes more.
    """

    transport: Any
    link: Link | None = None
    mux: Mux | None = None
    writable = True
    addresses: tuple[IAddress, IAddress]
    _timer: IDelayedCall | None = None
    _lost = False
    _answers = 0

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor

    # -- what subclasses say

    def secured(self, connection: SSL.Connection) -> None:
        """TLS stands."""
        raise NotImplementedError

    def on_event(self, event: Event) -> None:
        """Something happened that is no frame."""
        raise NotImplementedError

    def failed(self, problem: RemoteProtocolError) -> None:
        """The link is unusable."""
        raise NotImplementedError

    # -- the connection

    def start_link(self, link: Link) -> None:
        """From now on bytes belong to this link."""
        self.link = link
        self.addresses = (self.transport.getPeer(), self.transport.getHost())
        IConsumer(self.transport).registerProducer(self, True)
        self.flush()
        self._arm()

    def drop_link(self) -> None:
        """The link is over: nothing more is parsed or timed."""
        self.link = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if not self._lost:
            IConsumer(self.transport).unregisterProducer()

    def dataReceived(self, data: bytes) -> None:
        """Bytes from TLS."""
        link = self.link
        if link is None:
            return
        problem = None
        try:
            link.receive(data, self.reactor.seconds())
        except RemoteProtocolError as found:
            problem = found
        self._settle(link, problem)

    def _settle(self, link: Link, problem: RemoteProtocolError | None = None) -> None:
        """Act on what happened. What verified before a problem counts all the same: keys have changed by it."""
        if link.events:
            events, link.events = link.events, []
            try:
                self._act(events)
            except RemoteProtocolError as found:
                problem = problem or found
        if problem is not None:
            if self.link is link:
                self.failed(problem)
        elif self.link is link:
            self.flush()
            self._arm()

    def _act(self, events: list[Event]) -> None:
        if self.mux is not None:
            self.mux.begin()
        try:
            for event in events:
                if type(event) is bytes:
                    if self.mux is not None:
                        self.mux.frame_received(event)
                else:
                    if self.mux is not None:
                        self.mux.deliver()  # what came before comes before
                    self.on_event(event)
        finally:
            if self.mux is not None:  # it may have come with the first of these events
                self.mux.finish()

    def flush(self) -> None:
        """Send what the link has to say."""
        if self.link is not None:
            output = self.link.take_output()
            if output:
                if not self.writable:
                    self._answers += len(output)
                    if self._answers > MAX_ANSWERS:
                        self.transport.pauseProducing()
                self.transport.write(output)

    def send(self, frames: list[bytes]) -> None:
        """See :meth:`LinkPort.send`."""
        link = self.link
        if link is not None:
            for frame in frames:
                link.send_data(frame)
            self.transport.write(link.take_output())

    # -- time

    def _arm(self) -> None:
        """Keep one timer that fires no later than the link wants; one that is too early looks again."""
        if self.link is None:
            return
        when = self.link.next_deadline()
        timer = self._timer
        if timer is not None:
            if timer.getTime() <= when:
                return
            timer.cancel()
        self._timer = None
        if when != float("inf"):
            self._timer = self.reactor.callLater(max(0.0, when - self.reactor.seconds()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        link = self.link
        if link is None:
            return
        problem = None
        now = self.reactor.seconds()
        try:
            if now >= link.next_deadline():
                link.timer_fired(now)
        except RemoteProtocolError as found:
            problem = found
        self._settle(link, problem)

    # -- flow control: the link feeds the transport

    def pauseProducing(self) -> None:
        """The transport is full."""
        self.writable = False

    def resumeProducing(self) -> None:
        """The transport has room."""
        self.writable = True
        if self._answers > MAX_ANSWERS:
            self.transport.resumeProducing()
        self._answers = 0
        if self.mux is not None:
            self.mux.pump()

    def stopProducing(self) -> None:
        """The transport is gone; connectionLost says how."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._lost = True
        self.drop_link()
