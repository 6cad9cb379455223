"""Mika as its user meets it: ``twistd`` processes on loopback and the programs that people use with them."""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.endpoints import quote
from mikanet.mika.session import ClientSession, derive_keys
from mikanet.mika.wire import Header, Kind
from tests.lab.tunnels import MikaTunnel
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, TwistdProcess, free_port, listening, rss, wait_for, wait_listening

_IN_USE = "another program has that port: stop it, or choose another port"

#: What is downloaded and uploaded: a few chunks and reads, and no round number.
BODY = random.Random(12).randbytes(3_000_017)


class Target:
    """A web server of one page, an echo server and a UDP echo server in threads."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.resets = 0
        self._listeners: list[socket.socket] = []
        self.web = self._serve(self._web)
        self.echo = self._serve(self._echo)
        self.half_close = self._serve(self._answer_after_the_end)
        self.flood = self._serve(self._flood)
        self.flooded = 0
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.udp: int = self._udp.getsockname()[1]
        threading.Thread(target=self._udp_echo, daemon=True).start()

    def _serve(self, handle: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._listeners.append(listener)

        def one(connection: socket.socket) -> None:
            with connection:
                connection.settimeout(60)
                try:
                    handle(connection)
                except ConnectionResetError:
                    self.resets += 1
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    def _web(self, connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        while True:
            line = stream.readline()
            if not line:
                return
            length = 0
            while (field := stream.readline()) not in (b"\r\n", b""):
                name, _, value = field.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                if name.lower() == b"expect":
                    stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    stream.flush()
            body = stream.read(length)
            answer = hashlib.sha256(body).hexdigest().encode() if length else BODY
            stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            stream.flush()

    def _echo(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)

    def _answer_after_the_end(self, connection: socket.socket) -> None:
        data = b""
        while piece := connection.recv(65536):
            data += piece
        self.seen.append(data)
        connection.sendall(b"got " + hashlib.sha256(data).hexdigest().encode())

    def _flood(self, connection: socket.socket) -> None:
        block = bytes(1 << 16)
        while True:
            connection.sendall(block)
            self.flooded += len(block)

    def _udp_echo(self) -> None:
        while True:
            try:
                data, source = self._udp.recvfrom(65536)
            except OSError:
                return
            self._udp.sendto(data[::-1], source)

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()
        self._udp.close()


def socks_connect(proxy: int, port: int) -> socket.socket:
    """A connection to a port of loopback through a SOCKS5 proxy on loopback."""
    sock = socket.create_connection(("127.0.0.1", proxy), timeout=30)
    sock.sendall(b"\x05\x01\x00")
    assert sock.recv(2) == b"\x05\x00"
    sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + struct.pack("!H", port))
    reply = sock.recv(10)
    assert reply[:2] == b"\x05\x00", reply
    return sock


class MikaTestCase(SynchronousTestCase):
    """A target, and a tunnel to it."""

    server_options: tuple[str, ...] = ()
    client_options: tuple[str, ...] = ()

    def setUp(self) -> None:
        """Start both."""
        self.target = Target()
        self.addCleanup(self.target.close)
        self.tunnel = self.make_tunnel()
        self.addCleanup(self.tunnel.close)
        self.tunnel.start_server()
        self.tunnel.start_client()

    def make_tunnel(self) -> MikaTunnel:
        """The tunnel under test."""
        return MikaTunnel(server_options=self.server_options, client_options=self.client_options)

    def curl(self, *words: str) -> bytes:
        """What curl prints; the test fails if curl does."""
        command = [require_program("curl"), "--silent", "--show-error", "--fail", "--max-time", "60", *words]
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "no_proxy": "none.invalid"})
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


class TransferTests(MikaTestCase):
    """Whole transfers through every front door, and their ends."""

    def test_every_door_both_ways(self) -> None:
        """SOCKS5, SOCKS5 with names, SOCKS4, SOCKS4a, the HTTP proxy and CONNECT: download and upload by SHA-256."""
        url = f"http://127.0.0.1:{self.target.web}/"
        upload = Path(self.mktemp())
        upload.write_bytes(BODY)
        socks = f"127.0.0.1:{self.tunnel.socks_port}"
        http = f"http://127.0.0.1:{self.tunnel.http_port}"
        for door in (
            ["--socks5", socks],
            ["--socks5-hostname", socks],
            ["--socks4", socks],
            ["--socks4a", socks],
            ["--proxy", http],
            ["--proxy", http, "--proxytunnel"],
        ):
            self.assertEqual(self.curl(*door, url), BODY, door)
            digest = self.curl(*door, "--data-binary", f"@{upload}", url)
            self.assertEqual(digest.decode(), hashlib.sha256(BODY).hexdigest(), door)
            chunked = self.curl(*door, "--header", "Expect:", "--data-binary", "small", url)
            self.assertEqual(chunked.decode(), hashlib.sha256(b"small").hexdigest())

    def test_half_close(self) -> None:
        """An application that ends its request by a FIN gets its answer."""
        with socks_connect(self.tunnel.socks_port, self.target.half_close) as sock:
            sock.sendall(BODY)
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        self.assertEqual(got, b"got " + hashlib.sha256(BODY).hexdigest().encode())
        self.assertEqual(self.target.seen, [BODY])

    def test_a_killed_application_resets_its_target(self) -> None:
        """An application that is reset half-way is no clean end at the target (X6)."""
        sock = socks_connect(self.tunnel.socks_port, self.target.half_close)
        sock.sendall(BODY[:100_000])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        wait_for(lambda: self.target.resets, what="the target's reset")
        self.assertEqual(self.target.seen, [])


class SpecTests(TransferTests):
    """Everything else, in the document's profile."""

    def test_keep_alive_through_the_http_door(self) -> None:
        """Several requests of one curl go over one connection."""
        url = f"http://127.0.0.1:{self.target.web}/"
        proxy = f"http://127.0.0.1:{self.tunnel.http_port}"
        got = self.curl("--proxy", proxy, url, url, url, "--write-out", "%{num_connects} ")
        self.assertEqual(got, BODY + b"1 " + BODY + b"0 " + BODY + b"0 ")

    def test_a_thousand_connections_at_once(self) -> None:
        """1,000 connections echo their own bytes at the same time, all of them right."""

        def one(number: int) -> bool:
            data = random.Random(number).randbytes(2000)
            with socks_connect(self.tunnel.socks_port, self.target.echo) as sock:
                barrier.wait(60)
                sock.sendall(data)
                got = b""
                while len(got) < len(data):
                    got += sock.recv(65536)
                return got == data

        barrier = threading.Barrier(1000)
        threading.stack_size(256 * 1024)
        self.addCleanup(threading.stack_size, 0)
        with ThreadPoolExecutor(1000) as pool:
            self.assertEqual(sum(pool.map(one, range(1000))), 1000)

    def test_forbidden_target(self) -> None:
        """A target that egress refuses is reset, and nothing of it is reached."""
        with socks_connect(self.tunnel.socks_port, self.target.echo):
            pass
        sock = socket.create_connection(("127.0.0.1", self.tunnel.socks_port), timeout=30)
        self.addCleanup(sock.close)
        sock.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01\xa9\xfe\xa9\xfe" + struct.pack("!H", 80))
        got = b""
        with self.assertRaises(ConnectionResetError):
            while True:
                piece = sock.recv(100)
                if not piece:
                    break
                got += piece
        self.assertEqual(got[:4], b"\x05\x00\x05\x00")

    def test_killed_processes_are_resets(self) -> None:
        """kill -9 of client or server half-way through a download: the application sees a reset, never a clean end (X6)."""
        for kill in (self.tunnel.kill_server, self.tunnel.kill_client):
            with socks_connect(self.tunnel.socks_port, self.target.flood) as sock:
                sock.recv(65536)
                kill()
                with self.assertRaises(ConnectionResetError):
                    while sock.recv(1 << 20):
                        pass
            self.tunnel.close() if kill == self.tunnel.kill_client else self.tunnel.start_server()

    def test_a_slow_reader_slows_its_sender(self) -> None:
        """An application that reads nothing stops the target, and neither process buffers what it sends (X5)."""
        assert self.tunnel.server is not None
        assert self.tunnel.client is not None
        before = rss(self.tunnel.server.pid) + rss(self.tunnel.client.pid)
        with socks_connect(self.tunnel.socks_port, self.target.flood) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.recv(1)
            last = -1
            while self.target.flooded != last:
                last = self.target.flooded
                time.sleep(0.3)
            grown = rss(self.tunnel.server.pid) + rss(self.tunnel.client.pid) - before
            self.assertLess(grown, 8 << 20)
            self.assertLess(self.target.flooded, 64 << 20)
            got = 0
            while got < 20_000_000:
                got += len(sock.recv(1 << 20))

    def test_logs_are_quiet(self) -> None:
        """Neither log names a destination or holds a traceback (X10)."""
        self.curl("--socks5", f"127.0.0.1:{self.tunnel.socks_port}", f"http://127.0.0.1:{self.target.web}/")
        assert self.tunnel.server is not None
        assert self.tunnel.client is not None
        for process in (self.tunnel.server, self.tunnel.client):
            self.assertNotIn(str(self.target.web), process.output)
            self.assertNotIn("Traceback", process.output)
            self.assertNotIn(self.tunnel.password.decode(), process.output)


