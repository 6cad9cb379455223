"""NitroSocks' streams at the server: the tunnel's ends of relays and of flows of datagrams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.egress import Egress
from mikanet.errors import RemoteProtocolError, reason_of
from mikanet.nitrosocks.frames import DatagramReader, encode_datagram
from mikanet.nitrosocks.mux import Mux, MuxStream
from mikanet.relay import TARGETS, MemoryBudget, RelayEnd, join
from mikanet.udp_target import UdpTarget


class StreamEnd(RelayEnd):
    """Dials, tells the client how that went, and relays.

    :param mux: the session's streams, of which ``stream`` is one. :param count: counts what happened, by name.
    """

    def __init__(
        self,
        mux: Mux,
        stream: MuxStream,
        destination: Address,
        egress: Egress,
        budget: MemoryBudget,
        count: Callable[[str], None],
        user: str,
    ) -> None:
        self._mux = mux
        self._stream = stream
        self._destination = destination
        self._egress = egress
        self._count = count
        self._user = user
        self._dialling: Deferred[IProtocol] | None = None
        self.budget = budget

    def connectionMade(self) -> None:
        """Dial."""
        self._dialling = self._egress.connect(self._destination, TARGETS, self._user)
        self._dialling.addCallbacks(self._dialled, self._failed)

    def _dialled(self, target: IProtocol) -> None:
        self._dialling = None
        end = cast(RelayEnd, target)
        if self._lost:
            end.abort()
            return
        end.budget = self.budget
        self._mux.reply(self._stream, None)
        join(self, end)

    def _failed(self, failure: Failure) -> None:
        self._dialling = None
        if self._lost:
            return
        reason = reason_of(failure.value)
        self._count(f"target.{reason.name.lower()}")
        self._mux.reply(self._stream, reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The stream is over."""
        super().connectionLost(reason)
        if self._dialling is not None:
            self._dialling.cancel()


class DatagramEnd(RelayEnd):
    """A flow of datagrams."""

    def __init__(self, reactor: Any, egress: Egress, destination: Address, user: str) -> None:
        self._reader = DatagramReader()
        self._destination = destination
        self._target = UdpTarget(reactor, egress, self._deliver, self.abort, user=user)

    def connectionMade(self) -> None:
        """Open the target."""
        assert self.transport is not None
        self.transport.registerProducer(self._target, True)  # type: ignore[attr-defined]  # every stream is a consumer
        self._target.open(self._destination)

    def _deliver(self, datagram: bytes) -> None:
        if self.transport is not None and not self._lost:
            self.transport.write(encode_datagram(datagram))

    def dataReceived(self, data: bytes) -> None:
        """Datagrams from the client."""
        try:
            datagrams = self._reader.feed(data)
        except RemoteProtocolError:
            self.abort()  # the session's other streams can go on
            return
        for datagram in datagrams:
            self._target.send(datagram)

    def readConnectionLost(self) -> None:
        """The client ends the flow."""
        self._target.close()
        assert self.transport is not None
        self.transport.unregisterProducer()  # type: ignore[attr-defined]  # as above
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The flow is over."""
        self._target.close()
        super().connectionLost(reason)
