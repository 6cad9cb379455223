"""kcptun's own packets, captured from the wire, read layer by layer."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.packets import packet_cipher
from mikanet.fec.decoder import FecDecoder
from mikanet.fec.reedsolomon import ReedSolomon
from mikanet.kcp.arq import Arq
from mikanet.kcp.link import conv_of
from mikanet.kcp.segment import PUSH, decode, encode
from mikanet.kcp.settings import ArqSettings
from mikanet.smux.session import Session, SmuxSettings, StreamData, StreamEnded, StreamOpened
from tests.support.vectors import load

CAPTURES = load("paqet/kcptun_captures.json")["captures"]


class CaptureTests(SynchronousTestCase):
    """Block none, so that everything can be read."""

    def stream(self, name: str, direction: str) -> bytes:
        """What the packets of one direction carry, through FEC and KCP."""
        packets = [bytes.fromhex(p["payload"]) for p in CAPTURES[name] if p["dir"] == direction]
        bodies = packet_cipher("none", b"", os.urandom).open(packets)
        self.assertNotIn(None, bodies)
        decoder = FecDecoder(ReedSolomon(10, 3))
        datagrams = [d for body in bodies if (d := decoder.receive(body or b"", [])) is not None]
        other = "server_to_client" if direction == "client_to_server" else "client_to_server"
        self.assertTrue(any(p["dir"] == other for p in CAPTURES[name]))
        arq = Arq(conv_of(datagrams[0]) or 0, ArqSettings())
        # The receiving end here has sent nothing, so what the capture acknowledges is put back to nothing.
        for datagram in datagrams:
            for segment in decode(datagram):
                if segment.cmd == PUSH:
                    arq.input(encode(segment._replace(una=0)), 0)
        return arq.receive_stream()

    def test_plain(self) -> None:
        """Without FEC and compression: smux 1 with one stream, a request one way and the answer the other."""
        name = "kcptun_crypt_none_nocomp_nofec_smux1"
        server = Session(SmuxSettings(1), client=False)
        events = server.data_received(self.stream(name, "client_to_server"))
        self.assertEqual(events[0], StreamOpened(3))
        assert isinstance(events[1], StreamData)
        self.assertTrue(events[1].data.startswith(b"GET /"))
        client = Session(SmuxSettings(1), client=True)
        client.open()
        answer = client.data_received(self.stream(name, "server_to_client"))
        assert isinstance(answer[0], StreamData)
        self.assertTrue(answer[0].data.startswith(b"HTTP/1."))
        self.assertIn(StreamEnded(3), answer)

    def test_fec_and_snappy(self) -> None:
        """With FEC 10/3 and compression the KCP stream comes out whole: it begins as a snappy stream does."""
        for direction in ("client_to_server", "server_to_client"):
            stream = self.stream("kcptun_crypt_none_snappy_fec10_3_smux1", direction)
            self.assertEqual(stream[:10].hex(), "ff060000734e61507059")
