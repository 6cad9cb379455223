"""Packets of a link, layer by layer, from the captures of the real programs."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address

from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.dissect import Dissected, Dissector, Verdict
from mikanet.crypto.packet_keys import Kdf, derive_key
from mikanet.crypto.packets import packet_cipher
from mikanet.paqet.wire import Dialect
from mikanet.rawpackets.frames import FlagCycle, FrameMaker, FramePath
from mikanet.wire import ip
from tests.support.vectors import load

CAPTURES = load("paqet/captures.json")["captures"]
PORT = 9999
CLIENT, SERVER = IPv4Address("10.77.0.2"), IPv4Address("10.77.0.1")


def dissector(block: str = "null", port: int = PORT, protocol: int = 6, key: bytes = bytes(32)) -> Dissector:
    """One with a key of zeros."""
    return Dissector(packet_cipher(block, key, random.Random(1).randbytes), port, protocol)


def packets(part: str) -> list[bytes]:
    """The IP packets of a capture."""
    (name,) = (name for name in CAPTURES if part in name)
    return [bytes.fromhex(entry["frame"])[14:] for entry in CAPTURES[name]]


def segment(conv: int, sn: int, data: bytes, cmd: int = 81) -> bytes:
    """A KCP segment."""
    return struct.pack("<IBBHIIII", conv, cmd, 0, 32, 0, sn, 0, len(data)) + data


def packet(body: bytes) -> bytes:
    """An IP packet from a client with this payload."""
    path = FramePath((bytes(6), bytes(6)), CLIENT, SERVER, (40000, PORT), FlagCycle([0x18]))
    return FrameMaker(0).make(path, [body])[0][14:]


def texts(found: Dissected | None) -> list[str]:
    """Its lines, without TCP's."""
    assert found is not None
    return [f"{layer} {text}" for layer, text in found.lines if layer != "tcp"]


class CaptureTests(SynchronousTestCase):
    """What the real programs said to each other."""

    def messages(self, part: str) -> list[str]:
        """The messages of a capture."""
        reading = dissector()
        found = [reading.packet(data) for data in packets(part)]
        self.assertNotIn(None, found)
        return [text for each in found for layer, text in (each.lines if each else ()) if layer == "paqet"]

    def test_alpha21(self) -> None:
        """Every message of a page loaded, and a kernel's RSTs told from packets."""
        self.assertEqual(
            self.messages("alpha21_null_block_http_get"),
            ["FLAGS PA (a21)", "FLAGS PA (a21)", "TCP to 10.77.0.1:8000 (a21)"],
        )
        reading = dissector()
        verdicts = [found.verdict for data in packets("alpha21_null_block_http_get") if (found := reading.packet(data))]
        self.assertEqual(verdicts.count(Verdict.RESET), 4)
        self.assertEqual(verdicts.count(Verdict.OPENED), 10)
        self.assertEqual(reading.seen_dialects, {Dialect.A21})

    def test_alpha19(self) -> None:
        """gob, in five frames."""
        self.assertEqual(self.messages("alpha19"), ["FLAGS PA (gob)", "FLAGS PA (gob)", "TCP to 10.77.0.1:8000 (gob)"])

    def test_udp(self) -> None:
        """A capture that begins in the middle of a session."""
        self.assertEqual(self.messages("socks_udp"), ["FLAGS PA (a21)", "UDP to 10.77.0.1:7777 (a21)"])

    def test_flag_lists(self) -> None:
        """The list that a client asks its server to use."""
        self.assertEqual(self.messages("flag_lists")[0], "FLAGS SA PA U (a21)")

    def test_first_packet(self) -> None:
        """Every line of one packet, and its ends."""
        found = dissector().packet(packets("alpha21_null_block_http_get")[0])
        assert found is not None
        self.assertEqual((str(found.source), str(found.destination)), ("10.77.0.2:59807", "10.77.0.1:9999"))
        self.assertTrue(found.towards_server)
        self.assertEqual(
            [f"{layer} {text}" for layer, text in found.lines],
            [
                "tcp PA 56 bytes",
                "kcp e98d61fc PUSH sn 0 una 0 wnd 512 ts 65, 32 bytes",
                "smux stream 3 SYN",
                "smux stream 3 PSH 8 bytes",
                "paqet FLAGS PA (a21)",
                "smux stream 3 FIN",
            ],
        )


