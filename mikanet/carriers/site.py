"""The server's web site: ``http://address:port/path`` or ``https://``. WebSocket, BOSH and plain HTTP at one path.

Everything else is an ordinary web server's (:mod:`mikanet.carriers.http_ordinary`), and so is every answer at the
tunnel's own path to whoever does not speak with it as a client does.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.defer import Deferred, execute, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request, Site
from zope.interface import implementer

from mikanet.carriers import http_ordinary
from mikanet.carriers.http_client import padding
from mikanet.carriers.http_exchange import (
    MAX_BODY,
    MAX_HOLD,
    MAX_STRANGER_BODY,
    MAX_WAIT,
    SID_SIZE,
    Open,
    Opened,
    decode_request,
    sid_of,
)
from mikanet.carriers.http_held import HeldCarrier
from mikanet.carriers.http_upgrade import ServerWebSocket, handshake
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.guard.admission import Admission
from mikanet.guard.refusal import Refusals
from mikanet.interfaces import ICarrier, IServerCarrier

#: A body that goes on beyond so many times the limit is cut off rather than read to its end.
_PATIENCE = 4

#: Idle connections are closed after so many seconds, and after so many more without ceremony.
_IDLE, _FORCE = 75, 15

_log = Logger()


class SiteChannel(http.HTTPChannel):
    """One connection to the site; its bytes go to a WebSocket once it has become one."""

    upgraded: IProtocol | None = None
    verified = False
    counted = True
    site: TunnelSite
    group: str

    def upgrade(self, protocol: IProtocol) -> None:
        """From here on the connection is ``protocol``'s."""
        transport = cast(Any, self.transport)
        self.setTimeout(None)  # type: ignore[no-untyped-call]  # untyped in Twisted
        transport.unregisterProducer()
        self.upgraded = protocol
        protocol.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of requests, or of frames."""
        if self.upgraded is not None:
            self.upgraded.dataReceived(data)
        else:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def rawDataReceived(self, data: bytes) -> None:
        """Bytes behind a request; a client need not wait for the answer to its handshake."""
        if self.upgraded is None:
            super().rawDataReceived(data)
        elif data:
            self.upgraded.dataReceived(data)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """The head of an answer."""
        fields = http_ordinary.order(headers.getAllRawHeaders(), bool(self.persistent))
        super().writeHeaders(version, code, reason, fields)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # untyped in Twisted
        """The connection is gone."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.site.left(self)
        if self.upgraded is not None:
            self.upgraded.connectionLost(reason)

    def timeoutConnection(self) -> None:
        """Nothing was asked for long: close, and say nothing about it."""
        self.loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted
        transport = cast(Any, self.transport)
        self.callLater(_FORCE, transport.abortConnection)  # type: ignore[no-untyped-call]  # untyped in Twisted


