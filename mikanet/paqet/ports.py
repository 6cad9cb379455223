"""Where a paqet client's sessions send their packets: UDP or raw TCP packets, behind one contract."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from mikanet.address import Address, IPAddress
from mikanet.counters import Counters
from mikanet.kcp.udp import UdpPackets
from mikanet.net.resolve import resolve_first
from mikanet.rawpackets.port import RawTcpPort
from mikanet.rawpackets.settings import RawSettings

#: A way that was found so many seconds ago is good for a new session; and a next hop that was asked for its station so
#: many seconds ago is not asked again (our choice).
_JUST_NOW, _ASK_AGAIN = 2.0, 5.0
#: To ask the kernel for a way; nothing is sent there.
_ANY_PORT = 9

_log = Logger()

#: Takes the packets that the server sent.
Received = Callable[[list[bytes]], None]


class OpenPort(NamedTuple):
    """What a session sends through: the IPacketPort, the peer on it, and what to call when the session is over."""

    port: Any
    peer: Any
    close: Callable[[], None]


class IClientPort(Interface):
    """The port of one connection; its sessions follow one another."""

    def start() -> None:
        """Take what needs privileges.

        :raises ConfigError: in one line, if that cannot be done.
        """

    def open(received: Received) -> Deferred[OpenPort]:  # noqa: N805  # interfaces have no self
        """For a new session; ``received`` gets what comes from now on."""

    def look_again(silent: bool) -> Deferred[bool]:  # noqa: N805
        """Look where the server is now and how it is reached; fires with whether that makes the open session useless.

        :param silent: because the server does not acknowledge.
        """

    def stop() -> Deferred[None]:
        """Nothing more will be opened."""


@implementer(IClientPort)
class UdpClientPort:
    """A new UDP socket for each session, to wherever the server's name leads then."""

    def __init__(self, reactor: Any, server: Address) -> None:
        self._reactor = reactor
        self._server = server
        self._way: tuple[str, str] | None = None  # the server's address, and ours towards it

    def start(self) -> None:
        """Nothing: UDP needs no privileges."""

    def open(self, received: Received) -> Deferred[OpenPort]:
        """As :class:`IClientPort`."""

        def resolved(host: str) -> OpenPort:
            self._way = host, own_address(host)
            peer = (host, self._server.port)
            interface = "::" if ":" in host else ""
            port = UdpPackets(self._reactor, 0, interface, lambda _, packets: received(packets), peer)
            port.startListening()  # type: ignore[no-untyped-call]  # untyped in Twisted
            return OpenPort(port, peer, lambda: _stop(port))

        return resolve_first(self._reactor, self._server.host).addCallback(resolved)

    def look_again(self, silent: bool) -> Deferred[bool]:
        """As :class:`IClientPort`: the server knows a session by our address, so that must be the same, too."""

        def resolved(host: str) -> bool:
            way = host, own_address(host)
            if self._way is None or not way[1] or way == self._way:
                return False
            _log.info("the server {name} is now {host}, from {own}", name=str(self._server), host=way[0], own=way[1])
            return True

        return resolve_first(self._reactor, self._server.host).addCallbacks(resolved, lambda _: False)

    def stop(self) -> Deferred[None]:
        """As :class:`IClientPort`."""
        return succeed(None)


