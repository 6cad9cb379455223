"""Why a carrier over HTTP cannot be opened, in words that follow its name."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from OpenSSL import SSL
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError, TimeoutError
from twisted.python.failure import Failure

from mikanet.carriers.base import OPEN_TIMEOUT
from mikanet.carriers.http_asking import HttpStatusError, TlsAnswerError
from mikanet.errors import ConfigError, DestinationError, Reason, RemoteProtocolError, reason_of
from mikanet.interfaces import ICarrier
from mikanet.net.certificates import CertificateWatch, no_tls

#: The same carriers without TLS, and with it; and those that need no WebSocket.
_PLAIN = {"wss": "ws", "boshs": "bosh", "https": "http"}
_SECURE = {plain: secure for secure, plain in _PLAIN.items()}
_INSTEAD = {"ws": "bosh:// or http://", "wss": "boshs:// or https://"}


class Place(Protocol):
    """Where the carrier leads."""

    @property
    def name(self) -> str:
        """Its URL."""

    @property
    def watch(self) -> CertificateWatch:
        """What was found out about its certificate."""


def opening(place: Place, reactor: Any, work: Coroutine[Any, Any, ICarrier]) -> Deferred[ICarrier]:
    """What opens a carrier, within the time for that, and with errors in words that a user can act on."""
    done: Deferred[ICarrier] = Deferred.fromCoroutine(work)
    done.addTimeout(OPEN_TIMEOUT, reactor)
    return done.addErrback(_explain, place)


def _explain(failure: Failure, place: Place) -> Failure:
    problem: BaseException | None = failure.value
    if isinstance(problem, CancelledError | ConfigError):
        return failure
    # Twisted's ResponseFailed and its like.
    problem = next((reason.value for reason in getattr(problem, "reasons", ())), problem)
    scheme = place.name.partition(":")[0].lower()
    if isinstance(problem, HttpStatusError):
        return Failure(DestinationError(Reason.REFUSED, _status(problem.status, scheme)))
    if isinstance(problem, SSL.Error):
        return Failure(DestinationError(Reason.FAILURE, _tls(problem, place, scheme)))
    if isinstance(problem, TlsAnswerError):
        text = f"that port speaks TLS: use {_SECURE[scheme]}://, or the port without TLS"
        return Failure(DestinationError(Reason.FAILURE, text))
    if isinstance(problem, RemoteProtocolError):
        return Failure(DestinationError(Reason.FAILURE, str(problem)))
    late = isinstance(problem, TimeoutError | defer.TimeoutError)
    reason = Reason.TIMEOUT if late else reason_of(problem)
    known = late or isinstance(problem, ConnectError | DNSLookupError)
    text = reason.value if known else " ".join(str(problem).split()) or type(problem).__name__
    return Failure(DestinationError(reason, text))


def _status(status: int, scheme: str) -> str:
    if status == 413:
        return "a proxy on the way takes no bodies of this size (it answered 413): raise its limit"
    if scheme in _INSTEAD:
        return (
            f"the web server answered {status}, and no WebSocket: the path is not right, or a proxy on the way does not pass"
            f" Upgrade on; {_INSTEAD[scheme]} need none"
        )
    return f"the web server answered {status}: is a tunnel server there, and the path right?"


def _tls(problem: SSL.Error, place: Place, scheme: str) -> str:
    if place.watch.rejected:
        return place.watch.rejected
    if no_tls(problem):
        return f"there is no TLS on that port: use {_PLAIN[scheme]}://, or the port with TLS"
    text = str(problem.args[0][-1][-1]) if problem.args and problem.args[0] else "the connection was closed"
    return f"TLS failed: {text}"
