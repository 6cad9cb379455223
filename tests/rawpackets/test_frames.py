"""Frames of a raw port: header fields as captured, and what is taken of what comes."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.rawpackets.frames import (
    MAX_PAYLOAD,
    FlagCycle,
    FrameMaker,
    FramePath,
    open_frame,
    parse_frame,
    refusal,
    split_key,
)
from mikanet.wire import ethernet, ip, tcp
from mikanet.wire.tcp import TcpSegment, parse_flags
from tests.support.vectors import load

CAPTURES: dict[str, list[dict[str, Any]]] = load("paqet/captures.json")["captures"]
CLIENT, SERVER = IPv4Address("10.77.0.2"), IPv4Address("10.77.0.1")
STATIONS = (b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2")


def captured(part: str) -> list[tuple[bytes, IPv4Address | IPv6Address, TcpSegment]]:
    """The frames of paqet in the capture whose name holds ``part``, with sender and segment; no RST of the kernel."""
    (name,) = (name for name in CAPTURES if part in name)
    frames = [bytes.fromhex(entry["frame"]) for entry in CAPTURES[name]]
    return [(frame, *found) for frame in frames if (found := parse_frame(frame))[1].payload]


def tsval_of(segment: TcpSegment) -> int:
    """The value of its timestamps, which are where paqet puts them."""
    at = 8 if segment.flags & tcp.SYN else 4
    return int.from_bytes(segment.options[at : at + 4], "big")


class CaptureTests(SynchronousTestCase):
    """Frames are those of the real programs, byte by byte."""

    def replay(self, part: str, lists: dict[Any, list[list[str]]] | None = None, skipped: int = 0) -> int:
        """Make each captured frame from its payload.

        :param lists: for each sender, the flag lists with which its packets begin a new cycle.
        """
        makers: dict[Any, FrameMaker] = {}
        cycles: dict[Any, FlagCycle] = {}
        frames = captured(part)
        for frame, source, segment in frames:
            if source not in makers:
                makers[source] = FrameMaker(tsval_of(segment))
                makers[source].sent = skipped
                cycles[source] = FlagCycle([tcp.DEFAULT_FLAGS])
            waiting = (lists or {}).get(source)
            if waiting and (entries := waiting.pop(0)):
                cycles[source] = FlagCycle(list(map(parse_flags, entries)))
            destination = ip.decode(ethernet.decode(frame).payload).destination
            ports = segment.source_port, segment.destination_port
            path = FramePath((frame[:6], frame[6:12]), source, destination, ports, cycles[source])
            self.assertEqual(makers[source].make(path, [segment.payload]), [frame])
        return len(frames)

    def test_alpha21(self) -> None:
        """Default flags, both ends, from each end's first packet on."""
        self.assertEqual(self.replay("alpha21_null_block_http_get"), 10)

    def test_alpha19(self) -> None:
        """The same of the older program."""
        self.assertEqual(self.replay("alpha19"), 8)

    def test_udp(self) -> None:
        """A capture that begins with each end's third packet."""
        self.assertEqual(self.replay("socks_udp", skipped=2), 5)

    def test_flag_lists(self) -> None:
        """Entries with SYN, of all flags, and a server that begins its client's list anew at each PTCPF message."""
        theirs = ["SA", "PA", "U"]
        lists = {CLIENT: [["S", "PA", "A", "FSRPAUECN"]], SERVER: [["PA"], theirs, theirs, []]}
        self.assertEqual(self.replay("flag_lists", lists), 10)

    def test_opened(self) -> None:
        """Sender, port and payload of every captured frame; a kernel's RST has nothing to take."""
        for name, entries in CAPTURES.items():
            for entry in entries:
                frame = bytes.fromhex(entry["frame"])
                source, segment = parse_frame(frame)
                opened = open_frame(frame)
                if not segment.payload:
                    self.assertIsNone(opened, name)
                    self.assertEqual(refusal(frame), "rst")
                else:
                    assert opened is not None
                    self.assertEqual(
                        (split_key(opened[0]), opened[1]), ((str(source), segment.source_port), segment.payload)
                    )