class VerboseTests(MikaTestCase):
    """--verbose at both ends."""

    server_options = ("--verbose",)
    client_options = ("--verbose",)

    def test_destinations_are_named(self) -> None:
        """Who asks for it finds each destination in both logs, and still no secret."""
        self.curl("--socks5", f"127.0.0.1:{self.tunnel.socks_port}", f"http://127.0.0.1:{self.target.web}/")
        assert self.tunnel.server is not None
        assert self.tunnel.client is not None
        for process in (self.tunnel.server, self.tunnel.client):
            self.assertIn(f"127.0.0.1:{self.target.web}", process.output)
            self.assertNotIn(self.tunnel.password.decode(), process.output)


class GoTests(TransferTests):
    """The transfers with profile go."""

    server_options = ("--profile", "go")
    client_options = ("--profile", "go")

    def test_udp_is_not_offered(self) -> None:
        """UDP ASSOCIATE gets reply 7, as the original carries no datagrams (M7)."""
        with socket.create_connection(("127.0.0.1", self.tunnel.socks_port), timeout=30) as sock:
            sock.sendall(b"\x05\x01\x00")
            self.assertEqual(sock.recv(2), b"\x05\x00")
            sock.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
            self.assertEqual(sock.recv(10)[1], 7)


class ObfsHttpTests(TransferTests):
    """The transfers through the HTTP obfuscation."""

    def make_tunnel(self) -> MikaTunnel:
        """Both ends wrap their TCP."""

        class Obfuscated(MikaTunnel):
            def server_args(self) -> list[str]:
                return _wrap(super().server_args(), "--listen", "")

            def client_args(self) -> list[str]:
                return _wrap(super().client_args(), "--server", ":url=http\\://www.example.com/path")

        return Obfuscated()


