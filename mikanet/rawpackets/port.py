"""The raw TCP port: sealed packets of many peers in TCP-shaped packets, sent and read below the kernel's TCP.

Beside :class:`mikanet.kcp.udp.UdpPackets` it is the second implementation of
:class:`~mikanet.kcp.ports.IPacketPort`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from twisted.internet import address
from twisted.internet.interfaces import IAddress, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.counters import Counters
from mikanet.errors import ConfigError
from mikanet.kcp.ports import IPacketPort
from mikanet.rawpackets import frames as framing
from mikanet.rawpackets.bpf import tcp_to_port
from mikanet.rawpackets.device import AWAY, FrameDevice, PacketSocket, interface_mac, interface_state
from mikanet.rawpackets.firewall import Firewall, FirewallError, all_rules
from mikanet.rawpackets.frames import FlagCycle, FrameMaker, FramePath, open_frame
from mikanet.rawpackets.hold import hold_port
from mikanet.rawpackets.selftest import kernel_answers
from mikanet.rawpackets.settings import FamilyPath, RawPeer, RawSettings
from mikanet.wire import tcp

#: Called with a peer and the payloads of packets that came from it, in order; both checksums of each were right. Says
#: whether one of them was the peer's own, as far as a key can tell; None if it cannot say.
PacketsReceived = Callable[[RawPeer, list[bytes]], bool | None]

#: Peers whose prepared headers, flag lists and stations are kept; the oldest are forgotten, and made anew when needed.
MAX_PEERS = 4096
#: Seconds between looks at an interface that is away, and at the kernel's drop counter.
_LOOK_EVERY = 1.0
_COUNT_EVERY = 10.0

_log = Logger()


@implementer(IPacketPort, IReadDescriptor)
class RawTcpPort:
    """A raw TCP port. Make it, then :meth:`startListening`, once, before privileges are dropped.

    A client makes one for each of its connections and keeps it when it reconnects: only conv changes. A server has one.

    :param on_packets: as :data:`PacketsReceived`.
    :param counters: what happened is counted under ``rawpackets.*``.
    :ivar port: our TCP port, also when the settings said 0.
    :ivar max_packet_size: largest payload that fits the interface; larger ones are dropped, counted, and said once.
    """

    def __init__(
        self, reactor: Any, settings: RawSettings, on_packets: PacketsReceived, counters: Counters | None = None
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._on_packets = on_packets
        self.counters = counters if counters is not None else Counters()
        self.port = settings.port
        self.max_packet_size = framing.MAX_PAYLOAD
        self._device: FrameDevice | None = None
        self._interface_index = 0
        self._away = False
        self._stack = contextlib.ExitStack()
        self._timers: dict[str, Any] = {}
        self._maker = FrameMaker(int(time.time() * 1000))
        self._own_flags = FlagCycle(settings.flags)
        self._paths: dict[RawPeer, FramePath] = {}
        self._peer_flags: dict[RawPeer, FlagCycle] = {}
        self._peers: dict[bytes, RawPeer] = {}
        self._stations: dict[RawPeer, bytes] = {}
        self._arriving: tuple[RawPeer, bytes] | None = None  # whose packets are being handed on, from which station
        self._learns = any(path is not None and path.router_mac is None for path in (settings.ipv4, settings.ipv6))
        self._said: set[str] = set()

    # -- starting and stopping

    def startListening(self) -> None:
        """Take the port, install the firewall rules if they are wanted, open the raw socket, look for kernel RSTs.

        :raises ConfigError: in one line what is wrong and which command mends it: no right to open raw sockets, no such
            interface, the port in use, or a kernel that answers the peer's packets with RST.
        """
        try:
            self._start()
        except BaseException:
            self.stopListening()
            raise

    def _start(self) -> None:
        held = hold_port(self.port, random.randint)
        if held is not None:
            self.port = held.number
            self._stack.callback(held.release)
        elif not self.port:
            raise ConfigError("no right to take any TCP port: run as root")
        self._open_device()
        if self._settings.firewall:
            self._install_rules()
        self._self_test()
        self._reactor.addReader(self)
        self._every(_COUNT_EVERY, self._count_drops)

    def _open_device(self) -> None:
        settings = self._settings
        device: FrameDevice
        if settings.backend == "pcap":
            from mikanet.rawpackets.pcap import PcapDevice

            device = PcapDevice(settings.interface, self.port, settings.sockbuf)
        else:
            device = PacketSocket(settings.interface, tcp_to_port(self.port), settings.sockbuf)
        self._opened(device)

    def _opened(self, device: FrameDevice) -> None:
        settings = self._settings
        self._device = device
        self._interface_index = device.index
        headers = framing.MAX_HEADERS_V4 if settings.ipv6 is None else framing.MAX_HEADERS_V6
        self.max_packet_size = min(framing.MAX_PAYLOAD, device.mtu - headers)
        self._paths.clear()  # the station may be another one

    def _install_rules(self) -> None:
        problems = []
        try:
            for rules in all_rules():
                firewall = Firewall(self.port, rules)
                try:
                    firewall.install()
                except FirewallError as problem:
                    problems.append(str(problem))
                else:
                    self._stack.callback(firewall.remove)
                    return
        except FirewallError as problem:
            problems.append(str(problem))
        # The held port may keep the kernel silent all the same; the test that follows will tell.
        _log.warn("no firewall rules: {problem}", problem="; ".join(problems))
        self.counters.add("rawpackets.firewall.failed")

    def _self_test(self) -> None:
        for path in (self._settings.ipv4, self._settings.ipv6):
            if path is None:
                continue
            try:
                answers = kernel_answers(path.source, self.port, random.randint(20000, 30000))
            except OSError as problem:
                _log.warn(
                    "cannot see whether the kernel keeps silent: {address}: {problem}; ip addr shows this machine's "
                    "addresses",
                    address=str(path.source),
                    problem=problem.strerror or str(problem),
                )
                continue
            if answers:
                raise ConfigError(
                    f"the kernel answers packets to {path.source} port {self.port} with RST, which ends connections in "
                    f"stateful devices on the way: run with --firewall auto, as root, or add the rules yourself "
                    f"(mikanet doctor prints them)"
                )

    def stopListening(self) -> None:
        """Close everything; the rules go a little later, as the peer knows of no end."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        device, self._device = self._device, None
        if device is not None:
            self._reactor.removeReader(self)
            device.close()
        self._stack.close()

    def _every(self, seconds: float, call: Callable[[], bool]) -> None:
        """Call again and again until it answers False."""
        name = call.__name__

        def again() -> None:
            del self._timers[name]
            if call():
                self._timers[name] = self._reactor.callLater(seconds, again)

        if name not in self._timers:
            self._timers[name] = self._reactor.callLater(seconds, again)

    # -- receiving: IReadDescriptor

    def fileno(self) -> int:
        """As IReadDescriptor."""
        return -1 if self._device is None else self._device.fileno()

    def logPrefix(self) -> str:
        """As IReadDescriptor."""
        return "RawTcpPort"

    def doRead(self) -> None:
        """Read a batch of frames, and hand on runs of one peer."""
        assert self._device is not None
        try:
            runs, refused = self._device.receive_runs()
        except OSError as problem:
            self._lost_interface(problem)
            return
        for station, key, payloads in runs:
            self._hand_on(key, payloads, station)
        for frame in refused:
            opened = open_frame(frame)  # batches leave what is unusual
            if opened is None:
                self.counters.add(f"rawpackets.dropped.{framing.refusal(frame)}")
            else:
                self._hand_on(opened[0], [opened[1]])

    def _hand_on(self, key: bytes, payloads: list[bytes], station: bytes | None = None) -> None:
        if self._device is None:  # what was handed on before has closed us
            return
        peer = self._peers.get(key) or self._new_peer(key)
        if self._settings.only is not None and peer != self._settings.only:
            self.counters.add("rawpackets.dropped.stranger", len(payloads))
        elif station is None or not self._learns or self._stations.get(peer) == station:
            self._on_packets(peer, payloads)
        else:
            self._hand_on_from(peer, payloads, station)

    def _hand_on_from(self, peer: RawPeer, payloads: list[bytes], station: bytes) -> None:
        """From a station that is new for this peer. Answers go there at once where no other is known; it is remembered only
        when the packets prove to be the peer's own, as anybody on the link can send others."""
        known = peer in self._stations
        self._arriving = None if known else (peer, station)
        try:
            accepted = self._on_packets(peer, payloads)
        finally:
            self._arriving = None
        if accepted or (accepted is None and not known):
            self._stations.pop(peer, None)
            _make_room(self._stations)
            self._stations[peer] = station
            self._paths.pop(peer, None)

    def _new_peer(self, key: bytes) -> RawPeer:
        _make_room(self._peers)
        peer = self._peers[key] = framing.split_key(key)
        return peer

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor when the descriptor has an error, as when the interface went down. We stay."""
        if self._device is not None:
            number = self._device.pending_error()
            self._reactor.addReader(self)
            if number:
                self._lost_interface(OSError(number, os.strerror(number)))

    # -- sending

    def send_packets(self, peer: RawPeer, packets: Sequence[bytes]) -> None:
        """As :class:`IPacketPort`: each packet becomes one TCP segment. Never raises; what cannot be sent is lost."""
        device = self._device
        if device is None:
            return
        path = self._paths.get(peer) or self._new_path(peer, device)
        if path is None:
            self.counters.add("rawpackets.dropped.no-way", len(packets))
            return
        waiting = packets if isinstance(packets, list) else list(packets)
        while waiting:
            try:
                sent = device.send_packets(self._maker, path, waiting)
            except OSError as problem:
                if problem.errno in AWAY:
                    self.counters.add("rawpackets.dropped.away", len(waiting))
                    self._lost_interface(problem)
                    return
                self._cannot_send(waiting[0], device, problem)
                sent = 1
            else:
                if sent == len(waiting):
                    return
                if not sent:
                    self.counters.add("rawpackets.dropped.full", len(waiting))
                    return
            waiting = waiting[sent:]

    def _cannot_send(self, packet: bytes, device: FrameDevice, problem: OSError) -> None:
        """One packet is not taken, whatever comes after it."""
        if problem.errno == errno.EMSGSIZE:
            self.counters.add("rawpackets.dropped.too-long")
            self._say_once(
                f"packets of {len(packet)} bytes do not fit {self._settings.interface}, whose MTU is {device.mtu}: "
                f"set kcp.mtu to {self.max_packet_size} or less, at both ends"
            )
        else:
            self.counters.add("rawpackets.dropped.error")
            self._say_once(f"cannot send on {self._settings.interface}: {problem.strerror}")

    def _new_path(self, peer: RawPeer, device: FrameDevice) -> FramePath | None:
        """What does not change for a peer; None if it cannot be reached."""
        host = ip_address(peer[0])
        family = self._family(host)
        if family is None:
            return None
        router = family.router_mac or self._stations.get(peer)
        arriving = self._arriving
        kept = router is not None
        if router is None and arriving is not None and arriving[0] == peer:
            router = arriving[1]
        if router is None:
            return None
        path = FramePath(
            (router, self._settings.mac or device.mac),
            family.source,
            host,
            (self.port, peer[1]),
            self._peer_flags.get(peer, self._own_flags),
        )
        if kept:
            _make_room(self._paths)
            self._paths[peer] = path
        return path

    def _family(self, host: IPv4Address | IPv6Address) -> FamilyPath | None:
        return self._settings.ipv4 if host.version == 4 else self._settings.ipv6

    def set_flags(self, peer: RawPeer, flags: Sequence[int]) -> None:
        """Use a peer's own flag list (its PTCPF message) from its first entry on; an empty one restores ours.

        Entries with RST, or without any of S, A, P, F, U, are skipped (Q7). Call with an empty list when the peer's
        session ends: lists are kept for at most 4,096 peers.
        """
        self._peer_flags.pop(peer, None)
        usable = tcp.usable_flags(flags)
        if usable:
            _make_room(self._peer_flags)
            self._peer_flags[peer] = FlagCycle(usable)
        path = self._paths.get(peer)
        if path is not None:
            path.cycle = self._peer_flags.get(peer, self._own_flags)

    # -- an interface that is away

    def _lost_interface(self, problem: OSError) -> None:
        if not self._away:
            self._away = True
            self.counters.add("rawpackets.interface.lost")
            _log.warn(
                "interface {name} is away ({problem}); waiting for it",
                name=self._settings.interface,
                problem=problem.strerror,
            )
            self._every(_LOOK_EVERY, self._look_for_interface)

    def _look_for_interface(self) -> bool:
        """Whether to look again."""
        name = self._settings.interface
        try:
            index, is_up = interface_state(name)
            if index != self._interface_index:
                self._reopen()  # another one of the same name
        except ConfigError as problem:
            self._say_once(str(problem))  # there, and not to be opened: somebody must do something
            return True
        except OSError:
            return True
        if not is_up:
            return True
        self._away = False
        _log.info("interface {name} is back", name=name)
        return False

    def _reopen(self) -> None:
        old = self._device
        assert old is not None
        self._reactor.removeReader(self)
        try:
            self._open_device()
            old.close()
        except ConfigError:  # the privileges to open another may be gone
            old.bind(self._settings.interface)
            self._opened(old)
        finally:
            self._reactor.addReader(self)

    def move(self, settings: RawSettings) -> bool:
        """Go on with another interface, source address or router than before, as the network has changed; whether anything
        is otherwise. The port, flags and rules stay: rules name nothing but the port, so they hold everywhere.

        :raises ConfigError: in one line, if the other interface cannot be used; then all is as before.
        """
        before = self._settings
        settings = replace(settings, port=before.port, firewall=before.firewall, only=before.only and settings.only)
        if settings == before:
            self._take_new_station()
            return False
        self._settings = settings
        try:
            if settings.interface != before.interface and self._device is not None:
                self._reopen()
                self._away = False
        except ConfigError:
            self._settings = before
            raise
        self._paths.clear()
        if settings.interface != before.interface:
            self._stations.clear()  # of another link
        self._learns = any(path is not None and path.router_mac is None for path in (settings.ipv4, settings.ipv6))
        self.counters.add("rawpackets.moved")
        return True

    def _take_new_station(self) -> None:
        """The interface may have another station of its own now."""
        device = self._device
        with contextlib.suppress(OSError, ConfigError):
            if device is not None and interface_mac(self._settings.interface) != device.mac:
                self._reopen()

    @property
    def settings(self) -> RawSettings:
        """As they are now."""
        return self._settings

    def _count_drops(self) -> bool:
        assert self._device is not None
        dropped = self._device.dropped()
        if dropped:
            self.counters.add("rawpackets.dropped.kernel", dropped)
        return True

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            _log.warn("{text}", text=text)

    # -- addresses

    def address_of(self, peer: RawPeer) -> IAddress:
        """As :class:`IPacketPort`."""
        return _address(ip_address(peer[0]), peer[1])

    def host_address(self) -> IAddress:
        """As :class:`IPacketPort`."""
        family = self._settings.ipv4 or self._settings.ipv6
        assert family is not None
        return _address(family.source, self.port)

    @staticmethod
    def source_of(peer: RawPeer) -> int:
        """The IPv4 address, or the /64 of an IPv6 one (X3)."""
        host = ip_address(peer[0])
        return int(host) if host.version == 4 else int(host) >> 64 | 1 << 64


def _address(host: IPv4Address | IPv6Address, port: int) -> IAddress:
    made = address.IPv4Address if host.version == 4 else address.IPv6Address
    return made("TCP", str(host), port)


def _make_room(entries: dict[Any, Any]) -> None:
    """Forget the oldest entry of a full dict."""
    if len(entries) >= MAX_PEERS:
        del entries[next(iter(entries))]