def own_address(host: str) -> str:
    """The address that the kernel would send from to an IP address; empty if there is no way there. Nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((host, _ANY_PORT))
        except OSError:
            return ""
        return str(asking.getsockname()[0])


def _stop(port: UdpPackets) -> None:
    port.stopListening()  # type: ignore[no-untyped-call]  # untyped in Twisted


#: What a raw port is to be set to for a server's address; blocks; see :func:`mikanet.paqet.options.way_to`.
LookForWay = Callable[[IPAddress, bool], RawSettings]


@implementer(IClientPort)
class RawClientPort:
    """One raw port for all sessions: it can only be opened while there are privileges. It moves along with the network.

    :param settings: as they were found last. :param peer: the server with its name looked up.
    :param server: as the user named it. :param look: finds the way anew.
    :param in_thread: calls what blocks, and gives a Deferred of its result.
    """

    def __init__(
        self,
        reactor: Any,
        settings: RawSettings,
        peer: Address,
        server: Address,
        counters: Counters,
        look: LookForWay,
        in_thread: Callable[..., Deferred[RawSettings]] | None = None,
    ) -> None:
        self._reactor = reactor
        self._received: Received | None = None
        self._server = server
        self._peer = (peer.host, peer.port)
        self._look_for_way = look
        self._in_thread = in_thread or partial(_in_thread, reactor)
        self._waiting: list[Deferred[bool]] = []  # for the look that is under way
        self._looked_at: float = reactor.seconds()
        self._asked_at = -_ASK_AGAIN
        self._said = ""
        self._port = RawTcpPort(reactor, replace(settings, only=self._peer), self._packets_received, counters)

    def start(self) -> None:
        """As :class:`IClientPort`."""
        self._port.startListening()

    def open(self, received: Received) -> Deferred[OpenPort]:
        """As :class:`IClientPort`."""
        self._received = received
        return self._look(_JUST_NOW).addCallback(lambda _: OpenPort(self._port, self._peer, lambda: None))

    def look_again(self, silent: bool) -> Deferred[bool]:
        """As :class:`IClientPort`."""
        return self._look(0.0, silent)

    def _look(self, recent: float, silent: bool = False) -> Deferred[bool]:
        """Find name and way anew, unless that was done less than ``recent`` seconds ago, and move the port."""
        now = self._reactor.seconds()
        if not self._waiting and now - self._looked_at <= recent:
            return succeed(False)
        answer: Deferred[bool] = Deferred()
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            fresh = silent and now - self._asked_at >= _ASK_AGAIN
            if fresh:
                self._asked_at = now
            looking: Deferred[Any] = resolve_first(self._reactor, self._server.host)
            looking.addErrback(lambda _: self._peer[0])  # the name servers cannot be reached either, perhaps
            looking.addCallback(lambda host: self._find(host, fresh)).addErrback(self._not_found)
            looking.addCallback(self._looked)
        return answer

    def _looked(self, moved: bool) -> None:
        self._looked_at = self._reactor.seconds()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(moved)

    def _find(self, host: str, fresh: bool) -> Deferred[bool]:
        ip = ip_address(host.partition("%")[0])
        return self._in_thread(self._look_for_way, ip, fresh).addCallback(lambda found: self._move(str(ip), found))

    def _move(self, host: str, found: RawSettings) -> bool:
        """Use what was found; whether the server will not know us any more."""
        before = self._port.settings
        peer = (host, self._peer[1])
        if not self._port.move(replace(found, only=peer)):
            return False
        self._peer = peer
        now = self._port.settings
        self._said = ""
        _log.info("the way to the server {name}: {way}", name=str(self._server), way=describe_way(host, now))
        return before.only != now.only or _sources(before) != _sources(now)

    def _not_found(self, failure: Failure) -> bool:
        # Whatever it is, as links come and go between two questions to the kernel: the next look may find it.
        text = str(failure.value) or type(failure.value).__name__
        if text != self._said:
            self._said = text
            _log.warn("the way to the server {name} is not known now: {text}", name=str(self._server), text=text)
        return False

    def stop(self) -> Deferred[None]:
        """As :class:`IClientPort`."""
        self._received = None
        return maybeDeferred(self._port.stopListening).addCallback(lambda _: None)

    def _packets_received(self, _: Any, packets: list[bytes]) -> None:
        if self._received is not None:
            self._received(packets)


def describe_way(host: str, settings: RawSettings) -> str:
    """Interface, our address and the router of the way to a host, in words."""
    path = settings.ipv6 if ":" in host else settings.ipv4
    if path is None:
        return f"{host} by {settings.interface}"
    router = "" if path.router_mac is None else f", router {path.router_mac.hex(':')}"
    return f"{host} by {settings.interface} from {path.source}{router}"


def _sources(settings: RawSettings) -> tuple[object, object]:
    return settings.ipv4 and settings.ipv4.source, settings.ipv6 and settings.ipv6.source


def _in_thread(reactor: Any, call: Callable[..., RawSettings], *args: Any) -> Deferred[RawSettings]:
    return deferToThreadPool(reactor, reactor.getThreadPool(), call, *args)