class ObfsHttpEndTests(MikaTestCase):
    """Ends and strangers below a filter."""

    def make_tunnel(self) -> MikaTunnel:
        """As the transfers'."""
        return ObfsHttpTests.make_tunnel(self)  # type: ignore[arg-type]

    def test_a_killed_server_is_a_reset(self) -> None:
        """kill -9 of the server half-way: the application sees a reset through the obfuscation, too (X6)."""
        with socks_connect(self.tunnel.socks_port, self.target.flood) as sock:
            sock.recv(65536)
            self.tunnel.kill_server()
            with self.assertRaises(ConnectionResetError):
                while sock.recv(1 << 20):
                    pass

    def test_a_flood_without_a_head_is_paced(self) -> None:
        """A stranger who sends no head is read as slowly as any other (X2)."""
        with socket.create_connection(("127.0.0.1", self.tunnel.server_port), timeout=30) as stranger:
            stranger.setblocking(False)
            sent, until = 0, time.monotonic() + 1.0
            while time.monotonic() < until:
                try:
                    sent += stranger.send(b"x" * 65536)
                except BlockingIOError:
                    time.sleep(0.01)
        self.assertLess(sent, 20_000_000)


class TlsLinkTests(MikaTestCase):
    """Mika over TLS, a link that cannot end one direction alone."""

    def make_tunnel(self) -> MikaTunnel:
        """Twisted's own TLS endpoints, with a certificate made here."""

        class OverTls(MikaTunnel):
            def prepare(self) -> None:
                super().prepare()
                self.pem = self.folder / "server.pem"
                self.pem.write_bytes(_certificate())

            def server_args(self) -> list[str]:
                listen = f"--listen=ssl:{self.server_port}:interface=127.0.0.1:privateKey={quote(str(self.pem))}"
                return [listen if word.startswith("--listen=") else word for word in super().server_args()]

            def client_args(self) -> list[str]:
                roots = quote(str(self.folder))
                server = f"--server=tls:localhost:{self.server_port}:trustRoots={roots}"
                return [server if word.startswith("--server=") else word for word in super().client_args()]

        return OverTls()

    def test_transfers_and_ends(self) -> None:
        """Both ways by SHA-256; a response without a length ends when its target does."""
        url = f"http://127.0.0.1:{self.target.web}/"
        door = ["--socks5-hostname", f"127.0.0.1:{self.tunnel.socks_port}"]
        self.assertEqual(self.curl(*door, url), BODY)
        upload = Path(self.mktemp())
        upload.write_bytes(BODY)
        digest = self.curl(*door, "--data-binary", f"@{upload}", url)
        self.assertEqual(digest.decode(), hashlib.sha256(BODY).hexdigest())
        with socks_connect(self.tunnel.socks_port, self.target.half_close) as sock:
            sock.settimeout(10)
            sock.sendall(b"question")
            sock.shutdown(socket.SHUT_WR)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        self.assertEqual(got, b"got " + hashlib.sha256(b"question").hexdigest().encode())


