"""A Mika client that finds out whether its server lets it in, in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import Address
from mikanet.errors import Reason, ServerError
from mikanet.mika.client import MikaTunnel
from mikanet.mika.session import Profile
from tests.filters.contract import Upper
from tests.mika.test_client import TARGET, config, server
from tests.support.transports import DONE, LOST, MemoryTransport


class KcpTransport(MemoryTransport):
    """One whose peer's reset does not arrive."""

    silent_half_close = True

    def __init__(self, proven: bool) -> None:
        super().__init__()
        self.proven = proven


class Server:
    """An endpoint whose connections are in memory.

    :ivar failing: what connecting fails with. :ivar black: whether it never comes to an end.
    """

    def __init__(self) -> None:
        self.transports: list[MemoryTransport] = []
        self.make: Callable[[], MemoryTransport] = MemoryTransport
        self.failing: Exception | None = None
        self.black = False
        self.cancelled = 0

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect, or fail."""
        if self.black:
            return Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1))
        if self.failing is not None:
            return fail(self.failing)
        transport = self.make()
        self.transports.append(transport)
        return succeed(transport.connect(factory.buildProtocol(None)))


class HealthTests(SynchronousTestCase):
    """What applications and the user are told, and when."""

    profile = Profile.SPEC

    def setUp(self) -> None:
        """A tunnel to a server in memory."""
        self.clock = Clock()
        self.server = Server()
        self.said: list[str] = []
        self.tunnel = MikaTunnel(self.clock, self.server, config(self.profile), "tcp:example:1", self.said.append)

    def connect(self) -> Deferred[Any]:
        """A connection through the tunnel."""
        return self.tunnel.stream_endpoint(TARGET).connect(Factory.forProtocol(Upper))

    def asked(self) -> list[Address]:
        """Where the connections that the server has seen go to."""
        found = []
        for transport in self.server.transports:
            end = server(self.profile)
            end.receive(transport.bytes_written)
            assert end.header is not None
            found.append(end.header.destination)
        return found

    def settle(self) -> None:
        """Let aborted connections end."""
        for transport in self.server.transports:
            transport.settle()

    def test_wrong_password(self) -> None:
        """Ten seconds after the first connection it is over: the log and the doors say what to check, nobody waits."""
        upper = self.successResultOf(self.connect())
        self.clock.advance(5)
        self.assertEqual(self.asked(), [TARGET, Address("::1", 1)])
        self.clock.advance(4.9)
        self.assertEqual(self.said, [])
        self.clock.advance(0.2)
        self.settle()
        self.assertEqual(len(self.said), 1)
        self.assertIn("password", self.said[0])
        self.assertIn("clocks", self.said[0])
        self.assertTrue(self.server.transports[0].aborted)
        self.assertEqual(len(upper.lost), 1)
        failure = self.failureResultOf(self.connect(), ServerError)
        self.assertIn("the tunnel's server accepts connections and answers nothing", str(failure.value))

    def test_a_link_without_reset(self) -> None:
        """Over KCP nothing can be asked: doors stay open however long a target is silent, and the log says what to check."""
        for proven in (True, False):
            self.setUp()
            self.server.make = lambda proven=proven: KcpTransport(proven)
            self.tunnel.health.start()
            upper = self.successResultOf(self.connect())
            self.clock.advance(4)
            self.assertEqual(self.said, [])
            self.clock.pump([1.5] * 10)
            self.assertEqual((len(self.said), upper.lost), (proven, []))
            self.assertTrue(all("password" in text for text in self.said))
            for _ in range(30):
                self.successResultOf(self.connect())
                self.clock.advance(1)
            self.assertEqual(len(self.said), proven)
            probe = self.server.transports.pop(0)
            self.assertEqual((probe.bytes_written, probe.aborted), (b"", True))
            self.assertNotIn(Address("::1", 1), self.asked())
            self.tunnel.health.stop()

    def test_a_link_without_reset_that_works(self) -> None:
        """Over KCP nothing is said of a silent target when others have answered within the last minute."""
        self.server.make = lambda: KcpTransport(True)
        self.connect()
        end = server(self.profile)
        end.receive(self.server.transports[0].bytes_written)
        self.server.transports[0].receive(end.send(b"x"))
        self.connect()
        self.clock.pump([1.0] * 30)
        self.assertEqual(self.said, [])

    def test_asking_again(self) -> None:
        """Every five seconds, as long as somebody wants a connection; when the server lets us in all is well at once."""
        self.connect()
        self.clock.advance(5)
        self.clock.advance(5)
        for number in range(3, 6):
            self.failureResultOf(self.connect(), ServerError)
            self.clock.advance(5)  # until the next question
            self.assertEqual(len(self.server.transports), number)
            self.clock.advance(5)
        self.clock.advance(5)
        self.server.transports[-1].lose(LOST)
        self.assertIn("can be used again", self.said[-1])
        self.successResultOf(self.connect())

    def test_nobody_asks(self) -> None:
        """After a minute without anybody nothing is sent any more; the next connection finds out at once."""
        self.connect()
        for _ in range(40):
            self.clock.advance(5)
        count = len(self.server.transports)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.connect())
        self.assertEqual(len(self.server.transports), count + 2)
        self.assertEqual(self.asked()[-1], Address("::1", 1))
        self.clock.advance(5)
        self.failureResultOf(self.connect(), ServerError)

    def test_slow_target(self) -> None:
        """A server that resets our question knows us: the connection waits for as long as its target takes."""
        upper = self.successResultOf(self.connect())
        self.clock.advance(5)
        self.server.transports[1].lose(LOST)
        self.clock.advance(600)
        self.assertEqual((self.said, upper.lost), ([], []))
        self.assertFalse(self.server.transports[0].aborted)
        self.assertEqual(len(self.server.transports), 2)

    def test_answering(self) -> None:
        """A connection that has had a byte, or has ended, is no reason to ask."""
        self.connect()
        self.server.transports[0].receive(b"x")
        self.connect()
        self.server.transports[1].lose(LOST)
        self.clock.advance(600)
        self.assertEqual(len(self.server.transports), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_after_an_earlier_success(self) -> None:
        """A clock that has gone wrong since is found as well."""
        self.connect()
        self.server.transports[0].receive(b"x")
        self.connect()
        self.clock.advance(5)
        self.clock.advance(5)
        self.failureResultOf(self.connect(), ServerError)

    def test_closing_server(self) -> None:
        """A server that closes our question in order is full, or is none, or is behind a relay without resets: that is said.

        Nobody is refused for it, as the server behind such a relay works, and one that closes lets nobody wait.
        """
        waiting = self.connect()
        self.clock.advance(5)
        self.server.transports[1].lose(DONE)
        self.assertIn("closes connections at once: if none works", self.said[0])
        self.successResultOf(waiting)
        self.successResultOf(self.connect())
        self.assertFalse(self.server.transports[0].aborted)
        self.assertEqual(len(self.said), 1)

    def test_refusing_server(self) -> None:
        """Who is refused hears at once that it is the server; after three seconds nobody tries any more, but we do."""
        self.server.failing = TwistedRefused()
        failure = self.failureResultOf(self.connect(), ServerError)
        self.assertEqual(failure.value.reason, Reason.REFUSED)
        self.assertIn("the tunnel's server refuses connections", str(failure.value))
        self.clock.advance(3)
        self.assertEqual(len(self.said), 1)
        self.assertIn("tcp:example:1 refuses connections", self.said[0])
        self.server.failing = None
        self.clock.advance(2)
        self.server.transports[0].lose(LOST)
        self.assertIn("can be used again", self.said[-1])
        self.successResultOf(self.connect())

    def test_black_hole(self) -> None:
        """Three seconds after the first attempt everybody who waits is told, and nobody else begins to wait."""
        self.server.black = True
        waiting = [self.connect(), self.connect()]
        self.clock.advance(2.9)
        for each in waiting:
            self.assertNoResult(each)
        self.clock.advance(0.2)
        for each in waiting:
            self.assertEqual(self.failureResultOf(each, ServerError).value.reason, Reason.TIMEOUT)
        self.assertEqual(self.server.cancelled, 2)
        self.failureResultOf(self.connect(), ServerError)
        self.assertEqual(len(self.said), 1)

    def test_the_same_is_not_said_again(self) -> None:
        """Once a minute at the most."""
        self.server.failing = ConnectError(string="no way")
        for _ in range(11):
            self.failureResultOf(self.connect(), ServerError)
            self.clock.advance(5)
        self.assertEqual(len(self.said), 1)
        self.failureResultOf(self.connect(), ServerError)
        self.clock.advance(10)
        self.assertEqual(len(self.said), 2)
        self.assertIn("no way", self.said[0])

    def test_an_outage_in_which_connections_hang(self) -> None:
        """After a good start: doors refuse from the third second on, we ask, and all is well again when the server is."""
        self.tunnel.health.start()
        self.server.transports[0].lose(LOST)
        self.server.black = True
        waiting = self.connect()
        self.clock.advance(3)
        self.failureResultOf(waiting, ServerError)
        self.server.black = False
        self.failureResultOf(self.connect(), ServerError)
        self.clock.advance(5)
        self.server.transports[-1].lose(LOST)
        self.successResultOf(self.connect())
        self.assertIn("can be used again", self.said[-1])

    def test_a_draining_server(self) -> None:
        """A server that takes nobody new and lets what is open end: an upload without an answer so far goes on."""
        upper = self.successResultOf(self.connect())
        self.clock.advance(5)
        self.server.transports[1].lose(LOST)
        self.server.failing = TwistedRefused()
        self.failureResultOf(self.connect(), ServerError)
        for _ in range(6):
            self.clock.advance(5)
        self.assertIsNotNone(self.tunnel.health.state.trouble)
        self.assertFalse(self.server.transports[0].aborted)
        self.assertEqual(upper.lost, [])

    def test_start_and_stop(self) -> None:
        """A program asks when it starts; when it stops nothing is left."""
        for outcome in ("lets us in", "silent", "black"):
            self.setUp()
            self.server.black = outcome == "black"
            self.tunnel.health.start()
            if outcome == "lets us in":
                self.assertEqual(self.asked(), [Address("::1", 1)])
                self.server.transports[0].lose(LOST)
            self.clock.advance(7)
            self.tunnel.health.stop()
            self.assertEqual(self.clock.getDelayedCalls(), [], outcome)


class GoTests(SynchronousTestCase):
    """The original program ends a refused target as it ends a wrong password, so nothing can be found out."""

    def test_silence(self) -> None:
        """No question is asked, and a silent connection waits; what the silence may mean is said, once."""
        clock, there, said = Clock(), Server(), list[str]()
        tunnel = MikaTunnel(clock, there, config(Profile.GO), "s", said.append)
        tunnel.stream_endpoint(TARGET).connect(Factory.forProtocol(Upper))
        clock.advance(5)
        self.assertIn("check that the password, --method and --profile", "".join(said))
        clock.advance(600)
        self.assertEqual(len(there.transports), 1)
        self.assertEqual(len(said), 1)
