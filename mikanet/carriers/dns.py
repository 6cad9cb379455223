"""The DNS carrier: ``dns://resolver:53/t.example`` for clients, ``dns://address:53/t.example`` for servers.

A client asks any resolver, or the server itself. Client options: ``transport=auto|udp|tcp``, ``type=TXT`` (only that
type), ``size=BYTES`` (largest answer to try), ``wide=no`` (data in names only). Server options: ``ns=NAME`` (what its NS
record says, ``ns.`` and the zone if not given) and ``address=IP`` (its own address as others see it; may be two, with a
comma between).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.carriers.dns_client import PROBED_SIZE, DnsAnswerError, DnsHandshake, DnsPath, names_fit
from mikanet.carriers.dns_lines import TcpLine, TcpLines, UdpLine
from mikanet.carriers.dns_records import CARRYING
from mikanet.carriers.dns_zone import MAX_UDP, DnsZone
from mikanet.carriers.polled_carrier import Alarm, PolledClientCarrier, PolledHub, Questions, random_bits
from mikanet.carriers.polled_client import PolledClient
from mikanet.carriers.polled_numbers import KEY_SIZE, Numbers
from mikanet.carriers.polled_server import PolledLink
from mikanet.carriers.polled_wire import CLOSED
from mikanet.carriers.strangers import Strangers
from mikanet.carriers.urls import CarrierContext, CarrierUrl
from mikanet.errors import ConfigError, DestinationError, LocalProtocolError, Reason, RemoteProtocolError
from mikanet.guard.admission import AdmissionLimits, address_group
from mikanet.interfaces import ICarrier, IClientCarrier, IServerCarrier
from mikanet.kcp.udp import UdpPackets
from mikanet.net.endpoint import TcpEndpoint
from mikanet.net.resolve import resolve_first
from mikanet.wire import dns

#: Seconds for a whole handshake, and those after which a path without any answer is tried over TCP.
OPEN_TIME, TCP_AFTER = 25.0, 6.0
#: Links without a proof by way of one address: many clients may share a resolver.
_STRANGERS_PER_RESOLVER = 256
#: Answers without a record, one after the other, that are borne.
_MAX_EMPTY = 2


def zone_of(url: CarrierUrl) -> bytes:
    """The zone that a URL names.

    :raises ConfigError: if it names none, or one too long to leave room for data.
    """
    text = url.path.strip("/")
    if not text or "/" in text:
        raise ConfigError(f"carrier {url.text!r}: the zone is missing: write dns://resolver:53/t.example")
    try:
        zone = dns.name_of(text)
    except LocalProtocolError as problem:
        raise ConfigError(f"carrier {url.text!r}: {problem}") from None
    if not names_fit(zone):
        raise ConfigError(f"carrier {url.text!r}: the zone's name is too long to leave room for data")
    return zone


# -- the client


def client(url: CarrierUrl, context: CarrierContext) -> IClientCarrier:
    """The carrier of a client's URL.

    :raises ConfigError: for a wrong option.
    """
    return DnsClient(url, context)


@implementer(IClientCarrier)
class DnsClient:
    """Opens links to a zone through a resolver."""

    def __init__(self, url: CarrierUrl, context: CarrierContext) -> None:
        url.reject_unknown("transport", "type", "size", "wide")
        self.name = url.text
        self.zone = zone_of(url)
        self.host = url.host
        self.port = url.port or 53
        self.reactor = context.reactor
        self.counters = context.counters
        self.transport = url.options.get("transport", "auto")
        if self.transport not in ("auto", "udp", "tcp"):
            raise ConfigError(f"carrier {url.text!r}: transport is auto, udp or tcp")
        kind = url.options.get("type", "").upper()
        if kind and dns.TYPES.get(kind) not in CARRYING:
            names = ", ".join(dns.TYPE_NAMES[number] for number in CARRYING)
            raise ConfigError(f"carrier {url.text!r}: type is one of {names}")
        self.types = (dns.TYPES[kind],) if kind else CARRYING
        size = url.options.get("size", str(PROBED_SIZE))
        if not size.isdecimal() or not dns.PLAIN_SIZE <= int(size) <= MAX_UDP:
            raise ConfigError(f"carrier {url.text!r}: size is a number from {dns.PLAIN_SIZE} to {MAX_UDP}")
        self.size = int(size)
        self.wide = url.options.get("wide", "yes") != "no"

    def open(self) -> Deferred[ICarrier]:
        """See :meth:`~mikanet.interfaces.IClientCarrier.open`."""
        return _Opening(self).start()


class _Opening:
    """One attempt: a handshake over UDP, over TCP if nobody answers, then the carrier."""

    def __init__(self, client: DnsClient) -> None:
        self._client = client
        self._reactor = client.reactor
        self._alarm = Alarm(client.reactor, self._rang)
        self._line: Any = None
        self._handshake: DnsHandshake | None = None
        self._carrier: PolledClientCarrier | None = None
        self._path: DnsPath | None = None
        self._done: Deferred[ICarrier] = Deferred(lambda _: self._give_up())
        self._connecting: Deferred[Any] | None = None
        self._ends_at = 0.0
        self._began_at = 0.0
        self._empty = 0
        self._address = ""
        self._tcp = client.transport == "tcp"

    def start(self) -> Deferred[ICarrier]:
        """Begin."""
        self._ends_at = self._reactor.seconds() + OPEN_TIME
        self._connecting = resolve_first(self._reactor, self._client.host)
        self._connecting.addCallbacks(self._resolved, self._failed)
        return self._done

    def _resolved(self, address: str) -> None:
        self._connecting = None
        self._address = address
        if self._tcp:
            self._over_tcp()
        else:
            self._line = UdpLine(self._reactor, (address, self._client.port), self._received)
            self._begin()

    def _over_tcp(self) -> None:
        factory = Factory.forProtocol(partial(TcpLine, lambda _, data: self._received(data), self._tcp_lost))
        factory.noisy = False
        endpoint = TcpEndpoint(self._reactor, Address(self._address, self._client.port))
        self._connecting = endpoint.connect(factory)
        self._connecting.addCallbacks(self._connected, self._failed)

    def _connected(self, line: TcpLine) -> None:
        self._connecting = None
        self._line = line
        self._tcp = True
        self._begin()

    def _begin(self) -> None:
        client = self._client
        self._handshake = DnsHandshake(
            client.zone, random_bits, self._reactor.seconds(), types=client.types, size=client.size, wide=client.wide
        )
        self._began_at = self._reactor.seconds()
        self._pump()

    def _pump(self) -> None:
        handshake, now = self._handshake, self._reactor.seconds()
        assert handshake is not None
        if now >= self._ends_at:
            self._failed(Failure(self._problem(handshake)))
            return
        if handshake.mode is not None:
            self._finish(handshake, now)
            return
        silent = not handshake.answered and not self._tcp and self._client.transport == "auto"
        if silent and now - self._began_at >= TCP_AFTER:
            self._line.close()
            self._line = None
            self._handshake = None
            self._over_tcp()
            return
        messages = handshake.questions(now)
        if messages:
            self._line.send(messages)
        self._alarm.set(min(handshake.deadline, self._ends_at, self._began_at + TCP_AFTER if silent else self._ends_at))

    def _rang(self) -> None:
        if self._handshake is not None:
            self._pump()

    def _received(self, datagrams: list[bytes]) -> None:
        now = self._reactor.seconds()
        if self._carrier is not None:
            self._carrier.heard(self._read(datagrams))
        elif self._handshake is not None:
            for data in datagrams:
                self._handshake.received(data, now)
            self._pump()

    def _read(self, datagrams: list[bytes]) -> list[tuple[int, bytes | None]]:
        path = self._path
        assert path is not None
        read: list[tuple[int, bytes | None]] = []
        for data in datagrams:
            try:
                read.append(path.answer(data))
                self._empty = 0
            except DnsAnswerError as problem:
                # The zone's server answers a link's question without a record if it does not know the link.
                self._empty += problem.rcode == dns.NOERROR and not problem.truncated
                read.append((path.number_of(data), CLOSED if self._empty > _MAX_EMPTY else None))
            except RemoteProtocolError:
                self._client.counters.add("pickaxe.client.dns.dropped")
        return read

    def _finish(self, handshake: DnsHandshake, now: float) -> None:
        assert handshake.mode is not None
        assert handshake.connection is not None
        self._handshake = None
        self._alarm.cancel()
        self._path = DnsPath(self._client.zone, handshake.mode, random_bits(16))
        link = PolledClient(handshake.connection, handshake.mode.room, handshake.stock, handshake.hold, now)
        over = "TCP" if self._tcp else "UDP"
        self._carrier = PolledClientCarrier(
            self._client.name, self._client.host, self._reactor, link, self._transmit, self._line.close
        )
        self._carrier.found = f"{handshake.mode}, over {over}, round trip {handshake.rtt * 1000:.0f} ms"
        done, self._done = self._done, Deferred()
        self._carrier.pump()
        done.callback(cast(ICarrier, self._carrier))

    def _transmit(self, questions: Questions) -> None:
        assert self._path is not None
        make = self._path.question
        self._line.send([make(number, message) for number, message in questions])

    def _tcp_lost(self, line: TcpLine) -> None:
        if self._carrier is not None:
            self._carrier.line_lost()
        elif self._handshake is not None and line is self._line:
            self._failed(Failure(DestinationError(Reason.FAILURE, "the resolver closed the TCP connection")))

    def _problem(self, handshake: DnsHandshake) -> DestinationError:
        where = f"{self._client.host} port {self._client.port}"
        zone = dns.text_of(self._client.zone)
        if not handshake.answered:
            return DestinationError(Reason.TIMEOUT, f"no DNS answer from {where}")
        if handshake.connection is not None:
            return DestinationError(
                Reason.TIMEOUT, f"{where}: the server of {zone} answers, but too little gets through"
            )
        codes = ", ".join(sorted({CODES.get(code, str(code)) for code in handshake.refusals}))
        text = f"{where} answers ({codes}), but no tunnel server for {zone} is behind it: see mikanet doctor"
        return DestinationError(Reason.HOST_UNREACHABLE, text)

    def _failed(self, reason: Failure) -> None:
        self._connecting = None
        if self._carrier is not None or self._ends_at < 0:
            return
        self._stop()
        done, self._done = self._done, Deferred()
        done.errback(reason)

    def _give_up(self) -> None:
        """The Deferred was cancelled."""
        self._stop()

    def _stop(self) -> None:
        self._ends_at = -1.0
        self._handshake = None
        self._alarm.cancel()
        if self._connecting is not None:
            connecting, self._connecting = self._connecting, None
            connecting.addErrback(lambda _: None)
            connecting.cancel()
        if self._line is not None:
            self._line.close()


#: Response codes by their names.
CODES = {dns.NOERROR: "empty", dns.FORMERR: "FORMERR", dns.SERVFAIL: "SERVFAIL", dns.NXDOMAIN: "NXDOMAIN"} | {
    dns.NOTIMP: "NOTIMP",
    dns.REFUSED: "REFUSED",
}


# -- the server


def server(url: CarrierUrl, context: CarrierContext) -> IServerCarrier:
    """The carrier of a server's URL.

    :raises ConfigError: for a wrong option.
    """
    return DnsServer(url, context)


@implementer(IServerCarrier)
class DnsServer:
    """The name server of a zone, over UDP and TCP."""

    def __init__(self, url: CarrierUrl, context: CarrierContext) -> None:
        url.reject_unknown("ns", "address")
        self.name = url.text
        self._reactor = context.reactor
        zone = zone_of(url)
        self._host = url.host
        self._port = 53 if url.port is None else url.port
        try:
            nameserver = dns.name_of(url.options["ns"]) if "ns" in url.options else b"\x02ns" + zone
            known = [ip_address(text) for text in url.options.get("address", "").split(",") if text]
        except (ValueError, LocalProtocolError) as problem:
            raise ConfigError(f"carrier {url.text!r}: {problem}") from None
        self._known: list[IPv4Address | IPv6Address] = known
        limits = context.limits or AdmissionLimits()
        self._hub = PolledHub(
            url.text,
            "pickaxe.server.dns",
            context.reactor,
            context.counters,
            context.refusal_time,
            Strangers(limits.unverified, max(limits.unverified_per_address, _STRANGERS_PER_RESOLVER)),
            lambda way: way.to[0] if isinstance(way.to, tuple) else way.to.transport.getPeer().host,
            self._flush,
        )
        self.zone = DnsZone(
            zone, nameserver, self._addresses, Numbers(os.urandom(KEY_SIZE)), self._hub.started, self._answer
        )
        self._hub.server = self.zone.tunnel
        self._udp: UdpPackets | None = None
        self._tcp: IListeningPort | None = None
        self._lines = TcpLines(
            context.reactor, self._messages, limits.unverified_per_address, context.counters, "pickaxe.server.dns"
        )
        self._out: dict[Any, list[bytes]] = {}

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._udp is not None
        return self._udp.host_address().port  # type: ignore[attr-defined, no-any-return]

    def listen(self, accept: Callable[[ICarrier], None]) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.listen`."""
        self._hub.accept = accept
        return maybeDeferred(self._listen)

    def _listen(self) -> Deferred[None]:
        host = self._host
        self._udp = UdpPackets(self._reactor, self._port, host, self._datagrams)
        self._udp.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
        kind: Any = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
        endpoint = kind(self._reactor, self.port, interface=host)
        done: Deferred[Any] = endpoint.listen(self._lines)

        def listening(port: IListeningPort) -> None:
            self._tcp = port

        def failed(reason: Failure) -> Failure:
            if self._udp is not None:
                self._udp.stopListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
                self._udp = None
            return reason

        return done.addCallbacks(listening, failed)

    def stop(self) -> Deferred[None]:
        """See :meth:`~mikanet.interfaces.IServerCarrier.stop`. Links live on the one socket, so they end with it."""
        self._hub.abort_all()
        udp, self._udp = self._udp, None
        tcp, self._tcp = self._tcp, None
        done: Deferred[Any] = maybeDeferred(udp.stopListening) if udp is not None else succeed(None)
        if tcp is not None:
            done.addCallback(lambda _: tcp.stopListening())
        self._lines.close()
        return done.addCallback(lambda _: None)

    # -- messages

    def _datagrams(self, peer: Any, datagrams: list[bytes]) -> None:
        self._hub.batch([partial(self.zone.received, data, peer, False) for data in datagrams])

    def _messages(self, line: TcpLine, messages: list[bytes]) -> None:
        self._hub.batch([partial(self._over_tcp, line, data) for data in messages])

    def _over_tcp(self, line: TcpLine, data: bytes, now: float) -> tuple[PolledLink, list[bytes]] | None:
        # The connection is established, so answers reach that address.
        self.zone.tunnel.reached.show(address_group(cast(Any, line.transport).getPeer().host), now)
        found = self.zone.received(data, line, True, now)
        if found is not None and self._hub.is_proven(found[0]):
            self._lines.proven(line)
        return found

    def _answer(self, to: Any, message: bytes) -> None:
        waiting = self._out.get(to)
        if waiting is None:
            self._out[to] = [message]
        else:
            waiting.append(message)

    def _flush(self) -> None:
        out, self._out = self._out, {}
        for to, messages in out.items():
            if isinstance(to, TcpLine):
                to.send(messages)
            elif self._udp is not None:
                self._udp.send_packets(to, messages)

    def _addresses(self, to: Any) -> list[IPv4Address | IPv6Address]:
        """Where we are: as we were told, as we listen, or as the way back to the asker begins."""
        if self._known:
            return self._known
        if self._host and not ip_address(self._host).is_unspecified:
            return [ip_address(self._host)]
        if isinstance(to, TcpLine):
            host = getattr(to.transport, "getHost", lambda: None)()
            return [ip_address(host.host)] if host is not None else []
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(to)  # sends nothing; asks the kernel for the source address
                return [ip_address(probe.getsockname()[0])]
        except OSError:
            return []
