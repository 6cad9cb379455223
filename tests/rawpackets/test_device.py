"""The batches of the C extension beside plain Python: the same frames, the same runs.

A pair of datagram sockets stands in for the interface: one message is one frame.
"""

from __future__ import annotations

import errno
import random
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import ConfigError
from mikanet.rawpackets import device as module
from mikanet.rawpackets.frames import FlagCycle, FrameMaker, FramePath, open_frame, open_runs
from mikanet.wire import tcp
from tests.rawpackets.test_frames import CAPTURES, CLIENT, SERVER, STATIONS
from tests.support.peers import missing


class BatchTestCase(SynchronousTestCase):
    """A pair of sockets, and the functions."""

    def setUp(self) -> None:
        """Nothing to test if the extension is not there."""
        if module._send_frames is None or module._receive_frames is None:
            raise missing("the C extension mikanet._speedups (setup.py build_ext --inplace)")
        self.send_frames, self.receive_frames = module._send_frames, module._receive_frames
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)


class SendTests(BatchTestCase):
    """Making and sending."""

    def send(self, path: FramePath, maker: FrameMaker, payloads: list[bytes]) -> int:
        """As the device does."""
        cycle = path.cycle
        fixed = path.template, path.sum, maker.epoch, maker.sent, cycle.packed, cycle.at
        return self.send_frames(self.near.fileno(), *fixed, payloads)

    @settings(deadline=None, max_examples=100)
    @given(
        st.integers(0, 2**64),
        st.integers(0, 2**40),
        st.lists(st.integers(0, tcp.ALL_FLAGS).map(lambda flags: flags & ~tcp.SYN), min_size=1, max_size=5),
        st.lists(st.binary(max_size=90) | st.just(bytes(1400)), max_size=8),
        st.booleans(),
    )
    def test_as_plain(self, epoch: int, sent: int, flags: list[int], payloads: list[bytes], six: bool) -> None:
        """Byte by byte what plain Python makes."""
        source, destination = (IPv6Address(2**127 + 1), IPv6Address(5)) if six else (CLIENT, SERVER)
        cycle = FlagCycle(flags)
        cycle.at = sent % len(flags)
        path = FramePath(STATIONS, source, destination, (40000, 443), cycle)
        maker = FrameMaker(epoch)
        maker.sent = sent
        self.assertEqual(self.send(path, maker, payloads), len(payloads))
        self.assertEqual([self.far.recv(4096) for _ in payloads], maker.make(path, payloads))

    def test_full(self) -> None:
        """The number of frames that the kernel took; 0 when it takes none."""
        path = FramePath(STATIONS, CLIENT, SERVER, (1, 2), FlagCycle([0x18]))
        taken = [self.send(path, FrameMaker(0), [bytes(1300)] * 100) for _ in range(30)]
        self.assertEqual(taken[-1], 0)
        self.assertGreater(sum(taken), 0)

    def test_errors(self) -> None:
        """The kernel's, as OSError; ours as ValueError or TypeError."""
        path = FramePath(STATIONS, CLIENT, SERVER, (1, 2), FlagCycle([0x18]))
        self.far.close()
        with self.assertRaises(OSError):
            self.send(path, FrameMaker(0), [b"x"])
        good: list[Any] = [self.near.fileno(), path.template, path.sum, 0, 0, b"\0\x18", 0, [b"x"]]
        for at, value in ((1, b"short"), (5, b""), (5, b"\0"), (6, 1), (6, -1), (7, (b"x",)), (7, [bytes(70000)])):
            with self.assertRaises(ValueError):
                self.send_frames(*good[:at], value, *good[at + 1 :])
        with self.assertRaises(TypeError):
            self.send_frames(*good[:7], ["x"])


