"""An HTTP front for a Megaki client: POST a request body, get the response body."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from mikanet.address import parse_ip
from mikanet.counters import Counters
from mikanet.errors import MikanetError
from mikanet.megaki.sazukari import TimedOutError
from mikanet.megaki.warm import NoSessionError
from mikanet.megaki.wire import MAX_MESSAGE

_log = Logger()


#: The refusal of a body that is too long.
TOO_LONG = (http.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MAX_MESSAGE} bytes")

#: What :meth:`~mikanet.megaki.warm.WarmSessions.ask` is to the resource.
Ask = Callable[[bytes], Awaitable[bytes]]


class Gateway(Resource):
    """The one resource, under every path.

    Answers 200 with the response; 400 for an empty body and 413 for one of more than 1 MiB; 403 for what a page of
    another site makes a browser send; 503 if there is no session with the server, 502 if it closed or broke the
    connection, 504 if it did not answer in time. Errors have one line of text as their body.

    :param verbose: whether each request is logged. :param hosts: names that this gateway is known by.
    :ivar running: requests that are not answered yet.
    """

    isLeaf = True

    def __init__(self, ask: Ask, counters: Counters, verbose: bool = False, hosts: Collection[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.running: set[_Running] = set()
        self._ask = ask
        self._counters = counters
        self._verbose = verbose
        self._hosts = {"localhost", socket.gethostname().lower(), *(each.lower() for each in hosts)}

    def refusal(self, method: bytes, headers: Any, length: int | None) -> tuple[int, str] | None:
        """What is wrong with a request whose head is here: status and reason; None if nothing is.

        :param length: of the body, in bytes; None if it comes in chunks.
        """
        foreign = self._foreign(headers)
        if foreign is not None:
            return http.FORBIDDEN, foreign
        if method != b"POST":
            return http.NOT_ALLOWED, "POST a request body"
        if length is not None and length > MAX_MESSAGE:
            return TOO_LONG
        return None

    def _foreign(self, headers: Any) -> str | None:
        """Whether a page of another site may be behind this: by its origin, or by a name that is not ours.

        A browser sends both truly. A name of somebody else's that leads here is how such pages get around the first.
        """
        host = _text(headers, b"host")
        origin = _text(headers, b"origin")
        if origin is not None and (host is None or origin.partition("://")[2] != host):
            return f"pages of {origin!a} may not ask"
        if host is None:
            return None
        name = _host_name(host)
        if name is None or not (name in self._hosts or name.endswith(".localhost") or parse_ip(name) is not None):
            return f"{host!a} is no name of this gateway: if it is one, start it with --allow-host"
        return None

    def render(self, request: Any) -> Any:
        """Answer one HTTP request."""
        body = request.content.read()
        if not body:
            return self.refuse(request, http.BAD_REQUEST, "an empty request does not exist")
        running = _Running(Deferred.fromCoroutine(self._answer(request, body)), request)
        self.running.add(running)
        request.notifyFinish().addErrback(lambda _: running.asked.cancel())
        running.asked.addErrback(self._broken, request)
        running.asked.addBoth(lambda _: self.running.discard(running))
        return NOT_DONE_YET

    def _broken(self, failure: Failure, request: Any) -> None:
        """A request without an answer: its client has gone, or we have made a mistake, which is an answer, too."""
        if failure.check(CancelledError):
            return
        _log.failure("cannot answer a request", failure)
        self._counters.add("megaki.gateway.500")
        if not request.finished and not request._disconnected:
            request.write(self.refuse(request, http.INTERNAL_SERVER_ERROR, "something is wrong here: look at the log"))
            request.finish()

    async def _answer(self, request: Any, body: bytes) -> None:
        try:
            answer = await self._ask(body)
        except NoSessionError as problem:
            status, answer = http.SERVICE_UNAVAILABLE, self.refuse(request, 503, f"no session: {problem}")
        except TimedOutError as problem:
            status, answer = http.GATEWAY_TIMEOUT, self.refuse(request, 504, str(problem))
        except MikanetError as problem:
            status, answer = http.BAD_GATEWAY, self.refuse(request, 502, str(problem))
        else:
            status = http.OK
            request.setHeader(b"Content-Type", b"application/octet-stream")
        self._counters.add(f"megaki.gateway.{status}")
        if self._verbose:
            _log.info(
                "{size} bytes from {who}: {status}", size=len(body), who=request.getClientAddress().host, status=status
            )
        request.setHeader(b"Content-Length", str(len(answer)).encode())
        request.write(answer)
        request.finish()

    @staticmethod
    def refuse(request: Any, status: int, why: str) -> bytes:
        """Set status and fields of a refusal; its body."""
        request.setResponseCode(status)
        if status == http.NOT_ALLOWED:
            request.setHeader(b"Allow", b"POST")
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return f"{why}\n".encode()


class _Running:
    """A request that is not answered yet."""

    def __init__(self, asked: Deferred[None], request: Any) -> None:
        self.asked = asked
        self._request = request

    def abort(self) -> None:
        """The gateway ends."""
        self._request.channel.loseConnection()
        self.asked.cancel()


def _text(headers: Any, name: bytes) -> str | None:
    values = headers.getRawHeaders(name)
    return values[0].decode("ascii", "replace").strip().lower() if values else None


def _host_name(host: str) -> str | None:
    """The name or address in a Host field; None if there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