class KcpLinkTests(MikaTestCase):
    """Mika over the KCP link of its original: no cipher, FEC 10/3, over UDP."""

    def make_tunnel(self) -> MikaTunnel:
        """Both ends use UDP."""

        class OverKcp(MikaTunnel):
            def server_args(self) -> list[str]:
                listen = f"--listen=kcp:{self.server_port}:interface=127.0.0.1"
                return [listen if word.startswith("--listen=") else word for word in super().server_args()]

            def client_args(self) -> list[str]:
                server = f"--server=kcp:127.0.0.1:{self.server_port}"
                return [server if word.startswith("--server=") else word for word in super().client_args()]

            def start_server(self, env: dict[str, str] | None = None, before: str = "") -> TwistdProcess:
                (self.folder / "server").mkdir(exist_ok=True)
                self.server = TwistdProcess([*self.server_args(), *self.server_options], cwd=self.folder / "server")
                wait_listening(self.server_port, udp=True, process=self.server)
                return self.server

        return OverKcp()

    def test_transfers(self) -> None:
        """Download and upload by SHA-256 through SOCKS5 and the HTTP proxy, eight at once."""
        url = f"http://127.0.0.1:{self.target.web}/"
        upload = Path(self.mktemp())
        upload.write_bytes(BODY)
        doors = (
            ["--socks5-hostname", f"127.0.0.1:{self.tunnel.socks_port}"],
            ["--proxy", f"http://127.0.0.1:{self.tunnel.http_port}"],
        )

        def both_ways(number: int) -> bool:
            door = doors[number % 2]
            digest = self.curl(*door, "--data-binary", f"@{upload}", url)
            return self.curl(*door, url) == BODY and digest.decode() == hashlib.sha256(BODY).hexdigest()

        with ThreadPoolExecutor(8) as pool:
            self.assertEqual(list(pool.map(both_ways, range(8))), [True] * 8)


