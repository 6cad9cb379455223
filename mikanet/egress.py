"""Egress: which targets a server may open, and how it opens them.

A name is resolved once, each resolved address is checked, and the connection goes to an address that passed: there is no
second look-up that could answer something else. The policy is plain Python; only :class:`Egress` does I/O.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address, IPAddress, parse_ip, parse_port
from mikanet.dial import CONNECT_TIMEOUT, Dialer
from mikanet.errors import ConfigError, DestinationError, Reason

#: Special-purpose networks (RFC 6890 and its registries) that some versions of Python take for public.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "100::/64", "2001::/23", "3fff::/20", "5f00::/16", "fec0::/10")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Rule:
    """A network and a range of ports, both inclusive."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    first_port: int = 0
    last_port: int = 65535

    def matches(self, ip: IPAddress, port: int) -> bool:
        """Whether the target lies inside."""
        return ip.version == self.network.version and ip in self.network and self.first_port <= port <= self.last_port


def parse_rule(text: str) -> Rule:
    """``CIDR[:PORT[-PORT]]``; an IPv6 network stands in brackets when a port follows.

    :raises ConfigError: if a part is missing or wrong.
    """
    network, ports = text, ""
    if text.startswith("["):
        network, bracket, ports = text[1:].partition("]")
        if not bracket or (ports and (not ports.startswith(":") or ports == ":")):
            raise ConfigError(f"{text!r} is not [IPV6-NETWORK]:PORT")
        ports = ports[1:]
    elif text.count(":") == 1:
        network, _, ports = text.partition(":")
        if not ports:
            raise ConfigError(f"{text!r} has no port after the colon")
    try:
        parsed = ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise ConfigError(
            f"{text!r} is not CIDR[:PORT[-PORT]], as in 10.0.0.0/8, 192.0.2.7:443 or [2001:db8::/32]:1-1023"
        ) from None
    if not ports:
        return Rule(parsed)
    first, dash, last = ports.partition("-")
    low, high = parse_port(first), parse_port(last if dash else first)
    if low > high:
        raise ConfigError(f"{text!r}: the port range ends before it begins")
    return Rule(parsed, low, high)


