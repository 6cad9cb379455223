"""Tests of mikanet.frontdoors.socks and of what all doors share. Expected bytes are written out from the RFCs."""

from __future__ import annotations

from twisted.internet import error
from zope.interface.verify import verifyObject

from mikanet.address import Address
from mikanet.errors import DestinationError, LocalProtocolError, Reason
from mikanet.frontdoors.credentials import Credentials
from mikanet.frontdoors.door import DoorFactory, DoorSettings
from mikanet.frontdoors.doors import socks_factory
from mikanet.interfaces import ITunnel
from mikanet.relay import PAUSED_COST, MemoryBudget
from tests.frontdoors.support import DoorTestCase, UdpPort
from tests.support.feeding import fragmentations, mutations
from tests.support.memory import MemoryTransport

GREETING = bytes.fromhex("05 01 00")
CONNECT = bytes.fromhex("05 01 00 03 0b") + b"example.com" + bytes.fromhex("01bb")
SUCCESS = bytes.fromhex("05 00 00 01 00000000 0000")
SOCKS4A = bytes.fromhex("04 01 01bb 00000001") + b"me\0example.com\0"
DESTINATION = Address("example.com", 443)


def failure(rep: int) -> bytes:
    """The reply with this code."""
    return bytes((5, rep, 0, 1, 0, 0, 0, 0, 0, 0))


class SocksTestCase(DoorTestCase):
    """The SOCKS door."""

    def make_factory(self, settings: DoorSettings) -> DoorFactory:
        """Of SOCKS doors."""
        return socks_factory(self.tunnel, settings)


class ConnectTests(SocksTestCase):
    """CONNECT, versions 5, 4 and 4a."""

    def test_fake_tunnel(self) -> None:
        """The tunnel of these tests keeps the contract."""
        verifyObject(ITunnel, self.tunnel)

    def test_connect(self) -> None:
        """Success is replied when the tunnel is connected, not before; then bytes flow both ways."""
        client = self.open()
        client.deliver(GREETING)
        self.assertEqual(client.read(), b"\x05\x00")
        client.deliver(CONNECT)
        self.assertEqual(client.read(), b"")
        (dialled,) = self.tunnel.dialled
        self.assertEqual((dialled.destination, dialled.http), (DESTINATION, False))
        far = dialled.accept()
        self.assertEqual(client.read(), SUCCESS)
        client.deliver(b"up")
        far.deliver(b"down")
        self.assertEqual((far.read(), client.read()), (b"up", b"down"))
        client.deliver_end()
        far.deliver_end()
        self.assertEqual((client.outcome, far.outcome), ("closed", "closed"))
        self.assert_nothing_left()

    def test_every_fragmentation(self) -> None:
        """However the bytes are cut, those behind the request are written inside the tunnel's connectionMade."""
        for pieces in fragmentations(GREETING + CONNECT + b"early bytes", most_cuts=40):
            self.setUp()
            client = self.open()
            for piece in pieces:
                client.deliver(piece)
            far = self.tunnel.dialled[0].accept()
            self.assertEqual((client.read(), far.read()), (b"\x05\x00" + SUCCESS, b"early bytes"))

    def test_synchronous_tunnel(self) -> None:
        """A tunnel that connects inside connect() is as good."""
        self.tunnel.accept_at_once = True
        client = self.open()
        client.deliver(GREETING + CONNECT + b"early")
        self.assertEqual(client.read(), b"\x05\x00" + SUCCESS)
        self.assertEqual(self.tunnel.dialled[0].transport.read(), b"early")

    def test_socks4(self) -> None:
        """SOCKS4a is answered in its own form, well or badly."""
        client = self.open()
        client.deliver(SOCKS4A + b"early")
        far = self.tunnel.dialled[0].accept()
        self.assertEqual(self.tunnel.dialled[0].destination, DESTINATION)
        self.assertEqual((client.read(), far.read()), (bytes.fromhex("005a 0000 00000000"), b"early"))
        client = self.connect()
        client.deliver(SOCKS4A)
        self.tunnel.dialled[1].reject(DestinationError(Reason.POLICY))
        self.assertEqual(client.read(), bytes.fromhex("005b 0000 00000000"))

    def test_failures(self) -> None:
        """Each reason has its reply code; the connection ends cleanly behind the reply."""
        for problem, rep in (
            (DestinationError(Reason.FAILURE), 1),
            (DestinationError(Reason.POLICY), 2),
            (error.NoRouteError(), 3),
            (error.DNSLookupError(), 4),
            (error.ConnectionRefusedError(), 5),
            (error.TimeoutError(), 6),
            (DestinationError(Reason.UNSUPPORTED), 7),
            (DestinationError(Reason.LIMIT), 1),
            (error.ConnectionLost(), 1),
        ):
            client = self.open()
            client.deliver(GREETING + CONNECT + b"early")
            self.tunnel.dialled[-1].reject(problem)
            self.assertEqual(client.read(), b"\x05\x00" + failure(rep), problem)
            self.assertTrue(client.half_closed)
            client.deliver(b"more early bytes")
            client.deliver_end()
            self.assertEqual(client.outcome, "closed")
            self.assert_nothing_left()

    def test_tunnel_that_refuses_at_once(self) -> None:
        """So has a destination that the tunnel does not even dial."""
        for problem, rep in ((DestinationError(Reason.POLICY), 2), (LocalProtocolError("no form"), 1)):
            self.tunnel.fail_at_once = problem
            client = self.open()
            client.deliver(GREETING + CONNECT)
            self.assertEqual(client.read(), b"\x05\x00" + failure(rep))

    def test_tunnel_bug_is_logged(self) -> None:
        """An exception that no tunnel should bring is logged, and the client still gets its answer."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        self.tunnel.dialled[0].reject(ZeroDivisionError())
        self.assertEqual(client.read(), b"\x05\x00" + failure(1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_bind(self) -> None:
        """BIND is refused with 7, or 5B."""
        client = self.open()
        client.deliver(GREETING + bytes.fromhex("05 02 00 01 c0000207 0050"))
        self.assertEqual(client.read(), b"\x05\x00" + failure(7))
        client = self.connect()
        client.deliver(bytes.fromhex("04 02 0050 c0000207 00"))
        self.assertEqual(client.read(), bytes.fromhex("005b 0000 00000000"))
        self.assertEqual(self.tunnel.dialled, [])

    def test_tunnel_lost(self) -> None:
        """A tunnel that is lost behind the success reply is a reset for the application."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        self.tunnel.dialled[0].accept().lose(error.ConnectionLost())
        self.assertEqual(client.outcome, "aborted")
        self.assert_nothing_left()

    def test_back_pressure(self) -> None:
        """A full tunnel stops the reading of the client, early bytes too."""
        client = self.open()
        client.deliver(GREETING + CONNECT + b"e" * 70000)
        self.assertFalse(client.reading)
        far = self.tunnel.dialled[0].accept()
        self.assertTrue(client.reading)
        client.deliver(b"x" * 70000)
        self.assertFalse(client.reading)
        self.assertEqual(len(far.read()), 140000)
        self.assertTrue(client.reading)


