"""Tests of mikanet.carriers.proxied: the URLs of carriers through proxies, and what goes to the proxy."""

from __future__ import annotations

import dataclasses
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mikanet.carriers.tcp import StreamCarrier
from mikanet.carriers.urls import client_carrier, server_carrier
from mikanet.errors import ConfigError, DestinationError
from mikanet.interfaces import IClientCarrier
from tests.carriers.webs import context
from tests.support.transports import MemoryTransport


class ProxiedTests(SynchronousTestCase):
    """Both kinds of proxy."""

    def setUp(self) -> None:
        """A context with one password."""
        self.reactor: Any = MemoryReactorClock()
        self.context = dataclasses.replace(context(self.reactor), read_password={"file": b"pa:ss"}.__getitem__)

    def open(self, url: str) -> tuple[Any, MemoryTransport]:
        """Open a carrier; what comes of it, and the connection to the proxy."""
        carrier = client_carrier(url, self.context)
        verifyObject(IClientCarrier, carrier)
        opened = carrier.open()
        self.to: tuple[str, int] = self.reactor.tcpClients[-1][:2]
        transport = MemoryTransport()
        transport.connect(self.reactor.tcpClients[-1][2].buildProtocol(None))
        return opened, transport

    def test_socks5(self) -> None:
        """SOCKS5's greeting and request, then packets."""
        opened, transport = self.open("socks5://192.0.2.1/example.com:9000")
        self.assertEqual(self.to, ("192.0.2.1", 1080))
        self.assertEqual(transport.bytes_written, b"\x05\x01\x00")
        transport.receive(b"\x05\x00\x05\x00\x00\x01" + bytes(6))
        self.assertEqual(transport.written[1], b"\x05\x01\x00\x03\x0bexample.com\x23\x28")
        carrier = self.successResultOf(opened)
        self.assertIsInstance(carrier, StreamCarrier)
        carrier.send([b"one"])
        self.assertEqual(transport.written[2], b"\3\0\0\0one")

    def test_socks5_with_password(self) -> None:
        """The user of the URL and the password of the file (RFC 1929)."""
        _, transport = self.open("socks5://me@192.0.2.1:99/198.51.100.1?password-file=file")
        self.assertEqual((self.to[1], transport.bytes_written), (99, b"\x05\x02\x00\x02"))
        transport.receive(b"\x05\x02")
        self.assertEqual(transport.written[1], b"\x01\x02me\x05pa:ss")
        transport.receive(b"\x01\x00")
        self.assertEqual(transport.written[2], b"\x05\x01\x00\x01\xc6\x33\x64\x01\x22\xa1")

    def test_connect(self) -> None:
        """HTTP's CONNECT with Basic authentication, then packets; what comes behind the answer is a packet, too."""
        opened, transport = self.open("connect://me@192.0.2.1/[2001:db8::1]:443?password-file=file")
        self.assertEqual(self.to, ("192.0.2.1", 3128))
        self.assertEqual(
            transport.bytes_written,
            b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
            b"Proxy-Authorization: Basic bWU6cGE6c3M=\r\n\r\n",
        )
        transport.receive(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n\3\0\0\0on")
        self.assertIsInstance(self.successResultOf(opened), StreamCarrier)

    def test_refused(self) -> None:
        """What the proxy says reaches the user."""
        for answer, text in (
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "(407)"),
            (b"HTTP/1.1 503 Busy\r\n\r\n", "the proxy answered 503 Busy"),
            (b"SSH-2.0-x\r\n", "does not speak HTTP"),
        ):
            opened, transport = self.open("connect://192.0.2.1:3128/192.0.2.9:8865")
            transport.receive(answer)
            transport.settle()
            failure = self.failureResultOf(opened, DestinationError)
            self.assertIn(text, str(failure.value))

    def test_mistakes(self) -> None:
        """No destination, a user without a password, a password without a user, unknown options."""
        for url in (
            "socks5://192.0.2.1",
            "socks5://192.0.2.1/host:x",
            "connect://me@192.0.2.1/host:1",
            "connect://192.0.2.1/host:1?password-file=file",
            "connect://192.0.2.1/host:1?x=y",
            "connect://a%3Ab@192.0.2.1/host:1?password-file=file",
            "connect://:3128/host:1",
        ):
            with self.assertRaises(ConfigError):
                client_carrier(url, self.context)
        with self.assertRaises(ConfigError):
            server_carrier("connect://192.0.2.1:3128/x:1", self.context)
