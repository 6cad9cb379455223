"""NitroSocks as its user meets it: ``twistd`` processes on loopback, real TLS, and the programs that people use with them."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mikanet.endpoints import quote
from tests.interop.test_mika import BODY, Target, socks_connect
from tests.lab.tunnels import NitroSocksTunnel, changed, write_certificate
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, TwistdProcess, free_port, wait_for


class NitroTestCase(SynchronousTestCase):
    """A target, and a tunnel that is started by the test. Has no tests itself."""

    def setUp(self) -> None:
        """Start the target."""
        self.target = Target()
        self.addCleanup(self.target.close)

    def tunnel(self, start: bool = True, **options: object) -> NitroSocksTunnel:
        """A tunnel, started unless it is not to be."""
        tunnel = NitroSocksTunnel(**options)  # type: ignore[arg-type]
        self.addCleanup(tunnel.close)
        if start:
            tunnel.start_server()
            tunnel.start_client()
        return tunnel

    def fetch(self, proxy: int, port: int | None = None, *options: str) -> bytes:
        """The page, by curl through a SOCKS port."""
        return subprocess.run(
            [
                *(require_program("curl"), "-sS", "--max-time", "40", "--noproxy", ""),
                *("-x", f"socks5h://127.0.0.1:{proxy}", *options, f"http://127.0.0.1:{port or self.target.web}/"),
            ],
            check=True,
            capture_output=True,
        ).stdout

    def raw_tls(self, port: int, name: str = "localhost") -> ssl.SSLSocket:
        """A TLS connection of an ordinary client that believes anything."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname=name)

    def logged(self, process: Process | None, text: str, timeout: float = 20.0) -> None:
        """Wait for a line of a log."""
        assert process is not None
        wait_for(lambda: text in process.output, timeout, f"{text!r} in the log: {process.output[-2000:]}")


