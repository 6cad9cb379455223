"""Pickaxe over HTTP as its user meets it: ``twistd`` processes, curl, a real nginx and a real haproxy in front."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from mikanet.cli.genkey import new_secret
from mikanet.pickaxe.keys import Kdf, Secret
from mikanet.pickaxe.users import format_user
from tests.support.peers import require_program
from tests.support.processes import ROOT, Process, TwistdProcess, free_port, wait_for

HOWTO = (ROOT / "docs" / "howto" / "pickaxe-web.rst").read_text()
PATH = "/t-5h0Qm3vXk9"
BODY = random.Random(11).randbytes(3_000_017)
BIG = 100_000_000


class _Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """``/`` is the body, ``/slow`` a big one at 8 MB/s."""
        if self.path == "/slow":
            self._slowly()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def _slowly(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(BIG))
        self.end_headers()
        started = time.monotonic()
        for number, piece in enumerate(big_body()):
            time.sleep(max(0.0, started + number * len(piece) / 8_000_000 - time.monotonic()))
            self.wfile.write(piece)

    def do_POST(self) -> None:
        """The digest of what was sent."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


def big_body() -> list[bytes]:
    """The pieces of the big body: few, and no two the same."""
    rng = random.Random(5)
    block = rng.randbytes(1_000_000)
    return [number.to_bytes(4, "big") + block[4:] for number in range(BIG // len(block))]


def snippet(language: str) -> str:
    """The configuration in the how-to."""
    blocks = re.findall(rf"\.\. code-block:: {language}\n\n((?:   .*\n|\n)+)", HOWTO)
    return "\n".join(line[3:] for line in max(blocks, key=len).splitlines())


class PickaxeWebTestCase(SynchronousTestCase):
    """A web server at the far end, a Pickaxe server with a site, and whatever stands between."""

    def setUp(self) -> None:
        """Start the far end; make the user."""
        folder = tempfile.TemporaryDirectory(prefix="mikanet-pickaxe-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        web = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
        self.addCleanup(web.server_close)
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(web.shutdown)
        self.target = f"http://127.0.0.1:{web.server_address[1]}"
        self.password = self.folder / "password"
        self.password.touch(mode=0o600)
        secret = new_secret()
        self.password.write_text(secret)
        self.users = self.folder / "users"
        self.users.touch(mode=0o600)
        self.users.write_text(format_user("alice", Secret.of_password(Kdf.MIKANET, "alice", secret.encode())) + "\n")

    def server(self, *carriers: str, decoy: str = "") -> TwistdProcess:
        """A Pickaxe server; ``{port}`` was filled in by the caller."""
        words = [word for carrier in carriers for word in ("--carrier", carrier)]
        words += ["--users", str(self.users), "--allow-egress", "127.0.0.0/8", "--drain-time", "0"]
        words += ["--state-dir", str(self.folder / f"server-{free_port()}"), *(("--decoy", decoy) if decoy else ())]
        ports = [int(found) for carrier in carriers for found in re.findall(r"://[^/]*:(\d+)", carrier)]
        process = TwistdProcess(["pickaxe-server", *words], ports=ports)
        self.addCleanup(process.stop, 3.0)
        return process

    def client(self, *carriers: str) -> int:
        """A Pickaxe client; its SOCKS5 port."""
        port = free_port()
        words = [word for carrier in carriers for word in ("--carrier", carrier)]
        words += ["--user", "alice", "--password-file", str(self.password), "--drain-time", "0"]
        words += ["--socks", f"tcp:{port}:interface=127.0.0.1", "--state-dir", str(self.folder / f"client-{port}")]
        self.client_process = TwistdProcess(["pickaxe-client", *words], ports=[port])
        self.addCleanup(self.client_process.stop, 3.0)
        return port

    def curl(self, socks: int, *options: str, timeout: int = 40) -> bytes:
        """What curl gets through the tunnel."""
        command = [require_program("curl"), "-sS", "--fail", "--noproxy", "", "--max-time", str(timeout)]
        command += ["--retry", "2", "--socks5-hostname", f"127.0.0.1:{socks}", *options]
        done = subprocess.run(command, capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr.decode() + self.client_process.output)
        return done.stdout

    def up_and_down(self, url: str) -> None:
        """A body each way through one carrier."""
        socks = self.client(url)
        self.assertEqual(hashlib.sha256(self.curl(socks, self.target)).digest(), hashlib.sha256(BODY).digest())
        file = self.folder / "body"
        file.write_bytes(BODY)
        answer = self.curl(socks, "-H", "Expect:", "--data-binary", f"@{file}", self.target)
        self.assertEqual(answer.decode(), hashlib.sha256(BODY).hexdigest(), url)
        self.client_process.stop(3.0)

    def nginx(self, inner: int) -> int:
        """nginx as the how-to has it, in front of a port."""
        outer = free_port()
        www = self.folder / "www"
        www.mkdir(exist_ok=True)
        http = snippet("nginx").replace("127.0.0.1:8080", f"127.0.0.1:{inner}")
        http = http.replace("listen 80;", f"listen 127.0.0.1:{outer};").replace("/srv/www", str(www))
        temporary = "".join(
            f"{name}_temp_path {self.folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = self.folder / f"nginx-{outer}.conf"
        config.write_text(
            f"daemon off; master_process off; pid {self.folder}/nginx-{outer}.pid; error_log {self.folder}/nginx.log;\n"
            f"events {{}}\nhttp {{ access_log off; server_tokens off; {temporary}\n{http}\n}}\n"
        )
        process = Process(
            [require_program("nginx"), "-c", str(config), "-p", str(self.folder), "-e", f"{self.folder}/nginx.log"],
            ports=[outer],
        )
        self.addCleanup(process.stop, 3.0)
        return outer

    def haproxy(self, inner: int) -> int:
        """haproxy as the how-to has it, in front of a port."""
        outer = free_port()
        config = self.folder / f"haproxy-{outer}.cfg"
        text = snippet("text").replace("127.0.0.1:8080", f"127.0.0.1:{inner}")
        config.write_text(text.replace("bind :80", f"bind 127.0.0.1:{outer}") + "\n")
        process = Process([require_program("haproxy"), "-db", "-f", str(config)], ports=[outer])
        self.addCleanup(process.stop, 3.0)
        return outer


class CarrierTests(PickaxeWebTestCase):
    """Each carrier, up and down."""

    def test_direct(self) -> None:
        """All three carriers at one path of one port."""
        port = free_port()
        self.server(f"http://127.0.0.1:{port}{PATH}")
        for scheme in ("ws", "bosh", "http"):
            self.up_and_down(f"{scheme}://127.0.0.1:{port}{PATH}")

    def test_behind_nginx(self) -> None:
        """The same behind a real nginx, configured as the how-to says."""
        port = free_port()
        self.server(f"http://127.0.0.1:{port}{PATH}?proxied=yes")
        outer = self.nginx(port)
        for scheme in ("ws", "bosh", "http"):
            self.up_and_down(f"{scheme}://127.0.0.1:{outer}{PATH}")

    def test_a_server_that_was_started_anew(self) -> None:
        """kill -9, two seconds, and a new start: by each carrier there is a session within three seconds of that."""
        for scheme in ("ws", "bosh", "http", "tcp"):
            port = free_port()
            url = f"{'tcp' if scheme == 'tcp' else 'http'}://127.0.0.1:{port}{'' if scheme == 'tcp' else PATH}"
            server = self.server(url)
            socks = self.client(url.replace("http", scheme))
            self.curl(socks, self.target)
            server.kill()
            time.sleep(2.0)
            self.server(url)  # listens when this returns
            began = time.monotonic()
            wait_for(lambda: "the session is over" in self.client_process.output, 10.0, f"{scheme}: a new session")
            took = time.monotonic() - began
            self.assertLess(took, 3.0, scheme)
            print(f"{scheme} {took:.1f} s", end=" ")
            self.curl(socks, self.target)
            self.client_process.stop(3.0)

    def test_behind_haproxy(self) -> None:
        """The same behind a real haproxy."""
        port = free_port()
        self.server(f"http://127.0.0.1:{port}{PATH}?proxied=yes")
        outer = self.haproxy(port)
        for scheme in ("ws", "bosh", "http"):
            self.up_and_down(f"{scheme}://127.0.0.1:{outer}{PATH}")

    def test_behind_nginx_as_it_comes(self) -> None:
        """BOSH and plain HTTP need nothing of nginx but to pass requests on: HTTP/1.0, buffering, no keep-alive."""
        port = free_port()
        self.server(f"http://127.0.0.1:{port}{PATH}?proxied=yes")
        plain = re.sub(r"proxy_(?!pass)[^;]*;|keepalive 64;", "", snippet("nginx"))
        self.assertNotIn("http_version", plain)
        self.patch(sys.modules[__name__], "snippet", lambda _: plain)
        outer = self.nginx(port)
        for scheme in ("bosh", "http"):
            self.up_and_down(f"{scheme}://127.0.0.1:{outer}{PATH}")

    def test_behind_an_nginx_that_takes_small_bodies(self) -> None:
        """With a limit of 20,000 bytes nginx answers 413: smaller bodies go through, and the user reads so."""
        port = free_port()
        self.server(f"http://127.0.0.1:{port}{PATH}?proxied=yes")
        small = re.sub(r"client_max_body_size [^;]*;", "", snippet("nginx"))
        small = small.replace("server {", "server { client_max_body_size 20000;", 1)
        self.assertIn("20000", small)
        self.patch(sys.modules[__name__], "snippet", lambda _: small)
        outer = self.nginx(port)
        for scheme in ("bosh", "http"):
            self.up_and_down(f"{scheme}://127.0.0.1:{outer}{PATH}")
            self.assertIn("(it answered 413): 16384 at most from now on", self.client_process.output)

    def test_tls(self) -> None:
        """All three over TLS, with a certificate of one's own; two that do not fit are refused in plain words."""
        port = free_port()
        chain, key = self._certificate("localhost")
        other, _ = self._certificate("localhost")
        self.server(f"https://127.0.0.1:{port}{PATH}?certificate={chain}&key={key}")
        for scheme in ("wss", "boshs", "https"):
            self.up_and_down(f"{scheme}://localhost:{port}{PATH}?ca-file={chain}")
            for host, roots, words in (
                ("localhost", other, "is self-signed, and is not what"),
                ("127.0.0.1", chain, "for localhost, not for 127.0.0.1"),
            ):
                self.client(f"{scheme}://{host}:{port}{PATH}?ca-file={roots}")
                wait_for(lambda words=words: words in self.client_process.output, what=f"{scheme} {host} refused")  # type: ignore[misc]
                self.client_process.stop(3.0)

    def _certificate(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
            .add_extension(x509.BasicConstraints(True, None), True)
            .sign(key, hashes.SHA256())
        )
        files = self.folder / f"chain-{free_port()}.pem", self.folder / f"key-{free_port()}.pem"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].touch(mode=0o600)
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def test_knock(self) -> None:
        """With a key at the server all carriers need it; without it there is a 404."""
        port = free_port()
        key = self.folder / "web.key"
        key.touch(mode=0o600)
        key.write_text(new_secret())
        self.server(f"http://127.0.0.1:{port}{PATH}?key-file={key}")
        for scheme in ("ws", "bosh", "http"):
            self.up_and_down(f"{scheme}://127.0.0.1:{port}{PATH}?key-file={key}")
            self.client(f"{scheme}://127.0.0.1:{port}{PATH}")
            wait_for(lambda: "answered 404" in self.client_process.output, what=scheme)
            self.client_process.stop(3.0)

    def test_wrong_path(self) -> None:
        """A wrong path is told as that."""
        port = free_port()
        self.server(f"http://127.0.0.1:{port}{PATH}")
        for scheme in ("ws", "bosh", "http"):
            self.client(f"{scheme}://127.0.0.1:{port}/other")
            wait_for(lambda: "answered 404" in self.client_process.output, what=scheme)
            self.client_process.stop(3.0)


class RoamingTests(PickaxeWebTestCase):
    """Sessions that outlive their carriers."""

    def relay(self, inner: int, outer: int, scenario: str = "") -> Process:
        """A relay in front of a port."""
        command = [sys.executable, "-m", "tests.lab", "wire", scenario, "--tcp", f"{outer}=127.0.0.1:{inner}"]
        process = Process(command, ports=[outer])
        self.addCleanup(process.stop, 3.0)
        return process

    def _download(self, socks: int) -> tuple[bool, float]:
        """The big body, slowly; whether it was right, and the longest stall in seconds."""
        with socket.create_connection(("127.0.0.1", socks)) as sock:
            sock.settimeout(40)
            port = int(self.target.rpartition(":")[2])
            sock.sendall(b"\5\1\0\5\1\0\1\x7f\0\0\1" + port.to_bytes(2, "big"))
            head = b""
            while len(head) < 12:
                head += sock.recv(12 - len(head))
            self.assertEqual(head[3], 0, head)
            sock.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            data = bytearray()
            while b"\r\n\r\n" not in data:
                data += sock.recv(65536)
            del data[: data.index(b"\r\n\r\n") + 4]
            digest = hashlib.sha256(data)
            size, longest, last = len(data), 0.0, time.monotonic()
            while size < BIG:
                piece = sock.recv(262_144)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                if not piece:
                    break
                digest.update(piece)
                size += len(piece)
        return digest.digest() == hashlib.sha256(b"".join(big_body())).digest(), longest

    def _killed_every_two_seconds(self, scheme: str) -> None:
        inner, outer = free_port(), free_port()
        self.server(f"http://127.0.0.1:{inner}{PATH}")
        # Every connection is reset when it is 2 s old.
        self.relay(inner, outer, "cut-at=2s cut=reset")
        right, longest = self._download(self.client(f"{scheme}://127.0.0.1:{outer}{PATH}"))
        self.assertTrue(right)
        self.assertLess(longest, 3.0)

    def test_websocket_killed_every_two_seconds(self) -> None:
        """A 100 MB download over WebSocket connections that are reset every 2 s is right and never stalls for 3 s."""
        self._killed_every_two_seconds("ws")

    def test_bosh_killed_every_two_seconds(self) -> None:
        """The same over BOSH."""
        self._killed_every_two_seconds("bosh")

    def test_http_killed_every_two_seconds(self) -> None:
        """The same over plain HTTP."""
        self._killed_every_two_seconds("http")

    def test_from_websocket_to_bosh_to_http(self) -> None:
        """A download that begins over WebSocket ends over plain HTTP: each carrier's path is closed in turn."""
        inner = free_port()
        self.server(f"http://127.0.0.1:{inner}{PATH}")
        outers = [free_port() for _ in range(3)]
        relays = [self.relay(inner, outer) for outer in outers]
        schemes = ("ws", "bosh", "http")
        urls = [f"{scheme}://127.0.0.1:{outer}{PATH}" for scheme, outer in zip(schemes, outers, strict=True)]
        socks = self.client(*urls)
        killers = [threading.Timer(seconds, relay.kill) for seconds, relay in zip((3.0, 6.0), relays, strict=False)]
        for killer in killers:
            killer.start()
        right, longest = self._download(socks)
        for killer in killers:
            killer.join()
        self.assertTrue(right)
        self.assertLess(longest, 3.0)


class OrdinaryTests(PickaxeWebTestCase):
    """What a stranger sees, beside a real nginx."""

    def test_answers_are_nginx_s(self) -> None:
        """Files, folders, and what is not there or not allowed: the same bytes as from nginx, for every path."""
        www = self.folder / "www"
        (www / "sub").mkdir(parents=True)
        (www / "index.html").write_text("hello")
        (www / "sub" / "page.html").write_text("page")
        config = self.folder / "plain.conf"
        ours, theirs = free_port(), free_port()
        config.write_text(
            f"daemon off; master_process off; pid {self.folder}/plain.pid; error_log {self.folder}/plain.log;\n"
            "events {}\nhttp { access_log off; server_tokens off; types { text/html html; }\n"
            f"client_body_temp_path {self.folder}/plain-body;"
            f"server {{ listen 127.0.0.1:{theirs}; root {www}; }} }}\n"
        )
        command = [require_program("nginx"), "-c", str(config), "-p", str(self.folder), "-e", f"{self.folder}/e"]
        process = Process(command, ports=[theirs])
        self.addCleanup(process.stop, 3.0)
        self.server(f"http://127.0.0.1:{ours}{PATH}", decoy=str(www))
        for line in (
            *(f"GET {path}" for path in ("/", "/index.html", "/sub", "/sub/", "/sub/page.html", "/none", PATH, "/..")),
            *(
                f"GET {target}"
                for target in ("/%00", "/%zz", "/?%00", "//sub/./page.html", "/sub%2f..%2findex.html", "x")
            ),
            *(f"GET {target}" for target in ("http://host", "http://host/index.html?x", "http:///x", "/sub/../..")),
            *(f"{method} {PATH}" for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS")),
            *(f"{method} /index.html" for method in ("HEAD", "POST", "PUT")),
        ):
            answers = [self._raw(port, line) for port in (ours, theirs)]
            self.assertEqual(answers[0], answers[1], line)

    @staticmethod
    def _raw(port: int, line: str) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(
                f"{line} HTTP/1.1\r\nHost: {ipaddress.ip_address(0x7F000001)}\r\nContent-Length: 0\r\n\r\n".encode()
            )
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(65536)
            length = re.search(rb"Content-Length: (\d+)", data)
            missing = 0 if line.startswith("HEAD") or length is None else int(length[1])
            while len(data.partition(b"\r\n\r\n")[2]) < missing:
                data += sock.recv(65536)
        return re.sub(rb"Date: [^\r]*|:%d" % port, b"", data)
