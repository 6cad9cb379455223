"""Pickaxe as its user meets it: ``twistd`` processes on loopback, whose carriers are cut, frozen and taken away."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from mikanet.endpoints import quote
from mikanet.pickaxe import wire
from tests.interop.cutting import Cutter
from tests.interop.test_mika import BODY, Target, socks_connect
from tests.lab.ks import p_value
from tests.lab.tunnels import PickaxeTunnel
from tests.support.peers import require_program
from tests.support.processes import Process, free_port, listening, rss, wait_for

#: Long runs are for the machines that have the time: ``MIKANET_SOAK_SECONDS`` says so.
LONG = int(os.environ.get("MIKANET_SOAK_SECONDS", "0")) >= 60

#: The longest silence that a busy transfer may have while its carrier changes, in seconds.
STALL = 3.0


class Paced:
    """A target that sends ``size`` bytes at a steady pace, and takes what it is sent."""

    def __init__(self, size: int, rate: float) -> None:
        self._block = random.Random(9).randbytes(1 << 16)
        self._size = size
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def pieces(self) -> list[bytes]:
        """What it sends: no two pieces the same."""
        count = self._size // len(self._block)
        return [number.to_bytes(4, "big") + self._block[4:] for number in range(count)]

    @property
    def digest(self) -> str:
        """The SHA-256 of it."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.hexdigest()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._send, args=(connection,), daemon=True).start()

    def _send(self, connection: socket.socket) -> None:
        began = time.monotonic()
        with connection:
            try:
                for number, piece in enumerate(self.pieces()):
                    time.sleep(max(0.0, began + number * len(piece) / self._rate - time.monotonic()))
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            except OSError:
                pass

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def take_all(sock: socket.socket) -> tuple[str, float]:
    """The SHA-256 of all that comes until the clean end, and the longest silence before it."""
    found = hashlib.sha256()
    longest, last = 0.0, time.monotonic()
    while data := sock.recv(1 << 18):
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        found.update(data)
    return found.hexdigest(), longest


class PickaxeTestCase(SynchronousTestCase):
    """A target, a server, and a client that reaches it through relays which the test holds in its hand."""

    relays: ClassVar[int] = 0
    server_options: tuple[str, ...] = ()
    client_options: tuple[str, ...] = ()

    def setUp(self) -> None:
        """Start all of them."""
        self.target = Target()
        self.addCleanup(self.target.close)
        self.tunnel = PickaxeTunnel(server_options=self.server_options, client_options=self.client_options)
        self.addCleanup(self.tunnel.close)
        self.tunnel.start_server()
        self.cutters = [self.make_cutter() for _ in range(self.relays)]
        for cutter in self.cutters:
            self.addCleanup(cutter.stop)
        self.tunnel.carriers = [f"tcp://127.0.0.1:{cutter.port}" for cutter in self.cutters]
        self.tunnel.start_client()
        self.wait_log("session with the server")

    def make_cutter(self) -> Cutter:
        """A relay."""
        return Cutter(self.tunnel.server_port)

    @property
    def log(self) -> str:
        """What the client has logged."""
        assert self.tunnel.client is not None
        return self.tunnel.client.output

    def wait_log(self, text: str, timeout: float = 20.0) -> None:
        """Wait until the client has logged it."""
        wait_for(lambda: text in self.log, timeout, f"{text!r} in the client's log")

    def curl(self, *words: str) -> bytes:
        """What curl prints; the test fails if curl does."""
        command = [require_program("curl"), "--silent", "--show-error", "--fail", "--max-time", "60", *words]
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "no_proxy": "none.invalid"})
        self.assertEqual(done.returncode, 0, done.stderr.decode() + self.log)
        return done.stdout

    def socks(self, port: int) -> socket.socket:
        """A connection to a port of loopback through the tunnel."""
        sock = socks_connect(self.tunnel.socks_port, port)
        sock.settimeout(30)
        self.addCleanup(sock.close)
        return sock


