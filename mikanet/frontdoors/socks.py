"""Front doors: the SOCKS server, versions 5, 4 and 4a on one port."""

from __future__ import annotations

from functools import partial
from typing import Final

from twisted.internet import error
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mikanet import prompt
from mikanet.address import Address
from mikanet.errors import DestinationError, Reason
from mikanet.frontdoors.door import Door, DoorFactory, FarEnd
from mikanet.frontdoors.udp import UdpAssociation
from mikanet.relay import RelayEnd
from mikanet.wire.socks import Command, Rep, rep_of_reason
from mikanet.wire.socks_server import Request, ServerHandshake, SocksRefusedError

#: A destination that is never dialled (RFC 5737, discard port): asking for it tells whether a tunnel has datagrams.
_PROBE: Final = Address("192.0.2.1", 9)


class SocksDoor(Door):
    """The connection of one SOCKS client."""

    kind = "socks"

    _association: UdpAssociation | None = None

    def __init__(self, factory: DoorFactory) -> None:
        super().__init__(factory)
        credentials = factory.settings.credentials
        self._handshake = ServerHandshake(None if credentials is None else credentials.check)
        self._negotiating = True

    def dataReceived(self, data: bytes) -> None:
        """Handshake bytes; from the request on, bytes for the destination."""
        if not self._negotiating:
            RelayEnd.dataReceived(self, data)
        elif not self._refused:
            self._negotiate(data)

    def _negotiate(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            answer = self._handshake.feed(data)
        except SocksRefusedError as refusal:
            self.count("refused.password" if refusal.bad_password else "refused.protocol")
            self.refuse(refusal.answer)
            return
        if answer:
            prompt.send(self.transport, answer)
        request = self._handshake.request
        if request is not None:
            self._negotiating = False
            rest = self._handshake.rest()
            if rest:
                self._hold(rest)
            self._serve(request)

    def _serve(self, request: Request) -> None:
        if request.command is Command.CONNECT:
            self.dial(partial(self.factory.tunnel.stream_endpoint, request.address))
        elif request.command is Command.UDP_ASSOCIATE:
            self._associate()
        else:
            self.count("refused.command")
            self._refuse_request(Rep.COMMAND_NOT_SUPPORTED)

    # -- CONNECT

    def reached(self, far: FarEnd) -> None:
        """Say so, then let the bytes flow."""
        assert self.transport is not None
        prompt.send(self.transport, self._handshake.reply(Rep.SUCCEEDED))
        super().reached(far)

    def not_reached(self, reason: Reason, why: str) -> None:
        """Tell the reason as far as SOCKS has a code for it."""
        self._refuse_request(rep_of_reason(reason))

    def _refuse_request(self, rep: Rep) -> None:
        self.refuse(self._handshake.reply(rep))

    # -- UDP ASSOCIATE

    def _associate(self) -> None:
        assert self.transport is not None
        tunnel = self.factory.tunnel
        try:
            # The contract has tunnels without datagrams raise here; the endpoint itself is let go.
            tunnel.datagram_endpoint(_PROBE)
        except DestinationError as problem:
            self.count("refused.udp")
            self._refuse_request(rep_of_reason(problem.reason))
            return
        if self.factory.associations >= self.settings.max_udp_associations:
            self.count("refused.associations")
            self._refuse_request(Rep.GENERAL_FAILURE)
            return
        client = _host_of(self.transport.getPeer())
        association = UdpAssociation(tunnel, self.settings, client)
        try:
            bound = association.listen(self.settings.reactor, _host_of(self.transport.getHost()))
        except error.CannotListenError:
            self._refuse_request(Rep.GENERAL_FAILURE)
            return
        self.count("associations")
        self.cancel_deadline()
        self._association = association
        self.factory.associations += 1
        self.transport.write(self._handshake.reply(Rep.SUCCEEDED, bound))

    def _hold(self, data: bytes) -> None:
        # Bytes on the control connection of an association mean nothing.
        if self._association is None:
            super()._hold(data)

    # -- ends

    def ended_early(self) -> None:
        """An end before any reply, with nothing sent for the destination, is a client that has given up."""
        if self._association is not None:
            self.refuse(b"")
        elif self._early is None:
            self.give_up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """An association ends with its control connection."""
        super().connectionLost(reason)
        association, self._association = self._association, None
        if association is not None:
            self.factory.associations -= 1
            association.close()


def _host_of(address: IAddress) -> str:
    """The IP address of one end of a control connection; IPv4 as such, and loopback for a UNIX socket."""
    host = getattr(address, "host", "127.0.0.1")
    return host[7:] if host.startswith("::ffff:") and "." in host else str(host)
