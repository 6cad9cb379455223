"""Front doors: the HTTP proxy. CONNECT, and requests for ``http://`` URLs, on one persistent connection.

h11 reads and writes the messages on both sides. Between them, bodies flow piece by piece, and each side's transport
pauses the other side: of a body, no more than transport buffers and one read are ever held.

:class:`HttpDoor` is the client's connection. The one to the destination, an
:class:`~mikanet.frontdoors.http_upstream.Upstream`, serves as many requests in a row as the client has for that destination.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.errors import Reason, RemoteProtocolError
from mikanet.frontdoors import http_messages as messages
from mikanet.frontdoors.door import Door, DoorFactory, FarEnd
from mikanet.frontdoors.http_upstream import MAX_HEAD, Upstream
from mikanet.relay import MAX_EARLY, RelayEnd


class HttpDoor(Door):
    """The connection of one HTTP client.

    Requests are taken one after the other: the next one is not looked at before the response to the last is through.
    """

    kind = "http"

    _http: h11.Connection | None
    _request: h11.Request | None = None
    _outgoing: messages.Outgoing | None = None
    _upstream: Upstream | None = None
    _pumping = False
    # Whether a request was answered, so that what follows it and is none needs no answer.
    _answered = False
    # Whether the response is passed on as it comes, because it is none that h11 can read.
    _raw = False
    # What waits in h11's buffer and cannot be taken yet, in bytes; and the two reasons to read no more.
    _waiting = 0
    _held = False
    _full = False

    def __init__(self, factory: DoorFactory) -> None:
        super().__init__(factory)
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    # -- from the client

    def dataReceived(self, data: bytes) -> None:
        """Requests; after CONNECT or an upgrade, bytes for the destination."""
        http = self._http
        if http is None:
            RelayEnd.dataReceived(self, data)
        elif self._refused:
            self.dropped()
        elif not self._raw:
            if http.their_state is h11.IDLE and not http.trailing_data[0]:
                # Empty lines between requests mean nothing (RFC 9112, section 2.2).
                data = data.lstrip(b"\r\n")
            http.receive_data(data) if data else None
            self._waiting += len(data)
            self._pump()

    def _pump(self) -> None:
        """Act on what the client sent, as far as that can be done now."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._http is not None and not self._refused and not self._lost and self._step(self._http):
                pass
        finally:
            self._pumping = False
        if self._http is not None and not self._refused:
            self._hold_reading(self._waiting >= MAX_EARLY)

    def _step(self, http: h11.Connection) -> bool:
        """Act on one event; answers whether there may be another one."""
        if self.dialling is not None:
            return False
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as problem:
            self._broken_request(http, problem)
            return False
        if event is h11.NEED_DATA or event is h11.PAUSED:
            if event is h11.NEED_DATA:
                self._waiting = 0
            return self._settle(http)
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.ConnectionClosed):
            # Still there to read the response, maybe.
            self._settle(http)
            return False
        elif self._upstream is not None and self._outgoing is not None:
            self._upstream.send_event(cast(Any, event))
        return True

    def _settle(self, http: h11.Connection) -> bool:
        """With the exchange over, get ready for the next one, or close; answers whether there is more to do."""
        ours, theirs = http.our_state, http.their_state
        if ours is h11.DONE and theirs is h11.DONE:
            http.start_next_cycle()
            self._skip_empty_lines(http)
            self._answered = True
            self._request = None
            self.set_deadline(self.settings.keep_alive_timeout, partial(self.refuse, b""))
            return True
        if ours in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR) or (ours is h11.DONE and theirs is h11.SEND_BODY):
            self._drop_upstream()
            self.refuse(b"")
        return False

    def _skip_empty_lines(self, http: h11.Connection) -> None:
        """As :meth:`dataReceived` does, for lines that came right behind a request."""
        rest, ended = http.trailing_data
        if rest[:1] in (b"\r", b"\n"):
            self._http = fresh = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
            if rest := rest.lstrip(b"\r\n"):
                fresh.receive_data(rest)
            if ended:
                fresh.receive_data(b"")

    def _begin(self, request: h11.Request) -> None:
        self._request = request
        self._outgoing = None
        self.cancel_deadline()
        self.count("requests")
        credentials = self.settings.credentials
        if credentials is not None and not messages.authorized(request, credentials.check):
            self.count("refused.password")
            self._answer(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, "this proxy wants a user name and a password")
            return
        try:
            if request.method == b"CONNECT":
                destination = messages.connect_destination(request)
            else:
                self._outgoing = messages.outgoing(request)
                destination = self._outgoing.destination
        except RemoteProtocolError as problem:
            self.count("refused.request")
            self._answer(HTTPStatus.BAD_REQUEST, str(problem))
            return
        upstream = self._upstream
        if self._outgoing is not None and upstream is not None and upstream.destination == destination:
            upstream.send_request(self._outgoing.head)
            return
        self._drop_upstream()
        self._dial_for(destination)

    def _dial_for(self, destination: Address) -> None:
        tunnel = self.factory.tunnel
        self.dial(partial(tunnel.stream_endpoint, destination, http=self._outgoing is not None))

    # -- dialling

    def make_far_end(self) -> FarEnd:
        """An HTTP connection, or with CONNECT a plain one."""
        return FarEnd() if self._outgoing is None else Upstream(self, self._outgoing.destination)

    def reached(self, far: FarEnd) -> None:
        """Send the request, and all of its body that is here already; or begin the relay."""
        assert self.transport is not None
        if isinstance(far, Upstream):
            assert self._outgoing is not None
            self._upstream = far
            _register(self, far)
            far.send_request(self._outgoing.head)
            if self._http is not None and self._http.their_state is not h11.SEND_BODY:
                # A second attempt: the end of the request has been taken before.
                far.send_event(h11.EndOfMessage())
            self._pump()
        else:
            self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._hand_over()
            super().reached(far)

    def _hand_over(self) -> None:
        """From here on this is a relay's end; what h11 has not taken is the first of its bytes."""
        http, self._http = self._http, None
        assert http is not None
        self._hold_reading(False)
        rest = http.trailing_data[0]
        if rest:
            self._hold(rest)

    def not_reached(self, reason: Reason, why: str) -> None:
        """Answer for the destination, or for the tunnel's server."""
        self._answer(messages.status_of_reason(reason), why)
        self._pump()

    # -- answers of our own

    def _answer(self, status: HTTPStatus, text: str) -> None:
        http, transport, request = self._http, self.transport, self._request
        # The rest of the request is for nobody.
        self._outgoing = None
        if http is None or transport is None or http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # A response is under way already, and can only be cut.
            self.abort()
            return
        unread_body = http.their_state is h11.ERROR or (request is not None and messages.has_body(request))
        to_head = request is not None and request.method == b"HEAD"
        response, body = messages.refusal(status, text, close=unread_body, to_head=to_head)
        transport.write(b"".join(filter(None, map(http.send, (response, h11.Data(data=body), h11.EndOfMessage())))))

    def _broken_request(self, http: h11.Connection, problem: h11.RemoteProtocolError) -> None:
        self.count("refused.protocol")
        self._drop_upstream(abort=True)
        if self._answered and self._request is None:
            # What it wanted it has got; an answer to what follows would be one too many.
            self.refuse(b"")
            return
        status = HTTPStatus(problem.error_status_hint)
        self._answer(status, "this is not a request that HTTP allows")
        if http.our_state is not h11.ERROR:
            self._settle(http)

    # -- from the destination, by way of the upstream

    def take_informational(self, event: h11.InformationalResponse) -> None:
        """A 1xx response on its way to the client."""
        http = self._http
        assert http is not None
        if http.their_http_version is not None and http.their_http_version >= b"1.1":
            self._send(
                h11.InformationalResponse(
                    status_code=event.status_code, reason=event.reason, headers=messages.response_headers(event)
                )
            )

    def take_switch(self, upstream: Upstream, event: h11.InformationalResponse) -> None:
        """101: both sides go on with another protocol, which is none of our business."""
        self.take_informational(event)
        self._upstream = None
        _unregister(self, upstream)
        upstream.hand_over()
        self._hand_over()
        super().reached(upstream)

    def take_raw(self, data: bytes) -> bool:
        """A response that is none of HTTP/1: let the client make of it what it can. False if that is not possible."""
        http, transport = self._http, self.transport
        if (
            http is None
            or transport is None
            or http.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
            or http.our_state is not h11.SEND_RESPONSE
        ):
            return False
        self.count("raw")
        self._raw = True
        transport.write(data)
        return True

    def take_more(self, data: bytes) -> None:
        """More of what is passed on as it comes."""
        if self.transport is not None and not self._lost:
            self.transport.write(data)

    def raw_ended(self, clean: bool) -> None:
        """That was all of it."""
        if clean:
            self._drop_upstream()
            self.refuse(b"")
        else:
            self._drop_upstream(abort=True)
            self.abort()

    def take_response(self, event: h11.Response) -> None:
        """The head of the response."""
        self._send(
            h11.Response(status_code=event.status_code, reason=event.reason, headers=messages.response_headers(event))
        )

    def take_data(self, event: h11.Data) -> None:
        """A piece of its body."""
        self._send(event)

    def take_end(self, upstream: Upstream, reusable: bool) -> None:
        """The response is complete."""
        self._send(h11.EndOfMessage())
        if not reusable:
            self._drop_upstream()
        self._pump()

    def upstream_failed(self, upstream: Upstream) -> None:
        """The destination's connection ended where it must not.

        Before any of a response, a request that came over a connection used before may be meant for a destination that
        was closing it at that moment, so it gets another try.
        """
        outgoing = self._outgoing
        self._drop_upstream(abort=True)
        if self._request is None or self._http is None:
            return
        if upstream.answers and not upstream.answering and outgoing is not None and outgoing.repeatable:
            self.count("retried")
            self._dial_for(outgoing.destination)
            return
        self.count("failed.upstream")
        self._answer(HTTPStatus.BAD_GATEWAY, "the destination's answer is no HTTP response, or none came")
        self._pump()

    def upstream_gone(self, upstream: Upstream) -> None:
        """An idle connection was closed."""
        if self._upstream is upstream:
            self._drop_upstream()

    def _send(self, event: Any) -> None:
        http, transport = self._http, self.transport
        if http is None or transport is None or self._lost:
            return
        data = http.send(event)
        if data:
            transport.write(data)

    def _drop_upstream(self, abort: bool = False) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            _unregister(self, upstream)
            upstream.drop(abort)
            self.resumeProducing()

    # -- flow control: the client is not read while the destination is full, or while nobody can take its bytes

    def pauseProducing(self) -> None:
        """The destination's transport is full."""
        self._full = True
        self._update_reading()

    def resumeProducing(self) -> None:
        """The destination's transport has room."""
        self._full = False
        self._update_reading()

    def _hold_reading(self, held: bool) -> None:
        if held != self._held:
            self._held = held
            self._update_reading()

    def _update_reading(self) -> None:
        pause = self._full or self._held
        if pause and not self._paused:
            super().pauseProducing()
        elif self._paused and not pause:
            super().resumeProducing()

    # -- ends

    def readConnectionLost(self) -> None:
        """The client sends no more; the response to what it sent still goes out."""
        http = self._http
        if http is not None and not self._refused:
            self._read_ended = True
            http.receive_data(b"")
            if self.dialling is not None and self._outgoing is None and not http.trailing_data[0]:
                self.give_up()
            else:
                self._pump()
        else:
            super().readConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone, and with it the connection that was its own."""
        super().connectionLost(reason)
        self._drop_upstream(abort=self._request is not None)


def _register(door: HttpDoor, upstream: Upstream) -> None:
    cast(IConsumer, door.transport).registerProducer(upstream, True)
    cast(IConsumer, upstream.transport).registerProducer(door, True)


def _unregister(door: HttpDoor, upstream: Upstream) -> None:
    for end in (door, upstream):
        if end.transport is not None and not end._lost:
            cast(IConsumer, end.transport).unregisterProducer()
