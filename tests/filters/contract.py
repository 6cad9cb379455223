"""The contract of every filter, as tests that each filter's test class inherits (see ``mikanet/filters/base.py``)."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IProtocol, IPushProducer, ITransport
from twisted.internet.protocol import Protocol
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mikanet.errors import LocalProtocolError
from mikanet.filters.base import Filter, FilterClientEndpoint, FilterFactory, Kind
from mikanet.interfaces import IPacketTransport
from tests.support.transports import DONE, LOST, MemoryTransport


class Upper(Protocol):
    """An upper protocol that notes what happens."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: list[Any] = []
        self.made = 0

    def connectionMade(self) -> None:
        """Note it."""
        self.made += 1

    def dataReceived(self, data: bytes) -> None:
        """Note it."""
        self.received.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        """Note it."""
        self.lost.append(reason)


@implementer(IHalfCloseableProtocol)
class HalfClosingUpper(Upper):
    """One that knows of half-close."""

    def __init__(self) -> None:
        super().__init__()
        self.read_ended = self.write_ended = 0

    def readConnectionLost(self) -> None:
        """Note it."""
        self.read_ended += 1

    def writeConnectionLost(self) -> None:
        """Note it."""
        self.write_ended += 1


@implementer(IPacketTransport)
class MemoryPackets(MemoryTransport):
    """A packet transport."""

    max_packet_size = 1400


