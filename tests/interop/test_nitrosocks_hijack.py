"""NitroSocks when TLS is intercepted: a hijacker with its own certificate between real processes."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import time
from functools import partial

from mikanet.crypto import rsa_oaep
from mikanet.nitrosocks.client_link import ClientLink, ClientLinkConfig
from mikanet.nitrosocks.keys import decrypt_challenge, frame_key
from mikanet.nitrosocks.link import Token
from mikanet.nitrosocks.states import ClientState
from tests.interop.test_mika import BODY, socks_connect
from tests.interop.test_nitrosocks import NitroTestCase
from tests.lab.tunnels import NitroSocksTunnel, write_certificate
from tests.nitrosocks.hijacker import Hijacker
from tests.support.peers import require_program
from tests.support.processes import Process, free_port, wait_for, wait_listening

#: A table of 255 degrees of freedom is above this once in a million times.
CHI_SQUARE = 377


class HijackTests(NitroTestCase):
    """What passes, and what does not show."""

    def hijacked(self, *client_options: str, server_options: tuple[str, ...] = ()) -> tuple[NitroSocksTunnel, Hijacker]:
        """A tunnel with a hijacker in the middle."""
        tunnel = self.tunnel(start=False, server_options=list(server_options))
        tunnel.start_server()
        write_certificate(tunnel.folder / "hijacker.pem", tunnel.folder / "hijacker.crt", "localhost")
        hijacker = Hijacker(tunnel.folder / "hijacker.pem", tunnel.server_port)
        self.addCleanup(hijacker.close)
        tunnel.through = hijacker.port
        tunnel.client_options = list(client_options)
        tunnel.start_client()
        return tunnel, hijacker

    def test_traffic_passes_and_nothing_is_readable(self) -> None:
        """A client that trusts the hijacker is served, and the hijacker reads neither names nor bytes."""
        tunnel, hijacker = self.hijacked("--tls-verify=off")
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        with socks_connect(tunnel.socks_port, self.target.echo) as sock:
            sock.sendall(b"attack at dawn, attack at dawn")
            self.assertEqual(sock.recv(100), b"attack at dawn, attack at dawn")
        seen = b"".join(bytes(each.up + each.down) for each in hijacker.connections)
        self.assertGreater(len(seen), 500_000)
        token = (tunnel.keys / "token").read_bytes().strip()
        for secret in (b"attack at dawn", b"HTTP", b"127.0.0.1", token, BODY[1000:1016], bytes(12)):
            self.assertNotIn(secret, seen)

    def test_mitmproxy(self) -> None:
        """A session passes through mitmproxy, which offers protocols to the server and takes the bytes for raw ones."""
        program = require_program("mitmdump")
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        port = free_port()
        mitmdump = Process(
            [
                *(program, "--mode", f"reverse:tls://127.0.0.1:{tunnel.server_port}", "--listen-host", "127.0.0.1"),
                *("--listen-port", str(port), "--ssl-insecure", "--set", "connection_strategy=eager"),
                *("--set", f"confdir={tunnel.folder / 'mitmproxy'}", "--flow-detail", "0"),
            ]
        )
        self.addCleanup(mitmdump.kill)
        wait_listening(port, 60, process=mitmdump)
        tunnel.through = port
        tunnel.client_options = [f"--tls-verify={tunnel.folder / 'mitmproxy' / 'mitmproxy-ca-cert.pem'}"]
        tunnel.start_client()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)
        assert tunnel.server is not None
        self.assertNotIn("Traceback", tunnel.server.output)

    def test_programs_that_want_http(self) -> None:
        """curl and openssl get through TLS and then silence until the refusal's end; the log has no traceback."""
        tunnel = self.tunnel(start=False)
        tunnel.start_server()
        url = f"https://localhost:{tunnel.server_port}/"
        curl = subprocess.run(
            [require_program("curl"), "-k", "-v", "--noproxy", "*", "--max-time", "20", url],
            capture_output=True,
            check=False,
        )
        self.assertIn(b"SSL connection using TLS", curl.stderr)
        openssl = subprocess.run(
            [
                *(require_program("openssl"), "s_client", "-connect", f"127.0.0.1:{tunnel.server_port}"),
                *("-alpn", "h2,http/1.1", "-servername", "localhost", "-tls1_2"),
            ],
            capture_output=True,
            input=b"",
            check=False,
        )
        self.assertIn(b"No ALPN negotiated", openssl.stdout)
        assert tunnel.server is not None
        self.assertNotIn("Traceback", tunnel.server.output)
        self.assertNotIn("Unhandled", tunnel.server.output)

    def test_honest_certificates_keep_the_hijacker_out(self) -> None:
        """A client that verifies says nothing to a hijacker."""
        tunnel, hijacker = self.hijacked()
        self.logged(tunnel.client, "no session with the server")
        self.assertEqual(b"".join(each.up for each in hijacker.connections), b"")

    def test_binding(self) -> None:
        """With tls-binding at both ends there is no session through a hijacker, and one without."""
        options = "--tls-binding=require"
        tunnel, _ = self.hijacked("--tls-verify=off", options, server_options=(options,))
        self.logged(tunnel.client, "no session with the server", 30)
        assert tunnel.client is not None
        tunnel.client.stop()
        tunnel.through = None
        tunnel.start_client()
        self.assertEqual(self.fetch(tunnel.socks_port), BODY)

    def test_two_thousand_connections(self) -> None:
        """One session over 1,000 connections that the hijacker cuts: every echo is answered, most of them well within a
        second. With 1,000 fresh logins between them no byte at any offset shows itself more often than chance has it."""
        tunnel, hijacker = self.hijacked("--tls-verify=off")
        stalls = []
        login = self.link_config(tunnel)
        with socks_connect(tunnel.socks_port, self.target.echo) as sock:
            sock.settimeout(60)
            carrier = 0
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(0, 2000, 2):
                data = b"%06d" % number + os.urandom(10)
                begun = time.monotonic()
                sock.sendall(data)
                got = b""
                while len(got) < len(data):
                    piece = sock.recv(100)
                    self.assertTrue(piece, f"the stream ended after {number} connections")
                    got += piece
                stalls.append(time.monotonic() - begun)
                self.assertEqual(got, data)
                self.fresh_login(hijacker, login)
                seen = len(hijacker.connections)
                hijacker.connections[carrier].cut()
                wait_for(lambda seen=seen: len(hijacker.connections) > seen)
                carrier = len(hijacker.connections) - 1
        self.assertLess(statistics.median(stalls), 1.0)
        flights = [(bytes(each.up), bytes(each.down)) for each in hijacker.connections]
        tables = 0
        for way in (0, 1):
            for offset in range(min(len(flight[way]) for flight in flights[:2000] if flight[way])):
                counts = [0] * 256
                for flight in flights[:2000]:
                    if flight[way]:
                        counts[flight[way][offset]] += 1
                expected = sum(counts) / 256
                chi = sum((count - expected) ** 2 / expected for count in counts)
                self.assertLess(chi, CHI_SQUARE, (way, offset))
                tables += 1
        self.assertGreaterEqual(len(flights), 2000)
        self.assertGreater(tables, 300)
        print(f"stall: median {statistics.median(stalls) * 1000:.1f} ms, most {max(stalls) * 1000:.0f} ms")

    def link_config(self, tunnel: NitroSocksTunnel) -> ClientLinkConfig:
        """What a client of this tunnel is made of."""
        private = rsa_oaep.load_private((tunnel.keys / "client.key").read_bytes(), "client.key")
        token = Token("", (tunnel.keys / "token").read_bytes().strip())
        return ClientLinkConfig(
            frame_key(private.public_key()), partial(decrypt_challenge, private), token, os.urandom, time.time
        )

    def fresh_login(self, hijacker: Hijacker, config: ClientLinkConfig) -> None:
        """A client that opens a session of its own through the hijacker, releases it, and goes."""
        with self.raw_tls(hijacker.port) as sock:
            link = ClientLink(config, time.monotonic())
            released = False
            while link.state is not ClientState.CLOSED:
                if link.is_open and not released:
                    released = True
                    link.disconnect(time.monotonic())
                output = link.take_output()
                if output:
                    sock.sendall(output)
                data = sock.recv(65536)
                self.assertTrue(data)
                link.receive(data, time.monotonic())
            sock.sendall(link.take_output())