class FieldTests(SynchronousTestCase):
    """The rules of the header fields, far from where captures end."""

    def segments(self, epoch: int, sent: int, flags: str, count: int) -> list[TcpSegment]:
        """What a socket sends after ``sent`` packets."""
        maker = FrameMaker(epoch)
        maker.sent = sent
        path = FramePath(STATIONS, CLIENT, SERVER, (1, 2), FlagCycle([parse_flags(flags)]))
        return [parse_frame(frame)[1] for frame in maker.make(path, [b"x"] * count)]

    def test_fields(self) -> None:
        """n from 1 to 2,100: every term of every field."""
        epoch = 1_700_000_000_123
        for n, segment in enumerate(self.segments(epoch, 0, "PA", 2100), 1):
            low = epoch % 2**32
            tsval = (low + n // 8) % 2**32
            seq = (low + n * 128) % 2**32
            self.assertEqual(segment.seq, seq)
            self.assertEqual(segment.ack, (seq - n % 1024 + 1400) % 2**32)
            expected = (
                b"\1\1\x08\x0a" + tsval.to_bytes(4, "big") + ((tsval - (n % 200 + 50)) % 2**32).to_bytes(4, "big")
            )
            self.assertEqual(segment.options, expected)
            self.assertEqual((segment.window, segment.urgent, segment.flags), (65535, 0, 0x18))

    def test_syn(self) -> None:
        """Entries with SYN; ack is zero unless ACK is set as well."""
        for flags in ("S", "SA"):
            for n, segment in enumerate(self.segments(2**32 - 3, 2**33, flags, 64), 2**33 + 1):
                self.assertEqual(segment.seq, 1 + n % 8)
                self.assertEqual(segment.ack, 2 + n % 8 if flags == "SA" else 0)
                tsval = (2**32 - 3 + n // 8) % 2**32
                stamps = "0402080a" + tsval.to_bytes(4, "big").hex() + "00000000"
                self.assertEqual(segment.options.hex(), "020405b4" + stamps + "01030308")

    def test_wrapping(self) -> None:
        """Fields wrap modulo 2**32."""
        segments = self.segments(2**32 - 1, 0, "A", 16)
        self.assertEqual([segment.seq for segment in segments[:2]], [127, 255])
        self.assertEqual([tsval_of(segment) for segment in segments[6:9]], [2**32 - 1, 0, 0])

    def test_one_count_for_all_peers(self) -> None:
        """n counts the packets of the socket, whoever they are for."""
        maker = FrameMaker(0)
        paths = [FramePath(STATIONS, CLIENT, SERVER, (1, port), FlagCycle([0x18])) for port in (2, 3)]
        sequence = [parse_frame(maker.make(path, [b"x"])[0])[1].seq for path in (paths * 3)]
        self.assertEqual(sequence, [128 * n for n in range(1, 7)])

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(0, 2**64),
        st.lists(st.integers(0, tcp.ALL_FLAGS), min_size=1, max_size=5),
        st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=12),
        st.booleans(),
    )
    def test_as_the_plain_codecs(self, epoch: int, flags: list[int], payloads: list[bytes], six: bool) -> None:
        """Any flags and payloads, either family: lengths and checksums are right, and the frame opens to the same."""
        source, destination = (IPv6Address(2**127 + 1), IPv6Address(5)) if six else (CLIENT, SERVER)
        path = FramePath(STATIONS, source, destination, (40000, 443), FlagCycle(flags))
        frames = FrameMaker(epoch).make(path, payloads)
        for frame, payload, expected in zip(frames, payloads, flags * 12, strict=False):
            outer = ethernet.decode(frame)
            packet = ip.decode(outer.payload)
            self.assertEqual((outer.destination, outer.source), STATIONS)
            self.assertEqual((packet.tos, packet.ttl, packet.identification, packet.dont_fragment), (184, 64, 0, True))
            segment = tcp.decode(packet.payload, source.packed, destination.packed)
            self.assertEqual((segment.payload, segment.flags), (payload, expected))
            self.assertEqual((segment.source_port, segment.destination_port), (40000, 443))
            opened = open_frame(frame + bytes(9))
            assert opened is not None
            self.assertEqual((split_key(opened[0]), opened[1]), ((str(source), 40000), payload))


