"""Front doors: datagrams. Flows through the tunnel, and the relay behind SOCKS5's UDP ASSOCIATE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import DatagramProtocol, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.datagrams import open_flow
from mikanet.errors import MikanetError, RemoteProtocolError, reason_of
from mikanet.frontdoors.door import DoorSettings
from mikanet.interfaces import ITunnel
from mikanet.wire import socks

#: Most bytes that wait in all flows of one table while the tunnel dials (our choice).
MAX_QUEUED_BYTES = 262144

Key = TypeVar("Key")


def send_datagram(transport: Any, datagram: bytes, addr: tuple[str, int], counters: Counters) -> None:
    """Send from a local UDP port; what the kernel refuses is lost, as datagrams may be."""
    try:
        transport.write(datagram, addr)
    except (error.MessageLengthError, OSError):
        counters.add("frontdoor.udp.dropped.send")


@implementer(IPushProducer)
class Flow(Protocol):
    """The tunnel's connection for the datagrams between one client and one destination.

    :ivar key: under which the table knows it.
    :ivar idle_sweeps: sweeps of the table since the last datagram.
    """

    transport: ITransport | None
    idle_sweeps = 0
    _full = False
    _closed = False
    _dialling: Deferred[IProtocol] | None = None

    def __init__(self, table: FlowTable[Any], key: object, deliver: Callable[[bytes], None]) -> None:
        self._table = table
        self._queue: list[bytes] | None = []
        self._deliver = deliver
        self.key = key

    def dial(self, make_endpoint: Callable[[], IStreamClientEndpoint]) -> None:
        """Connect an endpoint of the tunnel."""
        try:
            self._dialling = make_endpoint().connect(_FlowFactory(self))
        except MikanetError:
            self._failed(Failure())
        else:
            self._dialling.addErrback(self._failed)

    def send(self, datagram: bytes) -> None:
        """Send to the destination; without room for it, the datagram is lost."""
        self.idle_sweeps = 0
        if self._queue is not None:
            self._table.enqueue(self._queue, datagram)
        elif self._full or self.transport is None:
            self._table.counters.add("frontdoor.udp.dropped.full")
        else:
            self.transport.write(datagram)

    def connectionMade(self) -> None:
        """The tunnel is there: what waited goes with its first bytes."""
        transport = self.transport
        assert transport is not None
        if self._closed:
            transport.loseConnection()
            return
        if IConsumer.providedBy(transport):
            cast(IConsumer, transport).registerProducer(self, True)
        for datagram in self.take_queue():
            transport.write(datagram)

    def take_queue(self) -> list[bytes]:
        """The waiting datagrams; from now on none will wait."""
        queue, self._queue = self._queue, None
        if queue is None:
            return []
        self._table.queued_bytes -= sum(map(len, queue))
        return queue

    def dataReceived(self, data: bytes) -> None:
        """One datagram from the destination."""
        self.idle_sweeps = 0
        self._deliver(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The tunnel gave the flow up."""
        self.transport = None
        self._table.forget(self)

    def _failed(self, failure: Failure) -> None:
        if not self._closed:
            self._table.counters.add(f"frontdoor.udp.failed.{reason_of(failure.value).name.lower()}")
            self._table.forget(self)

    def close(self) -> None:
        """Nobody wants the flow any more."""
        self._closed = True
        self.take_queue()
        if self.transport is not None:
            if IConsumer.providedBy(self.transport):
                cast(IConsumer, self.transport).unregisterProducer()
            self.transport.loseConnection()
        elif self._dialling is not None:
            self._dialling.cancel()

    def pauseProducing(self) -> None:
        """The tunnel is full: datagrams are lost rather than piled up."""
        self._full = True

    def resumeProducing(self) -> None:
        """The tunnel has room."""
        self._full = False

    def stopProducing(self) -> None:
        """The tunnel is gone; connectionLost says so too."""


@implementer(IProtocolFactory)
class _FlowFactory:
    __slots__ = ("_flow",)

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def doStart(self) -> None:
        """As IProtocolFactory."""

    def doStop(self) -> None:
        """As IProtocolFactory."""

    def buildProtocol(self, addr: IAddress | None) -> Flow:
        """The one flow."""
        return self._flow


