"""How DNS messages travel: in UDP datagrams to one resolver, and on TCP connections, of which a server takes so many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.interfaces import IAddress, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from mikanet.carriers.strangers import Strangers
from mikanet.counters import Counters
from mikanet.guard.admission import address_group
from mikanet.kcp.udp import UdpPackets

#: Connections without a link that is proven, and connections in all.
MAX_STRANGERS, MAX_LINES = 1000, 4000
#: Seconds without a whole message after which a connection is closed.
IDLE = 60.0
#: Most bytes that the answers to strangers may be ahead of their reader, and those to others.
STRANGERS_UNREAD, MAX_UNREAD = 1 << 16, 1 << 20


class UdpLine:
    """DNS messages in UDP datagrams to one resolver."""

    def __init__(self, reactor: Any, peer: tuple[str, int], received: Callable[[list[bytes]], None]) -> None:
        self._peer = peer
        interface = "::" if ":" in peer[0] else ""
        self._port = UdpPackets(reactor, 0, interface, lambda _, data: received(data), only=peer)
        self._port.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted

    def send(self, messages: Sequence[bytes]) -> None:
        """Send datagrams."""
        self._port.send_packets(self._peer, messages)

    def close(self) -> None:
        """No more."""
        self._port.stopListening()  # type: ignore[no-untyped-call]  # untyped in Twisted


class TcpLine(Protocol, TimeoutMixin):
    """DNS messages on a TCP connection, each behind its length (RFC 1035, section 4.2.2).

    :param received: called with the messages of each read.
    :ivar max_unread: bytes that may wait for the peer to read them; beyond, it is cut off.
    """

    transport: ITCPTransport | None
    max_unread = MAX_UNREAD

    def __init__(self, received: Callable[[TcpLine, list[bytes]], None], lost: Callable[[TcpLine], None]) -> None:
        self._received = received
        self._lost = lost
        self._buffer = bytearray()

    def connectionMade(self) -> None:
        """Begin."""
        cast(ITCPTransport, self.transport).setTcpNoDelay(True)
        self.setTimeout(IDLE)  # type: ignore[no-untyped-call]  # untyped in Twisted

    def dataReceived(self, data: bytes) -> None:
        """Cut messages out."""
        buffer = self._buffer
        buffer += data
        messages, at = [], 0
        while len(buffer) >= at + 2:
            end = at + 2 + (buffer[at] << 8 | buffer[at + 1])
            if end > len(buffer):
                break
            messages.append(bytes(buffer[at + 2 : end]))
            at = end
        del buffer[:at]
        if messages:
            # Whole messages only: a byte now and then would keep a connection for ever.
            self.resetTimeout()  # type: ignore[no-untyped-call]  # untyped in Twisted
            self._received(self, messages)

    def send(self, messages: Sequence[bytes]) -> None:
        """Send messages; one whose reader is far behind is cut off."""
        transport = self.transport
        if transport is None:
            return
        # A socket that takes nothing leaves all that is written in the second of these (a private name of Twisted's).
        if len(getattr(transport, "dataBuffer", b"")) + int(getattr(transport, "_tempDataLen", 0)) > self.max_unread:
            transport.abortConnection()
            return
        transport.write(b"".join(len(message).to_bytes(2, "big") + message for message in messages))

    def timeoutConnection(self) -> None:
        """Silence for too long."""
        self.close()

    def close(self) -> None:
        """No more."""
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.setTimeout(None)  # type: ignore[no-untyped-call]  # untyped in Twisted
        self.transport = None
        self._lost(self)


class TcpLines(Factory):
    """A server's TCP connections. Beyond a cap the oldest stranger's is closed, of the newcomer's address if that has its share.

    :param per_address: strangers' connections of one address.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        received: Callable[[TcpLine, list[bytes]], None],
        per_address: int,
        counters: Counters,
        prefix: str,
    ) -> None:
        self._reactor = reactor
        self._received = received
        self._counters = counters
        self._prefix = prefix
        self._lines: set[TcpLine] = set()
        self._strangers: Strangers[TcpLine] = Strangers(MAX_STRANGERS, per_address)

    def buildProtocol(self, addr: IAddress | None) -> TcpLine | None:
        """One more; None where proven clients have all places."""
        group = address_group(getattr(addr, "host", ""))
        while (oldest := self._strangers.in_the_way(group)) is not None:
            self._counters.add(f"{self._prefix}.limit.connections")
            self._strangers.discard(oldest)
            oldest.close()
        if len(self._lines) >= MAX_LINES:
            return None
        line = TcpLine(self._received, self._lost)
        line.callLater = self._reactor.callLater  # type: ignore[method-assign]  # as Twisted says to
        line.max_unread = STRANGERS_UNREAD
        self._lines.add(line)
        self._strangers.add(line, group)
        return line

    def proven(self, line: TcpLine) -> None:
        """A client that is no stranger asks on this one."""
        self._strangers.discard(line)
        line.max_unread = MAX_UNREAD

    def _lost(self, line: TcpLine) -> None:
        self._lines.discard(line)
        self._strangers.discard(line)

    def close(self) -> None:
        """Close all."""
        for line in list(self._lines):
            line.close()