def _certificate() -> bytes:
    """A key and a certificate for localhost, as one PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _wrap(arguments: list[str], option: str, rest: str) -> list[str]:
    at = next(index for index, word in enumerate(arguments) if word.startswith(f"{option}="))
    inner = quote(arguments[at].removeprefix(f"{option}="))
    return [*arguments[:at], f"{option}=obfs-http:{inner}{rest}", *arguments[at + 1 :]]


class UdpTests(MikaTestCase):
    """Datagrams through UDP ASSOCIATE and a UDP forward."""

    def test_udp_associate(self) -> None:
        """Datagrams of many sizes go there and back with their edges kept."""
        control = socket.create_connection(("127.0.0.1", self.tunnel.socks_port), timeout=30)
        self.addCleanup(control.close)
        control.sendall(b"\x05\x01\x00")
        self.assertEqual(control.recv(2), b"\x05\x00")
        control.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
        reply = control.recv(10)
        self.assertEqual(reply[:4], b"\x05\x00\x00\x01")
        relay = socket.inet_ntoa(reply[4:8]), struct.unpack("!H", reply[8:])[0]
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(udp.close)
        udp.settimeout(10)
        head = b"\x00\x00\x00\x01\x7f\x00\x00\x01" + struct.pack("!H", self.target.udp)
        for size in (1, 100, 1400, 9000, 60000):
            data = random.Random(size).randbytes(size)
            udp.sendto(head + data, relay)
            answer, _ = udp.recvfrom(65536)
            self.assertEqual(answer, head + data[::-1])

    def test_udp_forward(self) -> None:
        """A UDP forward answers each source with its own datagrams."""
        port = free_port()
        self.tunnel.kill_client()
        self.tunnel.client_options = ["--forward-udp", f"127.0.0.1:{port}=127.0.0.1:{self.target.udp}"]
        self.tunnel.start_client()
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(5)]
        for number, sock in enumerate(sockets):
            self.addCleanup(sock.close)
            sock.settimeout(10)
            sock.sendto(b"from %d" % number, ("127.0.0.1", port))
        for number, sock in enumerate(sockets):
            self.assertEqual(sock.recvfrom(100)[0], (b"from %d" % number)[::-1])


class ProbeTests(MikaTestCase):
    """What a stranger meets at the server's port."""

    def make_tunnel(self) -> MikaTunnel:
        """A server that refuses soon."""
        return MikaTunnel(refusal_time=1.5)

    def first_flight(self, skew: int = 0) -> bytes:
        """A good first flight of now, for the echo target."""
        header = Header(Kind.TCP, Address("127.0.0.1", self.target.half_close), int(time.time()) + skew)
        session = ClientSession(derive_keys(self.tunnel.password), header, os.urandom(16))
        return session.open() + session.send(b"replayed?") + session.end()

    def probe(self, data: bytes, end: bool = False) -> tuple[bytes, str, float]:
        """What comes back, how the connection ends, and when."""
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.tunnel.server_port), timeout=20) as sock:
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
            got = b""
            try:
                while piece := sock.recv(65536):
                    got += piece
            except ConnectionResetError:
                return got, "reset", time.monotonic() - started
        return got, "fin", time.monotonic() - started

    def test_probes_meet_silence_and_a_fin(self) -> None:
        """Random bytes of many lengths, replays, changed and cut flights: no byte, a FIN, at the same time (X2)."""
        rng = random.Random(13)
        good = self.first_flight()
        self.assertEqual(self.probe(good)[0][:0], b"")
        wait_for(lambda: self.target.seen, what="the first flight's arrival")
        changed = bytearray(self.first_flight())
        changed[20] ^= 4
        probes = [rng.randbytes(size) for size in (1, 7, 15, 16, 17, 29, 45, 46, 50, 100, 220, 221, 512, 16384)]
        probes += [
            good,
            good[:30],
            bytes(changed),
            self.first_flight(-31),
            self.first_flight(45),
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
        ]
        with ThreadPoolExecutor(64) as pool:
            results = list(pool.map(self.probe, probes)) + list(pool.map(lambda data: self.probe(data, True), probes))
        for (got, kind, _), data in zip(results, probes * 2, strict=True):
            self.assertEqual((got, kind), (b"", "fin"), data[:40])
        times = [seconds for _, _, seconds in results]
        self.assertGreater(min(times), 1.45)
        self.assertEqual(len(self.target.seen), 1)

    def test_replay_over_a_restart(self) -> None:
        """A first flight that one process accepted is refused by the next, killed without warning in between (M3)."""
        flights = [self.first_flight() for _ in range(20)]
        for flight in flights:
            self.probe(flight)
        wait_for(lambda: len(self.target.seen) == 20, what="20 first flights")
        self.tunnel.kill_server()
        self.tunnel.start_server()
        with ThreadPoolExecutor(20) as pool:
            results = list(pool.map(self.probe, flights))
        self.assertEqual({(got, kind) for got, kind, _ in results}, {(b"", "fin")})
        self.assertEqual(len(self.target.seen), 20)
        self.probe(self.first_flight())
        wait_for(lambda: len(self.target.seen) == 21, what="a fresh flight")


