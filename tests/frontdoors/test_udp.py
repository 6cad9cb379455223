"""Tests of mikanet.frontdoors.udp, by way of the SOCKS door. Expected bytes are written out from RFC 1928."""

from __future__ import annotations

from twisted.internet import error

from mikanet.address import Address
from mikanet.errors import DestinationError, Reason
from tests.frontdoors.support import GREETING, SocksTestCase, UdpPort, failure
from tests.support.feeding import mutations
from tests.support.memory import MemoryTransport


class UdpAssociateTests(SocksTestCase):
    """UDP ASSOCIATE: the relay port and its flows."""

    HEADER = bytes.fromhex("000000 01 c0000207 0035")
    DESTINATION = Address("192.0.2.7", 53)

    def associate(self, port: int = 0, **settings: object) -> tuple[MemoryTransport, UdpPort]:
        """A client with an association."""
        client = self.open(**settings)
        client.deliver(GREETING + bytes.fromhex("05 03 00 01 00000000") + port.to_bytes(2, "big"))
        self.assertEqual(client.read(), b"\x05\x00" + bytes.fromhex("05 00 00 01 7f000001 c350"))
        return client, self.reactor.ports[-1]

    def send(self, port: UdpPort, datagram: bytes, source: tuple[str, int] = ("127.0.0.1", 5555)) -> None:
        """A datagram for the relay port."""
        port.protocol.datagramReceived(datagram, source)

    def test_round_trip(self) -> None:
        """Datagrams go out by one flow per destination, and answers come back under its address."""
        _, port = self.associate()
        self.assertEqual((port.address.host, port.size), ("127.0.0.1", 65536))
        self.send(port, self.HEADER + b"one")
        (dialled,) = self.tunnel.dialled
        self.assertEqual(dialled.destination, self.DESTINATION)
        self.send(port, self.HEADER + b"two")
        flow = dialled.accept()
        self.send(port, self.HEADER + b"")
        self.assertEqual(flow.packets, [b"one", b"two", b""])
        flow.deliver(b"answer")
        self.assertEqual(port.sent, [(self.HEADER + b"answer", ("127.0.0.1", 5555))])
        name = bytes.fromhex("000000 03 0b") + b"example.com" + bytes.fromhex("0035")
        self.send(port, name + b"three")
        self.assertEqual(self.tunnel.dialled[1].destination, Address("example.com", 53))
        self.assertEqual(self.tunnel.dialled[1].accept().packets, [b"three"])

    def test_unsupported(self) -> None:
        """A tunnel without datagrams has the command refused with 7, and no port opened."""
        self.tunnel.datagrams = False
        client = self.open()
        client.deliver(GREETING + bytes.fromhex("05 03 00 01 00000000 0000"))
        self.assertEqual(client.read(), b"\x05\x00" + failure(7))
        self.assertEqual((self.reactor.ports, self.tunnel.dialled), ([], []))

    def test_no_port(self) -> None:
        """Without a free port the reply is 1."""
        self.reactor.refuse_udp = True
        client = self.open()
        client.deliver(GREETING + bytes.fromhex("05 03 00 01 00000000 0000"))
        self.assertEqual(client.read(), b"\x05\x00" + failure(1))

    def test_association_cap(self) -> None:
        """Above the cap the reply is 1; when an association ends there is room again."""
        client, _ = self.associate(max_udp_associations=1)
        request = GREETING + bytes.fromhex("05 03 00 01 00000000 0000")
        second = self.connect()
        second.deliver(request)
        self.assertEqual(second.read(), b"\x05\x00" + failure(1))
        self.assertEqual(self.counted("frontdoor.socks.refused.associations"), 1)
        client.lose(error.ConnectionLost())
        third = self.connect()
        third.deliver(request)
        self.assertEqual(third.read()[:4], b"\x05\x00\x05\x00")

    def test_ends_with_its_control_connection(self) -> None:
        """A lost or ended control connection closes the port and all flows, also those that still dial."""
        for end in ("lose", "end"):
            client, port = self.associate()
            client.deliver(b"bytes that mean nothing")
            self.send(port, self.HEADER + b"one")
            flow = self.tunnel.dialled[-1].accept()
            self.send(port, b"\0\0\0\x01\xc0\x00\x02\x08\x00\x35two")
            if end == "lose":
                client.lose(error.ConnectionLost())
            else:
                client.deliver_end()
            self.assertFalse(port.listening)
            self.assertEqual(flow.outcome, "closed")
            self.assertTrue(self.tunnel.dialled[-1].cancelled)
            self.assert_nothing_left()

    def test_sources(self) -> None:
        """Datagrams of other hosts, or of other ports than the first good one's, are dropped and counted."""
        _, port = self.associate()
        self.send(port, self.HEADER + b"no", ("127.0.0.2", 5555))
        self.send(port, b"junk from the right host", ("127.0.0.1", 6666))
        self.send(port, self.HEADER + b"yes", ("127.0.0.1", 5555))
        self.send(port, self.HEADER + b"no", ("127.0.0.1", 6666))
        self.assertEqual(self.tunnel.dialled[0].accept().packets, [b"yes"])
        self.assertEqual(self.counted("frontdoor.udp.dropped.source"), 2)
        self.assertEqual(self.counted("frontdoor.udp.dropped.malformed"), 1)

    def test_what_is_announced(self) -> None:
        """A target, or a port that an address translator has changed, does not count: the first datagram does."""
        _, port = self.associate(port=5555)
        self.send(port, self.HEADER + b"yes", ("127.0.0.1", 6666))
        self.send(port, self.HEADER + b"no", ("127.0.0.1", 5555))
        self.assertEqual(self.tunnel.dialled[0].accept().packets, [b"yes"])

    def test_fragments(self) -> None:
        """Fragments are dropped and counted."""
        _, port = self.associate()
        self.send(port, b"\0\0\x01" + self.HEADER[3:] + b"part")
        self.send(port, b"\0\0\x80" + self.HEADER[3:] + b"part")
        self.assertEqual(self.counted("frontdoor.udp.dropped.fragment"), 2)
        self.assertEqual(self.tunnel.dialled, [])

    def test_malformed(self) -> None:
        """Every cut of a header and bad names are dropped and counted."""
        _, port = self.associate()
        bad = [self.HEADER[:cut] for cut in range(len(self.HEADER))]
        bad.append(b"\0\0\0\x03\x01\x00\x00\x35x")
        for datagram in bad:
            self.send(port, datagram)
        self.assertEqual(self.counted("frontdoor.udp.dropped.malformed"), len(bad))
        self.assertEqual(self.tunnel.dialled, [])

    def test_idle(self) -> None:
        """A flow without datagrams either way is closed; one with datagrams stays; a new one can follow."""
        _, port = self.associate(udp_idle_timeout=60)
        self.send(port, self.HEADER + b"one")
        flow = self.tunnel.dialled[0].accept()
        for _ in range(10):
            self.reactor.advance(20)
            flow.deliver(b"answer")
        self.assertEqual(flow.outcome, "open")
        self.reactor.pump([10] * 6)
        self.assertEqual(flow.outcome, "open")
        self.reactor.pump([10] * 4)
        self.assertEqual(flow.outcome, "closed")
        self.assertEqual(self.counted("frontdoor.udp.idle"), 1)
        self.send(port, self.HEADER + b"again")
        self.assertEqual(self.tunnel.dialled[1].accept().packets, [b"again"])

    def test_flow_cap(self) -> None:
        """Above the cap, an idle flow makes room; with none idle, datagrams are dropped and counted."""
        _, port = self.associate(max_udp_flows=2, udp_idle_timeout=60)
        headers = [b"\0\0\0\x01\xc0\x00\x02" + bytes((host, 0, 53)) for host in range(3)]
        for header in headers:
            self.send(port, header + b"x")
        self.assertEqual(len(self.tunnel.dialled), 2)
        self.assertEqual(self.counted("frontdoor.udp.dropped.flows"), 1)
        first = self.tunnel.dialled[0].accept()
        self.reactor.advance(30)
        self.send(port, headers[1] + b"x")
        self.send(port, headers[2] + b"x")
        self.assertEqual(len(self.tunnel.dialled), 3)
        self.assertEqual(first.outcome, "closed")

    def test_queue_caps(self) -> None:
        """While the tunnel dials, the number and the bytes of waiting datagrams are bounded."""
        _, port = self.associate(max_udp_queue=3)
        for _ in range(5):
            self.send(port, self.HEADER + b"x")
        self.assertEqual(self.tunnel.dialled[0].accept().packets, [b"x"] * 3)
        self.assertEqual(self.counted("frontdoor.udp.dropped.queue"), 2)
        _, port = self.associate()
        for _ in range(6):
            self.send(port, self.HEADER + b"x" * 60000)
        self.assertEqual(len(self.tunnel.dialled[1].accept().packets), 4)

    def test_failed_flow(self) -> None:
        """A destination that cannot be had costs its datagrams; the next one tries again."""
        _, port = self.associate()
        self.send(port, self.HEADER + b"one")
        self.tunnel.dialled[0].reject(DestinationError(Reason.POLICY))
        self.assertEqual(self.counted("frontdoor.udp.failed.policy"), 1)
        self.send(port, self.HEADER + b"two")
        self.assertEqual(self.tunnel.dialled[1].accept().packets, [b"two"])

    def test_lost_flow(self) -> None:
        """A flow that the tunnel gives up is made anew by the next datagram."""
        _, port = self.associate()
        self.send(port, self.HEADER + b"one")
        self.tunnel.dialled[0].accept().lose(error.ConnectionLost())
        self.send(port, self.HEADER + b"two")
        self.assertEqual(self.tunnel.dialled[1].accept().packets, [b"two"])

    def test_full_tunnel(self) -> None:
        """What a full tunnel has no room for is dropped and counted, not piled up."""
        _, port = self.associate()
        self.send(port, self.HEADER + b"x" * 60000)
        flow = self.tunnel.dialled[0].accept()
        for _ in range(3):
            self.send(port, self.HEADER + b"x" * 60000)
        self.assertEqual(len(flow.packets), 2)
        self.assertEqual(self.counted("frontdoor.udp.dropped.full"), 2)
        flow.read()
        self.send(port, self.HEADER + b"again")
        self.assertEqual(flow.packets[-1], b"again")

    def test_socket_errors(self) -> None:
        """An answer that the kernel does not take is lost and counted."""
        _, port = self.associate()
        self.send(port, self.HEADER + b"one")
        flow = self.tunnel.dialled[0].accept()
        for problem in (error.MessageLengthError(), OSError("full")):
            port.fail = problem
            flow.deliver(b"answer")
        self.assertEqual(self.counted("frontdoor.udp.dropped.send"), 2)

    def test_mutations(self) -> None:
        """10,000 mutated datagrams make bounded flows and nothing worse."""
        client, port = self.associate(max_udp_flows=16)
        golden = [self.HEADER + b"payload", b"\0\0\0\x03\x01x\0\x35payload", b"\0\0\0\x04" + bytes(18) + b"payload"]
        for datagram in mutations(golden, 10_000, seed=1900):
            self.send(port, datagram)
        self.assertEqual(len(self.tunnel.dialled), 16)
        client.deliver_end()
        self.assert_nothing_left()