class TransferTests(PickaxeTestCase):
    """Whole transfers through every front door, and their ends, over the TCP carrier."""

    def test_every_door_both_ways(self) -> None:
        """SOCKS5 with addresses and names, SOCKS4a, the HTTP proxy and CONNECT: download and upload by SHA-256."""
        url = f"http://127.0.0.1:{self.target.web}/"
        upload = Path(self.mktemp())
        upload.write_bytes(BODY)
        socks = f"127.0.0.1:{self.tunnel.socks_port}"
        http = f"http://127.0.0.1:{self.tunnel.http_port}"
        for door in (
            ["--socks5", socks],
            ["--socks5-hostname", socks],
            ["--socks4a", socks],
            ["--proxy", http],
            ["--proxy", http, "--proxytunnel"],
        ):
            self.assertEqual(self.curl(*door, url), BODY, door)
            digest = self.curl(*door, "--data-binary", f"@{upload}", url)
            self.assertEqual(digest.decode(), hashlib.sha256(BODY).hexdigest(), door)
        # A name goes to the server as it is.
        self.assertEqual(self.curl("--socks5-hostname", socks, f"http://localhost:{self.target.web}/"), BODY)

    def test_ipv6(self) -> None:
        """A target at an IPv6 address is reached."""
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        self.addCleanup(listener.close)
        port = listener.getsockname()[1]
        socks = ["--proxy", f"http://127.0.0.1:{self.tunnel.http_port}", "--proxytunnel"]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nover six")

        threading.Thread(target=serve, daemon=True).start()
        self.assertEqual(self.curl(*socks, f"http://[::1]:{port}/"), b"over six")

    def test_endpoint_string(self) -> None:
        """A Twisted program reaches the target by ``pickaxe:`` alone."""
        program = """
import sys
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.protocol import Protocol

class Hello(Protocol):
    def connectionMade(self):
        self.transport.write(b"hello")
    def dataReceived(self, data):
        sys.stdout.write(data.decode())
        reactor.stop()

connectProtocol(clientFromString(reactor, sys.argv[1]), Hello()).addErrback(lambda failure: (print(failure), reactor.stop()))
reactor.callLater(20, reactor.stop)
reactor.run()
"""
        carrier = quote(f"tcp://127.0.0.1:{self.tunnel.server_port}")
        string = f"pickaxe:127.0.0.1:{self.target.echo}:user=alice:password-file={self.tunnel.password_file}:carrier={carrier}"
        process = Process([sys.executable, "-c", program, string])
        self.addCleanup(process.stop)
        process.wait(30)
        self.assertEqual(process.output.strip(), "hello")

    def test_half_close(self) -> None:
        """An application that ends its request by a FIN gets its answer."""
        with self.socks(self.target.half_close) as sock:
            sock.sendall(BODY)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        self.assertEqual(got, b"got " + hashlib.sha256(BODY).hexdigest().encode())

    def test_resets_travel(self) -> None:
        """An application that is reset half-way is no clean end at the target (X6)."""
        import struct

        sock = self.socks(self.target.half_close)
        sock.sendall(BODY[:100_000])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        wait_for(lambda: self.target.resets, what="the target's reset")
        self.assertEqual(self.target.seen, [])

    def test_refusals_have_their_reasons(self) -> None:
        """A closed port is a refused connection, a forbidden address is policy: SOCKS says which."""
        for address, port, rep in (("127.0.0.1", free_port(), 5), ("169.254.169.254", 80, 2)):
            with socket.create_connection(("127.0.0.1", self.tunnel.socks_port), timeout=20) as sock:
                request = b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton(address) + port.to_bytes(2, "big")
                sock.sendall(request)
                got = b""
                while len(got) < 4:
                    got += sock.recv(100)
                self.assertEqual(got[:4], bytes([5, 0, 5, rep]))

    def test_1024_connections_at_once(self) -> None:
        """1,024 connections of one session echo their own bytes at the same time, all of them right."""

        def one(number: int) -> bool:
            data = random.Random(number).randbytes(2000)
            with socks_connect(self.tunnel.socks_port, self.target.echo) as sock:
                barrier.wait(60)
                sock.sendall(data)
                got = b""
                while len(got) < len(data):
                    got += sock.recv(65536)
                return got == data

        barrier = threading.Barrier(1024)
        threading.stack_size(256 * 1024)
        self.addCleanup(threading.stack_size, 0)
        with ThreadPoolExecutor(1024) as pool:
            self.assertEqual(sum(pool.map(one, range(1024))), 1024)

    def test_a_slow_reader_stops_nobody_else(self) -> None:
        """An application that reads nothing slows its own target, and neither memory nor the others feel it (P10)."""
        assert self.tunnel.server is not None
        assert self.tunnel.client is not None
        before = rss(self.tunnel.server.pid) + rss(self.tunnel.client.pid)
        sock = self.socks(self.target.flood)
        sock.recv(1)
        last = -1
        while self.target.flooded != last:
            last = self.target.flooded
            time.sleep(0.3)
        self.assertLess(self.target.flooded, 32 << 20)
        url = f"http://127.0.0.1:{self.target.web}/"
        self.assertEqual(self.curl("--socks5", f"127.0.0.1:{self.tunnel.socks_port}", url), BODY)
        self.assertLess(rss(self.tunnel.server.pid) + rss(self.tunnel.client.pid) - before, 24 << 20)
        got = 0
        while got < 20_000_000:
            got += len(sock.recv(1 << 20))

    def test_logs_are_quiet(self) -> None:
        """Neither log names a destination or a secret, or holds a traceback (X10)."""
        self.curl("--socks5", f"127.0.0.1:{self.tunnel.socks_port}", f"http://127.0.0.1:{self.target.web}/")
        assert self.tunnel.server is not None
        assert self.tunnel.client is not None
        for process in (self.tunnel.server, self.tunnel.client):
            self.assertNotIn(str(self.target.web), process.output)
            self.assertNotIn("Traceback", process.output)
            self.assertNotIn(self.tunnel.password_file.read_text().strip(), process.output)

    def test_a_server_that_ends_ends_its_connections(self) -> None:
        """SIGTERM at the server: the client is told, and its applications see a reset at once."""
        sock = self.socks(self.target.flood)
        sock.recv(1)
        assert self.tunnel.server is not None
        self.tunnel.server.signal(signal.SIGTERM)
        with self.assertRaises(ConnectionResetError):
            while sock.recv(1 << 20):
                pass
        self.wait_log("the session is over")