class PasswordTests(SocksTestCase):
    """With credentials in the settings, nobody gets in without."""

    CREDENTIALS = Credentials({"alice": "secret"})
    RIGHT = bytes.fromhex("01 05") + b"alice" + bytes.fromhex("06") + b"secret"

    def test_right(self) -> None:
        """The right pair lets the client in."""
        client = self.open(credentials=self.CREDENTIALS)
        client.deliver(b"\x05\x01\x02" + self.RIGHT + CONNECT)
        self.assertEqual(client.read(), b"\x05\x02\x01\x00")
        self.assertEqual(self.tunnel.dialled[0].destination, DESTINATION)

    def test_wrong(self) -> None:
        """A wrong password, no password and SOCKS4 are refused and counted."""
        for data, answer in (
            (b"\x05\x01\x02" + self.RIGHT[:-1] + b"T", b"\x05\x02\x01\x01"),
            (GREETING, b"\x05\xff"),
            (SOCKS4A, bytes.fromhex("005b 0000 00000000")),
        ):
            client = self.open(credentials=self.CREDENTIALS)
            client.deliver(data)
            self.assertEqual(client.read(), answer)
            client.deliver(CONNECT)
            client.deliver_end()
            self.assertEqual(client.outcome, "closed")
            self.assertEqual(self.counted("frontdoor.socks.refused.password"), 1)
        self.assertEqual(self.tunnel.dialled, [])


