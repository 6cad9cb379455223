"""The server's site: ordinary to everybody, and the tunnel's three carriers at one path."""

from __future__ import annotations

import base64
import hmac
import random
import re
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.carriers import http_frames, http_held, http_ordinary, http_upgrade, site
from mikanet.carriers.http_batches import split
from mikanet.carriers.http_exchange import (
    ANSWER_HEAD,
    MAX_BODY,
    MAX_STRANGER_BODY,
    Answer,
    Exchange,
    Open,
    Opened,
)
from mikanet.carriers.http_knock import NAME, Door, Knock
from mikanet.carriers.http_requests import SiteRequest
from mikanet.carriers.site import TunnelSite
from mikanet.carriers.urls import CarrierUrl, server_carrier
from mikanet.errors import ConfigError
from mikanet.filters.packetizer import frame
from mikanet.interfaces import ICarrier, IServerCarrier
from mikanet.service.state import StateFolder
from tests.carriers.webs import Remembering, WebTransport, context
from tests.support.feeding import mutations, random_pieces

_UPGRADE = (
    b"GET /t HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_404 = (
    b"<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n<center><h1>404 Not Found</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_KEY = bytes(range(4))


def _post(body: bytes, path: bytes = b"/t", more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n" % (path, more, len(body)) + body


def _chunked(body: bytes, size: int) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    head = b"POST /t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Web:
    """A site without sockets."""

    def __init__(
        self,
        decoy: str | None = None,
        proxied: bool = False,
        prove: bool = True,
        door: Door | None = None,
        **limits: int,
    ) -> None:
        self.reactor = MemoryReactorClock()
        self.context = context(self.reactor, decoy, **limits)
        self.users: list[Remembering] = []
        self._prove = prove
        self.site = TunnelSite(
            "http://h/t", "/t", self.context, self._accept, proxied, door, random.Random(1).randbytes
        )

    def _accept(self, carrier: ICarrier) -> None:
        self.users.append(Remembering(carrier, prove=self._prove))

    def connect(self, host: str = "192.0.2.1") -> WebTransport:
        """A new connection."""
        transport = WebTransport(host)
        transport.connect(self.site.buildProtocol(transport.getPeer()))
        return transport

    def ask(self, data: bytes, transport: WebTransport | None = None) -> bytes:
        """What a request brings, on a connection of its own unless one is given."""
        transport = transport or self.connect()
        before = len(transport.bytes_written)
        transport.receive(data)
        return re.sub(rb"\r\nDate: [^\r]+", b"\r\nDate: now", transport.bytes_written[before:])

    def open(self, hold: int = 2, transport: WebTransport | None = None, more: bytes = b"") -> bytes:
        """Open a polling carrier; its ``sid``."""
        return Opened.decode(_body(self.ask(_post(Open(hold, 25, 9).encode(), more=more), transport))).sid


def _body(response: bytes) -> bytes:
    head, _, body = response.partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)", head)
    assert length is not None, head
    assert len(body) == int(length[1])
    return body


def _status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


class OrdinaryTests(SynchronousTestCase):
    """What strangers see."""

    def test_nothing_there(self) -> None:
        """Without a decoy every path is a 404 as nginx gives it, with the same fields in the same order."""
        response = Web().ask(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        head, _, body = response.partition(b"\r\n\r\n")
        self.assertEqual(body, _404)
        lines = head.split(b"\r\n")
        self.assertEqual(lines[0], b"HTTP/1.1 404 Not Found")
        names = [line.partition(b":")[0] for line in lines[1:]]
        self.assertEqual(names, [b"Server", b"Date", b"Content-Type", b"Content-Length", b"Connection"])
        self.assertIn(b"Server: nginx", lines)
        self.assertIn(b"Connection: keep-alive", lines)

    def test_the_tunnels_path_is_as_any_other(self) -> None:
        """Whoever does not speak as a client does gets at the tunnel's path, byte for byte, what other paths give."""
        rng = random.Random(3)
        requests = [
            b"%s /%%s HTTP/1.1\r\nHost: h\r\n\r\n" % method
            for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"BREW", b"POST")
        ]
        bodies = [b"", b"a=b", b"<body/>", bytes(33), b"\1" * 34, b"\1" * 60_000, rng.randbytes(MAX_STRANGER_BODY + 1)]
        bodies += [rng.randbytes(n) for n in range(1, 60)]
        web = Web(decoy=self._decoy())
        for request in requests:
            self.assertEqual(web.ask(request % b"t"), web.ask(request % b"other"), request)
        for body in bodies:
            self.assertEqual(web.ask(_post(body, b"/t")), web.ask(_post(body, b"/other")), body[:40])
        for upgrade in (
            _UPGRADE.replace(b"Version: 13", b"Version: 8"),
            _UPGRADE.replace(b"dGhl", b"!!!!"),
            _UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c"),
            _UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
            _UPGRADE.replace(b"GET", b"POST"),
        ):
            self.assertEqual(web.ask(upgrade), web.ask(upgrade.replace(b"/t", b"/other")))
        self.assertEqual(web.users, [])

    def test_mutated_requests(self) -> None:
        """2,000 mutated requests on one site raise nothing, and it serves on."""
        web = Web(decoy=self._decoy(), unverified=10_000, unverified_per_address=10_000)
        sid = web.open()
        golden = [
            _UPGRADE + http_frames.message(frame([b"abc"]), _KEY),
            _post(Open(2, 25, 9).encode()),
            _post(Exchange(sid, 9, 8).encode(frame([b"abc"]))),
            _chunked(Exchange(sid, 9, 8).encode(frame([b"abc"])), 9),
            b"GET /sub HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\n\r\n",
        ]
        rng = random.Random(5)
        for data in mutations(golden, 2000, 4):
            transport = web.connect()
            for piece in random_pieces(data, rng, 200):
                if not (transport.closed or transport.aborted):
                    transport.receive(piece)
            transport.lose()
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(_status(web.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")), 200)

    def _decoy(self) -> str:
        folder = Path(self.mktemp())
        (folder / "sub").mkdir(parents=True)
        (folder / "index.html").write_text("hello")
        (folder / "sub" / "file.txt").write_text("text")
        (folder.parent / "outside").write_text("secret")
        return str(folder)

    def test_decoy(self) -> None:
        """A decoy folder is served, without lists, without what is outside, and without POST."""
        web = Web(decoy=self._decoy())
        for request, status, text in (
            (b"GET / ", 200, b"hello"),
            (b"GET /index.html?x=y ", 200, b"hello"),
            (b"GET /sub/file.txt ", 200, b"text"),
            (b"GET /sub/ ", 403, b"403 Forbidden"),
            (b"GET /sub ", 301, b"301 Moved"),
            (b"GET /none ", 404, b"404 Not"),
            (b"GET /../outside ", 400, b"400 Bad"),
            (b"GET /%2e%2e/outside ", 400, b"400 Bad"),
            (b"GET /sub/..%2f..%2f..%2foutside ", 400, b"400 Bad"),
            (b"POST / ", 405, b"405 Not"),
            (b"POST /none ", 404, b"404 Not"),
            (b"PUT /none ", 405, b"405 Not"),
        ):
            response = web.ask(request + b"HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(_status(response), status, request)
            self.assertIn(text, response)
        self.assertIn(b"\r\nLocation: http://h/sub/\r\n", web.ask(b"GET /sub HTTP/1.1\r\nHost: h\r\n\r\n"))
        self.assertNotIn(b"hello", web.ask(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"))

    def test_large_file(self) -> None:
        """A file too large for memory has its length and type announced; how it is sent is twisted.web's matter."""
        folder = Path(self._decoy())
        (folder / "large.html").write_bytes(bytes(http_ordinary.SMALL_FILE + 1))
        response = Web(decoy=str(folder)).ask(b"HEAD /large.html HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(_status(response), 200)
        self.assertIn(b"\r\nContent-Length: %d\r\n" % (http_ordinary.SMALL_FILE + 1), response)

    def test_targets(self) -> None:
        """URLs, dots and percent-encodings are taken as nginx takes them; what is no path is a 400, and not logged."""
        web = Web(decoy=self._decoy())
        good = web.ask(b"GET /index.html HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(_status(good), 200)
        for target in (
            b"http://host/index.html",
            b"HTTPS://host:99/index.html",
            b"ftp://host/index.html?x",
            b"http://[::1]:8/index.html",
            b"//index.html",
            b"/./index.html",
            b"/sub/../index.html",
            b"/sub%2f..%2findex.html",
        ):
            self.assertEqual(web.ask(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % target), good, target)
        for target in (b"http://host", b"http://host?x", b"http://host/?%00"):
            asked = web.ask(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % target)
            self.assertEqual(asked, web.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"), target)
        for method in (b"GET", b"POST", b"BREW"):
            for target in (
                b"/%00",
                b"/a%00b?x",
                b"/%zz",
                b"/%",
                b"/../x",
                b"/%2e%2e/x",
                b"x",
                b"*",
                b"http:///x",
                b"http:/x",
                b"http://u@h/x",
                b"http://host/%00",
            ):
                transport = web.connect()
                answer = web.ask(method + b" " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n", transport)
                self.assertEqual(_status(answer), 400, target)
                self.assertEqual(_body(answer), _404.replace(b"404 Not Found", b"400 Bad Request"))
                self.assertIn(b"\r\nConnection: close\r\n", answer)
                self.assertTrue(transport.closed)
        self.assertEqual(_status(web.ask(b"GET /" + b"n" * 300 + b" HTTP/1.1\r\nHost: h\r\n\r\n")), 404)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_tunnel_by_url(self) -> None:
        """A proxy may ask for the tunnel's path by its URL."""
        web = Web()
        post = _post(Open(2, 25, 9).encode(), b"http://h:80/t")
        self.assertEqual(_status(web.ask(post)), 200)
        self.assertEqual(len(web.users), 1)

    def test_order_of_fields(self) -> None:
        """Fields stand where nginx has them, those that it does not have behind, and the connection's end is told."""
        fields = [(b"X", [b"1", b"2"]), (b"Connection", [b"x"]), (b"Date", [b"d"]), (b"Server", [b"s"])]
        self.assertEqual(
            http_ordinary.order(fields, False),
            [(b"Server", b"s"), (b"Date", b"d"), (b"Connection", b"close"), (b"X", b"1"), (b"X", b"2")],
        )

    def test_too_long(self) -> None:
        """A body above a mebibyte is a 413 on every path, with and without a length, and cut off if it goes on."""
        web = Web()
        for path in (b"/t", b"/other"):
            response = web.ask(_post(bytes(MAX_BODY + 1), path))
            self.assertEqual(_status(response), 413)
            self.assertIn(b"Connection: close", response)
        self.assertEqual(_status(web.ask(_chunked(bytes(MAX_BODY + 1), 65536))), 413)
        transport = web.connect()
        web.ask(_chunked(bytes(5 * MAX_BODY), 65536)[:-7], transport)
        self.assertTrue(transport.closed)

    def test_idle_connection(self) -> None:
        """A connection that asks for nothing is closed after 75 s, and cut if it does not go."""
        web = Web()
        transport = web.connect()
        web.reactor.advance(74)
        self.assertFalse(transport.closed)
        web.reactor.advance(2)
        self.assertTrue(transport.closed)
        web.reactor.advance(20)
        self.assertTrue(transport.aborted)
        self.assertEqual(transport.written, [])

    def test_dripping_request(self) -> None:
        """A stranger's request has 75 s from its first byte, however it drips; the next has them anew."""
        head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"
        for request in (b"GET /" + b"x" * 100, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50, head + bytes(500)):
            web = Web()
            transport = web.connect()
            web.reactor.advance(60)
            web.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", transport)
            web.reactor.advance(60)
            for piece in range(7):
                self.assertFalse(transport.closed)
                transport.receive(request[piece * 10 : piece * 10 + 10])
                web.reactor.advance(10.5 if piece else 11)
            web.reactor.advance(2)
            self.assertTrue(transport.closed)

    def test_slow_client(self) -> None:
        """A proven client's long request may take its time."""
        web = Web()
        sid = web.open()
        web.ask(_post(Exchange(sid, 9, 8).encode(frame([b"prove"]))))
        body = _post(Exchange(sid, 10, 8).encode(frame([bytes(50_000)] * 4)))
        transport = web.connect()
        transport.receive(body[:80_000])
        for at in range(80_000, len(body), 10_000):
            web.reactor.advance(20)
            transport.receive(body[at : at + 10_000])
        self.assertEqual(len(web.users[0].got), 5)

    def test_who_does_not_read(self) -> None:
        """A connection whose peer takes nothing is cut after 75 s; one that takes little stays."""
        for closing in (False, True):
            web = Web()
            transport = web.connect()
            transport.dataBuffer = bytes(100_000)  # type: ignore[attr-defined]
            if closing:
                web.ask(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", transport)
            else:
                transport.protocol.pauseProducing()
            for size in (90_000, 80_000):
                web.reactor.advance(70)
                transport.dataBuffer = bytes(size)  # type: ignore[attr-defined]
                if not closing:
                    transport.receive(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            self.assertFalse(transport.aborted)
            web.reactor.advance(80)
            web.reactor.advance(80)
            self.assertTrue(transport.aborted)
        web = Web()
        transport = web.connect()
        transport.protocol.pauseProducing()
        transport.protocol.resumeProducing()
        web.reactor.advance(70)
        transport.receive(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        web.reactor.advance(70)
        self.assertFalse(transport.aborted)


class AdmissionTests(SynchronousTestCase):
    """Limits for strangers (X3)."""

    def test_connections_of_strangers(self) -> None:
        """Connections without proof are few for one address; behind a proxy that says nothing."""
        for proxied, most in ((False, 3), (True, 8)):
            web = Web(proxied=proxied, unverified=90, unverified_per_address=3)
            for _ in range(most):
                web.connect()
            web.reactor.advance(3)
            transport = web.connect()
            transport.receive(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            self.assertEqual(b"404" in transport.bytes_written, proxied)

    def test_those_that_end_count_no_more(self) -> None:
        """A connection that has ended makes room; one with a proof behind it never took any."""
        web = Web(unverified=90, unverified_per_address=3)
        for _ in range(20):
            transport = web.connect()
            web.reactor.advance(3)
            self.assertEqual(_status(web.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", transport)), 404)
            transport.lose()
        sid = web.open()
        web.ask(_post(Exchange(sid, 9, 8).encode(frame([b"prove"]))))
        for number in range(10, 20):
            web.ask(_post(Exchange(sid, number, 8).encode(frame([b"x"]))))
            web.reactor.advance(3)
        self.assertEqual(len(web.users[0].got), 11)

    def test_carriers_of_strangers(self) -> None:
        """When too many carriers were opened and never proven, the oldest goes."""
        web = Web(prove=False, unverified=50)
        for number in range(53):
            web.ask(_post(Open(2, 25, 9).encode()), web.connect(f"192.0.2.{number}"))
        self.assertEqual([len(user.lost) for user in web.users], [1, 1, 1] + 50 * [0])
        self.assertEqual(len(web.site.carriers), 50)

    def test_carriers_of_one_connection(self) -> None:
        """One connection cannot push out others' carriers: it loses its own oldest ones."""
        web = Web(prove=False, unverified=50)
        others = [web.ask(_post(Open(2, 25, 9).encode()), web.connect(f"198.51.100.{n}")) for n in range(5)]
        same = web.connect("192.0.2.9")
        web.ask(_post(Open(2, 25, 9).encode()), same)
        flood = web.connect("192.0.2.9")
        for _ in range(1200):
            web.ask(_post(Open(2, 25, 9).encode()), flood)
        self.assertEqual(len(others), 5)
        self.assertEqual([len(user.lost) for user in web.users], 6 * [0] + 1196 * [1] + 4 * [0])
        self.assertEqual(len(web.site.carriers), 10)

    def test_carriers_of_one_address(self) -> None:
        """Nor can one address, by as many connections as it likes; nor, behind a proxy, whoever that names."""
        for proxied in (False, True):
            web = Web(prove=False, proxied=proxied, unverified=50, unverified_per_address=3)
            shared = web.connect()

            def open_from(
                host: str, web: Web = web, proxied: bool = proxied, shared: WebTransport = shared
            ) -> WebTransport:
                transport = shared if proxied else web.connect(host)
                more = b"X-Forwarded-For: 1.2.3.4, " + host.encode() + b"\r\n"
                web.ask(_post(Open(2, 25, 9).encode(), more=more), transport)
                return transport

            open_from("198.51.100.1")
            for _ in range(100):
                open_from("192.0.2.9")
            self.assertEqual([len(user.lost) for user in web.users], [0] + 97 * [1] + 3 * [0])

    def test_limit_of_the_proven(self) -> None:
        """Above the cap of verified connections the next proof is refused."""
        web = Web(connections=1)
        for number in range(2):
            transport = web.connect()
            web.ask(_UPGRADE, transport)
            transport.receive(http_frames.message(frame([b"a"]), _KEY))
            self.assertEqual(transport.aborted, number == 1)


class PollingTests(SynchronousTestCase):
    """BOSH and plain HTTP at the tunnel's path."""

    def test_exchange(self) -> None:
        """A carrier is opened; a request is held until there is something, and answered with it."""
        web = Web()
        sid = web.open()
        transport = web.connect()
        self.assertEqual(web.ask(_post(Exchange(sid, 9, 8).encode(frame([b"up"]))), transport), b"")
        (user,) = web.users
        self.assertEqual(user.got, [b"up"])
        self.assertEqual(user.carrier.host, "192.0.2.1")
        user.carrier.send([b"down"])
        web.reactor.advance(0.001)
        response = transport.bytes_written
        self.assertEqual(_status(response), 200)
        self.assertIn(b"\r\nCache-Control: no-store\r\n", response)
        self.assertEqual(Answer.decode(_body(response)), Answer(9))
        self.assertEqual(split(_body(response)[ANSWER_HEAD:]), [b"down"])

    def test_padding(self) -> None:
        """The answer to an opening has a random length."""
        web = Web()
        lengths = {len(_body(web.ask(_post(Open(2, 25, 9).encode(bytes(n)))))) for n in range(20)}
        self.assertGreater(len(lengths), 5)

    def test_the_server_sets_the_limits(self) -> None:
        """A client that wants to be held for ever is held for 50 s, and not more than four times."""
        web = Web()
        opened = Opened.decode(_body(web.ask(_post(Open(200, 255, 9).encode()))))
        self.assertEqual((opened.hold, opened.wait), (4, 50))

    def test_lost_connection_of_a_held_request(self) -> None:
        """When its connection breaks the answer waits for the request to come again."""
        web = Web()
        sid = web.open()
        transport = web.connect()
        request = _post(Exchange(sid, 9, 8).encode(frame([b"up"])))
        web.ask(request, transport)
        transport.lose()
        web.users[0].carrier.send([b"down"])
        web.reactor.advance(0.001)
        self.assertEqual(split(_body(web.ask(request))[ANSWER_HEAD:]), [b"down"])
        self.assertEqual(web.users[0].got, [b"up"])

    def test_unknown_sid(self) -> None:
        """A request for no carrier is a request for nothing."""
        web = Web()
        body = Exchange(bytes(16), 9, 8).encode(frame([b"up"]))
        self.assertEqual(web.ask(_post(body)), web.ask(_post(body, b"/other")))

    def test_refused_carrier(self) -> None:
        """A carrier that the session refuses: held requests and all later ones are answered as on other paths."""
        web = Web(prove=False)
        sid = web.open()
        transport = web.connect()
        body = Exchange(sid, 9, 8).encode(frame([b"garbage"]))
        self.assertEqual(web.ask(_post(body), transport), b"")
        web.users[0].carrier.refuse()
        self.assertIn(_404, transport.bytes_written)
        self.assertEqual(web.ask(_post(body)), web.ask(_post(body, b"/other")))
        self.assertEqual(len(web.users[0].lost), 1)

    def test_big_bodies_are_for_the_proven(self) -> None:
        """A mebibyte is taken from a client that has proved itself, in one piece or many; from others 70,000 bytes."""
        packets = [bytes(60_000)] * 17
        for wrap in (_post, lambda body: _chunked(body, 5000)):
            web = Web()
            sid = web.open()
            big = Exchange(sid, 10, 8).encode(frame(packets))
            self.assertLess(len(big), MAX_BODY)
            self.assertEqual(_body(web.ask(wrap(big))), _404)
            web.ask(_post(Exchange(sid, 9, 8).encode(frame([b"prove"]))))
            web.ask(wrap(big))
            self.assertEqual(web.users[0].got, [b"prove", *packets])

    def test_strangers_time(self) -> None:
        """A carrier that is never proven ends, and what it held is answered."""
        web = Web(prove=False)
        sid = web.open()
        transport = web.connect()
        web.ask(_post(Exchange(sid, 9, 8).encode(frame([b"who knows"]))), transport)
        web.reactor.advance(http_held.STRANGER_TIME + 0.1)
        self.assertEqual(_status(transport.bytes_written), 200)
        self.assertEqual(web.site.carriers, {})

    def test_behind_a_proxy(self) -> None:
        """A reverse proxy names the client last in X-Forwarded-For; nobody else is believed."""
        for proxied, host in ((True, "198.51.100.7"), (False, "192.0.2.1")):
            web = Web(proxied=proxied)
            web.open(more=b"X-Forwarded-For: 203.0.113.1, 198.51.100.7\r\n")
            self.assertEqual(web.users[0].carrier.host, host)

    def test_http10(self) -> None:
        """A proxy that speaks HTTP/1.0 is answered, and the connection closed."""
        web = Web()
        transport = web.connect()
        response = web.ask(_post(Open(2, 25, 9).encode()).replace(b"HTTP/1.1", b"HTTP/1.0"), transport)
        self.assertEqual(_status(response), 200)
        self.assertNotIn(b"keep-alive", response)
        self.assertTrue(transport.closed)


class UpgradeTests(SynchronousTestCase):
    """WebSocket at the tunnel's path."""

    def upgrade(self, web: Web) -> WebTransport:
        """A WebSocket."""
        transport = web.connect()
        response = web.ask(_UPGRADE, transport)
        self.assertEqual(
            response,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )
        transport.written.clear()
        return transport

    def test_both_ways(self) -> None:
        """Messages carry packets both ways, however their bytes come."""
        web = Web()
        transport = self.upgrade(web)
        (user,) = web.users
        verifyObject(ICarrier, user.carrier)
        for byte in http_frames.message(frame([b"a", b"b"]), _KEY):
            transport.receive(bytes([byte]))
        self.assertEqual(user.got, [b"a", b"b"])
        self.assertEqual(user.carrier.host, "192.0.2.1")
        user.carrier.send([b"c", b"d"])
        self.assertEqual(transport.bytes_written, http_frames.message(frame([b"c", b"d"]), None))

    def test_the_carrier_is_a_stranger_s(self) -> None:
        """Until it is proven; then it is one of ours for good."""
        web = Web(prove=False)
        transport = self.upgrade(web)
        carrier = web.users[0].carrier
        self.assertIsInstance(carrier, http_upgrade.ServerWebSocket)
        carrier.proven()
        web.reactor.advance(50)
        web.reactor.advance(50)
        self.assertFalse(transport.fin)
        carrier.refuse()
        self.assertTrue(transport.aborted)

    def test_bytes_behind_the_handshake(self) -> None:
        """A client that does not wait for the answer loses nothing."""
        web = Web()
        web.ask(_UPGRADE + http_frames.message(frame([b"a"]), _KEY), web.connect())
        self.assertEqual(web.users[0].got, [b"a"])

    def test_stranger(self) -> None:
        """What a stranger sends wrong is answered with nothing; the connection ends at the one time, with a FIN."""
        for wrong in (b"\xff" * 9, http_frames.message(b"no batch", _KEY), http_frames.message(b"x", None), b""):
            web = Web(prove=False)
            transport = self.upgrade(web)
            transport.receive(wrong)
            web.reactor.advance(70)
            transport.receive(b"more" * 100)
            self.assertEqual((transport.written, transport.closed, transport.fin), ([], False, False))
            web.reactor.advance(6)
            self.assertTrue(transport.fin)
            web.reactor.advance(6)
            self.assertTrue(transport.closed)
            transport.settle()
            self.assertEqual(len(web.users[0].lost), 1)

    def test_refused(self) -> None:
        """A session's refusal is the same."""
        web = Web(prove=False)
        transport = self.upgrade(web)
        web.users[0].carrier.refuse()
        web.users[0].carrier.send([b"nothing"])
        transport.receive(http_frames.message(frame([b"late"]), _KEY))
        self.assertEqual((transport.written, web.users[0].got), ([], []))
        web.reactor.advance(76)
        self.assertTrue(transport.fin)

    def test_proven_that_breaks_a_rule(self) -> None:
        """One of ours that sends nonsense is cut."""
        web = Web()
        transport = self.upgrade(web)
        transport.receive(http_frames.message(frame([b"a"]), _KEY))
        web.reactor.advance(80)
        self.assertFalse(transport.fin)
        transport.receive(b"\xff" * 9)
        self.assertTrue(transport.aborted)

    def test_connection_lost(self) -> None:
        """Its user learns of it once, and nothing is left."""
        web = Web()
        transport = self.upgrade(web)
        transport.receive(http_frames.message(frame([b"a"]), _KEY))
        transport.lose()
        self.assertEqual(len(web.users[0].lost), 1)
        self.assertEqual(web.reactor.getDelayedCalls(), [])


class KnockTests(SynchronousTestCase):
    """A door that opens to who has the key."""

    def setUp(self) -> None:
        """A key, a clock, and both sides."""
        self.now = 1_700_000_000.9
        rng = random.Random(9)
        self.knock = Knock(b"secret", lambda: self.now, rng.randbytes)
        self.door = Door(b"secret", lambda: self.now)

    def test_golden(self) -> None:
        """The cookie is as the protocol page has it."""
        knock = Knock(b"secret", lambda: self.now, lambda size: bytes(size))()
        name, _, value = knock.partition(b"=")
        raw = base64.urlsafe_b64decode(value)
        self.assertEqual(name, b"session")
        self.assertEqual(raw[:24], bytes(16) + (1_700_000_000).to_bytes(8, "little"))
        key = hmac.new(b"secret", b"mikanet web knock", "sha256").digest()
        self.assertEqual(raw[24:], hmac.new(key, raw[:24], "sha256").digest()[:18])

    def test_opens_once(self) -> None:
        """A knock opens once, among other cookies too."""
        knock = self.knock()
        self.assertTrue(self.door.opens(b"a=b; " + knock + b";c"))
        self.assertFalse(self.door.opens(knock))
        self.assertTrue(self.door.opens(self.knock()))

    def test_over_a_restart(self) -> None:
        """A server that remembers opens for no knock that one before it has seen."""
        base = Path(self.mktemp())
        knocks = [self.knock() for _ in range(5)]
        for expected in (True, False, False):
            state = StateFolder(base, "pickaxe-server http://0.0.0.0:8080/t")
            seen, _ = state.open_replays(self.now, "knock /t")
            door = Door(b"secret", lambda: self.now, seen)
            self.assertEqual([door.opens(knock) for knock in knocks], [expected] * 5)

    def test_clocks(self) -> None:
        """Clocks may differ by half a minute; what was seen then is remembered as long as it would open."""
        for ahead, opens in ((-31, False), (-30, True), (30, True), (31, False)):
            knock = Knock(b"secret", lambda ahead=ahead: self.now + ahead, random.Random(ahead).randbytes)()  # type: ignore[misc]
            self.assertEqual(self.door.opens(knock), opens, ahead)
            if ahead == 30:
                self.now += 60
                self.assertFalse(self.door.opens(knock))
                self.now -= 60

    def test_anything_else(self) -> None:
        """10,000 mutations of a knock, and one with another key, open nothing."""
        knock = self.knock()
        for data in mutations([knock], 10_000, 6):
            if knock not in map(bytes.strip, data.split(b";")):
                self.assertFalse(self.door.opens(data), data)
        self.assertFalse(self.door.opens(Knock(b"other", lambda: self.now, random.Random(1).randbytes)()))
        self.assertFalse(self.door.opens(b""))
        self.assertTrue(self.door.opens(knock))

    def test_site(self) -> None:
        """Without a knock nothing opens, and all is as at any other path; what is open needs no more of them."""
        web = Web(door=self.door)
        opening = Open(2, 25, 9).encode()
        self.assertEqual(web.ask(_post(opening)), web.ask(_post(opening, b"/other")))
        self.assertEqual(web.ask(_UPGRADE), web.ask(_UPGRADE.replace(b"/t", b"/other")))
        field = b"Cookie: %s\r\n"
        sid = web.open(more=field % self.knock())
        web.ask(_post(Exchange(sid, 9, 8).encode(frame([b"up"]))))
        self.assertEqual(web.users[0].got, [b"up"])
        answer = web.ask(_UPGRADE.replace(b"\r\n\r\n", b"\r\n" + field % self.knock() + b"\r\n"))
        self.assertEqual(_status(answer), 101)
        self.assertTrue(NAME)


class ListenTests(SynchronousTestCase):
    """The server's carrier."""

    def test_listens(self) -> None:
        """It listens at once where the URL says, and stops."""
        reactor = MemoryReactorClock()
        made = server_carrier("http://127.0.0.1:8080/t?proxied=yes", context(reactor))
        verifyObject(IServerCarrier, made)
        self.assertEqual(made.name, "http://127.0.0.1:8080/t")
        self.successResultOf(made.listen(lambda carrier: None))
        port, factory, _, interface = reactor.tcpServers[0]
        self.assertEqual((port, interface), (8080, "127.0.0.1"))
        self.assertIsInstance(factory, TunnelSite)
        self.assertIs(factory.requestFactory, SiteRequest)
        self.successResultOf(made.stop())
        self.successResultOf(made.stop())

    def test_wrong_urls(self) -> None:
        """What cannot be is said before anything is opened."""
        folder = Path(self.mktemp())
        folder.mkdir()
        loose = folder / "loose"
        loose.write_text("no key")
        loose.chmod(0o644)
        empty = folder / "empty"
        empty.touch(0o600)
        for bad in (
            "http://0.0.0.0/?certificate=x",
            "http://0.0.0.0/t?proxied=maybe",
            "http://user@0.0.0.0/t",
            "https://0.0.0.0/t",
            "https://0.0.0.0/t?certificate=/no/such",
            f"https://0.0.0.0/t?certificate={loose}",
            f"https://0.0.0.0/t?certificate={empty}",
        ):
            with self.assertRaises(ConfigError, msg=bad):
                site.server(CarrierUrl.parse(bad), context(MemoryReactorClock()))
        with self.assertRaises(ConfigError):
            site.server(CarrierUrl.parse("http://0.0.0.0/"), context(MemoryReactorClock(), decoy="/no/such"))