class StrangerTests(PickaxeTestCase):
    """Who does not know a secret learns nothing."""

    def test_nothing_is_answered(self) -> None:
        """Silence, garbage, lengths out of bounds, early ends: no byte, a FIN, and all at the refusal time (X2)."""
        garbage = random.Random(1).randbytes(221)
        probes = (b"", b"\0" * 8, b"\xff" * 50, garbage, b"\x10\0\0\0" + garbage[:16], b"GET / HTTP/1.1\r\n\r\n")
        began = time.monotonic()
        socks = []
        for probe in probes:
            sock = socket.create_connection(("127.0.0.1", self.tunnel.server_port), timeout=10)
            self.addCleanup(sock.close)
            sock.sendall(probe)
            socks.append(sock)
        socks[3].shutdown(socket.SHUT_WR)
        for sock in socks:
            self.assertEqual(sock.recv(100), b"")
            self.assertGreater(time.monotonic() - began, self.tunnel.refusal_time - 0.2)

    def test_a_wrong_password_is_told_to_the_user(self) -> None:
        """The server says nothing; the client knows what that means."""
        self.tunnel.kill_client()
        self.tunnel.password_file.write_text("another password of the same kind\n")
        self.tunnel.start_client()
        began = time.monotonic()
        self.assertEqual(self.socks_reply(), 1, "general failure")
        self.assertLess(time.monotonic() - began, 4.0)
        self.wait_log("the user or the password is not the same there")
        began = time.monotonic()
        self.assertEqual(self.socks_reply(), 1)
        self.assertLess(time.monotonic() - began, 0.5, "from then on at once")

    def test_a_dead_server_is_told_to_applications(self) -> None:
        """A closed port: SOCKS says that the connection is refused, after three seconds and then at once."""
        self.tunnel.kill_client()
        self.tunnel.kill_server()
        self.tunnel.start_client()
        self.assertEqual(self.socks_reply(), 5, "connection refused")
        began = time.monotonic()
        self.assertEqual(self.socks_reply(), 5)
        self.assertLess(time.monotonic() - began, 0.5)
        self.tunnel.start_server()
        self.wait_log("can be used again")
        self.assertEqual(self.socks_reply(), 0)

    def socks_reply(self) -> int:
        """What the SOCKS door answers to a request for the echo target."""
        with socket.create_connection(("127.0.0.1", self.tunnel.socks_port), timeout=10) as sock:
            sock.sendall(b"\x05\x01\x00")
            self.assertEqual(sock.recv(2), b"\x05\x00")
            sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + self.target.echo.to_bytes(2, "big"))
            return sock.recv(10)[1]

    def test_known_and_unknown_names_take_the_same_time(self) -> None:
        """2,000 answers each to logins of a known and of an unknown name: the same form, and one distribution (P6)."""
        times: dict[str, list[float]] = {"alice": [], "bobby": []}
        forms = set()
        users = list(times) * 2000
        random.Random(5).shuffle(users)
        with socket.create_connection(("127.0.0.1", self.tunnel.server_port), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for user in users:
                packet = wire.encode_login(wire.Login(os.urandom(16), (1, 0), user))
                framed = len(packet).to_bytes(4, "little") + packet
                began = time.perf_counter()
                sock.sendall(framed)
                answer = sock.recv(1000)
                times[user].append(time.perf_counter() - began)
                forms.add((len(answer), answer[:5], answer[21:23]))
        self.assertEqual(forms, {(43, b"\x27\0\0\0\x01", b"\x01\0")})
        self.assertGreater(p_value(times["alice"], times["bobby"]), 0.001)


class RoamingTests(PickaxeTestCase):
    """One carrier that dies again and again."""

    relays = 1

    def test_a_download_outlives_its_carrier(self) -> None:
        """A download whose carrier is reset every two seconds is right to the byte and never stands still for long."""
        paced = Paced(100_000_000 if LONG else 30_000_000, 8e6)
        self.addCleanup(paced.close)
        sock = self.socks(paced.port)
        done = threading.Event()

        def cut() -> None:
            while not done.wait(2.0 if LONG else 0.6):
                self.cutters[0].cut()

        threading.Thread(target=cut, daemon=True).start()
        digest, longest = take_all(sock)
        done.set()
        self.assertEqual(digest, paced.digest)
        self.assertLess(longest, STALL)
        self.assertGreater(self.cutters[0].made, 5)

    def test_an_upload_outlives_its_carrier(self) -> None:
        """So does an upload."""
        data = random.Random(2).randbytes(40_000_000)
        done = threading.Event()

        def cut() -> None:
            while not done.wait(0.25):
                self.cutters[0].cut()

        threading.Thread(target=cut, daemon=True).start()
        with self.socks(self.target.half_close) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        done.set()
        self.assertEqual(got, b"got " + hashlib.sha256(data).hexdigest().encode())
        self.assertGreater(self.cutters[0].made, 1)

    def test_the_listener_goes_and_comes_back(self) -> None:
        """Nobody listens for a while: connections wait, and go on when somebody does (``--keep-session``)."""
        paced = Paced(20_000_000, 8e6)
        self.addCleanup(paced.close)
        sock = self.socks(paced.port)
        echo = self.socks(self.target.echo)
        sock.recv(1, socket.MSG_PEEK)
        self.cutters[0].stop()
        echo.sendall(b"sent into the void")
        time.sleep(3.0)
        self.cutters[0].listen()
        began = time.monotonic()
        self.assertEqual(echo.recv(100), b"sent into the void")
        self.assertLess(time.monotonic() - began, STALL)
        self.assertEqual(take_all(sock)[0], paced.digest)
        # New connections may be asked for while there is nothing to carry them.
        self.cutters[0].stop()
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(socks_connect, self.tunnel.socks_port, self.target.echo)
            time.sleep(0.5)
            self.cutters[0].listen()
            with opening.result(10) as later:
                later.sendall(b"x")
                self.assertEqual(later.recv(10), b"x")


class EachPacketTests(PickaxeTestCase):
    """The carrier is cut behind each packet of a session in turn."""

    relays = 1

    def make_cutter(self) -> Cutter:
        """The first connection carries the login; later ones are cut behind their 1st, 2nd, ... packet."""
        indices = range(1, 201) if LONG else [*range(1, 61), *range(65, 201, 5)]
        self.cuts = 2 * len(indices)
        # In between, one that gets something done: a carrier that never brings anything is tried ever more seldom.
        return Cutter(self.tunnel.server_port, iter([4, 60, *(each for index in indices for each in (index, 60))]))

    def test_a_cut_at_each_packet(self) -> None:
        """An echo of many small pieces loses and repeats nothing, wherever the cuts fall."""
        sock = self.socks(self.target.echo)
        rng = random.Random(4)
        sent, got = hashlib.sha256(), hashlib.sha256()
        outstanding = count = 0
        deadline = time.monotonic() + 150
        while self.cutters[0].made <= self.cuts + 1 and time.monotonic() < deadline:
            piece = rng.randbytes(rng.randint(1, 3000))
            sock.sendall(piece)
            sent.update(piece)
            outstanding += len(piece)
            count += 1
            while outstanding:
                back = sock.recv(min(outstanding, 65536))
                self.assertTrue(back)
                got.update(back)
                outstanding -= len(back)
        self.assertEqual(got.digest(), sent.digest())
        self.assertGreater(self.cutters[0].made, self.cuts)


class TwoCarriersTests(PickaxeTestCase):
    """Two carriers, of which the first is the better one."""

    relays = 2

    def test_a_frozen_carrier_is_left_and_taken_up_again(self) -> None:
        """The first carrier stops moving without a word: the second takes over within three seconds, and hands back."""
        first, second = self.tunnel.carriers
        paced = Paced(80_000_000, 8e6)
        self.addCleanup(paced.close)
        time.sleep(2.5)  # the second carrier is open and was probed
        sock = self.socks(paced.port)
        sock.recv(1, socket.MSG_PEEK)
        self.cutters[0].frozen = True
        threading.Timer(5.0, lambda: setattr(self.cutters[0], "frozen", False)).start()
        digest, longest = take_all(sock)
        self.assertEqual(digest, paced.digest)
        self.assertLess(longest, STALL)
        moves = re.findall(r"goes on by (\S+)", self.log)
        self.assertIn(second, moves)
        wait_for(lambda: re.findall(r"goes on by (\S+)", self.log)[-1] == first, 20, "the way back")

    def test_a_closed_carrier_is_left_at_once(self) -> None:
        """The first carrier is gone: the second goes on with hardly a pause."""
        time.sleep(2.5)
        with self.socks(self.target.echo) as sock:
            sock.sendall(b"before")
            self.assertEqual(sock.recv(100), b"before")
            self.cutters[0].stop()
            began = time.monotonic()
            sock.sendall(b"after")
            self.assertEqual(sock.recv(100), b"after")
            self.assertLess(time.monotonic() - began, 1.0)


class SpreadTests(PickaxeTestCase):
    """Both carriers share the data."""

    relays = 2
    client_options = ("--policy=spread",)

    def test_transfers_over_both(self) -> None:
        """What goes by two carriers at once comes out in order, while one of them is cut now and then."""
        time.sleep(2.5)
        done = threading.Event()

        def cut() -> None:
            number = 0
            while not done.wait(0.5):
                number += 1
                self.cutters[number % 2].cut()

        threading.Thread(target=cut, daemon=True).start()
        self.addCleanup(done.set)
        socks = f"127.0.0.1:{self.tunnel.socks_port}"
        upload = Path(self.mktemp())
        upload.write_bytes(BODY * 5)
        url = f"http://127.0.0.1:{self.target.web}/"
        for _ in range(3):
            self.assertEqual(self.curl("--socks5", socks, url), BODY)
            digest = self.curl("--socks5", socks, "--data-binary", f"@{upload}", "--header", "Expect:", url)
            self.assertEqual(digest.decode(), hashlib.sha256(BODY * 5).hexdigest())


class RemoteForwardTests(PickaxeTestCase):
    """Ports at the server that lead to the client's side (P11)."""

    relays = 1

    def setUp(self) -> None:
        """One port that was asked for, one that nobody permits, and any port."""
        self.port = free_port()
        low = self.port + 1
        self.server_options = (f"--allow-listen={self.port}-{low}",)
        self.web = Target()
        self.addCleanup(self.web.close)
        self.client_options = tuple(
            f"--remote-forward={wish}=127.0.0.1:{self.web.web}" for wish in (self.port, self.port + 7, 0)
        )
        super().setUp()

    def test_the_port_stays_while_carriers_change(self) -> None:
        """The port serves before and after the carrier is cut, and was not opened anew."""
        self.wait_log(f"listens on port {self.port} ")
        self.wait_log(f"listens on port {self.port + 1} ")
        self.wait_log(f"does not permit listening on port {self.port + 7}")
        self.assertEqual(self.curl("--noproxy", "*", f"http://127.0.0.1:{self.port}/"), BODY)
        for _ in range(3):
            self.cutters[0].cut()
            self.assertTrue(listening(self.port))
            self.assertEqual(self.curl("--noproxy", "*", f"http://127.0.0.1:{self.port}/"), BODY)
        self.assertEqual(self.curl("--noproxy", "*", f"http://127.0.0.1:{self.port + 1}/"), BODY)
        self.assertEqual(self.log.count(f"listens on port {self.port} "), 1)

    def test_the_ports_go_with_the_client(self) -> None:
        """A client that ends takes its ports with it."""
        self.wait_log(f"listens on port {self.port} ")
        assert self.tunnel.client is not None
        self.tunnel.client.stop()
        wait_for(lambda: not listening(self.port), what="the end of the port")


class LostSessionTests(PickaxeTestCase):
    """A server that has forgotten everything."""

    def test_a_killed_server_resets_connections_and_is_found_again(self) -> None:
        """kill -9 and a new start: connections are reset within P8's bound, and new ones work."""
        sock = self.socks(self.target.echo)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        self.tunnel.kill_server()
        self.tunnel.start_server()
        sock.sendall(b"lost")
        with self.assertRaises(ConnectionResetError):
            sock.recv(1)
        self.wait_log("the session is over")
        with self.socks(self.target.echo) as later:
            later.sendall(b"y")
            self.assertEqual(later.recv(1), b"y")


class ProxyTests(PickaxeTestCase):
    """Carriers through other people's proxies."""

    def through(self, url: str) -> None:
        """Transfers with the client behind a proxy."""
        self.tunnel.kill_client()
        self.tunnel.carriers = [url]
        self.tunnel.start_client()
        self.wait_log(f"session with the server by {url}")
        socks = f"127.0.0.1:{self.tunnel.socks_port}"
        url = f"http://127.0.0.1:{self.target.web}/"
        upload = Path(self.mktemp())
        upload.write_bytes(BODY)
        self.assertEqual(self.curl("--socks5", socks, url), BODY)
        digest = self.curl("--socks5", socks, "--data-binary", f"@{upload}", "--header", "Expect:", url)
        self.assertEqual(digest.decode(), hashlib.sha256(BODY).hexdigest())

    def password(self, text: str) -> Path:
        """A file with a proxy's password."""
        file = self.tunnel.folder / "proxy-password"
        file.touch(0o600)
        file.write_text(text + "\n")
        return file

    def test_socks5(self) -> None:
        """A real SOCKS5 proxy, with and without a password."""
        open_port, guarded = free_port(), free_port()
        program = require_program("microsocks")
        for port, words in ((open_port, []), (guarded, ["-u", "user", "-P", "the proxy's"])):
            process = Process([program, "-i", "127.0.0.1", "-p", str(port), *words], ports=(port,))
            self.addCleanup(process.stop)
        self.through(f"socks5://127.0.0.1:{open_port}/127.0.0.1:{self.tunnel.server_port}")
        file = self.password("the proxy's")
        self.through(f"socks5://user@127.0.0.1:{guarded}/127.0.0.1:{self.tunnel.server_port}?password-file={file}")

    def test_http_connect(self) -> None:
        """A real HTTP proxy that wants Basic authentication for its CONNECT."""
        folder = Path(tempfile.mkdtemp(prefix="mikanet-tinyproxy-"))
        port = free_port()
        settings = folder / "tinyproxy.conf"
        settings.write_text(
            f"Port {port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nMaxClients 20\nLogLevel Critical\n"
            f"ConnectPort {self.tunnel.server_port}\nBasicAuth user the-proxys\n"
        )
        process = Process([require_program("tinyproxy"), "-d", "-c", str(settings)], ports=(port,))
        self.addCleanup(process.stop)
        file = self.password("the-proxys")
        self.through(f"connect://user@127.0.0.1:{port}/127.0.0.1:{self.tunnel.server_port}?password-file={file}")
        file.write_text("another one\n")
        self.tunnel.kill_client()
        self.tunnel.start_client()
        self.wait_log("the proxy wants a user name and a password, or other ones")