class OrderTests(SynchronousTestCase):
    """What a network does to packets."""

    SYN, PING = bytes.fromhex("0200000003000000"), bytes.fromhex("02020500030000005001010000")

    def test_early_late_and_again(self) -> None:
        """Segments are put in order before their frames are read; repeats are called so."""
        reading = dissector()
        data = self.SYN + self.PING
        self.assertEqual(
            texts(reading.packet(packet(segment(7, 0, data[:3])))),
            ["kcp 00000007 PUSH sn 0 una 0 wnd 32 ts 0, 3 bytes"],
        )
        self.assertIn(", 1 early", texts(reading.packet(packet(segment(7, 2, data[12:]))))[0])
        last = texts(reading.packet(packet(segment(7, 1, data[3:12]))))
        self.assertEqual(last[1:], ["smux stream 3 SYN", "smux stream 3 PSH 5 bytes", "paqet PING (a21)"])
        self.assertIn(", again", texts(reading.packet(packet(segment(7, 1, data[3:12]))))[0])

    def test_pong(self) -> None:
        """A server's answer is a message too; its other data is not looked at."""
        reading = dissector()
        reading.packet(packet(segment(7, 0, self.SYN + self.PING)))
        path = FramePath((bytes(6), bytes(6)), SERVER, CLIENT, (PORT, 40000), FlagCycle([0x18]))
        (frame,) = FrameMaker(0).make(path, [segment(7, 0, bytes.fromhex("02020500030000005001020000"))])
        self.assertEqual(texts(reading.packet(frame[14:]))[-1], "paqet PONG (a21)")

    def test_a_gap_that_stays(self) -> None:
        """What the capture has not is given up after a while, and reading goes on where a frame begins."""
        reading = dissector()
        reading.packet(packet(segment(7, 0, self.SYN)))
        found: list[str] = []
        for sn in range(2, 2100):
            found += texts(reading.packet(packet(segment(7, sn, bytes.fromhex("0203000000000000")))))
        self.assertIn("kcp segments 1 to 1 are not in the capture", found)
        self.assertIn("smux NOP", found)

    def test_fec(self) -> None:
        """Data shards are read, parity is named."""
        data = struct.pack("<IHH", 0, 0xF1, 34) + segment(7, 0, self.SYN)
        self.assertEqual(texts(dissector().packet(packet(data)))[0], "fec data 0, 32 bytes")
        self.assertEqual(texts(dissector().packet(packet(data)))[-1], "smux stream 3 SYN")
        parity = struct.pack("<IH", 10, 0xF2) + bytes(34)
        self.assertEqual(texts(dissector().packet(packet(parity))), ["fec parity 10, 32 bytes"])


class CipherTests(SynchronousTestCase):
    """Keys."""

    def test_every_cipher_vector(self) -> None:
        """Packets that kcp-go sealed are opened with their key, and not with another."""
        vectors = load("paqet/ciphers.json")["cipher_packets"]
        key = derive_key(vectors["password_utf8"].encode(), Kdf.PAQET)
        for cipher in vectors["ciphers"]:
            wire = bytes.fromhex(cipher["packets"][0]["wire"])
            found = dissector(cipher["block"], key=key).packet(packet(wire))
            assert found is not None
            self.assertIs(found.verdict, Verdict.OPENED, cipher["block"])
            if cipher["block"] not in ("none", "null"):
                found = dissector(cipher["block"], key=bytes(32)).packet(packet(wire))
                assert found is not None
                self.assertIs(found.verdict, Verdict.LOCKED, cipher["block"])


class StrangerTests(SynchronousTestCase):
    """What is not of the link."""

    def test_others(self) -> None:
        """Other ports and protocols, and no IP at all, are nothing."""
        good = packets("alpha19")[0]
        self.assertIsNone(dissector(port=1).packet(good))
        self.assertIsNone(dissector(protocol=17).packet(good))
        self.assertIsNone(dissector().packet(b"\0" * 60))

    def test_udp_carrier(self) -> None:
        """The same link in UDP."""
        body = segment(7, 0, OrderTests.SYN)
        datagram = struct.pack("!HHHH", 40000, PORT, 8 + len(body), 0) + body
        data = ip.encode(ip.IpPacket(CLIENT, SERVER, 17, datagram))
        found = dissector(protocol=17).packet(data)
        assert found is not None
        self.assertEqual(found.lines[0], ("udp", "32 bytes"))
        self.assertEqual(found.lines[-1], ("smux", "stream 3 SYN"))

    def test_checksums(self) -> None:
        """A payload with a wrong checksum is malformed; a kernel's packet without one may have left it to its device."""
        data = bytearray(packets("alpha19")[0])
        data[-1] ^= 1
        found = dissector().packet(bytes(data))
        assert found is not None
        self.assertIs(found.verdict, Verdict.MALFORMED)
        data = bytearray(packets("alpha19")[2])
        data[36] ^= 1
        found = dissector().packet(bytes(data))
        assert found is not None
        self.assertIs(found.verdict, Verdict.RESET)

    def test_mutations(self) -> None:
        """Ten thousand mutated packets, checksums mended: some answer, and never an error."""
        rng = random.Random(9)
        seeds = [bytes.fromhex(entry["frame"]) for entries in CAPTURES.values() for entry in entries]
        bodies = [data[66:] for data in seeds if len(data) > 70]
        reading = dissector()
        for _ in range(10_000):
            body = bytearray(rng.choice(bodies))
            for _ in range(rng.randrange(1, 5)):
                body[rng.randrange(len(body))] = rng.choice((0, 1, 2, 0x50, 81, 255, rng.randrange(256)))
            found = reading.packet(packet(bytes(body)))
            self.assertIsNotNone(found)
