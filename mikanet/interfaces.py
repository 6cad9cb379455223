"""Ground floor: the contracts between rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint, ITransport
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

from mikanet.address import Address


class IPacketTransport(ITransport):
    """A transport that keeps message boundaries: one ``write`` is one packet is one ``dataReceived`` at the peer.

    It may lose, repeat and reorder packets; which of these it does is said by whoever implements it. A packet above
    ``max_packet_size`` is dropped and counted, never cut.
    """

    max_packet_size = Attribute("Largest packet that ``write`` takes, in bytes.")


class IGuardedTransport(Interface):
    """A transport that keeps, and does, less for a peer until it hears that what is above has authenticated it."""

    def peer_authenticated() -> None:
        """The peer has shown that it knows the secret. May be told more than once."""


class IAuthenticatingFactory(Interface):
    """A factory whose protocols tell an :class:`IGuardedTransport` when they have authenticated their peer."""

    budget = Attribute("The MemoryBudget that what is kept for peers counts in, or None.")


def tell_authenticated(transport: object) -> None:
    """Tell a transport that its peer is authenticated, if it wants to know."""
    if IGuardedTransport.providedBy(transport):
        transport.peer_authenticated()


class ITunnel(Interface):
    """A way out: what a front door needs to know of any tunnel client.

    Both endpoints' ``connect`` take a factory whose protocol is connected when the tunnel can carry its bytes. Bytes
    that this protocol writes inside its ``connectionMade`` may travel with the tunnel's own first bytes, so whoever
    holds early data writes it there. A destination that cannot be reached fails the Deferred with an exception that
    :func:`mikanet.errors.reason_of` understands, if the tunnel's protocol can tell; otherwise the connection is
    aborted after it was made.
    """

    def stream_endpoint(destination: Address, http: bool = False) -> IStreamClientEndpoint:
        """An endpoint for a byte stream to ``destination``.

        ``http`` says that the stream will carry plain HTTP requests in origin form, all for this destination; a tunnel
        with a mode of its own for those may use it.
        """

    def datagram_endpoint(destination: Address) -> IStreamClientEndpoint:
        """An endpoint whose connection is an :class:`IPacketTransport` carrying UDP datagrams to ``destination``.

        :raises DestinationError: with ``Reason.UNSUPPORTED`` if the tunnel carries no datagrams.
        """


class ICarrier(Interface):
    """One way by which Pickaxe's packets can travel now: a TCP connection, a WebSocket, a polling client, a DNS path.

    Both ends see the same: packets go out by :meth:`send`, and what happens is told to an :class:`ICarrierUser`. A
    carrier knows nothing of sessions; a session lives on when its carrier is gone.
    """

    name = Attribute("What users and logs call it, such as ``ws://host:8080/path``. Holds no secret.")
    max_packet_size = Attribute("Largest packet that ``send`` takes now, in bytes. May change while the carrier lives.")
    reliable = Attribute("Whether everything sent arrives, once and in order, for as long as the carrier lives.")
    writable = Attribute("Whether more should be sent now. ``send`` still works when not, but what is sent waits here.")
    waiting = Attribute("Bytes that were sent and wait in this process.")
    user = Attribute("The ICarrierUser; may be set anew at any time, None drops what comes.")
    host = Attribute("The address from which the peer's packets come, as text; empty where that says nothing.")
    shakes_hands = Attribute(
        "Whether ``host`` has taken part in TCP's handshake, and is no resolver: who it is is known."
    )

    def send(packets: Sequence[bytes]) -> None:
        """Send packets. An unreliable carrier may lose, repeat and reorder them. On a lost carrier: nothing."""

    def proven() -> None:
        """The peer has shown that it holds a session key: guards and time limits for strangers no longer apply."""

    def refuse() -> None:
        """The peer has done what no honest peer does: server carriers turn it away in the one way (X2)."""

    def close() -> None:
        """End in order after what waits was sent; the user is told by ``carrier_lost``."""

    def abort() -> None:
        """End now."""


class ICarrierUser(Interface):
    """Who uses a carrier."""

    def packets_received(carrier: ICarrier, packets: Sequence[bytes]) -> None:
        """Packets came, in this order; at least one."""

    def carrier_writable(carrier: ICarrier) -> None:
        """``writable`` became true again, or ``max_packet_size`` changed."""

    def carrier_lost(carrier: ICarrier, reason: Failure) -> None:
        """The carrier is gone. Told once."""


class IClientCarrier(Interface):
    """A carrier that a client can open, made of a URL."""

    name = Attribute("As ICarrier's.")

    def open() -> Deferred[ICarrier]:
        """Open it, with a time limit of its own. Cancelling gives up.

        :return: fires with a carrier whose path to the server stands (nothing is known yet about a login), or fails with
            an exception that :func:`mikanet.errors.reason_of` understands and whose text tells a user what is wrong.
        """


class IServerCarrier(Interface):
    """A place where a server takes carriers from clients, made of a URL."""

    name = Attribute("As ICarrier's.")

    def listen(accept: Callable[[ICarrier], None]) -> Deferred[None]:
        """Start; ``accept`` is called with each new carrier and sets its ``user`` at once.

        :return: fires when listening; fails with what the reactor says if that cannot be done. Ports below 1024 and raw
            sockets are opened in here at once, before privileges are dropped.
        """

    def stop() -> Deferred[None]:
        """Stop taking new carriers; those that are there live on until they are closed."""
