"""The ICMP carrier: ``icmp://host`` for clients, ``icmp://address`` for servers, over echo requests and replies.

Both ends need a raw socket. A client's identifier stays the same for the life of a link, so that address translators
take all of it for one exchange; the server answers requests only, each once, and keeps a few to answer when it has
something to say. Client option: ``size=BYTES`` (largest message to try).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.icmp_client import MAX_SIZE, IcmpHandshake
from mikanet.carriers.polled_carrier import Alarm, PolledClientCarrier, PolledHub, Questions, random_bits
from mikanet.carriers.polled_client import PolledClient
from mikanet.carriers.polled_numbers import KEY_SIZE, Numbers
from mikanet.carriers.polled_server import PolledServer
from mikanet.carriers.strangers import Strangers
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import ConfigError, DestinationError, Reason, RemoteProtocolError
from mikanet.guard.admission import AdmissionLimits, address_group
from mikanet.interfaces import ICarrier, IClientCarrier, IServerCarrier
from mikanet.net.resolve import resolve_first
from mikanet.wire import icmp

#: Seconds for a whole handshake.
OPEN_TIME = 20.0
_SOCKET_BUFFER = 4 << 20
#: Messages read per turn of the reactor before others get theirs.
_READ_AT_ONCE = 256
# Linux, <linux/icmp.h> and <linux/icmpv6.h>; Python has no names for them. A bit set keeps a type out.
_SOL_RAW, _ICMP_FILTER = 255, 1
_SOL_ICMPV6, _ICMP6_FILTER = 58, 1

#: Called with who sent it, and the messages of one read from there.
Received = Callable[[str, list[icmp.Echo]], None]


def no_right() -> ConfigError:
    """What to say to whom the kernel refuses a raw socket."""
    return ConfigError("icmp:// needs a raw socket: run as root, or give the program CAP_NET_RAW")


@implementer(IReadDescriptor)
class IcmpSocket:
    """A raw socket that takes echo messages of one type whose payload has one mark.

    :param only: of this host only.
    """

    def __init__(
        self, reactor: Any, host: str, accept: int, mark: bytes, received: Received, only: str | None = None
    ) -> None:
        self._reactor = reactor
        self._six = ":" in (only or host)
        self._mark = mark
        self._received = received
        self._socket: socket.socket | None = self._open(host, accept, only)
        reactor.addReader(self)

    def _open(self, host: str, accept: int, only: str | None) -> socket.socket:
        family, protocol = (
            (socket.AF_INET6, socket.IPPROTO_ICMPV6) if self._six else (socket.AF_INET, socket.IPPROTO_ICMP)
        )
        try:
            made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except PermissionError:
            raise no_right() from None
        try:
            if self._six:
                words = [0xFFFFFFFF] * 8
                words[accept >> 5] &= ~(1 << (accept & 31))
                made.setsockopt(_SOL_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
            else:
                made.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~(1 << accept)))
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                made.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
            if host:
                made.bind((host, 0))
            if only:
                made.connect((only, 0))
        except OSError:
            made.close()
            raise
        return made

    def send(self, to: str | None, messages: Sequence[bytes]) -> None:
        """Send messages to ``to``, or to the one host of a connected socket. What a full socket does not take is lost."""
        if self._socket is None:
            return
        try:
            if to is None:
                for message in messages:
                    self._socket.send(message)
            else:
                for message in messages:
                    self._socket.sendto(message, (to, 0))
        except OSError:
            pass  # full, unreachable, refused: it is asked again

    # -- IReadDescriptor

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno() if self._socket is not None else -1

    def logPrefix(self) -> str:
        """For Twisted's log."""
        return "ICMP"

    def doRead(self) -> None:
        """Read what is there, in batches per sender."""
        batch: list[icmp.Echo] = []
        current: str | None = None
        mark, size = self._mark, icmp.MARK_SIZE
        for _ in range(_READ_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, sender = self._socket.recvfrom(65535)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # what ICMP said of an earlier packet
            try:
                echo = icmp.decode(data if self._six else icmp.without_ip_header(data))
            except RemoteProtocolError:
                continue
            if echo.payload[:size] != mark:
                continue
            if sender[0] != current:
                if batch:
                    self._received(cast(str, current), batch)
                    batch = []
                current = sender[0]
            batch.append(echo)
        if batch:
            self._received(cast(str, current), batch)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor is going; or the kernel reports what the network said of a packet, which to the reactor is a clean end."""
        if self._socket is not None and reason.check(ConnectionDone):
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # so that it is not reported again
            self._reactor.addReader(self)
        else:
            self.close()

    def close(self) -> None:
        """No more."""
        if self._socket is not None:
            self._reactor.removeReader(self)
            self._socket.close()
            self._socket = None


# -- the client


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """The carrier of a client's URL.

    :raises ConfigError: for a wrong option.
    """
    return IcmpClient(url, context)


def _host_only(url: CarrierUrl) -> str:
    if url.port is not None or url.path.strip("/"):
        raise ConfigError(f"carrier {url.text!r}: ICMP has neither ports nor paths: write icmp://host")
    return url.host


@implementer(IClientCarrier)
class IcmpClient:
    """Opens links to a host."""

    def __init__(self, url: CarrierUrl, context: CarrierContext) -> None:
        url.reject_unknown("size")
        self.name = url.text
        self.host = _host_only(url)
        if not self.host:
            raise ConfigError(f"carrier {url.text!r}: the host is missing")
        self.reactor = context.reactor
        size = url.options.get("size", str(MAX_SIZE))
        if not size.isdecimal() or not 100 <= int(size) <= MAX_SIZE:
            raise ConfigError(f"carrier {url.text!r}: size is a number from 100 to {MAX_SIZE}")
        self.size = int(size)

    def open(self) -> Deferred[ICarrier]:
        """See :meth:`~mikanet.interfaces.IClientCarrier.open`."""
        return _Opening(self).start()


class _Opening:
    """One attempt: a handshake, then the carrier."""

    def __init__(self, client: IcmpClient) -> None:
        self._client = client
        self._reactor = client.reactor
        self._alarm = Alarm(client.reactor, self._pump)
        self._socket: IcmpSocket | None = None
        self._handshake: IcmpHandshake | None = None
        self._carrier: PolledClientCarrier | None = None
        self._ident = random_bits(16)
        self._kind = icmp.ECHO_REQUEST
        self._ends_at = 0.0
        self._resolving: Deferred[Any] | None = None
        self._done: Deferred[ICarrier] = Deferred(lambda _: self._stop())

    def start(self) -> Deferred[ICarrier]:
        """Begin."""
        self._resolving = resolving = resolve_first(self._reactor, self._client.host)
        resolving.addCallback(self._resolved)
        resolving.addErrback(self._failed)
        return self._done

    def _resolved(self, address: str) -> None:
        self._resolving = None
        six = ":" in address
        self._kind = icmp.ECHO_REQUEST6 if six else icmp.ECHO_REQUEST
        accept = icmp.ECHO_REPLY6 if six else icmp.ECHO_REPLY
        self._socket = IcmpSocket(self._reactor, "", accept, icmp.MARK_DOWN, self._received, only=address)
        now = self._reactor.seconds()
        self._ends_at = now + OPEN_TIME
        self._handshake = IcmpHandshake(random_bits, now, self._client.size - 20 * six)
        self._pump()

    def _pump(self) -> None:
        handshake, now = self._handshake, self._reactor.seconds()
        if handshake is None:
            return
        if handshake.size is not None:
            self._finish(handshake, handshake.size, now)
        elif now >= self._ends_at:
            text = f"no answer to ICMP echo from a tunnel server at {self._client.host}"
            self._failed(Failure(DestinationError(Reason.TIMEOUT, text)))
        else:
            self._transmit(handshake.questions(now))
            self._alarm.set(min(handshake.deadline, self._ends_at))

    def _transmit(self, questions: Questions) -> None:
        if self._socket is not None:
            kind, ident, mark = self._kind, self._ident, icmp.MARK_UP
            self._socket.send(None, [icmp.encode(kind, ident, number, mark + message) for number, message in questions])

    def _received(self, host: str, echoes: list[icmp.Echo]) -> None:
        answers = [(echo.sequence, echo.payload[icmp.MARK_SIZE :]) for echo in echoes if echo.ident == self._ident]
        if self._carrier is not None:
            self._carrier.heard(cast("list[tuple[int, bytes | None]]", answers))
        elif self._handshake is not None:
            now = self._reactor.seconds()
            for number, message in answers:
                self._handshake.received(number, message, now)
            self._pump()

    def _finish(self, handshake: IcmpHandshake, size: int, now: float) -> None:
        assert handshake.connection is not None
        assert self._socket is not None
        self._handshake = None
        self._alarm.cancel()
        link = PolledClient(handshake.connection, size, handshake.stock, handshake.hold, now)
        client = self._client
        self._carrier = PolledClientCarrier(
            client.name, client.host, self._reactor, link, self._transmit, self._socket.close
        )
        self._carrier.found = f"ICMP, messages of {size} bytes, round trip {handshake.rtt * 1000:.0f} ms"
        done, self._done = self._done, Deferred()
        self._carrier.pump()
        done.callback(cast(ICarrier, self._carrier))

    def _failed(self, reason: Failure) -> None:
        self._resolving = None
        if self._carrier is None and self._ends_at >= 0:
            self._stop()
            done, self._done = self._done, Deferred()
            done.errback(reason)

    def _stop(self) -> None:
        self._ends_at = -1.0
        self._handshake = None
        self._alarm.cancel()
        resolving, self._resolving = self._resolving, None
        if resolving is not None:
            resolving.addErrback(lambda _: None)
            resolving.cancel()
        if self._socket is not None:
            self._socket.close()


# -- the server


def server(url: CarrierUrl, context: CarrierContext) -> IServerCarrier:
    """The carrier of a server's URL.

    :raises ConfigError: for a wrong option.
    """
    return IcmpServer(url, context)


#: Whom to answer: host, type of the reply, identifier and sequence number.
_Way = tuple[str, int, int, int]


def _group_of(way: _Way) -> str:
    return address_group(way[0])


@implementer(IServerCarrier)
class IcmpServer:
    """Answers the echo requests of clients, on one address or on all."""

    def __init__(self, url: CarrierUrl, context: CarrierContext) -> None:
        url.reject_unknown()
        self.name = url.text
        self._host = _host_only(url)
        self._reactor = context.reactor
        limits = context.limits or AdmissionLimits()
        self._hub = PolledHub(
            url.text,
            "pickaxe.server.icmp",
            context.reactor,
            context.counters,
            context.refusal_time,
            Strangers(limits.unverified, limits.unverified_per_address),
            lambda way: way[0],
            self._flush,
        )
        self._links = PolledServer(self._reply, Numbers(os.urandom(KEY_SIZE)), self._hub.started, _group_of, _group_of)
        self._hub.server = self._links
        self._socket: IcmpSocket | None = None
        self._six = ":" in self._host
        self._out: dict[str, list[bytes]] = {}

    def listen(self, accept: Callable[[ICarrier], None]) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.listen`."""
        self._hub.accept = accept
        return maybeDeferred(self._listen)

    def _listen(self) -> None:
        kind = icmp.ECHO_REQUEST6 if self._six else icmp.ECHO_REQUEST
        self._socket = IcmpSocket(self._reactor, self._host, kind, icmp.MARK_UP, self._received)

    def stop(self) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.stop`. Links live on the one socket, so they end with it."""
        self._hub.abort_all()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return succeed(None)

    def _received(self, host: str, echoes: list[icmp.Echo]) -> None:
        kind = icmp.ECHO_REPLY6 if self._six else icmp.ECHO_REPLY
        self._hub.batch([partial(self._question, (host, kind, echo.ident, echo.sequence), echo) for echo in echoes])

    def _question(self, way: _Way, echo: icmp.Echo, now: float) -> Any:
        # An answer is never longer than what was asked for; whoever was probed for it can take it. A link keeps its
        # address: from another one nothing is answered but that it is closed, which is shorter than any question.
        try:
            return self._links.question(echo.payload[icmp.MARK_SIZE :], way, MAX_SIZE, now)
        except RemoteProtocolError:
            if wire.is_data(echo.payload[icmp.MARK_SIZE :]):
                self._reply(way, wire.CLOSED)  # a client of ours, and we know nothing of it any more
            raise

    def _reply(self, way: _Way, message: bytes | None) -> None:
        if message is not None:
            host, kind, ident, sequence = way
            packet = icmp.encode(kind, ident, sequence, icmp.MARK_DOWN + message)
            self._out.setdefault(host, []).append(packet)

    def _flush(self) -> None:
        out, self._out = self._out, {}
        if self._socket is not None:
            for host, messages in out.items():
                self._socket.send(host, messages)