class DoorTests(NitroTestCase):
    """All front doors over one session."""

    def test_curl(self) -> None:
        """SOCKS5 and HTTP doors, down and up, and sixteen transfers at once; both ends end at once and cleanly."""
        tunnel = self.tunnel()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        upload = tunnel.folder / "upload"
        upload.write_bytes(BODY)
        answer = self.fetch(tunnel.socks_port, None, "--data-binary", f"@{upload}")
        self.assertEqual(answer.decode(), hashlib.sha256(BODY).hexdigest())
        through_http = subprocess.run(
            [
                *(require_program("curl"), "-sS", "--noproxy", "", "-x", f"http://127.0.0.1:{tunnel.http_port}"),
                f"http://127.0.0.1:{self.target.web}/",
            ],
            check=True,
            capture_output=True,
        ).stdout
        self.assertEqual(through_http, BODY)
        pages: list[bytes] = []
        threads = [threading.Thread(target=lambda: pages.append(self.fetch(tunnel.socks_port))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(pages, [BODY] * 16)
        assert tunnel.client is not None
        assert tunnel.server is not None
        self.assertEqual(tunnel.client.output.count("connected to the server"), 1)
        begun = time.monotonic()
        tunnel.client.stop()
        tunnel.server.stop()
        self.assertLess(time.monotonic() - begun, 8)
        self.assertEqual(tunnel.unhandled(), [])

    def test_udp_and_forwards(self) -> None:
        """Datagrams and TCP forwards."""
        udp, tcp = free_port(), free_port()
        tunnel = self.tunnel(
            client_options=[
                f"--forward-udp=127.0.0.1:{udp}=127.0.0.1:{self.target.udp}",
                f"--forward=tcp:{tcp}:interface=127.0.0.1=127.0.0.1:{self.target.half_close}",
            ]
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            for size in (1, 1400, 9000, 40000):
                data = os.urandom(size)
                sock.sendto(data, ("127.0.0.1", udp))
                self.assertEqual(sock.recv(65536), data[::-1])
        with socket.create_connection(("127.0.0.1", tcp), timeout=20) as sock:
            sock.sendall(BODY)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        self.assertEqual(answer.decode(), "got " + hashlib.sha256(BODY).hexdigest())
        self.assertEqual(tunnel.unhandled(), [])

    def test_replies_tell_the_truth(self) -> None:
        """A SOCKS client learns why its target cannot be had: refused, forbidden, no such name."""
        tunnel = self.tunnel()
        for request, code in (
            (b"\x01\x7f\x00\x00\x01" + free_port().to_bytes(2, "big"), 5),
            (b"\x01\x0a\x00\x00\x01\x00\x50", 2),
            (b"\x03\x10no-such.invalid." + b"\x00\x50", 4),
        ):
            with socket.create_connection(("127.0.0.1", tunnel.socks_port), timeout=30) as sock:
                sock.sendall(b"\x05\x01\x00")
                self.assertEqual(sock.recv(2), b"\x05\x00")
                sock.sendall(b"\x05\x01\x00" + request)
                self.assertEqual(sock.recv(10)[1], code, request)

    def test_ends(self) -> None:
        """A reset at one end is a reset at the other, and the session lives on."""
        tunnel = self.tunnel()
        sock = socks_connect(tunnel.socks_port, self.target.half_close)
        sock.sendall(BODY[:100_000])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        wait_for(lambda: self.target.resets, what="a reset at the target")
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)

    def test_slow_reader(self) -> None:
        """A stream that nobody reads stops its target, and no other stream."""
        tunnel = self.tunnel()
        slow = socks_connect(tunnel.socks_port, self.target.flood)
        self.addCleanup(slow.close)
        time.sleep(1.0)
        before = self.target.flooded
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        time.sleep(0.5)
        self.assertLess(self.target.flooded, 30_000_000)
        self.assertLess(self.target.flooded - before, 2_000_000)

    def test_endpoint_string(self) -> None:
        """A Twisted program reaches its target by a string."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        text = (
            f"nitrosocks:127.0.0.1:{self.target.web}:server={quote(f'tcp:127.0.0.1:{tunnel.server_port}')}"
            f":server-name=localhost:private-key={tunnel.keys}/client.key:token-file={tunnel.keys}/token"
            f":tls-verify={tunnel.authority}"
        )
        program = (
            "from twisted.internet import reactor, protocol\n"
            "from twisted.internet.endpoints import clientFromString\n"
            "class P(protocol.Protocol):\n"
            "    n = 0\n"
            "    def connectionMade(self):\n"
            "        self.transport.write(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
            "    def dataReceived(self, data):\n"
            "        self.n += len(data)\n"
            f"        if self.n > {len(BODY)}: print('all of it'); reactor.stop()\n"
            "f = protocol.Factory.forProtocol(P)\n"
            f"clientFromString(reactor, {text!r}).connect(f).addErrback(lambda f: (print(f), reactor.stop()))\n"
            "reactor.callLater(30, reactor.stop)\n"
            "reactor.run()\n"
        )
        python = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertIn("all of it", python.stdout, python.stderr)


class ServerTests(NitroTestCase):
    """What an operator does, and who is turned away."""

    def test_tokens(self) -> None:
        """SIGHUP takes new tokens and ends the sessions of removed ones; others go on."""
        tunnel = self.tunnel()
        tokens = tunnel.keys / "tokens"
        other = NitroSocksTunnel()
        self.addCleanup(other.close)
        secret = "another-token-that-is-long-enough-1234567"
        (other.keys / "token").write_text(secret + "\n")
        for name in ("client.key",):
            (other.keys / name).write_bytes((tunnel.keys / name).read_bytes())
        other.authority.write_bytes(tunnel.authority.read_bytes())
        other.through = tunnel.server_port
        tokens.write_text(tokens.read_text() + f"# a comment\n\nsecond {secret}\n")
        assert tunnel.server is not None
        tunnel.server.signal(signal.SIGHUP)
        self.logged(tunnel.server, "2 tokens")
        other.start_client()
        held, kept = (socks_connect(each.socks_port, self.target.echo) for each in (other, tunnel))
        tokens.write_text("".join(line for line in tokens.read_text().splitlines(True) if "second" not in line))
        tunnel.server.signal(signal.SIGHUP)
        self.logged(tunnel.server, "sessions ended: 1")
        held.settimeout(20)
        self.assertRaises(ConnectionResetError, held.recv, 1)
        kept.sendall(b"still here")
        self.assertEqual(kept.recv(100), b"still here")
        tokens.write_text("broken\n")
        tunnel.server.signal(signal.SIGHUP)
        self.logged(tunnel.server, "the tokens stay as they were")
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)

    def test_renewed_certificate(self) -> None:
        """SIGHUP has new connections get the new certificate; a broken file changes nothing; sessions go on."""
        tunnel = self.tunnel()
        kept = socks_connect(tunnel.socks_port, self.target.echo)

        def shown() -> bytes:
            with self.raw_tls(tunnel.server_port) as sock:
                return sock.getpeercert(binary_form=True) or b""

        old = shown()
        write_certificate(tunnel.certificate, tunnel.authority, "localhost")
        assert tunnel.server is not None
        tunnel.server.signal(signal.SIGHUP)
        self.logged(tunnel.server, "certificate from")
        new = shown()
        self.assertNotEqual(old, new)
        tunnel.certificate.write_text("broken")
        tunnel.server.signal(signal.SIGHUP)
        self.logged(tunnel.server, "the certificate stays as it was")
        self.assertEqual(shown(), new)
        kept.sendall(b"still here")
        self.assertEqual(kept.recv(100), b"still here")

    def test_token_files(self) -> None:
        """A token with blanks around it or a byte order mark before it is the same; one with a blank inside is refused."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        token = (tunnel.keys / "token").read_text().strip()
        (tunnel.keys / "token").write_bytes(("\ufeff  " + token + " \r\n").encode("utf-16-le"))
        tunnel.start_client()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        (tunnel.keys / "token").write_text(token[:20] + " " + token[20:] + "\n")
        arguments = [argument for argument in tunnel.client_args() if "--http" not in argument]
        out = subprocess.run(
            [sys.executable, "-m", "twisted", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        self.assertIn("there are blanks in it", out.stdout + out.stderr)

    def test_through_an_http_proxy(self) -> None:
        """A session through an HTTP proxy that wants a password; with a wrong one the client says what the proxy said."""
        program = require_program("tinyproxy")
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        proxy = free_port()
        settings = tunnel.folder / "tinyproxy.conf"
        settings.write_text(
            f"Port {proxy}\nListen 127.0.0.1\nTimeout 60\nAllow 127.0.0.1\nBasicAuth alice wonderland\n"
            f"ConnectPort {tunnel.server_port}\n"
        )
        process = Process([program, "-d", "-c", str(settings)], ports=(proxy,))
        self.addCleanup(process.stop)
        credentials = tunnel.folder / "credentials"
        credentials.touch(0o600)
        server = f"connect:127.0.0.1:{tunnel.server_port}:server={quote(f'tcp:127.0.0.1:{proxy}')}:credentials-file={credentials}"
        arguments = [each for each in tunnel.client_args() if not each.startswith("--server=")]
        for password, good in (("wrong", False), ("wonderland", True)):
            credentials.write_text(f"alice:{password}\n")
            client = TwistdProcess([*arguments, f"--server={server}"], ports=[tunnel.socks_port])
            self.addCleanup(client.stop, 5)
            if good:
                self.assertEqual(self.fetch(tunnel.socks_port), BODY)
            else:
                self.logged(client, "the proxy wants a user name and a password")
            client.stop(5)

    def test_wrong_token(self) -> None:
        """A client with a wrong token gets no session, is told what to check, and its application is refused."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        (tunnel.keys / "token").write_text("some-other-token-that-is-long-enough\n")
        client = tunnel.start_client()
        self.logged(client, "check that key, token and server name")

    def test_probes(self) -> None:
        """Whoever stands inside TLS and cannot prove anything gets no byte but the challenge, and a clean end in time."""
        tunnel = self.tunnel(start=False, server_options=["--wait-first"])
        tunnel.start_server()
        ends = []
        for probe in (
            b"",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            os.urandom(15),
            b"\x00" * 3000,
            os.urandom(700),
        ):
            begun = time.monotonic()
            with self.raw_tls(tunnel.server_port) as sock:
                if probe:
                    sock.sendall(probe)
                answer = b""
                while piece := sock.recv(65536):
                    answer += piece
                ends.append(time.monotonic() - begun)
                self.assertEqual(answer if len(answer) < 272 else b"", b"", probe[:20])
        self.assertLess(max(ends) - min(ends), 1.0)
        self.assertGreater(min(ends), 1.8)

    def test_probes_of_any_length(self) -> None:
        """A server that speaks first answers random bytes of each length up to 221 alike: a challenge, a time, an end."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        rng = random.Random(19)
        probes = [rng.randbytes(size) for size in range(222)]

        def probe(data: bytes) -> tuple[float, int, float]:
            """When the answer came, how long it was, and when the end came."""
            with self.raw_tls(tunnel.server_port) as sock:
                begun = time.monotonic()
                if data:
                    sock.sendall(data)
                answer = sock.recv(65536)
                spoke = time.monotonic() - begun
                while piece := sock.recv(65536):
                    answer += piece
                return spoke, len(answer), time.monotonic() - begun

        with ThreadPoolExecutor(37) as pool:
            found = list(pool.map(probe, probes))
        for size, (spoke, answered, ended) in enumerate(found):
            self.assertTrue(275 <= answered <= 530, (size, answered))
            self.assertLess(spoke, 1.0, size)
            self.assertTrue(1.5 < ended < 3.5, (size, ended))
        short, long = (statistics.mean(each[0] for each in part) for part in (found[:19], found[19:]))
        self.assertLess(abs(short - long), 0.12)

    def test_realms(self) -> None:
        """The server name chooses key pair and tokens; another realm's keys open nothing."""
        first = self.tunnel(start=False)
        second = NitroSocksTunnel()
        self.addCleanup(second.close)
        first.server_options = [f"--realm=second.example={second.keys}/server.pub,{second.keys}/tokens"]
        first.start_server()
        first.start_client()
        second.through = first.server_port
        second.authority.write_bytes(first.authority.read_bytes())
        second.client_options = ["--server-name=second.example", "--tls-verify=off"]
        second.start_client()
        self.assertEqual(self.fetch(first.socks_port), BODY)
        self.assertEqual(self.fetch(second.socks_port), BODY)

    def test_certificates(self) -> None:
        """A certificate for another name, or that nobody known has signed, is refused before a word of ours is said."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        tunnel.client_options = ["--server-name=another.example"]
        client = tunnel.start_client()
        self.logged(client, "not for the server's name")
        client.stop()
        write_certificate(tunnel.folder / "x.pem", tunnel.authority, "localhost")
        tunnel.client_options = []
        client = tunnel.start_client()
        self.logged(client, "no session with the server")
        self.assertIn("TLS:", client.output)

    def test_protocol_versions(self) -> None:
        """TLS 1.3, and 1.2 with forward secrecy; nothing older, and no static RSA."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        openssl = require_program("openssl")
        for options, good in (
            (["-tls1_3"], True),
            (["-tls1_2"], True),
            (["-tls1_1"], False),
            (["-tls1_2", "-cipher", "AES128-SHA"], False),
        ):
            done = subprocess.run(
                [openssl, "s_client", "-connect", f"127.0.0.1:{tunnel.server_port}", *options],
                input=b"",
                capture_output=True,
                timeout=30,
                check=False,
            )
            self.assertEqual(b"Cipher is (NONE)" not in done.stdout and b"BEGIN CERT" in done.stdout, good, options)

    def test_options(self) -> None:
        """A mistake is one line that says what to do."""
        tunnel = self.tunnel(start=False)
        (tunnel.folder / "empty.pem").touch(0o600)
        open_file = tunnel.folder / "open"
        open_file.write_text("alice " + "x1y2" * 8 + "\n")
        open_file.chmod(0o644)
        weak = tunnel.folder / "weak"
        weak.touch(0o600)
        weak.write_text("alice short\n")
        cases = [
            (f"--certificate={tunnel.folder / 'empty.pem'}", "has no certificate"),
            (f"--certificate={tunnel.authority}", "chmod 600"),
            ("--public-key=/nowhere", "cannot read /nowhere"),
            (f"--tokens={open_file}", "chmod 600"),
            (f"--tokens={weak}", "too easy to guess"),
            ("--realm=x", "is not NAME=PUBLIC-KEY,TOKENS"),
            ("--cipher=rot13", "unknown cipher"),
            ("--tls-binding=yes", "off or require"),
        ]
        for option, text in cases:
            with TwistdProcess(changed(tunnel.server_args(), [option])) as process:
                self.assertNotEqual(process.wait(), 0)
                self.assertEqual(len(process.output.splitlines()), 1, process.output)
                self.assertIn(text, process.output)
        for option, text in (
            ("--tls-verify=/nowhere", "cannot read /nowhere"),
            ("--private-key=/nowhere", "cannot read"),
            ("--server=nonsense", "is not an endpoint"),
            ("--server-name=" + "a" * 70 + ".example", "no server name"),
        ):
            with TwistdProcess(changed(tunnel.client_args(), [option])) as process:
                self.assertNotEqual(process.wait(), 0)
                self.assertEqual(len(process.output.splitlines()), 1, process.output)
                self.assertIn(text, process.output)


class EndTests(NitroTestCase):
    """Connections break, servers go and come."""

    def test_killed_server(self) -> None:
        """Applications get a reset when a killed server comes back without their session; new ones are served."""
        tunnel = self.tunnel()
        held = socks_connect(tunnel.socks_port, self.target.echo)
        tunnel.kill_server()
        tunnel.start_server()
        held.settimeout(40)
        self.assertRaises(ConnectionResetError, held.recv, 1)
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)

    def test_killed_server_with_a_second(self) -> None:
        """With a server killed and another one configured, a transfer that begins right afterwards succeeds at once."""
        tunnel = self.tunnel(start=False)
        other = NitroSocksTunnel()
        self.addCleanup(other.close)
        for name in ("client.key", "server.pub", "token", "tokens"):
            (other.keys / name).write_bytes((tunnel.keys / name).read_bytes())
        other.certificate.write_bytes(tunnel.certificate.read_bytes())
        other.start_server()
        tunnel.start_server()
        tunnel.client_options = [f"--server=tcp:127.0.0.1:{other.server_port}"]
        tunnel.start_client()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        tunnel.kill_server()
        begun = time.monotonic()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        self.assertLess(time.monotonic() - begun, 3)

    def test_restarted_server(self) -> None:
        """A server that was killed and is there again has new streams within seconds."""
        tunnel = self.tunnel()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        tunnel.kill_server()
        time.sleep(1)
        tunnel.start_server()
        begun = time.monotonic()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        self.assertLess(time.monotonic() - begun, 3)

    def test_stopped_server(self) -> None:
        """A server that is told to end tells its clients, whose applications are reset at once."""
        tunnel = self.tunnel()
        held = socks_connect(tunnel.socks_port, self.target.echo)
        assert tunnel.server is not None
        tunnel.server.stop()
        held.settimeout(10)
        self.assertRaises(ConnectionResetError, held.recv, 1)
        self.logged(tunnel.client, "ended the session")

    def test_failover(self) -> None:
        """The second server serves when the first is not there."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        tunnel.client_options = [f"--server=tcp:127.0.0.1:{tunnel.server_port}"]
        tunnel.through = free_port()
        tunnel.start_client()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)

    def test_client_before_server(self) -> None:
        """A client listens before there is a server, and serves as soon as there is one."""
        tunnel = self.tunnel(start=False)
        tunnel.start_client()
        with socket.create_connection(("127.0.0.1", tunnel.socks_port), timeout=30) as sock:
            sock.sendall(b"\x05\x01\x00")
            self.assertEqual(sock.recv(2), b"\x05\x00")
            sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
            self.assertNotEqual(sock.recv(10)[1], 0)
        tunnel.start_server()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)

    def test_state_folders(self) -> None:
        """Nothing secret is written anywhere, and no log names a destination or a key."""
        tunnel = self.tunnel()
        self.fetch(tunnel.socks_port)
        assert tunnel.client is not None
        assert tunnel.server is not None
        token = (tunnel.keys / "token").read_text().strip()
        logs = tunnel.client.output + tunnel.server.output
        self.assertNotIn(token, logs)
        self.assertNotIn(f":{self.target.web}", logs)
        for folder in ("server", "client"):
            for file in Path(tunnel.folder / folder).rglob("*"):
                if file.is_file():
                    self.assertNotIn(token.encode(), file.read_bytes())
