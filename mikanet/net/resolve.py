"""Names to addresses: the one owner of all look-ups.

Twisted's own resolver calls the C library on ten threads that cannot be interrupted: a few names whose server is silent stop
all look-ups of a process. Here a look-up is a question to the name servers of ``resolv.conf`` that can be cancelled, at most
8 of a user and 64 in all are asked at a time, users take turns, and none takes longer than 5 s. IP addresses, names of the
hosts file, and what was asked lately never wait.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IReactorTime,
    IResolutionReceiver,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import IPAddress, parse_ip
from mikanet.dial import Dialer
from mikanet.errors import DestinationError, Reason
from mikanet.guard.deadlines import Deadlines
from mikanet.net.names import (
    LOOPBACK,
    MAX_NAME,
    NameCache,
    ResolverConfig,
    is_localhost,
    parse_hosts,
    parse_resolv_conf,
    to_ascii,
)
from mikanet.net.questions import Answer, Question
from mikanet.net.turns import FairTurns, TurnLimits

#: How long a look-up may take with its wait for a turn, in seconds.
DEADLINE = 5.0

#: While look-ups wait for a turn, places are looked for so often, in seconds.
LOOK_AGAIN = 0.5

#: How long answers are kept, in seconds: by their TTL, at most this; and those that say that there is nothing.
MAX_TTL, NEGATIVE_TTL = 60.0, 5.0

#: Whether there is a way to the IPv6 internet is looked at so often, in seconds.
_ROUTE_TIME = 30.0

Addresses = tuple[IPAddress, ...]
Parsed = TypeVar("Parsed")


class Source:
    """Where names are looked up when nothing is known of them."""

    def known(self, name: str) -> Addresses:
        """What this machine knows by itself, without asking anybody."""
        return ()

    def look_up(self, name: str) -> Deferred[Answer]:
        """Ask. The Deferred can be cancelled, and is not needed afterwards."""
        raise NotImplementedError


class NameResolver:
    """Looks names up for all users of a process.

    :param clock: the reactor's time.
    """

    def __init__(self, clock: IReactorTime, source: Source, limits: TurnLimits | None = None) -> None:
        self._clock = clock
        self._source = source
        self._turns: FairTurns[_LookUp] = FairTurns(limits)
        self._cache = NameCache()
        self._deadlines = Deadlines(clock, DEADLINE)
        self._running: dict[str, _LookUp] = {}
        self._going = self._again = False
        self._looking: IDelayedCall | None = None

    @property
    def running(self) -> int:
        """Look-ups that name servers are asked for now."""
        return self._turns.running

    def resolve(self, host: str, user: Hashable = None) -> Deferred[Addresses]:
        """The addresses of a host, at least one, IPv6 first where this machine has a way to it.

        The Deferred fails with :class:`DestinationError`. Cancelling it takes the look-up along.

        :param user: whose look-up it is; users take turns.
        """
        ip = parse_ip(host)
        if ip is not None:
            return succeed((ip,))
        try:
            name = to_ascii(host)
        except DestinationError as problem:
            return fail(problem)
        known = self._source.known(name)
        if known:
            return succeed(known)
        cached = self._cache.get(name, self._clock.seconds())
        if cached is not None:
            return fail(cached) if isinstance(cached, DestinationError) else succeed(cached)
        return self._wait_for(name, user)

    def _wait_for(self, name: str, user: Hashable) -> Deferred[Addresses]:
        # A look-up that still waits for its user's turn is not shared: others are not to wait in that queue.
        look_up = self._running.get(name)
        if look_up is None:
            look_up = _LookUp(name)
            if not self._turns.ask(look_up, user):
                return fail(DestinationError(Reason.LIMIT, "too many names are being looked up"))
            look_up.deadline = self._deadlines.start(lambda: self._out_of_time(look_up))
        waiter: Deferred[Addresses] = Deferred(lambda done: self._leave(look_up, done))
        look_up.waiters.append(waiter)
        self._go_on()
        return waiter

    def _go_on(self) -> None:
        """Begin what can begin; a look-up that ends at once comes back here, so this goes round instead of down."""
        if self._going:
            self._again = True
            return
        self._going = self._again = True
        try:
            while self._again:
                self._again = False
                begin, ended = self._turns.next_jobs(self._clock.seconds())
                for look_up in ended:
                    self._end(look_up, DestinationError(Reason.LIMIT, "too many names are being looked up"))
                for look_up in begin:
                    if not look_up.ended:
                        self._begin(look_up)
        finally:
            self._going = False
        if self._turns.waiting and self._looking is None:
            # Whoever waits for a place that others may have to give up once they are old enough.
            self._looking = self._clock.callLater(LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        self._go_on()

    def _begin(self, look_up: _LookUp) -> None:
        self._running.setdefault(look_up.name, look_up)
        look_up.asking = asking = maybeDeferred(self._source.look_up, look_up.name)
        asking.addCallbacks(lambda answer: self._answered(look_up, answer), lambda why: self._failed(look_up, why))

    def _answered(self, look_up: _LookUp, answer: Answer) -> None:
        if look_up.ended:
            return
        now = self._clock.seconds()
        if answer.addresses:
            if answer.ttl > 0:
                self._cache.put(look_up.name, answer.addresses, now + min(answer.ttl, MAX_TTL))
            self._end(look_up, answer.addresses)
        else:
            problem = DestinationError(Reason.HOST_UNREACHABLE, "there is no such name")
            self._cache.put(look_up.name, problem, now + NEGATIVE_TTL)
            self._end(look_up, problem)

    def _failed(self, look_up: _LookUp, failure: Failure) -> None:
        if look_up.ended:
            return
        problem = failure.value
        if not isinstance(problem, DestinationError):
            problem = DestinationError(Reason.HOST_UNREACHABLE, "the name cannot be looked up")
        self._cache.put(look_up.name, problem, self._clock.seconds() + NEGATIVE_TTL)
        self._end(look_up, problem)

    def _out_of_time(self, look_up: _LookUp) -> None:
        self._end(look_up, DestinationError(Reason.TIMEOUT, "name servers do not answer"))

    def _leave(self, look_up: _LookUp, waiter: Deferred[Addresses]) -> None:
        """Somebody does not want to know any more."""
        if waiter in look_up.waiters:
            look_up.waiters.remove(waiter)
            if not look_up.waiters:
                self._end(look_up, DestinationError(Reason.FAILURE))

    def _end(self, look_up: _LookUp, outcome: Addresses | DestinationError) -> None:
        if look_up.ended:
            return
        look_up.ended = True
        self._deadlines.cancel(look_up.deadline)
        self._turns.leave(look_up)
        if not self._turns.waiting and self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._running.get(look_up.name) is look_up:
            del self._running[look_up.name]
        if look_up.asking is not None:
            look_up.asking.addErrback(lambda _: None)
            look_up.asking.cancel()
        waiters, look_up.waiters = look_up.waiters, []
        for waiter in waiters:
            if isinstance(outcome, DestinationError):
                waiter.errback(Failure(outcome))
            else:
                waiter.callback(outcome)
        self._go_on()


class _LookUp:
    """One look-up and who waits for it."""

    __slots__ = ("asking", "deadline", "ended", "name", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiters: list[Deferred[Addresses]] = []
        self.asking: Deferred[Any] | None = None
        self.deadline = -1
        self.ended = False


# -- sources


class _File(Generic[Parsed]):
    """A file's meaning, read anew when the file has changed."""

    def __init__(self, path: Path, parse: Callable[[str], Parsed]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[int, int, int] | None = None
        self._value = parse("")

    def read(self) -> Parsed:
        """What the file says now; what an empty one says if it cannot be read."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._value = self._parse(self._path.read_text(encoding="utf-8", errors="replace"))
                self._seen = seen
        except OSError:
            self._value, self._seen = self._parse(""), None
        return self._value


class NameServers(Source):
    """The hosts file and the name servers of this machine.

    :param dial_tcp: opens TCP connections, for long answers.
    :param port: of the name servers.
    """

    def __init__(
        self,
        reactor: Any,
        dial_tcp: Callable[[str, int, Any], Deferred[Any]],
        resolv_conf: Path = Path("/etc/resolv.conf"),
        hosts: Path = Path("/etc/hosts"),
        port: int = 53,
    ) -> None:
        self._reactor = reactor
        self._dial_tcp = dial_tcp
        self._config: _File[ResolverConfig] = _File(resolv_conf, parse_resolv_conf)
        self._hosts: _File[dict[str, Addresses]] = _File(hosts, parse_hosts)
        self._port = port
        self._six: tuple[float, bool] = (-_ROUTE_TIME, False)

    def known(self, name: str) -> Addresses:
        """See :meth:`Source.known`."""
        return self._hosts.read().get(name, ()) or (LOOPBACK if is_localhost(name) else ())

    def look_up(self, name: str) -> Deferred[Answer]:
        """See :meth:`Source.look_up`."""
        config = self._config.read()
        found = [f"{name}.{domain}" for domain in config.search if len(name) + len(domain) < MAX_NAME]
        names = [name] if "." in name else [*found, name]
        return self._ask(names, [(server, self._port) for server in config.servers])

    def _ask(self, names: Sequence[str], servers: Sequence[tuple[str, int]]) -> Deferred[Answer]:
        asking = Question(self._reactor, names[0], servers, self._dial_tcp).start()

        def answered(answer: Answer) -> Answer | Deferred[Answer]:
            if answer.addresses or len(names) == 1:
                return self._sorted(answer)
            return self._ask(names[1:], servers)

        return asking.addCallback(answered)

    def _sorted(self, answer: Answer) -> Answer:
        version = 6 if self._has_six() else 4
        return Answer(tuple(sorted(answer.addresses, key=lambda ip: ip.version != version)), answer.ttl)

    def _has_six(self) -> bool:
        """Whether there is a way to the IPv6 internet; connecting a UDP socket asks the routes and sends nothing."""
        now = self._reactor.seconds()
        if now - self._six[0] >= _ROUTE_TIME:
            try:
                with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                    probe.connect(("2001:4860:4860::8888", 53))
                self._six = (now, True)
            except OSError:
                self._six = (now, False)
        return self._six[1]


class ReactorNames(Source):
    """What a reactor's own resolver says, for programs that brought one; it tells no TTL, so nothing is kept."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def look_up(self, name: str) -> Deferred[Answer]:
        """See :meth:`Source.look_up`."""
        collector = _Collector()
        resolver = cast(IHostnameResolver, self._reactor.nameResolver)
        resolver.resolveHostName(collector, name, 0)
        return collector.done


@implementer(IResolutionReceiver)
class _Collector:
    """Gathers a whole resolution."""

    def __init__(self) -> None:
        self._found: list[IPAddress] = []
        self.done: Deferred[Answer] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing is needed of it."""

    def addressResolved(self, address: IAddress) -> None:
        """One more."""
        ip = parse_ip(address.host) if isinstance(address, IPv4Address | IPv6Address) else None
        if ip is not None:
            self._found.append(ip)

    def resolutionComplete(self) -> None:
        """All of them."""
        if not self.done.called:
            self.done.callback(Answer(tuple(dict.fromkeys(self._found)), 0.0))


# -- for Twisted


@implementer(IHostnameResolver)
class HostnameResolver:
    """A :class:`NameResolver` as a reactor's own, so that Twisted's endpoints and HTTP client ask here, too."""

    def __init__(self, names: NameResolver) -> None:
        self._names = names

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See :class:`~twisted.internet.interfaces.IHostnameResolver`."""
        wanted = tuple(addressTypes or (IPv4Address, IPv6Address))
        looking = self._names.resolve(hostName)
        resolution = _Resolution(hostName, looking)
        resolutionReceiver.resolutionBegan(resolution)

        def resolved(addresses: Addresses) -> None:
            for ip in addresses:
                kind = IPv4Address if ip.version == 4 else IPv6Address
                if kind in wanted:
                    resolutionReceiver.addressResolved(kind(cast(Any, transportSemantics), str(ip), portNumber))

        looking.addCallback(resolved).addErrback(lambda _: None)
        looking.addCallback(lambda _: resolutionReceiver.resolutionComplete())
        return resolution


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str, looking: Deferred[Any]) -> None:
        self.name = name
        self._looking = looking

    def cancel(self) -> None:
        """Ask no more."""
        self._looking.cancel()