class StartTests(SynchronousTestCase):
    """Mistakes at start, as twistd prints them."""

    def run_twistd(self, *words: str, lines: int = 1) -> str:
        """What twistd prints on stderr; its status is not zero and it prints nothing else there."""
        done = TwistdProcess([])  # only for its command line
        done.kill()
        command = [*done.args, *words]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.assertNotEqual(ended.returncode, 0)
        self.assertEqual(ended.stderr.count("\n"), lines, ended.stderr)
        self.assertNotIn("Traceback", ended.stderr + ended.stdout)
        return ended.stderr

    def setUp(self) -> None:
        """A password file."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.password = self.folder / "password"
        self.password.touch(0o600)
        self.password.write_text("a password of some length\n")

    def test_port_in_use(self) -> None:
        """A port that another program has is one line that names it, for TCP and UDP doors."""
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            common = ("--password-file", str(self.password.resolve()))
            line = self.run_twistd(
                "mika-server", "--listen", f"tcp:{port}:interface=127.0.0.1", *common,
                "--state-dir", str(self.folder.resolve()),
            )  # fmt: skip
            self.assertEqual(
                line, f"cannot listen on tcp:{port}:interface=127.0.0.1: Address already in use; {_IN_USE}\n"
            )
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.bind(("127.0.0.1", 0))
                number = udp.getsockname()[1]
                line = self.run_twistd(
                    "mika-client", "--server", "tcp:127.0.0.1:1", *common,
                    "--forward-udp", f"127.0.0.1:{number}=127.0.0.1:1",
                )  # fmt: skip
                self.assertEqual(line, f"cannot listen on udp 127.0.0.1:{number}: Address already in use; {_IN_USE}\n")

    def test_a_daemon_tells_its_parent(self) -> None:
        """Without -n, too, a port in use ends the command with a message and a status; no pid file stays."""
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            program = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
            ended = subprocess.run(
                [sys.executable, "-c", program, "mika-server", "--listen", f"tcp:{port}:interface=127.0.0.1"]
                + ["--password-file", str(self.password.resolve()), "--state-dir", str(self.folder.resolve())],
                capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL, cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.assertEqual(ended.returncode, 1)
        self.assertIn(f"cannot listen on tcp:{port}", ended.stderr)
        self.assertFalse((self.folder / "twistd.pid").exists())

    def test_mistakes_are_one_line(self) -> None:
        """A few of all mistakes through the real program."""
        for words, naming in (
            (["mika-server", "--listen", "tcp:1"], "--password-file"),
            (["mika-client", "--nonsense"], "--nonsense"),
            (["mika-client", "--server", "tcp:a:1", "--password-file", str(self.password.resolve())], "front door"),
        ):
            self.assertIn(naming, self.run_twistd(*words))


class LifeTests(MikaTestCase):
    """Restarts, unreachable servers, and the end."""

    def test_the_client_recovers_by_itself(self) -> None:
        """Without its server the client says so and answers 1; when the server is back, all is well again."""
        url = f"http://127.0.0.1:{self.target.web}/"
        self.tunnel.kill_server()
        with socket.create_connection(("127.0.0.1", self.tunnel.socks_port), timeout=30) as sock:
            sock.sendall(b"\x05\x01\x00")
            self.assertEqual(sock.recv(2), b"\x05\x00")
            sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
            self.assertEqual(sock.recv(10)[:2], b"\x05\x05")
        client = self.tunnel.client
        assert client is not None
        wait_for(lambda: "refuses connections" in client.output, what="the message")
        self.tunnel.start_server()
        wait_for(lambda: "can be used again" in client.output, what="the second message")
        self.assertEqual(self.curl("--socks5", f"127.0.0.1:{self.tunnel.socks_port}", url), BODY)

    def test_sigterm_drains(self) -> None:
        """SIGTERM closes the port, lets a transfer end, and the process ends as twistd's do: status 143 (X9)."""
        server = self.tunnel.server
        assert server is not None
        with socks_connect(self.tunnel.socks_port, self.target.echo) as sock:
            sock.sendall(b"before")
            self.assertEqual(sock.recv(100), b"before")
            server.signal(signal.SIGTERM)
            wait_for(lambda: not listening(self.tunnel.server_port), what="the closed port")
            sock.sendall(b"after")
            self.assertEqual(sock.recv(100), b"after")
            self.assertTrue(server.alive)
        self.assertIn(server.wait(20), (143, -signal.SIGTERM))

    def test_sighup_is_survived(self) -> None:
        """What some systems send when they rotate logs ends nothing."""
        server = self.tunnel.server
        assert server is not None
        with socks_connect(self.tunnel.socks_port, self.target.echo) as sock:
            server.signal(signal.SIGHUP)
            wait_for(lambda: "SIGHUP" in server.output, what="the server's word")
            sock.sendall(b"still here")
            self.assertEqual(sock.recv(100), b"still here")

    def test_a_stranger_does_not_hold_up_the_end(self) -> None:
        """Draining waits for clients, not for connections that proved nothing."""
        server = self.tunnel.server
        assert server is not None
        with socket.create_connection(("127.0.0.1", self.tunnel.server_port), timeout=30) as stranger:
            stranger.sendall(b"hello?")
            started = time.monotonic()
            server.signal(signal.SIGTERM)
            server.wait(20)
            self.assertLess(time.monotonic() - started, 0.9)

    def test_a_second_sigterm_is_at_once(self) -> None:
        """Who cannot wait says it twice."""
        server = self.tunnel.server
        assert server is not None
        with socks_connect(self.tunnel.socks_port, self.target.echo) as sock:
            sock.sendall(b"x")
            sock.recv(1)
            server.signal(signal.SIGTERM)
            wait_for(lambda: not listening(self.tunnel.server_port), what="the closed port")
            server.signal(signal.SIGTERM)
            server.wait(10)
            with self.assertRaises(ConnectionResetError):
                sock.recv(1)

    def test_wrong_password(self) -> None:
        """A client with another password is told, after a while, what to check (M7)."""
        self.tunnel.kill_client()
        self.tunnel.password_file.write_text("quite another password\n")
        client = self.tunnel.start_client()
        for _ in range(3):
            sock = socks_connect(self.tunnel.socks_port, self.target.echo)
            self.addCleanup(sock.close)
        # The laboratory's refusal time is shorter than the silence that counts, so the server must not refuse first.
        wait_for(lambda: "answers nothing" in client.output, timeout=25, what="the client's advice")

    def make_tunnel(self) -> MikaTunnel:
        """A server with a long refusal time."""
        return MikaTunnel(refusal_time=60)