class OpenTests(SynchronousTestCase):
    """What is not taken."""

    def frame(self, payload: bytes = b"payload", six: bool = False) -> bytes:
        """A good frame."""
        source, destination = (IPv6Address("fd77::2"), IPv6Address("fd77::1")) if six else (CLIENT, SERVER)
        path = FramePath(STATIONS, source, destination, (40000, 9999), FlagCycle([0x18]))
        return FrameMaker(0).make(path, [payload])[0]

    def test_every_bit_is_covered(self) -> None:
        """No bit of IP's and TCP's headers and the payload may be turned over, but for what no checksum covers."""
        for six in (False, True):
            good = self.frame(six=six)
            # IPv6's header has no sum of its own: its class, flow label and hop limit may be anything.
            free = {
                *range(12 * 8),
                *(range(14 * 8 + 4, 18 * 8) if six else ()),
                *(range(21 * 8, 22 * 8) if six else ()),
            }
            for at in range(len(good) * 8):
                bad = bytearray(good)
                bad[at // 8] ^= 0x80 >> at % 8
                self.assertEqual(open_frame(bytes(bad)) is None, at not in free, f"bit {at}, IPv6 {six}")

    def test_cut_short(self) -> None:
        """A frame that is not all there is refused at every length, as malformed."""
        for six in (False, True):
            good = self.frame(six=six)
            for length in range(len(good)):
                self.assertIsNone(open_frame(good[:length]))
                self.assertEqual(refusal(good[:length]), "malformed")

    def test_sizes(self) -> None:
        """Payloads of 1 to 1,500 bytes are taken; none, and longer ones, are not."""
        for six in (False, True):
            for length, taken in ((0, False), (1, True), (MAX_PAYLOAD, True), (MAX_PAYLOAD + 1, False)):
                self.assertEqual(open_frame(self.frame(bytes(length), six)) is not None, taken)
        self.assertEqual(refusal(self.frame(b"")), "empty")
        self.assertEqual(refusal(self.frame(bytes(MAX_PAYLOAD + 1))), "too-long")

    def test_ip_options(self) -> None:
        """A packet with IPv4 options is taken; its payload begins behind them."""
        good = self.frame()
        header = bytearray(good[14:34])
        header[0] = 0x46
        header[3] += 4
        header[10:12] = b"\0\0"
        longer = bytes(header) + b"\1\1\1\1"
        total = sum(int.from_bytes(longer[at : at + 2], "big") for at in range(0, 24, 2))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        longer = longer[:10] + (~total & 0xFFFF).to_bytes(2, "big") + longer[12:]
        opened = open_frame(good[:14] + longer + good[34:])
        assert opened is not None
        self.assertEqual(opened[1], b"payload")
        self.assertEqual(split_key(opened[0]), (str(CLIENT), 40000))

    def test_fragments_and_tags(self) -> None:
        """Fragments, first ones too, VLAN tags and IPv6 extension headers are refused."""
        packet = ip.decode(self.frame()[14:])
        for flags in (0x2000, 0x0001, 0x2001):
            header = bytearray(ip.encode(packet))
            header[6:8] = flags.to_bytes(2, "big")
            header[10:12] = b"\0\0"
            total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
            total = (total & 0xFFFF) + (total >> 16)
            header[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
            self.assertIsNone(open_frame(self.frame()[:14] + bytes(header)))
        self.assertIsNone(open_frame(self.frame()[:12] + b"\x81\0\0\5" + self.frame()[12:]))
        six = ip.decode(self.frame(six=True)[14:])
        hop_by_hop = six._replace(protocol=0, payload=b"\6\0\1\4\0\0\0\0" + six.payload)
        self.assertIsNone(open_frame(self.frame(six=True)[:14] + ip.encode(hop_by_hop)))

    def test_mutations(self) -> None:
        """Ten thousand mutated frames: nothing is raised, and what is taken stood in the frame."""
        rng = random.Random(5)
        seeds = [bytes.fromhex(entry["frame"]) for entries in CAPTURES.values() for entry in entries]
        seeds += [self.frame(six=True)]
        for _ in range(10_000):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            frame = bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
            opened = open_frame(frame)
            if opened is None:
                self.assertIn(refusal(frame), ("malformed", "empty", "rst"))
            else:
                self.assertIn(opened[1], frame)

    def test_two_families(self) -> None:
        """A path joins addresses of one family."""
        with self.assertRaises(ValueError):
            FramePath(STATIONS, CLIENT, ip_address("::1"), (1, 2), FlagCycle([0x18]))
