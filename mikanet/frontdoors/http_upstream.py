"""Front doors: the HTTP proxy's connection to one destination.

h11 reads responses, after their heads were made readable; one that it cannot read and a client may is passed on as it comes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Protocol

import h11
from twisted.internet import error
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.errors import RemoteProtocolError
from mikanet.frontdoors import http_messages as messages
from mikanet.frontdoors.door import FarEnd
from mikanet.relay import RelayEnd

#: Longest head of a request or response in bytes (our choice; common servers take 8 to 64 KiB).
MAX_HEAD: Final = 65536


class Downstream(Protocol):
    """The client's connection, which takes what comes from the destination."""

    def take_informational(self, event: h11.InformationalResponse) -> None:
        """A 1xx response."""

    def take_switch(self, upstream: Upstream, event: h11.InformationalResponse) -> None:
        """101: both sides go on with another protocol."""

    def take_response(self, event: h11.Response) -> None:
        """The head of a response."""

    def take_data(self, event: h11.Data) -> None:
        """A piece of its body."""

    def take_end(self, upstream: Upstream, reusable: bool) -> None:
        """The response is complete."""

    def take_raw(self, data: bytes) -> bool:
        """The beginning of a response to be passed on as it comes; False if that is not possible."""

    def take_more(self, data: bytes) -> None:
        """More of it."""

    def raw_ended(self, clean: bool) -> None:
        """That was all of it."""

    def upstream_failed(self, upstream: Upstream) -> None:
        """The connection ended where it must not, or brought what is no response."""

    def upstream_gone(self, upstream: Upstream) -> None:
        """An idle connection was closed."""


class Upstream(FarEnd):
    """The HTTP connection to one destination.

    :ivar answers: responses that it has brought to their end.
    :ivar answering: whether a response has begun.
    """

    def __init__(self, door: Downstream, destination: Address) -> None:
        self._door: Downstream | None = door
        self._head: messages.ResponseHead | None = None
        self._raw = False
        self._http: h11.Connection | None = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.destination = destination
        self.answers = 0
        self.answering = False

    def send_request(self, head: h11.Request) -> None:
        """Begin an exchange."""
        self._head = messages.ResponseHead(MAX_HEAD)
        self.send_event(head)

    def send_event(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        """Send a part of a request."""
        http, transport = self._http, self.transport
        if http is None or transport is None:
            return
        if isinstance(event, h11.EndOfMessage):
            # Trailers stay behind.
            event = h11.EndOfMessage()
        data = http.send(event)
        if data:
            transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        """Responses; after an upgrade, bytes for the client."""
        http = self._http
        if http is None:
            RelayEnd.dataReceived(self, data)
        elif self._door is not None:
            if self._raw:
                self._door.take_more(data)
            elif self._head is not None:
                self._read_heads(data, http, self._door)
            else:
                http.receive_data(data)
                self._pump(http, self._door)

    def _read_heads(self, data: bytes, http: h11.Connection, door: Downstream) -> None:
        """Give h11 the head of a response in a form that it reads; heads of 1xx responses come before it."""
        while self._head is not None and self._door is not None:
            head = self._head
            try:
                rest = head.feed(data)
                if rest is None:
                    return
                data = rest
                http.receive_data(head.tidied())
                event: Any = http.next_event()
            except RemoteProtocolError:
                door.upstream_failed(self)
                return
            except h11.RemoteProtocolError:
                event = None
            if event is None:
                self._pass_on(head, data, door)
            elif isinstance(event, h11.InformationalResponse) and event.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                door.take_informational(event)
                self._head = messages.ResponseHead(MAX_HEAD)
            else:
                self._head = None
                self._deliver(event, http, door)
        if self._head is None and not self._raw:
            if data:
                self.dataReceived(data)
            elif self._door is not None:
                self._pump(http, self._door)

    def _pass_on(self, head: messages.ResponseHead, rest: bytes, door: Downstream) -> None:
        self._head = None
        if head.readable and door.take_raw(head.as_it_came() + rest):
            self._raw = True
        else:
            door.upstream_failed(self)

    def _pump(self, http: h11.Connection, door: Downstream) -> None:
        while self._door is not None and self._http is not None:
            if http.our_state is h11.IDLE:
                # Nothing has been asked: an end is fine, and bytes are a reason not to ask.
                if http.trailing_data != (b"", False):
                    door.upstream_gone(self)
                return
            try:
                event = http.next_event()
            except h11.RemoteProtocolError:
                door.upstream_failed(self)
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            self._deliver(event, http, door)

    def _deliver(self, event: Any, http: h11.Connection, door: Downstream) -> None:
        if isinstance(event, h11.InformationalResponse):
            door.take_switch(self, event)  # 101, as others do not get here
        elif isinstance(event, h11.Response):
            self.answering = True
            door.take_response(event)
        elif isinstance(event, h11.Data):
            door.take_data(event)
        elif isinstance(event, h11.EndOfMessage):
            self.answering = False
            self.answers += 1
            # Bytes behind a response that nobody has asked for yet must not become the answer to what is asked next.
            nothing_behind = http.trailing_data == (b"", False)
            reusable = http.our_state is h11.DONE and http.their_state is h11.DONE and nothing_behind
            if reusable:
                http.start_next_cycle()
            door.take_end(self, reusable)
        else:
            door.upstream_failed(self)

    def hand_over(self) -> None:
        """From here on this is a relay's end; what h11 has not taken is the first of its bytes."""
        http, self._http = self._http, None
        self._door = None
        assert http is not None
        rest = http.trailing_data[0]
        if rest:
            self._hold(rest)

    def drop(self, abort: bool) -> None:
        """The door wants no more of this connection."""
        self._door = None
        if self.transport is None or self._lost:
            return
        if abort:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()

    def _ended(self, clean: bool) -> None:
        http, door = self._http, self._door
        if http is None or door is None:
            return
        if self._raw:
            door.raw_ended(clean)
        elif clean:
            http.receive_data(b"")
            self._pump(http, door)
        elif http.our_state is h11.IDLE:
            door.upstream_gone(self)
        else:
            door.upstream_failed(self)

    def readConnectionLost(self) -> None:
        """The destination sends no more; some responses end so."""
        super().readConnectionLost()
        self._ended(clean=True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        super().connectionLost(reason)
        self._ended(clean=reason.check(error.ConnectionDone) is not None)
