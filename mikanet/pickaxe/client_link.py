"""One session at the client: Connect and its answers, and connections that the server accepted for us."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason, RemoteProtocolError
from mikanet.interfaces import ICarrier
from mikanet.net.endpoint import TcpEndpoint
from mikanet.pickaxe import wire
from mikanet.pickaxe.link import Link
from mikanet.pickaxe.mux import MAX_STREAMS, StreamMux
from mikanet.pickaxe.session import MAX_HELD_BYTES, Received, Session
from mikanet.pickaxe.wire import Status
from mikanet.relay import RelayEnd, join

#: Seconds until a port that the server would not open is asked for again: at first, as the client's own session before
#: this one may be about to give it up, and then.
RETRY_LISTEN_SOON, RETRY_LISTEN = 2.0, 10.0

_CID_SIZE = wire.CID_SIZE


class LinkOwner(Protocol):
    """Who keeps the client's session."""

    reactor: Any
    spreads: bool

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Packets of another session."""

    def proved(self, link: ClientLink, carrier: ICarrier) -> None:
        """The server has shown that it knows the secret."""

    def heard(self, carrier: ICarrier, fresh: bool) -> None:
        """Something new came, or at least a probe's answer."""

    def lost_carrier(self, carrier: ICarrier) -> None:
        """A carrier is gone."""

    def session_over(self, why: str) -> None:
        """The server ended the session."""

    def spread(self) -> None:
        """Choose the carrier of the next packets."""


class RemoteForward:
    """A port at the server whose connections come to a destination here.

    :ivar port: the port at the server; 0 until one was given, and the same from then on.
    :ivar refused: how often the server could not open it, one time after the other.
    """

    def __init__(self, port: int, destination: Address) -> None:
        self.port = port
        self.destination = destination
        self.refused = 0


class _Wish:
    """A connection that was asked for."""

    __slots__ = ("deferred", "factory", "unwanted")

    def __init__(self, factory: IProtocolFactory) -> None:
        self.factory = factory
        self.unwanted = False
        self.deferred: Deferred[IProtocol] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.unwanted = True  # the server answers all the same, and is then told to close


