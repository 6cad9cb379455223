"""Asking name servers for the addresses of one name: A and AAAA at once, over UDP, and over TCP where that is too small.

Nothing of a question outlives it: when it is answered, has failed or was cancelled, its sockets are closed.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from mikanet.address import IPAddress
from mikanet.datagrams import open_flow
from mikanet.errors import DestinationError, Reason, RemoteProtocolError
from mikanet.wire import dns

#: When a question that is not answered is asked again, of the next server, in seconds from its beginning.
RETRIES = (1.0, 2.0, 3.0, 4.0)

#: How long an answer with addresses waits for that of the other family, in seconds (RFC 8305 section 3 has 0.05 s).
OTHER_FAMILY = 0.3

#: Most addresses of one name that are used.
MAX_ADDRESSES = 16

_TYPES = (dns.AAAA, dns.A)
_GOOD = frozenset({dns.NOERROR, dns.NXDOMAIN})


@dataclass(frozen=True)
class Answer:
    """What name servers say: addresses, none if the name has none, and for how many seconds that holds."""

    addresses: tuple[IPAddress, ...]
    ttl: float


class Question:
    """One name, asked of name servers until one answers.

    :param servers: pairs of address and port, in the order in which they are asked.
    :param dial_tcp: opens a TCP connection to an address and a port.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        servers: Sequence[tuple[str, int]],
        dial_tcp: Callable[[str, int, Factory], Deferred[Any]],
    ) -> None:
        self.done: Deferred[Answer] = Deferred(lambda _: self._close())
        self._reactor = reactor
        self._servers = servers
        self._dial_tcp = dial_tcp
        wire = dns.name_of(name)
        self._sections = {kind: wire + kind.to_bytes(2, "big") + b"\0\1" for kind in _TYPES}
        # One number for each family, not to be guessed by who cannot see the questions; so are the ports.
        self._numbers = {int.from_bytes(os.urandom(2), "big") & 0xFFFE | at: kind for at, kind in enumerate(_TYPES)}
        self._answers: dict[int, Answer] = {}
        self._failed: set[tuple[int, tuple[str, int]]] = set()
        self._asked_by_tcp: set[tuple[int, tuple[str, int]]] = set()
        self._tries = 0
        self._flows: dict[tuple[str, int], _Flow] = {}
        self._streams: list[Deferred[Any]] = []
        self._connections: list[_TcpFlow] = []
        self._timers: list[IDelayedCall] = []
        self._patience: IDelayedCall | None = None
        self._closed = False

    def start(self) -> Deferred[Answer]:
        """Ask. The Deferred fails with :class:`DestinationError` when no server gives an answer; cancelling ends it."""
        self._timers = [self._reactor.callLater(delay, self._ask_next) for delay in RETRIES]
        self._timers.append(self._reactor.callLater(RETRIES[-1] + 1.0, self._give_up))
        self._ask_next()
        return self.done

    # -- asking

    def _open_kinds(self) -> list[tuple[int, int]]:
        return [(number, kind) for number, kind in self._numbers.items() if kind not in self._answers]

    def _ask_next(self) -> None:
        if self._closed:
            return
        server = self._servers[self._tries % len(self._servers)]
        self._tries += 1
        flow = self._flows.get(server)
        if flow is None:
            flow = _Flow(self, server)
            try:
                flow.open(self._reactor)
            except (CannotListenError, OSError):
                self._server_failed(server)
                return
            self._flows[server] = flow
        for number, kind in self._open_kinds():
            flow.send(dns.build_query(number, self._sections[kind], None))

    def _server_failed(self, server: tuple[str, int]) -> None:
        """A server cannot be used: the next one at once, while there is one that was not asked yet."""
        for _, kind in self._open_kinds():
            self._failed.add((kind, server))
        if self._tries < len(self._servers):
            self._ask_next()
        elif self._all_failed():
            self._give_up()

    def _all_failed(self) -> bool:
        return all((kind, server) in self._failed for _, kind in self._open_kinds() for server in self._servers)

    # -- answers

    def received(self, data: bytes, server: tuple[str, int], over_tcp: bool) -> None:
        """A message from a server."""
        try:
            message = dns.Message.decode(data)
        except RemoteProtocolError:
            return
        kind = self._numbers.get(message.ident)
        if self._closed or kind is None or kind in self._answers or not message.flags & dns.QR:
            return
        asked = dns.Question(self._sections[kind][:-4], kind)
        if [(question.name.lower(), question.type) for question in message.questions] != [(asked.name, kind)]:
            return
        if message.flags & dns.TC and not over_tcp:
            self._over_tcp(message.ident, kind, server)
        elif message.rcode not in _GOOD:
            self._refused(kind, server)
        else:
            self._answers[kind] = _read(message, kind)
            self._judge()

    def _refused(self, kind: int, server: tuple[str, int]) -> None:
        """SERVFAIL, REFUSED and the like: another server may know better."""
        self._failed.add((kind, server))
        if self._all_failed():
            self._give_up()
        elif self._tries < len(self._servers):
            self._ask_next()

    def _judge(self) -> None:
        if len(self._answers) == len(_TYPES):
            self._finish()
        elif any(answer.addresses for answer in self._answers.values()) and self._patience is None:
            self._patience = self._reactor.callLater(OTHER_FAMILY, self._finish)
            self._timers.append(self._patience)

    def _finish(self) -> None:
        answers = [self._answers[kind] for kind in _TYPES if kind in self._answers]
        addresses = tuple(address for answer in answers for address in answer.addresses)
        # An empty answer has no TTL of its own, and says nothing about the other family's.
        telling = [answer for answer in answers if answer.addresses] or answers
        self._close()
        self.done.callback(Answer(addresses[:MAX_ADDRESSES], min(answer.ttl for answer in telling)))

    def _give_up(self) -> None:
        if self._closed:
            return
        if any(answer.addresses for answer in self._answers.values()):
            self._finish()
            return
        failed = self._all_failed()
        self._close()
        reason = Reason.HOST_UNREACHABLE if failed else Reason.TIMEOUT
        self.done.errback(DestinationError(reason, "name servers do not answer"))

    # -- TCP, for answers that do not fit into a datagram

    def _over_tcp(self, number: int, kind: int, server: tuple[str, int]) -> None:
        if (kind, server) in self._asked_by_tcp:
            return
        self._asked_by_tcp.add((kind, server))
        flow = _TcpFlow(self, server, dns.build_query(number, self._sections[kind], None))
        self._connections.append(flow)

        def failed(_: Failure) -> None:
            if not self._closed:
                self._refused(kind, server)

        dialling = self._dial_tcp(*server, _One(flow))
        self._streams.append(dialling)
        dialling.addErrback(failed)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        for flow in self._flows.values():
            flow.close()
        for dialling in self._streams:
            dialling.cancel()
        for connection in self._connections:
            connection.close()

    def server_failed(self, server: tuple[str, int]) -> None:
        """The network says that nobody listens there."""
        if not self._closed:
            self._server_failed(server)


