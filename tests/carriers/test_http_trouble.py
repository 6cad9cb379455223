"""Tests of mikanet.carriers.http_trouble: the exact line for everything that keeps a web carrier from opening."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import defer
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from mikanet.carriers.http_asking import HttpStatusError
from mikanet.carriers.http_client import WebPlace
from mikanet.carriers.http_trouble import opening
from mikanet.carriers.urls import CarrierUrl
from mikanet.carriers.websocket import WebSocketClientCarrier
from mikanet.errors import DestinationError, Reason, RemoteProtocolError
from mikanet.interfaces import ICarrier
from tests.carriers.webs import WebTransport, context
from tests.support.tls import Made, TlsServer, make


class Saying:
    """A server that says one thing, whatever it hears."""

    def __init__(self, what: bytes) -> None:
        self._what = what

    def answer(self, data: bytes) -> bytes:
        """That."""
        return self._what if data else b""


class TroubleTests(SynchronousTestCase):
    """What the user reads."""

    def place(self, url: str, trust: Made | None = None) -> WebPlace:
        """Where a URL leads."""
        if trust is not None:
            file = Path(tempfile.mkdtemp(prefix="mikanet-test-")) / "ca.pem"
            file.write_bytes(trust.pem)
            url += f"?ca-file={file}"
        return WebPlace.of(CarrierUrl.parse(url), context(MemoryReactorClock()))

    def said(self, url: str, problem: BaseException) -> str:
        """The line for a problem."""

        async def fail() -> ICarrier:
            raise problem

        return str(self.failureResultOf(opening(self.place(url), MemoryReactorClock(), fail()), DestinationError).value)

    def shaken(self, server: Any, url: str = "wss://127.0.0.1/path", trust: Made | None = None) -> str:
        """The line for a server whose ``answer`` gives what it sends."""
        place = self.place(url, trust)
        reactor = MemoryReactorClock()
        carrier = WebSocketClientCarrier(place, context(reactor), random.Random(1).randbytes)
        outcome = carrier.open()
        if not reactor.tcpClients:
            self.failureResultOf(outcome).raiseException()
        transport = WebTransport("127.0.0.1")
        factory: Any = reactor.tcpClients[0][2]
        transport.connect(factory.buildProtocol(None))
        for _ in range(6):
            data = transport.bytes_written
            transport.written.clear()
            answer = server.answer(data)
            if not transport.gone and answer:
                transport.receive(answer)
        if not transport.gone:
            transport.lose(Failure(ConnectionLost()))
        problem = self.failureResultOf(outcome, DestinationError).value
        self.assertEqual(problem.reason, Reason.FAILURE)
        return str(problem)

    def test_certificates(self) -> None:
        """Self-signed, expired and of another name are told apart."""
        root = make("root", days=(-20, 20))
        made = make("127.0.0.1")
        self.assertEqual(
            self.shaken(TlsServer(made)),
            "its certificate is self-signed: name the right one with ?ca-file=FILE in its URL",
        )
        self.assertEqual(
            self.shaken(TlsServer(made), trust=root),
            "its certificate is self-signed, and is not what ?ca-file=FILE in its URL names",
        )
        expired = make("127.0.0.1", signer=root, days=(-9, -1), ca=False)
        self.assertEqual(
            self.shaken(TlsServer(expired), trust=root),
            "its certificate has expired: renew it at the server, or set the clock here",
        )
        good = make("127.0.0.1", signer=root, ca=False)
        self.assertEqual(self.shaken(TlsServer(good), trust=root), "the connection was closed in the handshake")
        other = make("www.example", signer=root, ca=False)
        self.assertEqual(
            self.shaken(TlsServer(other), trust=root),
            "its certificate is for www.example, not for 127.0.0.1",
        )

    def test_tls_where_there_is_none(self) -> None:
        """``wss`` to a plain port, whatever answers there."""
        for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"):
            self.assertEqual(
                self.shaken(Saying(answer)), "there is no TLS on that port: use ws://, or the port with TLS"
            )

    def test_no_tls_where_there_is_some(self) -> None:
        """``ws`` to a port with TLS: the answer to a request without is an alert."""
        self.assertEqual(
            self.shaken(Saying(b"\x15\x03\x01\x00\x02\x02\x46"), "ws://127.0.0.1/path"),
            "that port speaks TLS: use wss://, or the port without TLS",
        )

    def test_statuses(self) -> None:
        """A WebSocket that a proxy does not pass on, a wrong path, and a body that is too large."""
        for scheme, instead in (("ws", "bosh:// or http://"), ("wss", "boshs:// or https://")):
            self.assertEqual(
                self.said(f"{scheme}://h/p", HttpStatusError(404)),
                "the web server answered 404, and no WebSocket: the path is not right, or a proxy on the way does not pass"
                f" Upgrade on; {instead} need none",
            )
        self.assertEqual(
            self.said("bosh://h/p", HttpStatusError(404)),
            "the web server answered 404: is a tunnel server there, and the path right?",
        )
        self.assertEqual(
            self.said("http://h/p", HttpStatusError(413)),
            "a proxy on the way takes no bodies of this size (it answered 413): raise its limit",
        )

    def test_the_rest(self) -> None:
        """What the network says, what is no HTTP, and a time that is over; the path of a URL, which is secret, is in none."""
        for problem, line in (
            (ConnectionRefusedError(), "connection refused"),
            (defer.TimeoutError(), "timed out"),
            (RemoteProtocolError("not the answer of a tunnel"), "not the answer of a tunnel"),
            (
                ResponseNeverReceived([Failure(HttpStatusError(500))]),
                "the web server answered 500: is a tunnel server there, and the path right?",
            ),
        ):
            self.assertEqual(self.said("http://h/secret-path", problem), line)