class ClientLink(Link):
    """The client's end of a session.

    :param report: takes one line for the user.
    """

    def __init__(self, owner: LinkOwner, session: Session, report: Any = None) -> None:
        super().__init__(owner.reactor, session, StreamMux())
        self._owner = owner
        self._report = report or (lambda text: None)
        self._wishes: dict[bytes, _Wish] = {}
        self._forwards: dict[bytes, RemoteForward] = {}
        self._retries: set[IDelayedCall] = set()
        if owner.spreads:
            session.sending.limit = min(session.sending.limit, MAX_HELD_BYTES)

    @property
    def pending(self) -> int:
        """Connections that the server has not answered yet."""
        return len(self._wishes)

    def propose(self, carrier: ICarrier) -> None:
        """Show the server by ``carrier`` that we know the secret, and see whether it does (P7)."""
        now = self.reactor.seconds()
        self.session.use(self.attach(carrier), now)
        self.session.ask(now)
        self.pump()

    def begin(self, forwards: Sequence[RemoteForward]) -> None:
        """The server has proved itself."""
        self.mux.begin()
        for forward in forwards:
            self._listen(forward)

    # -- carriers

    def packets_received(self, carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """See :meth:`Link.packets_received`."""
        path = self.paths.get(carrier)
        new, answers = (path.new, path.answers) if path is not None else (0, 0)
        super().packets_received(carrier, packets)
        path = self.paths.get(carrier)
        if path is None:
            return
        if path.new != new or path.answers != answers:  # whatever else comes, garbage or repeated, is no sign of life
            self._owner.heard(carrier, path.new != new)

    def carrier_proven(self, carrier: ICarrier) -> None:
        """See :meth:`Link.carrier_proven`."""
        self._owner.proved(self, carrier)

    def carrier_lost(self, carrier: ICarrier, reason: Failure) -> None:
        """See :meth:`Link.carrier_lost`."""
        self.detach(carrier)
        self._owner.lost_carrier(carrier)
        self.pump()

    def overrun(self) -> None:
        """See :meth:`Link.overrun`."""
        self._owner.session_over("the server asks for ever more and acknowledges nothing")

    def foreign(self, carrier: ICarrier, packet: bytes) -> None:
        """See :meth:`Link.foreign`."""
        self._owner.packets_received(carrier, [packet])

    def _fill(self, now: float) -> bool:
        if self._owner.spreads:
            self._owner.spread()
        return super()._fill(now)

    # -- connections

    def connect(self, destination: Address, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Have the server connect to ``destination``.

        The Deferred fails with :class:`~mikanet.errors.DestinationError`.
        """
        wish = _Wish(factory)
        if self.ended or len(self._wishes) + len(self.mux) >= MAX_STREAMS:
            wish.deferred.errback(DestinationError(Reason.LIMIT))
            return wish.deferred
        pid = self.session.random_bytes(wire.PID_SIZE)
        self._wishes[pid] = wish
        self.send(wire.CONNECT, wire.encode_connect(pid, destination))
        self.wake()
        return wish.deferred

    def message(self, message: Received) -> None:
        """What the server says."""
        try:
            if message.kind == wire.CONNECT_RESPONSE:
                self._connected(wire.decode_connect_response(message.body))
            elif message.kind == wire.LISTEN_RESPONSE:
                self._listening(wire.decode_listen_response(message.body))
            elif message.kind == wire.ACCEPT:
                self._accepted(wire.decode_accept(message.body))
            elif message.kind == wire.DISCONNECT:
                self._owner.session_over("the server has ended it")
        except RemoteProtocolError:
            pass  # authentic, and not understood: another version's

    def _connected(self, response: wire.ConnectResponse) -> None:
        wish = self._wishes.pop(response.pid, None)
        status = wire.status_of(response.status)
        cid = int.from_bytes(response.cid, "little")
        if status is not Status.OK:
            if wish is not None and not wish.unwanted:
                wish.deferred.errback(DestinationError(status.reason))
            return
        if self.mux.knows(cid):
            if wish is not None and not wish.unwanted:
                wish.deferred.errback(DestinationError(Reason.FAILURE, "the server used a connection id twice"))
            return
        protocol = None
        if wish is not None and not wish.unwanted:
            protocol = wish.factory.buildProtocol(cast(IAddress, None))
        if wish is None or protocol is None:
            self.mux.refuse(cid, Status.STOPPED)
            if wish is not None and not wish.unwanted:
                wish.deferred.errback(error.NoProtocol())
            return
        self.mux.open(cid, protocol)
        if not wish.deferred.called:
            wish.deferred.callback(protocol)

    # -- ports at the server

    def _listen(self, forward: RemoteForward) -> None:
        pid = self.session.random_bytes(wire.PID_SIZE)
        self._forwards[pid] = forward
        self.send(wire.LISTEN, wire.encode_listen(pid, forward.port))

    def _listening(self, response: wire.ListenResponse) -> None:
        forward = self._forwards.get(response.pid)
        if forward is None:
            return
        status = wire.status_of(response.status)
        if status is Status.OK:
            forward.port = response.port
            forward.refused = 0
            self._report(f"the server listens on port {response.port} for {forward.destination}")
            return
        del self._forwards[response.pid]
        wish = f"port {forward.port}" if forward.port else "any port"
        if status is Status.POLICY:
            self._report(f"the server does not permit listening on {wish}: its --allow-listen must name it")
            return
        wait = RETRY_LISTEN if forward.refused else RETRY_LISTEN_SOON
        forward.refused += 1
        if status is Status.LIMIT:
            why = "it has as many ports open for us as it may"
        elif forward.port:
            why = "it is in use there; a session of this user that is gone without a word gives it up after 30 s"
        else:
            why = "it has none to give"
        self._report(f"the server cannot listen on {wish}: {why}; asking again in {wait:g} s")

        def retry() -> None:
            self._retries.discard(call)
            self._listen(forward)
            self.pump()

        call = self.reactor.callLater(wait, retry)
        self._retries.add(call)

    def _accepted(self, accept: wire.Accept) -> None:
        cid = int.from_bytes(accept.cid, "little")
        forward = self._forwards.get(accept.pid)
        if self.mux.knows(cid):
            return
        if forward is None or len(self.mux) >= MAX_STREAMS:
            self.mux.refuse(cid, Status.REFUSED)
            return
        near = RelayEnd()
        self.mux.open(cid, near)
        dialling = TcpEndpoint(self.reactor, forward.destination).connect(_Ends())
        dialling.addCallbacks(lambda end: _join(near, cast(RelayEnd, end)), lambda _: near.abort())

    # -- end

    def end(self) -> None:
        """The session is over."""
        if self.ended:
            return
        for call in self._retries:
            call.cancel()
        self._retries.clear()
        super().end()
        wishes, self._wishes = self._wishes, {}
        for wish in wishes.values():
            if not wish.unwanted:
                wish.deferred.errback(DestinationError(Reason.FAILURE, "the session has ended"))


class _Ends(Factory):
    """Makes the ends of connections to destinations here."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> RelayEnd:
        return RelayEnd()


def _join(near: RelayEnd, far: RelayEnd) -> None:
    if near.transport is None or near._lost:
        far.abort()
    else:
        join(near, far)