class SiteRequest(Request):
    """A request whose body stays in memory, within the limits that its sender may have."""

    held: HeldCarrier | None = None
    too_long = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self._pieces: list[bytes] = []
        self._size = 0
        self._most = MAX_STRANGER_BODY

    @property
    def body(self) -> bytes | None:
        """The whole body; None if it was longer than its sender may send."""
        return b"".join(self._pieces) if self._size <= self._most else None

    def gotLength(self, length: int | None) -> None:
        """The length that the client announces; None if it does not."""
        self.too_long = length is not None and length > MAX_BODY
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Part of the body."""
        self._size += len(data)
        if self._size > self._most and self._most < MAX_BODY:
            start = b"".join(self._pieces)[: 1 + SID_SIZE] or data
            if cast(SiteChannel, self.channel).site.knows(sid_of(start)):
                self._most = MAX_BODY
        if self._size <= self._most:
            self._pieces.append(data)
            return
        self._pieces.clear()
        self.too_long = self.too_long or self._size > MAX_BODY
        if self._size > _PATIENCE * MAX_BODY:
            self.loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def process(self) -> None:
        """Answer."""
        self.site = cast(SiteChannel, self.channel).site
        try:
            self.site.serve(self)
        except Exception:  # noqa: BLE001  # one request must not end the others
            _log.failure("a request failed")
            if not self.startedWriting:
                http_ordinary.page(self, http.INTERNAL_SERVER_ERROR)

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # untyped in Twisted
        held, self.held = self.held, None
        if held is not None:
            held.gone(self)

    # -- what a carrier does with it

    def answer(self, body: bytes) -> None:
        """The answer of a carrier."""
        self.held = None
        if self._disconnected or self.finished:
            return
        http_ordinary.begin(self)
        headers = self.responseHeaders
        headers.setRawHeaders(b"Content-Type", [b"application/octet-stream"])
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        headers.setRawHeaders(b"Cache-Control", [b"no-store"])
        headers.setRawHeaders(b"X-Accel-Buffering", [b"no"])
        self.write(body)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.finish()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def refuse(self) -> None:
        """The answer that any path gives."""
        self.held = None
        if not self._disconnected and not self.finished:
            cast(TunnelSite, self.site).ordinary.respond(self)

    def drop(self) -> None:
        """Nobody waits for the answer."""
        self.held = None
        if not self._disconnected and not self.finished:
            self.loseConnection()  # type: ignore[no-untyped-call]  # untyped in Twisted


class TunnelSite(Site):
    """The site.

    :param path: where the tunnel is. :param proxied: whether all connections come from a reverse proxy.
    :ivar carriers: the polling carriers that are there, by ``sid``, oldest first.
    """

    protocol = SiteChannel  # type: ignore[assignment]  # Twisted's is a function that wraps it for HTTP/2
    requestFactory = SiteRequest
    noisy = False

    def __init__(
        self,
        name: str,
        path: str,
        context: CarrierContext,
        accept: Callable[[ICarrier], None],
        proxied: bool = False,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(None, reactor=context.reactor, timeout=_IDLE)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.name = name
        self.ordinary = http_ordinary.Ordinary(context.decoy)
        self.carriers: OrderedDict[bytes, HeldCarrier] = OrderedDict()
        self._path = path.encode()
        self._context = context
        self._accept = accept
        self._proxied = proxied
        self._random_bytes = random_bytes
        self._admission = Admission(context.limits)
        self._refusals = Refusals(context.reactor, context.refusal_time)
        self._strangers: OrderedDict[bytes, None] = OrderedDict()

    def log(self, request: Any) -> None:
        """No line for each request."""

    # -- connections

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A connection; one that is ended at once when admission says so (X3)."""
        channel = super().buildProtocol(addr)  # type: ignore[no-untyped-call]  # untyped in Twisted
        channel.group = f"proxied {id(channel)}" if self._proxied else getattr(addr, "host", "")
        if self._admission.admit(channel, channel.group, self._context.reactor.seconds()):
            return channel
        self._count("limit.unverified")
        channel.counted = False
        return self._refusals.turn_away()

    def left(self, channel: SiteChannel) -> None:
        """A connection is gone."""
        if not channel.counted:
            return
        channel.counted = False
        if channel.verified:
            self._admission.leave_verified(channel)
        else:
            self._admission.leave(channel)

    def _verify(self, channel: Any) -> bool:
        """Somebody on this connection has proved to be no stranger; whether there is room."""
        if channel.verified or not channel.counted:
            return True
        if not self._admission.verify(channel, channel.group, self._context.reactor.seconds(), channel):
            channel.counted = False
            self._count("limit.verified")
            return False
        channel.verified = True
        return True

    # -- requests

    def knows(self, sid: bytes | None) -> bool:
        """Whether ``sid`` is that of a client that has proved itself."""
        carrier = self.carriers.get(sid) if sid is not None else None
        return carrier is not None and carrier.is_proven

    def serve(self, request: Any) -> None:
        """Answer a request."""
        if request.too_long:
            http_ordinary.page(request, http.REQUEST_ENTITY_TOO_LARGE)
        elif request.path != self._path or not self._tunnel(request):
            self.ordinary.respond(request)

    def _tunnel(self, request: Any) -> bool:
        """Whether the request is the tunnel's; if so it was taken."""
        if request.method == b"POST":
            try:
                asked = decode_request(request.body or b"")
            except RemoteProtocolError:
                return False
            if isinstance(asked, Open):
                self._open(request, asked)
                return True
            carrier = self.carriers.get(asked.sid)
            if carrier is None:
                return False
            if carrier.is_proven and not self._verify(request.channel):
                return False
            request.held = carrier
            carrier.request(request, asked, request.body)
            return True
        answer = handshake(request)
        if answer is not None:
            self._upgrade(request.channel, self._host_of(request), answer)
        return answer is not None

    def _host_of(self, request: Any) -> str:
        """The client's address; a reverse proxy names it last."""
        if self._proxied:
            named = b",".join(request.requestHeaders.getRawHeaders(b"X-Forwarded-For", [])).rpartition(b",")[2]
            return str(named.strip().decode("latin-1"))
        return getattr(request.getClientAddress(), "host", "")

    def _open(self, request: Any, asked: Open) -> None:
        sid = self._random_bytes(SID_SIZE)
        hold, wait = min(asked.hold, MAX_HOLD), min(asked.wait, MAX_WAIT)

        def forget(_: HeldCarrier) -> None:
            self.carriers.pop(sid, None)
            self._strangers.pop(sid, None)

        carrier = HeldCarrier(
            self._context.reactor,
            self.name,
            self._host_of(request),
            hold,
            wait,
            asked.rid,
            forget,
            lambda _: self._strangers.pop(sid, None),
        )
        if len(self._strangers) >= self._context.limits.unverified:
            self._count("limit.unverified")
            self.carriers[next(iter(self._strangers))].refuse()
        self.carriers[sid] = carrier
        self._strangers[sid] = None
        self._count("http")
        self._accept(carrier)
        request.answer(Opened(hold, wait, sid).encode(padding(self._random_bytes)))

    def _upgrade(self, channel: Any, host: str, answer: bytes) -> None:
        carrier = ServerWebSocket(self._context.reactor, self.name, host, self._refusals, lambda: self._verify(channel))
        self._count("websocket")
        channel.transport.write(answer)
        channel.upgrade(carrier)
        self._accept(carrier)

    def _count(self, what: str) -> None:
        self._context.counters.add(f"pickaxe.web.{what}")


