"""IPv6 addresses in endpoint strings."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.endpoint_strings import BACKLOG, client_from_string, escape_brackets, server_from_string, with_backlog
from mikanet.endpoints import quote
from mikanet.service.options import client_endpoint, server_endpoint


class BracketTests(SynchronousTestCase):
    """``[::1]`` where an address may stand."""

    def test_forms(self) -> None:
        """Addresses in brackets get Twisted's form; everything else stays as it is."""
        for text, expected in (
            ("tcp:[::1]:443", "tcp:\\:\\:1:443"),
            ("tcp:443:interface=[2001:db8::1]", "tcp:443:interface=2001\\:db8\\:\\:1"),
            ("tcp:443:interface=[::]:backlog=5", "tcp:443:interface=\\:\\::backlog=5"),
            ("mika:[::1]:80:server=tcp\\:192.0.2.1\\:1", "mika:\\:\\:1:80:server=tcp\\:192.0.2.1\\:1"),
            ("tcp:example.com:443", "tcp:example.com:443"),
            ("tcp:[:::]:443", "tcp:[:::]:443"),
            ("unix:/tmp/[::1]", "unix:/tmp/[::1]"),
        ):
            self.assertEqual(escape_brackets(text), expected)

    def test_everywhere(self) -> None:
        """Clients and servers take them, plain, in options and inside other strings."""
        reactor: Any = MemoryReactorClock()
        factory = Factory.forProtocol(Protocol)
        inner = "tcp:[2001:db8::1]:443"
        for endpoint in (
            client_from_string(reactor, inner),
            client_endpoint(reactor, "server", inner),
            client_endpoint(reactor, "server", "host:[2001:db8::1]:443"),
            client_from_string(reactor, f"socks5:example.com:80:server={quote(inner)}"),
            client_from_string(reactor, f"connect:example.com:80:server={quote(inner)}"),
        ):
            endpoint.connect(factory)
            self.assertEqual(reactor.tcpClients.pop()[:2], ("2001:db8::1", 443))
        for listening in (
            server_from_string(reactor, "tcp:443:interface=[::1]"),
            server_endpoint(reactor, "listen", "tcp:443:interface=[::1]"),
            server_from_string(reactor, f"obfs-http:{quote('tcp:443:interface=[::1]')}"),
        ):
            listening.listen(factory)
            self.assertEqual(reactor.tcpServers.pop()[3], "::1")


class BacklogTests(SynchronousTestCase):
    """Connections that may wait to be accepted."""

    def test_strings(self) -> None:
        """There are enough where nothing is said; what is said stays, by name or by place."""
        for text, expected in (
            ("tcp:443", "tcp:443:backlog=1024"),
            ("tcp6:443:interface=\\:\\:", "tcp6:443:interface=\\:\\::backlog=1024"),
            ("tcp:443:backlog=5", "tcp:443:backlog=5"),
            ("tcp:443:127.0.0.1:5", "tcp:443:127.0.0.1:5"),
            ("tcp:443:127.0.0.1", "tcp:443:127.0.0.1:backlog=1024"),
            ("ssl:443:privateKey=a\\:b", "ssl:443:privateKey=a\\:b:backlog=1024"),
            ("unix:/run/x", "unix:/run/x:backlog=1024"),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
            ("kcp:4000", "kcp:4000"),
        ):
            self.assertEqual(with_backlog(text), expected)

    def test_listening(self) -> None:
        """Servers and doors listen with it, also inside other strings, and the kernel is told."""
        reactor: Any = MemoryReactorClock()
        factory = Factory.forProtocol(Protocol)
        for text, backlog in (
            ("tcp:443", BACKLOG),
            (f"obfs-http:{quote('tcp:443')}", BACKLOG),
            ("tcp:443:backlog=7", 7),
        ):
            server_endpoint(reactor, "listen", text).listen(factory)
            self.assertEqual(reactor.tcpServers.pop()[2], backlog)

    def test_positions_are_twisteds(self) -> None:
        """Where an endpoint's backlog is given by its place, that is the place that Twisted knows."""
        reactor: Any = MemoryReactorClock()
        server_from_string(reactor, "tcp:443:127.0.0.1:5").listen(Factory.forProtocol(Protocol))
        self.assertEqual(reactor.tcpServers.pop()[2:4], (5, "127.0.0.1"))