class FlowTable(Generic[Key]):
    """Flows by a key, capped, and closed when idle.

    :ivar get: the flow of a key, or None.
    :ivar queued_bytes: what waits in the queues of all flows.
    """

    def __init__(self, settings: DoorSettings) -> None:
        self._settings = settings
        self._flows: dict[Key, Flow] = {}
        self._sweeping: IDelayedCall | None = None
        self.get = self._flows.get
        self.counters = settings.counters
        self.queued_bytes = 0

    def __len__(self) -> int:
        return len(self._flows)

    def open(
        self, key: Key, make_endpoint: Callable[[], IStreamClientEndpoint], deliver: Callable[[bytes], None]
    ) -> Flow | None:
        """A new flow, in the place of the idlest one if there are too many; None, and counted, if there can be none.

        :param deliver: takes each datagram from the destination.
        """
        if len(self._flows) >= self._settings.max_udp_flows and not self._evict():
            self.counters.add("frontdoor.udp.dropped.flows")
            return None
        self.counters.add("frontdoor.udp.flows")
        flow = self._flows[key] = Flow(self, key, deliver)
        flow.dial(make_endpoint)
        if self._sweeping is None and self._flows:
            self._sweep_later()
        # An attempt that failed at once has left the table again.
        return self._flows.get(key)

    def enqueue(self, queue: list[bytes], datagram: bytes) -> None:
        """Let a datagram of a flow wait, within the bounds."""
        if len(queue) >= self._settings.max_udp_queue or self.queued_bytes + len(datagram) > MAX_QUEUED_BYTES:
            self.counters.add("frontdoor.udp.dropped.queue")
            return
        self.queued_bytes += len(datagram)
        queue.append(datagram)

    def forget(self, flow: Flow) -> None:
        """Take a flow out of the table; what waits in it is lost."""
        flow.take_queue()
        key = cast(Key, flow.key)
        if self._flows.get(key) is flow:
            del self._flows[key]

    def close(self) -> None:
        """Close all flows."""
        for flow in list(self._flows.values()):
            self._drop(flow)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    def _drop(self, flow: Flow) -> None:
        self.forget(flow)
        flow.close()

    def _evict(self) -> bool:
        flow = max(self._flows.values(), key=lambda each: each.idle_sweeps, default=None)
        if flow is None or not flow.idle_sweeps:
            return False
        self._drop(flow)
        return True

    # Sweeps count how long a flow has been idle, so that no datagram has to look at the clock.

    def _sweep_later(self) -> None:
        self._sweeping = self._settings.reactor.callLater(self._settings.udp_idle_timeout / 2, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        for flow in list(self._flows.values()):
            flow.idle_sweeps += 1
            if flow.idle_sweeps > 2:
                self.counters.add("frontdoor.udp.idle")
                self._drop(flow)
        if self._flows:
            self._sweep_later()


class UdpAssociation(DatagramProtocol):
    """The port that relays datagrams for one SOCKS5 client, as long as its control connection lives.

    Datagrams are taken from the address that the control connection comes from, and from the port of the first good one.
    What a client announces in its request does not count: some name their target there, others a port that they have
    behind an address translator, and RFC 1928 asks no more of them.
    """

    noisy = False

    def __init__(self, tunnel: ITunnel, settings: DoorSettings, client_host: str) -> None:
        self._tunnel = tunnel
        self._counters = settings.counters
        self._flows: FlowTable[bytes] = FlowTable(settings)
        self._client_host = client_host
        self._client_port = 0
        self._client = (client_host, 0)
        self._port: IListeningPort | None = None

    def listen(self, reactor: Any, host: str) -> Address:
        """Open the port; answers where it is.

        :raises twisted.internet.error.CannotListenError: if that cannot be done.
        """
        self._port = port = open_flow(reactor, self, host)
        bound = port.getHost()
        return Address(bound.host.partition("%")[0], bound.port)

    def close(self) -> None:
        """The control connection is gone."""
        self._flows.close()
        if self._port is not None:
            self._port.stopListening()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Pass a client's datagram on in the flow of its destination."""
        # IPv6 brings flow information and a zone as well.
        source = addr[:2]
        if source != self._client and (source[0] != self._client_host or self._client_port):
            self._counters.add("frontdoor.udp.dropped.source")
            return
        try:
            fragment, offset = socks.split_udp(datagram)
            # Looked up as encoded: only the first datagram of a flow has its address decoded.
            destination = datagram[3:offset]
            flow = None if fragment else self._flows.get(destination) or self._open(destination)
        except RemoteProtocolError:
            self._counters.add("frontdoor.udp.dropped.malformed")
            return
        if fragment:
            self._counters.add("frontdoor.udp.dropped.fragment")
            return
        if not self._client_port:
            self._client_port = source[1]
            self._client = source
        if flow is not None:
            flow.send(datagram[offset:])

    def _open(self, encoded: bytes) -> Flow | None:
        found = socks.decode_address(encoded)
        if found is None:
            raise RemoteProtocolError("an address is cut short")
        make_endpoint = partial(self._tunnel.datagram_endpoint, found[0])
        return self._flows.open(encoded, make_endpoint, partial(self._answer, b"\x00\x00\x00" + encoded))

    def _answer(self, header: bytes, datagram: bytes) -> None:
        if self._client_port:
            send_datagram(self.transport, header + datagram, self._client, self._counters)