_resolvers: WeakKeyDictionary[Any, NameResolver] = WeakKeyDictionary()


def resolver_of(reactor: Any) -> NameResolver:
    """The one resolver on a reactor.

    It asks this machine's name servers, or the reactor's own resolver where a program has installed one.
    """
    found = _resolvers.get(reactor)
    if found is None:
        found = _resolvers[reactor] = NameResolver(reactor, _source_for(reactor))
    return found


def _source_for(reactor: Any) -> Source:
    if isinstance(reactor, PosixReactorBase) and type(reactor.nameResolver).__module__.startswith("twisted."):
        return NameServers(reactor, Dialer(reactor).connect)
    return ReactorNames(reactor)


def resolve_first(reactor: Any, host: str) -> Deferred[str]:
    """The first address of a host as text, for links over datagrams; an address is its own, with its scope.

    The Deferred fails with :class:`DestinationError`.
    """
    if parse_ip(host.partition("%")[0]) is not None:
        return succeed(host)
    return resolver_of(reactor).resolve(host).addCallback(lambda addresses: str(addresses[0]))


def install_resolver(reactor: Any) -> None:
    """Let Twisted's own look-ups on a reactor go by :func:`resolver_of`; for programs, which own their reactor."""
    names = resolver_of(reactor)
    if not isinstance(reactor.nameResolver, HostnameResolver):
        reactor.installNameResolver(HostnameResolver(names))
