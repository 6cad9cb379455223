"""Egress: which targets a server may open, and how it opens them.

A name is resolved once, each resolved address is checked, and the connection goes to an address that passed: there is no
second look-up that could answer something else. The policy is plain Python; only :class:`Egress` does I/O.
"""

from __future__ import annotations

import functools
import ipaddress
import resource
import socket
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IListeningPort, IProtocol, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from mikanet.address import Address, IPAddress, parse_port
from mikanet.dial import CONNECT_TIMEOUT, MAX_ATTEMPTS, Dialer, Racing
from mikanet.errors import ConfigError, DestinationError, Reason, reason_of
from mikanet.guard.targets import Place, Targets, limits_below
from mikanet.net.resolve import resolver_of
from mikanet.relay import RelayEnd

T = TypeVar("T")

_log = Logger()

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
    if "/" in network and parsed.network_address != ipaddress.ip_address(network.partition("/")[0]):
        raise ConfigError(
            f"{text!r}: the address has bits beyond /{parsed.prefixlen}: write {parsed} for the network, "
            f"or {network.partition('/')[0]}/{parsed.max_prefixlen} for that address alone"
        )
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

    :ivar own_ports: ports that are this server's; on an address of this machine they are always refused.
    :ivar is_own: tells whether an address belongs to this machine.
    :ivar listening: tells more such ports: those that are open now.
    """

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    own_ports: frozenset[int] = frozenset()
    is_own: Callable[[IPAddress], bool] = lambda _: False
    listening: Callable[[], Collection[int]] = tuple

    def permits(self, ip: IPAddress, port: int) -> bool:
        """Whether a connection to ``ip`` and ``port`` may be opened."""
        inner = unwrap(ip)
        candidates = (ip,) if inner is ip else (ip, inner)
        if any(rule.matches(each, port) for rule in self.deny for each in candidates):
            return False
        # What leads to an IPv4 address is allowed by rules about that address: ::/0 does not open 127.0.0.1.
        if any(rule.matches(inner, port) for rule in self.allow):
            return not self._is_this_server(ip, inner, port)
        # An own address is reached over the loopback interface, past whatever guards the others.
        return _is_public(inner) and not self.is_own(inner)

    def _is_this_server(self, ip: IPAddress, inner: IPAddress, port: int) -> bool:
        if not (ip.is_unspecified or inner.is_unspecified or self.is_own(inner)):
            return False
        return port in self.own_ports or port in self.listening()


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


class OpenPorts:
    """The ports that a reactor listens on, as of the last second, however they came: by endpoint, from systemd, by hand."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._found: frozenset[int] = frozenset()
        self._until = 0.0

    def __call__(self) -> frozenset[int]:
        """Their numbers."""
        now = time.monotonic()
        if now >= self._until:
            readers = self._reactor.getReaders()
            hosts = [reader.getHost() for reader in readers if IListeningPort.providedBy(reader)]
            self._found = frozenset(host.port for host in hosts if isinstance(host, IPv4Address | IPv6Address))
            self._until = now + 1.0
        return self._found


class Egress:
    """Opens permitted targets.

    :param reactor: provides IReactorTCP, IReactorTime and IReactorPluggableNameResolver.
    :param timeout: seconds that each connection attempt may take.
    :param targets: what is open; if not given, within this process's limit of open files as it is at the first target.
    :param verbose: log each target with who wanted it and what became of it.
    """

    def __init__(
        self,
        reactor: Any,
        policy: EgressPolicy,
        timeout: float = CONNECT_TIMEOUT,
        targets: Targets | None = None,
        verbose: bool = False,
    ) -> None:
        self.policy = policy
        self.verbose = verbose
        self._targets = targets
        self._names = resolver_of(reactor)
        self._dialer = Dialer(reactor, timeout)
        self._racing = Racing(self._dialer)

    def take(self, user: Hashable, files: int = 1) -> Place | None:
        """Room for so many open files of a user; None if there is none."""
        if self._targets is None:  # late, as the programs raise the limit when they start
            self._targets = Targets(limits_below(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        return self._targets.take(user, files)

    def connect(self, destination: Address, factory: IProtocolFactory, user: Hashable = None) -> Deferred[IProtocol]:
        """Connect to ``destination``: happy eyeballs over its permitted addresses.

        The Deferred fails with :class:`DestinationError` (reason ``POLICY`` when every address is refused, ``LIMIT`` when
        too many targets are open) or with one of Twisted's connection errors. Cancelling it takes its look-up along.

        :param user: who wants it, so that one user's look-ups do not hold up those of others, nor take all open files.
        """
        connecting = self._connect(destination, factory, user)
        return self._told(connecting, "TCP", destination, user, "connected") if self.verbose else connecting

    def _connect(self, destination: Address, factory: IProtocolFactory, user: Hashable) -> Deferred[IProtocol]:
        ip, port = destination.ip, destination.port
        if ip is not None:
            if not self.policy.permits(ip, port):
                return fail(DestinationError(Reason.POLICY))
            return self._dial([ip], port, factory, user)
        finding = self._names.resolve(destination.host, user).addCallback(self._permitted, port)
        return finding.addCallback(self._dial, port, factory, user)

    def _told(self, attempt: Deferred[T], kind: str, destination: Address, user: Hashable, success: str) -> Deferred[T]:
        """Log what becomes of a target."""
        began = self._dialer.reactor.seconds()

        def tell(outcome: str) -> None:
            _log.info(
                "{user} -> {destination} {kind}: {outcome}, {ms:.0f} ms",
                user=user or "client",
                destination=str(destination),
                kind=kind,
                outcome=outcome,
                ms=(self._dialer.reactor.seconds() - began) * 1000,
            )

        def failed(failure: Failure) -> Failure:
            gone = failure.check(CancelledError, ConnectingCancelledError)
            tell("given up by the client" if gone else reason_of(failure.value).value)
            return failure

        def done(result: T) -> T:
            tell(success)
            return result

        return attempt.addCallbacks(done, failed)

    def _dial(
        self, addresses: Sequence[IPAddress], port: int, factory: IProtocolFactory, user: Hashable
    ) -> Deferred[IProtocol]:
        # Each address may be tried by a socket of its own, beside the others.
        place = self.take(user, min(len(addresses), MAX_ATTEMPTS))
        if place is None:
            return fail(DestinationError(Reason.LIMIT))
        return self._racing.connect(addresses, port, factory).addCallbacks(
            functools.partial(_connected, place), functools.partial(_not_connected, place)
        )

    def find(self, destination: Address, user: Hashable = None) -> Deferred[list[IPAddress]]:
        """The permitted addresses of ``destination``, at least one, for datagrams.

        The Deferred fails with :class:`DestinationError`.
        """
        # An IP address is its own answer there.
        finding = self._names.resolve(destination.host, user).addCallback(self._permitted, destination.port)
        return self._told(finding, "UDP", destination, user, "open") if self.verbose else finding

    def _permitted(self, addresses: Sequence[IPAddress], port: int) -> list[IPAddress]:
        permitted = [ip for ip in addresses if self.policy.permits(ip, port)]
        if not permitted:
            raise DestinationError(Reason.POLICY)
        return permitted


def _connected(place: Place, protocol: IProtocol) -> IProtocol:
    place.shrink()
    if isinstance(protocol, RelayEnd):
        protocol.keep(place)
    else:
        place.release()  # nobody would tell its end
    return protocol


def _not_connected(place: Place, reason: Failure) -> Failure:
    place.release()
    return reason