class NestingTests(MikaTestCase):
    """Endpoints inside endpoints: a tunnel through a proxy through another tunnel."""

    def test_mika_through_socks_through_mika(self) -> None:
        """A client whose server is reached by ``socks5:`` through another Mika client's door (DESIGN section 3)."""
        inner = MikaTunnel()
        self.addCleanup(inner.close)
        inner.start_server()
        door = free_port()
        hop = f"socks5:127.0.0.1:{inner.server_port}:server=tcp\\:127.0.0.1\\:{self.tunnel.socks_port}"
        client = TwistdProcess(
            ["mika-client", "--server", hop, "--password-file", str(inner.password_file)]
            + ["--socks", f"tcp:{door}:interface=127.0.0.1"],
            ports=[door],
        )
        self.addCleanup(client.stop)
        self.assertEqual(self.curl("--socks5", f"127.0.0.1:{door}", f"http://127.0.0.1:{self.target.web}/"), BODY)

    def test_endpoint_string_in_a_program(self) -> None:
        """``mika:`` in another program: alone, and through ``socks5:`` through another ``mika:``."""
        second = MikaTunnel()
        self.addCleanup(second.close)
        second.start_server()

        def mika(port: int, server: str, tunnel: MikaTunnel) -> str:
            return f"mika:127.0.0.1:{port}:server={quote(server)}:password-file={quote(str(tunnel.password_file))}"

        first_server = f"tcp:127.0.0.1:{self.tunnel.server_port}"
        to_proxy = mika(self.tunnel.socks_port, first_server, self.tunnel)
        to_second = f"socks5:127.0.0.1:{second.server_port}:server={quote(to_proxy)}"
        program = Path(self.mktemp())
        program.write_text(_PROGRAM)
        for string in (mika(self.target.echo, first_server, self.tunnel), mika(self.target.echo, to_second, second)):
            with Process([sys.executable, str(program.resolve()), string]) as process:
                self.assertEqual(process.wait(60), 0, process.output)
                self.assertIn("echoed hello", process.output)


_PROGRAM = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import react

class Hello(Protocol):
    def connectionMade(self):
        self.done = Deferred()
        self.transport.write(b"hello")
    def dataReceived(self, data):
        print("echoed", data.decode())
        self.transport.loseConnection()
    def connectionLost(self, reason):
        self.done.callback(None)

async def main(reactor, string):
    protocol = await clientFromString(reactor, string).connect(Factory.forProtocol(Hello))
    await protocol.done
    print("ended")

react(lambda reactor: Deferred.fromCoroutine(main(reactor, sys.argv[1])))
"""
