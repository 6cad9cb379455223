"""What the clients of all HTTP carriers share: their URLs, TLS, and POSTs over a pool of persistent connections."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import treq.client
from hyperlink import URL
from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    _HTTP11ClientFactory,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IPolicyForHTTPS
from zope.interface import implementer

from mikanet.address import parse_ip
from mikanet.carriers.base import OPEN_TIMEOUT
from mikanet.carriers.http_asking import AskingCarrier, HttpStatusError
from mikanet.carriers.http_exchange import MAX_BODY, Open, Opened
from mikanet.carriers.http_knock import Knock
from mikanet.carriers.http_pacing import BodyLimit
from mikanet.carriers.http_trouble import opening
from mikanet.carriers.urls import CarrierContext, CarrierUrl, shown
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.interfaces import ICarrier, IClientCarrier
from mikanet.net.certificates import CertificateWatch

#: Seconds that an idle connection is kept; servers and proxies close theirs after 60 or more.
KEEP_ALIVE = 50.0

#: Most random bytes at the end of a body that would always be of one length.
MAX_PADDING = 256

#: Bits of the first request id: as XEP-0124 wants it, random and far from where it would wrap.
_RID_BYTES = 5

# Two lines in the log for each connection of a pool say nothing to anybody.
_HTTP11ClientFactory.noisy = False

_BEGIN = b"-----BEGIN CERTIFICATE-----"

_log = Logger()

_SECURE = frozenset({"wss", "boshs", "https"})


@dataclass(frozen=True)
class WebPlace:
    """Where a client finds the server's site.

    :ivar trust: what its certificate is checked against; None for the system's own roots. :ivar knock: makes a cookie for a
        request that opens a carrier; None if the server asks for none. :ivar watch: what was found out about its certificate.
    """

    name: str
    secure: bool
    host: str
    port: int
    path: str
    trust: Any = None
    knock: Knock | None = None
    watch: CertificateWatch = field(default_factory=lambda: CertificateWatch("", False, ""), compare=False)

    @classmethod
    def of(cls, url: CarrierUrl, context: CarrierContext) -> WebPlace:
        """The place that a carrier URL names.

        :raises ConfigError: if the URL cannot be one.
        """
        secure = url.scheme in _SECURE
        url.reject_unknown(*(("ca-file", "key-file") if secure else ("key-file",)))
        name = url.text.partition("?")[0]
        if not url.host or url.user is not None or url.text.partition("#")[2]:
            raise ConfigError(f"carrier {url.text!r}: write it as {url.scheme}://host:port/path")
        if not name.isascii() or not name.isprintable() or " " in name:
            raise ConfigError(f"carrier {url.text!r}: a URL has no such characters, but %xx in their place")
        ca_file = url.options.get("ca-file")
        trust = None if ca_file is None else _read_roots(ca_file)
        return cls(
            name,
            secure,
            url.host,
            url.port or (443 if secure else 80),
            url.path or "/",
            trust,
            _knock(url, context),
            CertificateWatch("?ca-file=FILE in its URL", ca_file is not None, url.host.removesuffix(".")),
        )

    def tls(self) -> Any:
        """What makes one TLS connection to the place."""
        return _Verified(self)

    @property
    def netloc(self) -> str:
        """Host and port as the Host field has them: without the port if it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@implementer(IOpenSSLClientConnectionCreator)
class _Verified:
    """TLS connections with Twisted's settings, and our own look at the certificate: Twisted's says less."""

    def __init__(self, place: WebPlace) -> None:
        self._place = place

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """One connection."""
        place = self._place
        roots = ssl.platformTrust() if place.trust is None else place.trust
        connection = SSL.Connection(ssl.CertificateOptions(trustRoot=roots).getContext(), None)
        if parse_ip(place.host) is None:  # no name is sent for an address (RFC 6066 section 3)
            connection.set_tlsext_host_name(place.host.removesuffix(".").encode("ascii"))
        place.watch.watch(connection)
        return connection


def _knock(url: CarrierUrl, context: CarrierContext) -> Knock | None:
    file = url.options.get("key-file")
    if file is None:
        return None
    assert context.read_secret is not None
    return Knock(context.read_secret(file), time.time, os.urandom)