class ReceiveTests(BatchTestCase):
    """Receiving and opening."""

    def received(self, frames: list[bytes], most: int = 256) -> Any:
        """What the function makes of frames."""
        for frame in frames:
            self.near.send(frame)
        return self.receive_frames(self.far.fileno(), most)

    def frames(self, count: int, port: int = 40000, station: bytes = STATIONS[1], six: bool = False) -> list[bytes]:
        """Good frames."""
        source, destination = (IPv6Address("fd77::2"), IPv6Address("fd77::1")) if six else (CLIENT, SERVER)
        path = FramePath((STATIONS[0], station), source, destination, (port, 9999), FlagCycle([0x18]))
        return FrameMaker(0).make(path, [b"payload %d" % number for number in range(count)])

    def test_nothing(self) -> None:
        """No frames, no runs."""
        self.assertEqual(self.received([]), ([], []))

    def test_runs(self) -> None:
        """Runs end where the sender, its port or its station changes; both families."""
        frames = [
            *self.frames(3),
            *self.frames(2, port=40001),
            *self.frames(1, station=b"\x02\0\0\0\0\x09"),
            *self.frames(70, six=True),
        ]
        found = self.received(frames)
        self.assertEqual(found, open_runs(frames))
        self.assertEqual([len(payloads) for _, _, payloads in found[0]], [3, 2, 1, 70])

    def test_most(self) -> None:
        """No more than asked for at a time."""
        frames = self.frames(100)
        ((_, _, first),), _ = self.received(frames, 80)
        ((_, _, second),), _ = self.received([], 80)
        self.assertEqual((len(first), len(second)), (80, 20))

    def test_captures(self) -> None:
        """The captured frames, RSTs of a kernel among them, as in plain Python."""
        for entries in CAPTURES.values():
            frames = [bytes.fromhex(entry["frame"]) for entry in entries]
            self.assertEqual(self.received(frames), open_runs(frames))

    def test_mutations(self) -> None:
        """Ten thousand mutated frames: what is taken and what is refused is the same; only what is unusual is left."""
        rng = random.Random(6)
        seeds = [bytes.fromhex(entry["frame"]) for entries in CAPTURES.values() for entry in entries]
        seeds += self.frames(1, six=True)
        for _ in range(200):
            frames = []
            for _ in range(50):
                data = bytearray(rng.choice(seeds))
                for _ in range(rng.randrange(3)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                frames.append(bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.3 else data))
            runs, refused = self.received(frames)
            left = [frame for frame in refused if open_frame(frame) is not None]
            for frame in left:
                self.assertNotEqual(frame[14], 0x45)
            self.assertEqual((runs, refused), open_runs([frame for frame in frames if frame not in left]))

    def test_error(self) -> None:
        """The kernel's, as OSError."""
        with self.assertRaises(OSError):
            self.receive_frames(999_999, 1)

    def test_sizes(self) -> None:
        """Payloads of 1 to 1,500 bytes."""
        path = FramePath(STATIONS, IPv4Address(1), IPv4Address(2), (1, 2), FlagCycle([0x18]))
        for length in (0, 1, 1499, 1500, 1501):
            frames = FrameMaker(0).make(path, [bytes(length)])
            self.assertEqual(self.received(frames), open_runs(frames), length)


class PacketSocketTests(SynchronousTestCase):
    """A socket that the kernel does not give."""

    def refusal(self, number: int) -> str:
        """The words for an error of the kernel's."""

        def refuse(*words: int) -> socket.socket:
            raise OSError(number, "the kernel's words")

        self.patch(module.socket, "socket", refuse)
        with self.assertRaises(ConfigError) as caught:
            module.PacketSocket("eth0", (), 1)
        return str(caught.exception)

    def test_no_such_family(self) -> None:
        """A sandbox that lets no AF_PACKET through is named, in one line."""
        said = self.refusal(errno.EAFNOSUPPORT)
        self.assertIn("the kernel's words", said)
        self.assertIn("AF_PACKET in RestrictAddressFamilies=", said)

    def test_no_right(self) -> None:
        """Missing capabilities are named, both."""
        self.assertRegex(self.refusal(errno.EPERM), "CAP_NET_RAW and CAP_NET_ADMIN")
