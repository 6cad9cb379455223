"""The tunnel that front doors use: streams to anywhere over the client's one session."""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_network

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address, IPAddress
from mikanet.egress import Egress, EgressPolicy, Rule
from mikanet.errors import DestinationError, Reason, reason_of
from mikanet.interfaces import ITunnel
from mikanet.pickaxe.client import PickaxeClient
from mikanet.pickaxe.client_link import ClientLink

#: Connections that may wait for a session.
MAX_WAITING = 2000

_ANYWHERE = EgressPolicy(allow=(Rule(ip_network("0.0.0.0/0")), Rule(ip_network("::/0"))))

_log = Logger()


class Names(Enum):
    """Who looks names up."""

    SERVER = "server"
    CLIENT = "client"


@implementer(ITunnel)
class PickaxeTunnel:
    """Streams through a Pickaxe client, which is started when it is first needed.

    :param names: who looks up names; a server that does not know our extension for them leaves it to the client.
    """

    def __init__(self, client: PickaxeClient, names: Names = Names.SERVER) -> None:
        self.client = client
        self.names = names
        self.waiting = 0
        # For names only: where a connection may go to is the server's business.
        self._resolver = Egress(client.reactor, _ANYWHERE)

    def stream_endpoint(self, destination: Address, http: bool = False) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.stream_endpoint`."""
        if destination.ip is None and len(destination.host.encode()) > 255:
            raise DestinationError(Reason.HOST_UNREACHABLE, "a name of more than 255 bytes")
        if self.client.config.log_destinations:
            _log.info("TCP to {destination}", destination=str(destination))
        return _StreamEndpoint(self, destination)

    def datagram_endpoint(self, destination: Address) -> IStreamClientEndpoint:
        """See :meth:`ITunnel.datagram_endpoint`."""
        raise DestinationError(Reason.UNSUPPORTED, "Pickaxe carries no datagrams")

    def resolve(self, destination: Address) -> Deferred[IPAddress]:
        """The address of a name, as this machine sees it."""
        return self._resolver.find(destination).addCallback(lambda addresses: addresses[0])


@implementer(IStreamClientEndpoint)
class _StreamEndpoint:
    """TCP to one destination."""

    def __init__(self, tunnel: PickaxeTunnel, destination: Address) -> None:
        self._tunnel = tunnel
        self._destination = destination

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; waits for a session if there is none."""
        tunnel, destination = self._tunnel, self._destination
        tunnel.client.start()
        if destination.ip is None and tunnel.names is Names.CLIENT:
            return self._resolved(protocolFactory)

        def without_names(failure: Failure) -> Deferred[IProtocol]:
            if destination.ip is not None or reason_of(failure.value) is not Reason.UNSUPPORTED:
                return fail(failure)
            tunnel.names = Names.CLIENT
            return self._resolved(protocolFactory)

        return self._connect(destination, protocolFactory).addErrback(without_names)

    def _resolved(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        destination = self._destination
        resolving = self._tunnel.resolve(destination)
        return resolving.addCallback(lambda ip: self._connect(Address(str(ip), destination.port), factory))

    def _connect(self, destination: Address, factory: IProtocolFactory) -> Deferred[IProtocol]:
        client = self._tunnel.client
        if client.state.trouble is not None:
            return fail(client.state.trouble)
        return client.state.unless_trouble(self._attempt(destination, factory))

    def _attempt(self, destination: Address, factory: IProtocolFactory) -> Deferred[IProtocol]:
        tunnel, client = self._tunnel, self._tunnel.client
        if client.link is not None:
            return client.link.connect(destination, factory)
        if tunnel.waiting >= MAX_WAITING:
            return fail(DestinationError(Reason.LIMIT))

        def linked(link: ClientLink) -> None:
            tunnel.waiting -= 1
            waiting.callback(link)

        def cancelled(_: object) -> None:
            tunnel.waiting -= 1
            client.not_waiting(linked)

        waiting: Deferred[ClientLink] = Deferred(cancelled)
        tunnel.waiting += 1
        client.when_linked(linked)
        return waiting.addCallback(lambda link: link.connect(destination, factory))