def _read(message: dns.Message, kind: int) -> Answer:
    size = 4 if kind == dns.A else 16
    records = [record for record in message.answers if record.cls == dns.IN]
    found = [record.data for record in records if record.type == kind and len(record.data) == size]
    addresses = tuple(dict.fromkeys(ipaddress.ip_address(data) for data in found))
    # Every link of a chain of CNAMEs counts. TTLs with the highest bit set are zero (RFC 2181, section 8).
    ttls = [record.ttl if record.ttl < 1 << 31 else 0 for record in records]
    return Answer(addresses, float(min(ttls, default=0)))


class _Flow(DatagramProtocol):
    """A connected UDP socket to one server, from a port of its own."""

    noisy = False

    def __init__(self, question: Question, server: tuple[str, int]) -> None:
        self._question = question
        self._server = server
        self._port: Any = None

    def open(self, reactor: Any) -> None:
        """Open the socket.

        :raises CannotListenError: if that cannot be done. OSError: if there is no way to the server.
        """
        host, port = self._server
        self._port = open_flow(reactor, self, "::" if ":" in host else "")
        try:
            self._port.connect(host, port)
        except BaseException:
            self._port.stopListening()
            raise

    def send(self, data: bytes) -> None:
        """Ask; what cannot be sent is as good as lost."""
        try:
            self._port.write(data)
        except OSError:
            pass

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """From the server: the socket takes nothing else."""
        self._question.received(datagram, self._server, over_tcp=False)

    def connectionRefused(self) -> None:
        """Nobody listens there."""
        self._question.server_failed(self._server)

    def close(self) -> None:
        """Close the socket."""
        if self._port is not None:
            self._port.stopListening()
            self._port = None


class _TcpFlow(Protocol):
    """One question over TCP (RFC 7766)."""

    def __init__(self, question: Question, server: tuple[str, int], query: bytes) -> None:
        self._question = question
        self._server = server
        self._query = query
        self._buffer = b""

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self.transport.write(len(self._query).to_bytes(2, "big") + self._query)

    def dataReceived(self, data: bytes) -> None:
        """The answer, of at most 65,535 bytes."""
        self._buffer += data
        if len(self._buffer) >= 2:
            length = int.from_bytes(self._buffer[:2], "big")
            if len(self._buffer) >= 2 + length:
                message, self._buffer = self._buffer[2 : 2 + length], b""
                self._question.received(message, self._server, over_tcp=True)
                self.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Without an answer that helps, the next try does."""

    def close(self) -> None:
        """Let go."""
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # a TCP transport


class _One(Factory):
    """Has one protocol to give."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        """The one."""
        return self._protocol