class LimitTests(SocksTestCase):
    """Deadlines, caps, and clients that are no SOCKS clients or go away."""

    def test_handshake_deadline(self) -> None:
        """A client that does not finish its handshake is closed, after the lingering time at the latest."""
        client = self.open(handshake_timeout=30)
        client.deliver(GREETING)
        self.reactor.advance(29.9)
        client.deliver(CONNECT[:3])
        self.reactor.advance(0.2)
        self.assertTrue(client.half_closed)
        self.reactor.advance(2)
        self.assertEqual(client.outcome, "closed")
        self.assertEqual(self.counted("frontdoor.socks.refused.timeout"), 1)
        self.assert_nothing_left()

    def test_dial_deadline(self) -> None:
        """A tunnel that takes too long is cancelled, and the client told."""
        client = self.open(dial_timeout=60)
        client.deliver(GREETING + CONNECT)
        self.reactor.advance(60)
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assertEqual(client.read(), b"\x05\x00" + failure(6))

    def test_no_deadline_in_the_relay(self) -> None:
        """Once the bytes flow, no clock ends the connection."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        self.tunnel.dialled[0].accept()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_client_gone_while_dialling(self) -> None:
        """A client that is lost has its dial cancelled; a tunnel that comes all the same is aborted."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        client.lose(error.ConnectionLost())
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assert_nothing_left()

    def test_client_ends_while_dialling(self) -> None:
        """So has one that closes before the reply and has sent nothing for the destination."""
        client = self.open()
        client.deliver(GREETING + CONNECT)
        client.deliver_end()
        self.assertTrue(self.tunnel.dialled[0].cancelled)
        self.assertEqual(client.outcome, "closed")
        self.assert_nothing_left()

    def test_early_bytes_and_end(self) -> None:
        """One that has sent its bytes and its end together gets them carried, and the answer."""
        client = self.open()
        client.deliver(GREETING + CONNECT + b"whole request")
        client.deliver_end()
        far = self.tunnel.dialled[0].accept()
        self.assertEqual(far.read(), b"whole request")
        self.assertTrue(far.half_closed)
        far.deliver(b"response")
        far.deliver_end()
        self.assertEqual(client.read(), b"\x05\x00" + SUCCESS + b"response")
        self.assertEqual(client.outcome, "closed")

    def test_client_ends_in_the_handshake(self) -> None:
        """A connection that ends before its request is closed."""
        for data in (b"", b"\x05", GREETING, GREETING + CONNECT[:-1]):
            client = self.open()
            client.deliver(data)
            client.deliver_end()
            self.assertEqual(client.outcome, "closed")
            self.assert_nothing_left()

    def test_not_socks(self) -> None:
        """Other protocols are closed without an answer, and what more they send is dropped."""
        client = self.open()
        client.deliver(b"GET / HTTP/1.1\r\n")
        client.deliver(b"x" * 100000)
        self.assertEqual((client.read(), client.half_closed, client.reading), (b"", True, True))
        self.assertEqual(self.counted("frontdoor.socks.refused.protocol"), 1)

    def test_connection_cap(self) -> None:
        """Above the cap connections are closed at once; when one ends there is room again."""
        first = self.open(max_connections=2)
        self.connect()
        self.assertEqual(self.connect().outcome, "closed")
        self.assertEqual(self.counted("frontdoor.refused.connections"), 1)
        first.lose(error.ConnectionDone())
        self.assertEqual(self.connect().outcome, "open")

    def test_memory_budget(self) -> None:
        """While the memory is used up, new connections are closed at once."""
        client = self.open(budget=MemoryBudget(PAUSED_COST))
        client.deliver(GREETING + CONNECT)
        far = self.tunnel.dialled[0].accept()
        client.deliver(b"x" * 70000)
        self.assertEqual(self.connect().outcome, "closed")
        self.assertEqual(self.counted("frontdoor.refused.memory"), 1)
        far.read()
        self.assertEqual(self.connect().outcome, "open")

    def test_abort_all(self) -> None:
        """All of a factory's connections can be ended at once."""
        clients = [self.open(), self.connect()]
        clients[0].deliver(GREETING + CONNECT)
        far = self.tunnel.dialled[0].accept()
        self.factory.abort_all()
        self.assertEqual([client.outcome for client in (*clients, far)], ["aborted"] * 3)
        self.assert_nothing_left()

    def test_mutations(self) -> None:
        """10,000 mutated conversations leave nothing behind but a refused, waiting or served client."""
        golden = [GREETING + CONNECT + b"data", SOCKS4A, GREETING + bytes.fromhex("05 03 00 01 00000000 0000")]
        self.open().lose(error.ConnectionLost())
        for data in mutations(golden, 10_000, seed=1080):
            client = self.connect()
            client.deliver(data)
            client.lose(error.ConnectionLost())
            for port in self.reactor.ports:
                self.assertFalse(port.listening)
            self.reactor.ports.clear()
        self.assertTrue(all(dialled.cancelled for dialled in self.tunnel.dialled))
        self.assert_nothing_left()


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

    def test_announced_port(self) -> None:
        """With a port announced, only that one is served."""
        _, port = self.associate(port=5555)
        self.send(port, self.HEADER + b"no", ("127.0.0.1", 6666))
        self.send(port, self.HEADER + b"yes", ("127.0.0.1", 5555))
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
