"""Ground floor: the contracts between rooms."""

from __future__ import annotations

from twisted.internet.interfaces import IStreamClientEndpoint, ITransport
from zope.interface import Attribute, Interface

from mikanet.address import Address


class IPacketTransport(ITransport):
    """A transport that keeps message boundaries: one ``write`` is one packet is one ``dataReceived`` at the peer.

    It may lose, repeat and reorder packets; which of these it does is said by whoever implements it. A packet above
    ``max_packet_size`` is dropped and counted, never cut.
    """

    max_packet_size = Attribute("Largest packet that ``write`` takes, in bytes.")


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
