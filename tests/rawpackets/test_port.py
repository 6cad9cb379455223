"""The raw port with a device of the test's own; with a kernel's it is tested in ``tests/interop/test_rawpackets.py``."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet.address import IPv4Address as TcpAddress
from twisted.internet.address import IPv6Address as TcpAddress6
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.errors import ConfigError
from mikanet.kcp.ports import IPacketPort
from mikanet.rawpackets import port as module
from mikanet.rawpackets.frames import FlagCycle, FrameMaker, FramePath, Run, open_runs, parse_frame
from mikanet.rawpackets.port import RawTcpPort
from mikanet.rawpackets.settings import FamilyPath, RawPeer, RawSettings
from mikanet.wire.tcp import parse_flags

OURS, THEIRS, ROUTER = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", b"\x02\0\0\0\0\3"
HERE, THERE = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
PEER = (str(THERE), 40000)


class Device:
    """A device that is two lists."""

    index, mac, mtu = 1, OURS, 1500

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.sent: list[bytes] = []
        self.problem: OSError | None = None
        self.room = 1000
        self.drops = 0
        self.closed = False
        self.bound: list[str] = []
        self.may_bind = False

    def bind(self, interface: str) -> None:
        """To another interface, if that works."""
        if not self.may_bind:
            raise ConfigError("no right any more")
        self.bound.append(interface)

    def fileno(self) -> int:
        """Some number."""
        return 7

    def receive_runs(self) -> tuple[list[Run], list[bytes]]:
        """What waits."""
        if self.problem:
            raise self.problem
        frames, self.waiting = self.waiting, []
        return open_runs(frames)

    def send_packets(self, maker: FrameMaker, path: FramePath, payloads: list[bytes]) -> int:
        """Keep what fits."""
        if self.problem:
            raise self.problem
        fits = [len(payload) <= self.mtu - 52 for payload in payloads]
        if not fits[0]:
            raise OSError(errno.EMSGSIZE, "Message too long")
        taken = min(self.room, (fits + [False]).index(False))
        self.sent += maker.make(path, payloads[:taken])
        self.room -= taken
        return taken

    def dropped(self) -> int:
        """Since the last call."""
        drops, self.drops = self.drops, 0
        return drops

    def pending_error(self) -> int:
        """The interface is down."""
        return errno.ENETDOWN

    def close(self) -> None:
        """Closed."""
        self.closed = True


class RawTcpPortTests(SynchronousTestCase):
    """The port."""

    def setUp(self) -> None:
        """A port that is open."""
        self.reactor = MemoryReactorClock()
        self.got: list[tuple[RawPeer, list[bytes]]] = []
        self.device = Device()
        self.state: Any = (1, True)
        self.patch(module, "interface_state", self.interface_state)
        self.port = self.open(FamilyPath(HERE, ROUTER))

    def interface_state(self, name: str) -> tuple[int, bool]:
        """What the kernel would say."""
        if isinstance(self.state, OSError):
            raise self.state
        index, is_up = self.state
        return index, is_up

    def open(self, ipv4: FamilyPath | None, **changes: Any) -> RawTcpPort:
        """A port with these settings, without what needs rights."""
        settings = RawSettings("eth0", 9999, ipv4, **changes)
        port = RawTcpPort(self.reactor, settings, lambda peer, payloads: self.got.append((peer, payloads)))
        self.patch(module, "hold_port", lambda port, random_port: None)
        self.patch(module, "PacketSocket", lambda interface, program, sockbuf: self.device)
        self.patch(module, "kernel_answers", lambda address, port, from_port: False)
        port.startListening()
        self.addCleanup(port.stopListening)
        return port

    def frames(
        self, payloads: list[bytes], source: IPv4Address = THERE, port: int = 40000, mac: bytes = THEIRS
    ) -> list[bytes]:
        """Frames from a peer."""
        path = FramePath((OURS, mac), source, HERE, (port, 9999), FlagCycle([0x18]))
        return FrameMaker(0).make(path, payloads)

    def test_interfaces(self) -> None:
        """It is what it says."""
        verifyObject(IPacketPort, self.port)
        verifyObject(IReadDescriptor, self.port)
        self.assertIn(self.port, self.reactor.getReaders())

    def test_runs_of_one_peer(self) -> None:
        """Packets are handed on in runs, in order, bad ones left out and counted by reason."""
        bad = bytearray(self.frames([b"bad"])[0])
        bad[-1] ^= 1
        self.device.waiting = [
            *self.frames([b"a", b"b"]),
            *self.frames([b""]),
            bytes(bad),
            *self.frames([b"c"]),
            *self.frames([b"d"], port=40001),
            *self.frames([b"e"]),
        ]
        self.port.doRead()
        self.assertEqual(self.got, [(PEER, [b"a", b"b", b"c"]), ((PEER[0], 40001), [b"d"]), (PEER, [b"e"])])
        self.assertEqual(self.port.counters["rawpackets.dropped.empty"], 1)
        self.assertEqual(self.port.counters["rawpackets.dropped.malformed"], 1)

    def test_send(self) -> None:
        """A segment for each packet, to the router's station."""
        self.port.send_packets(PEER, [b"a", b"b"])
        self.assertEqual([frame[:12] for frame in self.device.sent], [ROUTER + OURS] * 2)
        segments = [parse_frame(frame) for frame in self.device.sent]
        self.assertEqual([(source, segment.payload) for source, segment in segments], [(HERE, b"a"), (HERE, b"b")])
        self.assertEqual((segments[0][1].source_port, segments[0][1].destination_port), (9999, 40000))

    def test_own_station(self) -> None:
        """A station of the settings stands in for the interface's."""
        self.open(FamilyPath(HERE, ROUTER), mac=b"\x02\0\0\0\0\x09").send_packets(PEER, [b"a"])
        self.assertEqual(self.device.sent[0][6:12], b"\x02\0\0\0\0\x09")

    def test_family_that_we_have_not(self) -> None:
        """A peer of a family without an address of ours gets nothing."""
        self.port.send_packets(("2001:db8::2", 1), [b"a", b"b"])
        self.assertEqual(self.device.sent, [])
        self.assertEqual(self.port.counters["rawpackets.dropped.no-way"], 2)

    def test_stations_are_learned(self) -> None:
        """Without a router answers go where the latest packet came from that was the peer's own."""
        port = self.open(FamilyPath(HERE))
        port._on_packets = lambda peer, payloads: True
        for mac in (THEIRS, b"\x02\0\0\0\0\x0a"):
            self.device.waiting = self.frames([b"x"], mac=mac)
            port.doRead()
            port.send_packets(PEER, [b"y"])
            self.assertEqual(self.device.sent[-1][:6], mac)

    def test_forged_packets_move_nobody(self) -> None:
        """A packet that no key opens neither moves a known peer's station nor is one remembered for it."""
        port = self.open(FamilyPath(HERE))
        forger = b"\x02\0\0\0\0\x0a"
        for accepted, mac, answered in ((False, forger, None), (True, THEIRS, THEIRS), (False, forger, THEIRS)):
            port._on_packets = lambda peer, payloads, accepted=accepted: accepted  # type: ignore[misc]
            self.device.waiting = self.frames([b"x"], mac=mac)
            port.doRead()
            self.device.sent.clear()
            port.send_packets(PEER, [b"y"])
            self.assertEqual([frame[:6] for frame in self.device.sent], [] if answered is None else [answered])

    def test_answer_at_once(self) -> None:
        """A peer whose station is not known is answered while its packet is being looked at, and nowhere else later."""
        port = self.open(FamilyPath(HERE))

        def answer(peer: RawPeer, payloads: list[bytes]) -> bool:
            port.send_packets(peer, [b"y"])
            return False

        port._on_packets = answer
        for mac in (THEIRS, b"\x02\0\0\0\0\x0a"):
            self.device.waiting = self.frames([b"x"], mac=mac)
            port.doRead()
            self.assertEqual(self.device.sent[-1][:6], mac)

    def test_full(self) -> None:
        """What the kernel does not take is lost and counted."""
        self.device.room = 3
        self.port.send_packets(PEER, [b"x"] * 5)
        self.assertEqual(len(self.device.sent), 3)
        self.assertEqual(self.port.counters["rawpackets.dropped.full"], 2)

    def test_too_long(self) -> None:
        """One that does not fit is left out, and said once with what helps."""
        self.assertEqual(self.port.max_packet_size, 1500 - 60)
        for _ in range(2):
            self.port.send_packets(PEER, [b"x", bytes(1490), b"y"])
        self.assertEqual([parse_frame(frame)[1].payload for frame in self.device.sent], [b"x", b"y"] * 2)
        self.assertEqual(self.port.counters["rawpackets.dropped.too-long"], 2)

    def test_flag_lists_of_peers(self) -> None:
        """A peer's list, made anew by each message, ends with an empty one; what may not be obeyed is skipped (Q7)."""

        def sent(count: int) -> list[int]:
            self.device.sent.clear()
            self.port.send_packets(PEER, [b"x"] * count)
            return [parse_frame(frame)[1].flags for frame in self.device.sent]

        entries = [parse_flags(text) for text in ("A", "RA", "PA", "E", "F")]
        self.assertEqual(sent(1), [0x18])
        self.port.set_flags(PEER, entries)
        self.assertEqual(sent(4), [0x10, 0x18, 0x01, 0x10])
        self.port.set_flags(PEER, entries)
        self.assertEqual(sent(1), [0x10])
        self.port.send_packets((PEER[0], 40001), [b"x"])
        self.assertEqual(parse_frame(self.device.sent[-1])[1].flags, 0x18)
        self.port.set_flags(PEER, [])
        self.assertEqual(sent(2), [0x18, 0x18])
        self.port.set_flags(PEER, [parse_flags("R")])
        self.assertEqual(sent(1), [0x18])

    def test_bounds(self) -> None:
        """However many peers there are, what is kept of them is bounded."""
        self.patch(module, "MAX_PEERS", 8)
        port = self.open(FamilyPath(HERE))
        for number in range(40):
            peer = (PEER[0], 1000 + number)
            self.device.waiting = self.frames([b"x"], port=peer[1])
            port.doRead()
            port.set_flags(peer, [2])
            port.send_packets(peer, [b"y"])
        sizes = [len(value) for value in vars(port).values() if isinstance(value, dict)]
        self.assertEqual(sorted(sizes)[-4:], [8, 8, 8, 8])

    def test_interface_down(self) -> None:
        """The port stays when the reactor says that the descriptor is lost, and looks until the interface is back."""
        self.state = (1, False)
        self.reactor.removeReader(self.port)  # as the reactor does
        self.port.connectionLost(Failure(ConnectionLost()))
        self.assertIn(self.port, self.reactor.getReaders())
        self.device.problem = OSError(errno.ENETDOWN, "Network is down")
        self.port.send_packets(PEER, [b"x"])
        self.port.doRead()
        self.assertEqual(self.port.counters["rawpackets.interface.lost"], 1)
        self.assertEqual(self.port.counters["rawpackets.dropped.away"], 1)
        self.reactor.advance(1)
        self.device.problem = None
        self.state = (1, True)
        self.reactor.advance(1)
        self.port.send_packets(PEER, [b"x"])
        self.assertEqual(len(self.device.sent), 1)
        self.port.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.port.counters["rawpackets.interface.lost"], 2)

    def test_interface_made_again(self) -> None:
        """Another interface of the same name is opened."""
        old = self.device
        self.port.connectionLost(Failure(ConnectionLost()))
        self.state = OSError(errno.ENODEV, "No such device")
        self.reactor.advance(1)
        self.device = Device()
        self.device.index = 5
        self.state = (5, True)
        self.reactor.advance(1)
        self.assertTrue(old.closed)
        self.port.send_packets(PEER, [b"x"])
        self.assertEqual(len(self.device.sent), 1)

    def test_interface_that_cannot_be_opened_again(self) -> None:
        """Why is said, once, and it is tried again."""
        said: list[str] = []
        self.patch(module._log, "warn", lambda _, text="", **more: said.append(text))

        def refuse(interface: str, program: object, sockbuf: int) -> Device:
            raise ConfigError("no right any more")

        self.port.connectionLost(Failure(ConnectionLost()))
        self.patch(module, "PacketSocket", refuse)
        self.state = (5, True)
        for _ in range(3):
            self.reactor.advance(1)
        self.assertEqual([text for text in said if text], ["no right any more"])
        self.device = Device()
        self.device.index = 5
        self.patch(module, "PacketSocket", lambda interface, program, sockbuf: self.device)
        self.reactor.advance(1)
        self.port.send_packets(PEER, [b"x"])
        self.assertEqual(len(self.device.sent), 1)

    def test_move(self) -> None:
        """Another interface, address and router: packets go there, the old device is closed, the port stays."""
        old, self.device = self.device, Device()
        self.port.send_packets(PEER, [b"x"])
        other = FamilyPath(IPv4Address("198.51.100.7"), b"\2\0\0\0\0\x99")
        self.assertTrue(self.port.move(RawSettings("wlan0", 0, other)))
        self.assertTrue(old.closed)
        self.port.send_packets(PEER, [b"y"])
        (frame,) = self.device.sent
        self.assertEqual(frame[:6], b"\2\0\0\0\0\x99")
        self.assertEqual(frame[26:30], other.source.packed)
        self.assertEqual(int.from_bytes(frame[34:36], "big"), 9999)
        self.assertFalse(self.port.move(RawSettings("wlan0", 0, other)))

    def test_move_without_privileges(self) -> None:
        """Where no other device can be opened any more, the one that is open goes to the other interface."""
        self.device.may_bind = True

        def refuse(interface: str, program: object, sockbuf: int) -> Device:
            raise ConfigError("no right any more")

        self.patch(module, "PacketSocket", refuse)
        self.assertTrue(self.port.move(RawSettings("wlan0", 0, FamilyPath(HERE, ROUTER))))
        self.assertEqual((self.device.bound, self.device.closed), (["wlan0"], False))

    def test_move_that_fails(self) -> None:
        """Where the other interface cannot be used, all is as before."""

        def refuse(interface: str, program: object, sockbuf: int) -> Device:
            raise ConfigError("no right any more")

        before = self.port.settings
        self.patch(module, "PacketSocket", refuse)
        self.assertRaises(ConfigError, self.port.move, RawSettings("wlan0", 0, FamilyPath(HERE, ROUTER)))
        self.assertEqual(self.port.settings, before)
        self.port.send_packets(PEER, [b"x"])
        self.assertEqual(len(self.device.sent), 1)

    def test_drops_of_the_kernel(self) -> None:
        """They are counted while it runs."""
        self.device.drops = 3
        self.reactor.advance(10)
        self.device.drops = 4
        self.reactor.advance(10)
        self.assertEqual(self.port.counters["rawpackets.dropped.kernel"], 7)

    def test_stop(self) -> None:
        """Nothing is left: no reader, no timer, no device; sending is silent."""
        self.port.connectionLost(Failure(ConnectionLost()))
        self.port.stopListening()
        self.assertEqual(self.reactor.getReaders(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertTrue(self.device.closed)
        self.port.send_packets(PEER, [b"x"])
        self.port.stopListening()

    def test_stopped_by_what_it_hands_on(self) -> None:
        """A port that is closed inside a batch hands on no more."""
        self.port._on_packets = lambda peer, payloads: (self.got.append((peer, payloads)), self.port.stopListening())  # type: ignore[assignment, func-returns-value]
        self.device.waiting = self.frames([b"a"]) + self.frames([b"b"], port=40001)
        self.port.doRead()
        self.assertEqual(self.got, [(PEER, [b"a"])])

    def test_kernel_that_answers(self) -> None:
        """No start when the kernel answers with RST, and the reason names what helps."""
        self.patch(module, "kernel_answers", lambda address, port, from_port: True)
        port = RawTcpPort(self.reactor, RawSettings("eth0", 9998, FamilyPath(HERE, ROUTER)), print)
        with self.assertRaises(ConfigError) as caught:
            port.startListening()
        self.assertIn("with RST", str(caught.exception))
        self.assertIn("--firewall auto", str(caught.exception))
        self.assertTrue(self.device.closed)

    def test_addresses(self) -> None:
        """Of peers, ours, and what limits go by."""
        self.assertEqual(self.port.address_of(PEER), TcpAddress("TCP", *PEER))
        self.assertEqual(self.port.address_of(("2001:db8::2", 5)), TcpAddress6("TCP", "2001:db8::2", 5))
        self.assertEqual(self.port.host_address(), TcpAddress("TCP", str(HERE), 9999))
        first, second = (self.port.source_of((f"2001:db8::{end}", 5)) for end in ("2", "3"))
        self.assertEqual(first, second)
        self.assertNotEqual(self.port.source_of(("192.0.2.2", 5)), self.port.source_of(("192.0.2.3", 5)))


class SettingsTests(SynchronousTestCase):
    """What settings refuse."""

    def test_refused(self) -> None:
        """No address, no flags, no such backend, no such port."""
        path = FamilyPath(IPv6Address(1))
        for changes in ({}, {"ipv6": path, "flags": ()}, {"ipv6": path, "backend": "x"}, {"ipv6": path, "port": 65536}):
            arguments: dict[str, Any] = {"interface": "eth0", "port": 1} | changes
            with self.assertRaises(ConfigError):
                RawSettings(**arguments)
