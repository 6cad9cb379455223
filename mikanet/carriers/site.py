"""The server's web site: ``http://address:port/path`` or ``https://``. WebSocket, BOSH and plain HTTP at one path.

Everything else is an ordinary web server's (:mod:`mikanet.carriers.http_ordinary`), and so is every answer at the
tunnel's own path to whoever does not speak with it as a client does.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.defer import Deferred, execute, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web import http
from twisted.web.server import Site
from zope.interface import implementer

from mikanet.carriers import http_ordinary
from mikanet.carriers.http_client import padding
from mikanet.carriers.http_exchange import (
    MAX_HOLD,
    MAX_WAIT,
    SID_SIZE,
    Open,
    Opened,
    decode_request,
)
from mikanet.carriers.http_held import HeldCarrier
from mikanet.carriers.http_knock import Door
from mikanet.carriers.http_requests import SiteChannel, SiteRequest
from mikanet.carriers.http_upgrade import ServerWebSocket, handshake
from mikanet.carriers.strangers import Strangers
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.guard.admission import Admission, address_group
from mikanet.guard.refusal import Refusals
from mikanet.interfaces import ICarrier, IServerCarrier

#: Idle connections are closed after so many seconds.
_IDLE = 75
#: Carriers without a proof by way of one connection: a proxy may use it for several clients.
_STRANGERS_PER_CONNECTION = 4


class TunnelSite(Site):
    """The site.

    :param path: where the tunnel is. :param proxied: whether all connections come from a reverse proxy. :param door: says
        who may open a carrier; None: everybody.
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
        door: Door | None = None,
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
        self._door = door
        self._random_bytes = random_bytes
        self._admission = Admission(context.limits)
        self._refusals = Refusals(context.reactor, context.refusal_time)
        limits = context.limits
        self._strangers: Strangers[bytes] = Strangers(limits.unverified, limits.unverified_per_address)
        self._strangers_by_connection: Strangers[bytes] = Strangers(limits.unverified, _STRANGERS_PER_CONNECTION)

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

    def find(self, sid: bytes | None) -> HeldCarrier | None:
        """The carrier of a client that has proved itself."""
        carrier = self.carriers.get(sid) if sid is not None else None
        return carrier if carrier is not None and carrier.is_proven else None

    def serve(self, request: Any) -> None:
        """Answer a request."""
        if request.too_long and http_ordinary.segments(request.path) is not None:
            http_ordinary.page(request, http.REQUEST_ENTITY_TOO_LARGE)
        elif request.too_long or request.path != self._path or not self._tunnel(request):
            self.ordinary.respond(request)

    def _tunnel(self, request: Any) -> bool:
        """Whether the request is the tunnel's; if so it was taken."""
        if request.method == b"POST":
            body = request.body or b""
            try:
                asked = decode_request(body)
            except RemoteProtocolError:
                return False
            if isinstance(asked, Open):
                return self._knocked(request) and self._open(request, asked)
            carrier = self.carriers.get(asked.sid)
            if carrier is None:
                return False
            if carrier.is_proven and not self._verify(request.channel):
                return False
            request.held = carrier
            carrier.request(request, asked, body)
            return True
        answer = handshake(request)
        if answer is None or not self._knocked(request):
            return False
        self._upgrade(request.channel, self._host_of(request), answer)
        return True

    def _knocked(self, request: Any) -> bool:
        cookies = b";".join(request.requestHeaders.getRawHeaders(b"Cookie", []))
        return self._door is None or self._door.opens(cookies)

    def _host_of(self, request: Any) -> str:
        """The client's address; a reverse proxy names it last."""
        if self._proxied:
            named = b",".join(request.requestHeaders.getRawHeaders(b"X-Forwarded-For", [])).rpartition(b",")[2]
            return str(named.strip().decode("latin-1"))
        return getattr(request.getClientAddress(), "host", "")

    def _open(self, request: Any, asked: Open) -> bool:
        sid = self._random_bytes(SID_SIZE)
        hold, wait = min(asked.hold, MAX_HOLD), min(asked.wait, MAX_WAIT)

        def forget(_: HeldCarrier) -> None:
            self.carriers.pop(sid, None)
            known(carrier)

        def known(_: HeldCarrier) -> None:
            self._strangers.discard(sid)
            self._strangers_by_connection.discard(sid)

        carrier = HeldCarrier(
            self._context.reactor,
            self.name,
            self._host_of(request),
            hold,
            wait,
            asked.rid,
            forget,
            known,
        )
        places: list[tuple[Strangers[bytes], Any]] = [(self._strangers, address_group(carrier.host))]
        if not self._proxied:  # a reverse proxy's connections are many clients'
            places.append((self._strangers_by_connection, request.channel))
        for strangers, group in places:
            while (oldest := strangers.in_the_way(group)) is not None:
                self._count("limit.unverified")
                self.carriers[oldest].refuse()
        self.carriers[sid] = carrier
        for strangers, group in places:
            strangers.add(sid, group)
        self._count("http")
        self._accept(carrier)
        request.answer(Opened(hold, wait, sid).encode(padding(self._random_bytes)))
        return True

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

    def __init__(
        self, url: CarrierUrl, context: CarrierContext, proxied: bool, door: Door | None = None, tls: Any = None
    ) -> None:
        self.name = url.text.partition("?")[0]
        self._url = url
        self._context = context
        self._proxied = proxied
        self._door = door
        self._tls = tls
        self._port: IListeningPort | None = None

    def listen(self, accept: Callable[[ICarrier], None]) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.listen`."""
        return execute(self._listen, accept)

    def _listen(self, accept: Callable[[ICarrier], None]) -> None:
        site: Any = TunnelSite(self.name, self._url.path or "/", self._context, accept, self._proxied, self._door)
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

    ``proxied`` says that all connections come from a reverse proxy, which names clients in ``X-Forwarded-For``; ``key-file``
    names the secret with which clients knock.
    """
    secure = url.scheme == "https"
    url.reject_unknown("proxied", "key-file", *(("certificate", "key") if secure else ()))
    if not url.host or url.user is not None or not url.path.isascii():
        raise ConfigError(f"carrier {url.text!r}: write it as {url.scheme}://0.0.0.0:8080/path")
    proxied = url.options.get("proxied", "no")
    if proxied not in ("yes", "no"):
        raise ConfigError(f"carrier {url.text!r}: proxied is yes or no")
    if context.decoy is not None and not Path(context.decoy).is_dir():
        raise ConfigError(f"the decoy {context.decoy!r} is not a folder")
    door = None
    if "key-file" in url.options:
        assert context.read_secret is not None
        seen = None if context.open_replays is None else context.open_replays(f"knock {url.path}")
        door = Door(context.read_secret(url.options["key-file"]), time.time, seen)
    return SiteServerCarrier(url, context, proxied == "yes", door, _tls(url) if secure else None)


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