def _read_roots(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            pem = file.read(1024 * 1024)
        roots = [ssl.Certificate.loadPEM(_BEGIN + part) for part in pem.split(_BEGIN)[1:]]
    except OSError as problem:
        raise ConfigError(f"cannot read {path}: {problem.strerror or problem}") from None
    except (SSL.Error, crypto.Error):
        raise ConfigError(f"{path} holds no certificates in PEM form") from None
    if not roots:
        raise ConfigError(f"{path} holds no certificates in PEM form")
    return ssl.trustRootFromCertificates(roots)


class _FixedURL(URL):
    """A URL that needs no conversion, which treq would do for each request: a third of what it costs by itself."""

    def to_uri(self) -> URL:
        """It is one."""
        return self


@implementer(IBodyProducer)
class _Body:
    """A body that goes to the transport in one piece; treq's own reads it bit by bit, in turns of the reactor."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """All of it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is gone already."""

    def resumeProducing(self) -> None:
        """It is gone already."""

    def stopProducing(self) -> None:
        """It is gone already."""


@implementer(IPolicyForHTTPS)
class _Policy:
    """How the connections of a pool verify their server."""

    def __init__(self, place: WebPlace) -> None:
        self._place = place

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """All go to one place."""
        return self._place.tls()


class Poster:
    """POSTs to one place over a pool of persistent connections.

    :param connections: most that are kept.
    """

    def __init__(self, reactor: Any, place: WebPlace, connections: int) -> None:
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = connections
        self._pool.cachedConnectionTimeout = KEEP_ALIVE  # type: ignore[assignment]  # any number
        self._pool.retryAutomatically = False  # a request is repeated by its request id
        agent = Agent(reactor, _Policy(place), connectTimeout=OPEN_TIMEOUT, pool=self._pool)
        self._client = treq.client.HTTPClient(agent)
        self._url = _FixedURL.from_text(f"http{'s' if place.secure else ''}://{place.netloc}{place.path}")
        self._headers = Headers({b"Content-Type": [b"application/octet-stream"], b"Accept": [b"*/*"]})

    def post(self, body: bytes, progress: Callable[[], None], knock: Knock | None = None) -> Deferred[bytes]:
        """The body of the answer to ``body``.

        :param progress: called for each piece of it that comes.
        :param knock: makes a cookie for this request.
        :return: fails with HttpStatusError if the status is not 200, RemoteProtocolError if there is far too much.
        """
        headers = self._headers
        if knock is not None:
            headers = headers.copy()
            headers.setRawHeaders(b"Cookie", [knock()])
        return Deferred.fromCoroutine(self._post(body, progress, headers))

    async def _post(self, body: bytes, progress: Callable[[], None], headers: Headers) -> bytes:
        response = await self._client.request(
            "POST", self._url, data=_Body(body), headers=headers, unbuffered=True, allow_redirects=False
        )
        pieces: list[bytes] = []
        size = 0

        def collect(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            progress()
            if size <= MAX_BODY:
                pieces.append(piece)

        await treq.collect(response, collect)
        if response.code != 200:
            raise HttpStatusError(response.code)
        if size > MAX_BODY:
            raise RemoteProtocolError("an answer that is too long")
        return b"".join(pieces)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.closeCachedConnections()


@implementer(IClientCarrier)
class AskingClientCarrier:
    """Opens polling carriers.

    :param hold: requests that the server shall keep open; 0 for plain HTTP. :param wait: seconds, at most.
    """

    def __init__(
        self, place: WebPlace, context: CarrierContext, hold: int, wait: int, random_bytes: Callable[[int], bytes]
    ) -> None:
        self.name = place.name
        self._place = place
        self._reactor = context.reactor
        self._hold = hold
        self._wait = wait
        self._random_bytes = random_bytes
        self._limit = BodyLimit(MAX_BODY, lambda text: _log.warn("{where}: {text}", where=shown(place.name), text=text))

    def open(self) -> Deferred[ICarrier]:
        """See :meth:`~mikanet.interfaces.IClientCarrier.open`."""
        return opening(self._place, self._reactor, self._open())

    async def _open(self) -> ICarrier:
        poster = Poster(self._reactor, self._place, max(1, self._hold) + 1)
        rid = 1 + int.from_bytes(self._random_bytes(_RID_BYTES), "little")
        try:
            body = Open(self._hold, self._wait, rid).encode(padding(self._random_bytes))
            opened = Opened.decode(await poster.post(body, lambda: None, self._place.knock))
        except BaseException:
            poster.close()
            raise
        return AskingCarrier(self._reactor, self.name, poster.post, opened, rid, poster.close, self._limit)


def padding(random_bytes: Callable[[int], bytes]) -> bytes:
    """Random bytes, of a random number."""
    return random_bytes(random_bytes(1)[0] % MAX_PADDING)