def unwrap(ip: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 one stands for (mapped, NAT64, 6to4, Teredo), or ``ip`` itself.

    Without this, ``::ffff:127.0.0.1`` would walk past every IPv4 rule.
    """
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return inner
        if ip in _NAT64 or (int(ip) >> 32 == 0 and int(ip) > 1):
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Who may be reached: own listening ports never, then deny rules, then allow rules, then others' public addresses.

    :ivar own_ports: ports on which this server listens; on an address of this machine they are always refused.
    :ivar is_own: tells whether an address belongs to this machine.
    """

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    own_ports: frozenset[int] = frozenset()
    is_own: Callable[[IPAddress], bool] = lambda _: False

    def permits(self, ip: IPAddress, port: int) -> bool:
        """Whether a connection to ``ip`` and ``port`` may be opened."""
        inner = unwrap(ip)
        if port in self.own_ports and (ip.is_unspecified or inner.is_unspecified or self.is_own(inner)):
            return False
        candidates = (ip,) if inner is ip else (ip, inner)
        if any(rule.matches(each, port) for rule in self.deny for each in candidates):
            return False
        # What leads to an IPv4 address is allowed by rules about that address: ::/0 does not open 127.0.0.1.
        if any(rule.matches(inner, port) for rule in self.allow):
            return True
        # An own address is reached over the loopback interface, past whatever guards the others.
        return _is_public(inner) and not self.is_own(inner)


@functools.lru_cache(maxsize=4096)
def _is_public(ip: IPAddress) -> bool:
    """Whether an address is a public one of a single host."""
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return False  # fec0::/10 was the private range before fc00::/7, and some sites never changed
    if any(ip in network for network in _SPECIAL if network.version == ip.version):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def is_own_address(ip: IPAddress) -> bool:
    """Whether ``ip`` is one of this machine's, as of the last half minute."""
    return ip.is_loopback or _can_bind(ip, int(time.monotonic() // 30))


@functools.lru_cache(maxsize=4096)
def _can_bind(ip: IPAddress, _: int) -> bool:
    """Only an own address can be bound. The second argument makes the answer be asked for anew from time to time."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True


class Egress:
    """Opens permitted targets.

    :param reactor: provides IReactorTCP, IReactorTime and IReactorPluggableNameResolver.
    :param timeout: seconds that each connection attempt may take.
    """

    def __init__(self, reactor: Any, policy: EgressPolicy, timeout: float = CONNECT_TIMEOUT) -> None:
        self._reactor = reactor
        self.policy = policy
        self._timeout = timeout
        self._dialer = Dialer(reactor, timeout)

    def connect(self, destination: Address, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to ``destination``: happy eyeballs over its permitted addresses.

        The Deferred fails with :class:`DestinationError` (reason ``POLICY`` when every address is refused) or with one
        of Twisted's connection errors.
        """
        ip = destination.ip
        if ip is not None:
            if not self.policy.permits(ip, destination.port):
                return fail(DestinationError(Reason.POLICY))
            return self._dialer.connect(str(ip), destination.port, factory)
        guard = _GuardedReactor(self._reactor, self.policy)
        endpoint = HostnameEndpoint(guard, destination.host, destination.port, timeout=self._timeout)
        return endpoint.connect(factory).addErrback(guard.explain)

    def resolve(self, destination: Address) -> Deferred[IPAddress]:
        """The first permitted address of ``destination``, for datagrams.

        The Deferred fails with :class:`DestinationError`.
        """
        ip = destination.ip
        if ip is not None:
            return succeed(ip) if self.policy.permits(ip, destination.port) else fail(DestinationError(Reason.POLICY))
        try:
            destination.host.encode("idna")
        except UnicodeError:
            # The look-up would raise in its thread, and never end.
            return fail(DestinationError(Reason.HOST_UNREACHABLE, "not a host name"))
        guard = _GuardedReactor(self._reactor, self.policy)
        collector = _Collector()
        guard.nameResolver.resolveHostName(collector, destination.host, destination.port)

        def pick(addresses: list[IAddress]) -> IPAddress:
            for address in addresses:
                found = parse_ip(address.host) if isinstance(address, IPv4Address | IPv6Address) else None
                if found is not None:
                    return found
            raise DestinationError(Reason.POLICY if guard.refused else Reason.HOST_UNREACHABLE)

        return collector.done.addCallback(pick)


@implementer(IResolutionReceiver)
class _Collector:
    """Gathers a whole resolution."""

    def __init__(self) -> None:
        self._found: list[IAddress] = []
        self.done: Deferred[list[IAddress]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        self._found.append(address)

    def resolutionComplete(self) -> None:
        self.done.callback(self._found)


@implementer(IResolutionReceiver)
class _PermittedOnly:
    """Hands on only the addresses that the policy permits."""

    def __init__(self, receiver: IResolutionReceiver, guard: _GuardedReactor, port: int) -> None:
        self._receiver = receiver
        self._guard = guard
        self._port = port

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        ip = parse_ip(address.host) if isinstance(address, IPv4Address | IPv6Address) else None
        if ip is not None and self._guard.policy.permits(ip, self._port):
            self._receiver.addressResolved(address)
        else:
            self._guard.refused = True

    def resolutionComplete(self) -> None:
        self._receiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _GuardedReactor:
    """A reactor, to HostnameEndpoint, whose name resolver shows permitted addresses only.

    :ivar refused: whether the policy held an address back.
    """

    def __init__(self, reactor: Any, policy: EgressPolicy) -> None:
        self._reactor = reactor
        self.policy = policy
        self.refused = False
        self.nameResolver = self
        self.connectTCP = reactor.connectTCP
        self.callLater = reactor.callLater
        self.seconds = reactor.seconds

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        raise NotImplementedError("the guard belongs to one connection")

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        resolver = cast(IHostnameResolver, self._reactor.nameResolver)
        receiver = _PermittedOnly(resolutionReceiver, self, portNumber)
        return resolver.resolveHostName(receiver, hostName, portNumber, addressTypes, transportSemantics)

    def explain(self, failure: Failure) -> Failure:
        """Name the cause when no permitted address was left, or the name cannot be one."""
        if self.refused and failure.check(DNSLookupError):
            return Failure(DestinationError(Reason.POLICY))
        if failure.check(ValueError):
            return Failure(DestinationError(Reason.HOST_UNREACHABLE, "not a host name"))
        return failure