@implementer(IServerCarrier)
class SiteServerCarrier:
    """Takes WebSocket, BOSH and plain HTTP on one port.

    :param tls: makes TLS contexts; None for http.
    """

    def __init__(self, url: CarrierUrl, context: CarrierContext, proxied: bool, tls: Any = None) -> None:
        self.name = url.text.partition("?")[0]
        self._url = url
        self._context = context
        self._proxied = proxied
        self._tls = tls
        self._port: IListeningPort | None = None

    def listen(self, accept: Callable[[ICarrier], None]) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.listen`."""
        return execute(self._listen, accept)

    def _listen(self, accept: Callable[[ICarrier], None]) -> None:
        site: Any = TunnelSite(self.name, self._url.path or "/", self._context, accept, self._proxied)
        reactor = self._context.reactor
        if self._tls is not None:
            site = TLSMemoryBIOFactory(self._tls, False, site, clock=reactor)
            site.noisy = False
        port = self._url.port or (443 if self._tls is not None else 80)
        self._port = reactor.listenTCP(port, site, backlog=1024, interface=self._url.host)

    def stop(self) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.stop`."""
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return maybeDeferred(port.stopListening).addCallback(lambda _: None)


def server(url: CarrierUrl, context: CarrierContext) -> IServerCarrier:
    """``http://address:port/path?proxied=yes``, ``https://address:port/path?certificate=PEM&key=PEM``.

    ``proxied`` says that all connections come from a reverse proxy, which names clients in ``X-Forwarded-For``.
    """
    secure = url.scheme == "https"
    url.reject_unknown("proxied", *(("certificate", "key") if secure else ()))
    if not url.host or url.user is not None or not url.path.isascii():
        raise ConfigError(f"carrier {url.text!r}: write it as {url.scheme}://0.0.0.0:8080/path")
    proxied = url.options.get("proxied", "no")
    if proxied not in ("yes", "no"):
        raise ConfigError(f"carrier {url.text!r}: proxied is yes or no")
    if context.decoy is not None and not Path(context.decoy).is_dir():
        raise ConfigError(f"the decoy {context.decoy!r} is not a folder")
    return SiteServerCarrier(url, context, proxied == "yes", _tls(url) if secure else None)


def _tls(url: CarrierUrl) -> Any:
    names = url.options.get("certificate"), url.options.get("key")
    if names[0] is None:
        raise ConfigError(f"carrier {url.text!r} needs ?certificate=PEM&key=PEM (the key may be in the same file)")
    certificate, key = names[0], names[1] or names[0]
    try:
        if os.stat(key).st_mode & 0o077:
            raise ConfigError(f"{key} can be read by others: run chmod 600 {key}")
        private = ssl.KeyPair.load(Path(key).read_bytes(), crypto.FILETYPE_PEM).original
        chain = [
            ssl.Certificate.loadPEM(b"-----BEGIN CERTIFICATE-----" + part).original
            for part in Path(certificate).read_bytes().split(b"-----BEGIN CERTIFICATE-----")[1:]
        ]
    except OSError as problem:
        raise ConfigError(f"cannot read {problem.filename}: {problem.strerror or problem}") from None
    except (crypto.Error, SSL.Error, ValueError):
        raise ConfigError(f"carrier {url.text!r}: not a certificate and its key in PEM form") from None
    if not chain:
        raise ConfigError(f"{certificate} holds no certificate in PEM form")
    return ssl.CertificateOptions(
        privateKey=private, certificate=chain[0], extraCertChain=chain[1:], raiseMinimumTo=ssl.TLSVersion.TLSv1_2
    )