class FilterContractTests:
    """Inherit this with SynchronousTestCase, and give :meth:`make_filter`; the rest has defaults for streams.

    :meth:`open_filter` must bring a filter to the point where its upper protocol is connected.
    """

    def make_filter(self, upper: Any) -> Filter:
        """The filter under test."""
        raise NotImplementedError

    def open_filter(self, filter_: Filter, transport: MemoryTransport) -> None:
        """Do whatever handshake there is; by default none."""

    def opened(self, upper: Any = None) -> tuple[Any, Any, MemoryTransport]:
        """A connected upper protocol, its filter, and the lower transport."""
        upper = HalfClosingUpper() if upper is None else upper
        filter_ = self.make_filter(upper)
        transport: MemoryTransport = MemoryPackets() if filter_.lower_kind is Kind.PACKETS else MemoryTransport()
        transport.connect(filter_)
        self.open_filter(filter_, transport)
        return upper, filter_, transport

    def test_interfaces(self) -> None:
        """It is what it says: a protocol below, a transport above; a packet transport if its upper side says so."""
        _, filter_, _ = self.opened()
        for interface in (IProtocol, IHalfCloseableProtocol, ITransport, IConsumer, IPushProducer):
            verifyObject(interface, filter_)
        self.assertEqual(IPacketTransport.providedBy(filter_), filter_.upper_kind is Kind.PACKETS)

    def test_refuses_the_wrong_lower_side(self) -> None:
        """A lower transport of the other kind is refused."""
        filter_ = self.make_filter(Upper())
        wrong = MemoryTransport() if filter_.lower_kind is Kind.PACKETS else MemoryPackets()
        with self.assertRaises(LocalProtocolError):
            filter_.makeConnection(wrong)

    def test_connects_the_upper_protocol_once(self) -> None:
        """The upper protocol is connected to the filter itself."""
        upper, filter_, _ = self.opened()
        self.assertEqual(upper.made, 1)
        self.assertIs(upper.transport, filter_)

    def test_write_sequence_goes_through_the_filter(self) -> None:
        """``writeSequence`` puts the same bytes on the wire as ``write``; nothing reaches the transport around it."""
        wires = []
        for how in ("write", "writeSequence"):
            _, filter_, transport = self.opened()
            before = len(transport.bytes_written)
            filter_.write(b"abc") if how == "write" else filter_.writeSequence([b"abc"])
            wires.append(len(transport.bytes_written) - before)
        self.assertGreaterEqual(wires[0], 3)
        self.assertEqual(*wires)

    def test_connection_lost_runs_once(self) -> None:
        """The upper protocol learns of the loss once, with its reason; afterwards the filter does nothing."""
        for reason in (DONE, LOST):
            upper, filter_, transport = self.opened()
            written = len(transport.bytes_written)
            transport.lose(reason)
            self.assertEqual(upper.lost, [reason])
            filter_.write(b"late")
            filter_.writeSequence([b"late"])
            filter_.loseConnection()
            filter_.abortConnection()
            filter_.loseWriteConnection()
            filter_.unregisterProducer()
            filter_.pauseProducing()
            filter_.resumeProducing()
            self.assertEqual(len(transport.bytes_written), written)
            self.assertEqual(upper.lost, [reason])

    def test_abort_is_an_abort(self) -> None:
        """``abortConnection`` resets the lower transport and adds no clean end."""
        _, filter_, transport = self.opened()
        filter_.abortConnection()
        self.assertTrue(transport.aborted)
        self.assertFalse(transport.closed)

    def test_lose_connection_closes(self) -> None:
        """``loseConnection`` ends the lower transport cleanly."""
        _, filter_, transport = self.opened()
        filter_.loseConnection()
        self.assertTrue(transport.closed)
        self.assertFalse(transport.aborted)

    def test_flow_control_passes(self) -> None:
        """The upper producer meets the lower transport's back-pressure, and the upper protocol can pause the lower side."""
        upper, filter_, transport = self.opened()
        if filter_.upper_kind is Kind.STREAM:
            filter_.registerProducer(upper, True)
            self.assertIsNotNone(transport.producer)
            filter_.unregisterProducer()
            self.assertIsNone(transport.producer)
        filter_.pauseProducing()
        self.assertFalse(transport.reading)
        filter_.resumeProducing()
        self.assertTrue(transport.reading)

    def test_producer_after_the_end_is_stopped(self) -> None:
        """A producer that registers with a lost connection is told to stop."""
        _, filter_, transport = self.opened()
        if filter_.upper_kind is Kind.PACKETS:
            return  # datagrams know no back-pressure
        transport.lose(DONE)
        stopped: list[bool] = []

        class Producer:
            def stopProducing(self) -> None:
                stopped.append(True)

        filter_.registerProducer(Producer(), True)
        self.assertEqual(stopped, [True])

    def test_read_end_reaches_the_upper_protocol(self) -> None:
        """The peer's end is told to an upper protocol that knows half-close; for any other the connection is closed."""
        upper, filter_, transport = self.opened()
        if filter_.lower_kind is Kind.PACKETS:
            return
        transport.receive_fin()
        self.assertEqual(upper.read_ended, 1)
        self.assertFalse(transport.closed)
        plain, _, transport = self.opened(Upper())
        transport.receive_fin()
        self.assertTrue(transport.closed)
        transport.settle()
        self.assertEqual(plain.lost, [DONE])

    def test_write_end_reaches_the_upper_protocol(self) -> None:
        """That our end was sent is told to an upper protocol that knows half-close."""
        upper, filter_, _ = self.opened()
        filter_.writeConnectionLost()
        self.assertEqual(upper.write_ended, 1)

    def test_factory_passes_none_on(self) -> None:
        """A factory that refuses a connection is not given a filter for it."""

        class Refusing:
            def buildProtocol(self, addr: object) -> None:
                return None

        self.assertIsNone(FilterFactory(Refusing(), self.make_filter).buildProtocol(None))

    def test_endpoint_fires_with_the_upper_protocol(self) -> None:
        """Through the client endpoint, ``connect`` fires with the upper protocol once it is connected, or fails."""
        from twisted.internet.defer import succeed

        upper = Upper()
        transport: list[MemoryTransport] = []

        class Lower:
            def connect(self, factory: Any) -> Any:
                filter_ = factory.buildProtocol(None)
                transport.append(MemoryPackets() if filter_.lower_kind is Kind.PACKETS else MemoryTransport())
                transport[0].connect(filter_)
                return succeed(filter_)

        class UpperFactory:
            def doStart(self) -> None:
                pass

            def doStop(self) -> None:
                pass

            def buildProtocol(self, addr: object) -> Upper:
                return upper

        connecting = FilterClientEndpoint(Lower(), self.make_filter).connect(UpperFactory())
        self.open_filter(transport[0].protocol, transport[0])
        self.assertIs(self.successResultOf(connecting), upper)
