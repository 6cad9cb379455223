"""Classic BPF programs, run by a small machine of the tests' own."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from twisted.trial.unittest import SynchronousTestCase

from mikanet.rawpackets.bpf import Instruction, assemble, everything, nothing, of_port, tcp_to_port
from mikanet.rawpackets.frames import FlagCycle, FrameMaker, FramePath, open_frame
from tests.rawpackets.test_frames import CAPTURES, CLIENT, SERVER, STATIONS

_PACKET_TYPE, _VLAN_PRESENT = 0xFFFFF004, 0xFFFFF030


def execute(program: list[Instruction], frame: bytes, packet_type: int = 0, vlan: int = 0) -> int:
    """What the kernel would answer; a load behind the end drops, as in the kernel."""
    accumulator = index = at = 0
    ancillary = {_PACKET_TYPE: packet_type, _VLAN_PRESENT: vlan}
    try:
        while True:
            code, on_true, on_false, k = program[at]
            at += 1
            if code in (0x20, 0x28, 0x30):
                if k in ancillary:
                    accumulator = ancillary[k]
                else:
                    (accumulator,) = struct.unpack_from({0x20: "!I", 0x28: "!H", 0x30: "!B"}[code], frame, k)
            elif code == 0x48:
                (accumulator,) = struct.unpack_from("!H", frame, index + k)
            elif code == 0xB1:
                index = (frame[k] & 15) * 4
            elif code == 0x15:
                at += on_true if accumulator == k else on_false
            elif code == 0x45:
                at += on_true if accumulator & k else on_false
            elif code == 0x06:
                return k
            else:
                raise AssertionError(f"instruction {code:#x}")
    except (struct.error, IndexError):
        return 0


class TcpToPortTests(SynchronousTestCase):
    """Which frames pass."""

    def test_captures(self) -> None:
        """Of every captured frame, those to the port pass, RSTs among them."""
        for entries in CAPTURES.values():
            for entry in entries:
                frame = bytes.fromhex(entry["frame"])
                port = int.from_bytes(frame[36:38], "big")
                for ancillary in (True, False):
                    self.assertTrue(execute(tcp_to_port(port, ancillary), frame))
                    self.assertFalse(execute(tcp_to_port(port ^ 1, ancillary), frame))

    def test_ipv6(self) -> None:
        """The same over IPv6."""
        path = FramePath(STATIONS, IPv6Address(1), IPv6Address(2), (40000, 9999), FlagCycle([0x18]))
        (frame,) = FrameMaker(0).make(path, [b"x"])
        self.assertTrue(execute(tcp_to_port(9999), frame))
        self.assertFalse(execute(tcp_to_port(40000), frame))
        self.assertFalse(execute(tcp_to_port(9999), frame[:20] + b"\x11" + frame[21:]))

    def test_others(self) -> None:
        """Fragments, other protocols and types, tagged packets, packets on their way out or for others do not pass."""
        path = FramePath(STATIONS, CLIENT, SERVER, (40000, 9999), FlagCycle([0x18]))
        (frame,) = FrameMaker(0).make(path, [b"x"])
        program = tcp_to_port(9999)
        self.assertTrue(execute(program, frame))
        for packet_type in (1, 2, 3, 4):
            self.assertFalse(execute(program, frame, packet_type=packet_type))
        self.assertFalse(execute(program, frame, vlan=1))
        for at, value in ((20, 0x20), (20, 0x1F), (21, 1), (23, 17), (13, 6), (12, 0x81)):
            bad = bytearray(frame)
            bad[at] = value
            self.assertFalse(execute(program, bytes(bad)), at)
        options = bytearray(frame[:34] + b"\1\1\1\1" + frame[34:])
        options[14] = 0x46
        self.assertTrue(execute(program, bytes(options)))
        for length in range(38):
            self.assertFalse(execute(program, frame[:length]))

    def test_what_opens_also_passes(self) -> None:
        """The filter keeps nothing from us that we would take."""
        for entries in CAPTURES.values():
            for entry in entries:
                frame = bytes.fromhex(entry["frame"])
                if open_frame(frame) is not None:
                    self.assertTrue(execute(tcp_to_port(int.from_bytes(frame[36:38], "big")), frame))

    def test_bytes(self) -> None:
        """The kernel's layout: eight bytes each, in the machine's order."""
        self.assertEqual(assemble([(0x15, 2, 3, 0x0800)]), struct.pack("=HBBI", 0x15, 2, 3, 0x0800))
        self.assertEqual(len(assemble(tcp_to_port(1))), 8 * len(tcp_to_port(1)))

    def test_all_and_none(self) -> None:
        """The two programs that look at nothing."""
        self.assertTrue(execute(everything(), b""))
        self.assertFalse(execute(nothing(), bytes(60)))


class OfPortTests(SynchronousTestCase):
    """Both directions of a port."""

    def test_captures(self) -> None:
        """Every captured frame passes by either of its ports, and by no other."""
        for entries in CAPTURES.values():
            for entry in entries:
                frame = bytes.fromhex(entry["frame"])
                for at in (34, 36):
                    port = int.from_bytes(frame[at : at + 2], "big")
                    self.assertTrue(execute(of_port(6, port), frame, packet_type=4))
                    self.assertFalse(execute(of_port(17, port), frame))
                self.assertFalse(execute(of_port(6, 1), frame))

    def test_ipv6(self) -> None:
        """The same over IPv6."""
        path = FramePath(STATIONS, IPv6Address(1), IPv6Address(2), (40000, 9999), FlagCycle([0x18]))
        (frame,) = FrameMaker(0).make(path, [b"x"])
        for port in (40000, 9999):
            self.assertTrue(execute(of_port(6, port), frame))
        self.assertFalse(execute(of_port(6, 1), frame))
