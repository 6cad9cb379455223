"""Endpoint strings: every form, and every mistake in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.endpoints import quote
from mikanet.errors import ConfigError


class EndpointTests(SynchronousTestCase):
    """Strings through Twisted's own functions, which find our plugins."""

    def setUp(self) -> None:
        """A reactor in memory and a password file."""
        self.reactor = MemoryReactorClock()
        self.password = self.file("a password of some length\n")

    def file(self, content: str, mode: int = 0o600) -> str:
        """A file's path."""
        path = Path(self.mktemp())
        path.write_text(content)
        os.chmod(path, mode)
        return str(path.resolve())

    def dialled(self, string: str) -> tuple[Any, ...]:
        """The host and port that connecting the endpoint dials."""
        clientFromString(self.reactor, string).connect(Factory.forProtocol(Protocol))
        return self.reactor.tcpClients[-1][:2]

    def test_host(self) -> None:
        """``host:`` dials an address as it is."""
        self.assertEqual(self.dialled("host:192.0.2.1:80"), ("192.0.2.1", 80))
        self.assertEqual(self.dialled("host:192.0.2.1:80:timeout=5"), ("192.0.2.1", 80))
        self.assertEqual(self.dialled("host:2001\\:db8\\:\\:1:80"), ("2001:db8::1", 80))

    def test_nested(self) -> None:
        """Whatever the outer endpoint's destination is, what is dialled is the innermost server."""
        server = "tcp:192.0.2.9:8388"
        mika = f"mika:example.com:443:server={quote(server)}:password-file={quote(self.password)}"
        self.assertEqual(self.dialled(mika), ("192.0.2.9", 8388))
        through_socks = f"socks5:example.com:443:server={quote(mika)}"
        self.assertEqual(self.dialled(through_socks), ("192.0.2.9", 8388))
        obfuscated = f"obfs-http:{quote(server)}:url=http\\://www.example.com/"
        self.assertEqual(self.dialled(obfuscated), ("192.0.2.9", 8388))
        self.assertEqual(
            self.dialled(f"mika:a:1:server={quote(obfuscated)}:password-file={quote(self.password)}:profile=go"),
            ("192.0.2.9", 8388),
        )

    def test_keys_are_derived_once(self) -> None:
        """The same server and password share one tunnel, so a program pays for the password once."""
        parsed = [
            clientFromString(
                self.reactor, f"mika:{host}:1:server=tcp\\:192.0.2.9\\:1:password-file={quote(self.password)}"
            )
            for host in ("a", "b")
        ]
        self.assertIs(parsed[0]._lower, parsed[1]._lower)

    def test_server(self) -> None:
        """``obfs-http:`` wraps a listening endpoint."""
        serverFromString(self.reactor, "obfs-http:tcp\\:8388").listen(Factory.forProtocol(Protocol))
        self.assertEqual(self.reactor.tcpServers[0][0], 8388)

    def test_mistakes(self) -> None:
        """What is wrong is named in one line."""
        readable = self.file("a password of some length", 0o644)
        weak = self.file("weak")
        for string, naming in (
            ("mika:a:1:server=tcp\\:b\\:1", "password-file"),
            (f"mika:a:0:server=tcp\\:b\\:1:password-file={quote(self.password)}", "'0'"),
            (f"mika:a:1:server=tcp\\:b\\:1:password-file={quote(readable)}", "chmod"),
            (f"mika:a:1:server=tcp\\:b\\:1:password-file={quote(weak)}", "genkey"),
            (f"mika:a:1:server=tcp\\:b\\:1:password-file={quote(weak)}:insecure-ok=maybe", "maybe"),
            (f"mika:a:1:server=tcp\\:b\\:1:password-file={quote(self.password)}:profile=x", "'x'"),
            (f"mika:a:1:server=tcp\\:b\\:1:password-file={quote(self.password)}:colour=red", "'colour'"),
            ("socks5:a:1:server=tcp\\:b\\:1:colour=red", "'colour'"),
            ("socks5:a:1:server=tcp\\:b\\:1:credentials-file=/nonexistent", "/nonexistent"),
            ("obfs-http:tcp\\:b\\:1:url=nonsense", "nonsense"),
            ("host:a:0", "'0'"),
            ("host:a:80:timeout=x", "timeout"),
        ):
            with self.assertRaises(ConfigError, msg=string) as caught:
                clientFromString(self.reactor, string)
            self.assertIn(naming, str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))

    def test_insecure_ok(self) -> None:
        """A weak password is taken when that is asked for."""
        weak = self.file("weak")
        clientFromString(
            self.reactor, f"mika:a:1:server=tcp\\:b\\:1:password-file={quote(weak)}:insecure-ok=yes:profile=go"
        )

    def test_quote(self) -> None:
        """Quoting survives Twisted's parser at every depth."""
        string = "host:192.0.2.1:80"
        for _ in range(4):
            string = f"obfs-http:{quote(string)}"
        self.assertEqual(self.dialled(string), ("192.0.2.1", 80))
