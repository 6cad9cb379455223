"""What a client knows of its server."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.error import NoRouteError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import DestinationError, Reason, ServerError
from mikanet.net.server_state import PATIENCE, ServerState, describe_failure


class StateTests(SynchronousTestCase):
    """:class:`ServerState`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.state = ServerState(self.clock, "tcp:example:1", self.said.append)

    def test_patience(self) -> None:
        """Trouble begins three seconds after the first attempt, with the last cause that was found."""
        self.state.trying()
        self.clock.advance(1)
        self.state.trying()
        self.state.failed(Reason.REFUSED, "refuses connections")
        self.assertIsNone(self.state.trouble)
        self.clock.advance(PATIENCE - 1)
        assert self.state.trouble is not None
        self.assertEqual(str(self.state.trouble), "the tunnel's server refuses connections")
        self.assertEqual(self.state.trouble.reason, Reason.REFUSED)
        self.assertEqual(self.said, ["the server tcp:example:1 refuses connections"])
        self.state.failed(Reason.TIMEOUT, "is silent")
        self.assertEqual(self.state.trouble.reason, Reason.TIMEOUT)

    def test_no_cause(self) -> None:
        """Without a cause it is that nothing came."""
        self.state.trying()
        self.clock.advance(PATIENCE)
        assert self.state.trouble is not None
        self.assertIn("does not answer", str(self.state.trouble))

    def test_in_time(self) -> None:
        """A server that is used in time was never in trouble, and nothing is said."""
        self.state.trying()
        self.state.failed(Reason.REFUSED, "refuses connections")
        self.clock.advance(PATIENCE - 0.1)
        self.state.usable()
        self.clock.advance(60)
        self.assertEqual((self.state.trouble, self.said, self.clock.getDelayedCalls()), (None, [], []))

    def test_waiting(self) -> None:
        """What waits fails with the trouble and is cancelled; later attempts fail at once."""
        cancelled: list[str] = []
        self.state.trying()
        first: Deferred[str] = Deferred(lambda _: cancelled.append("first"))
        waiting = self.state.unless_trouble(first)
        good: Deferred[str] = Deferred()
        done = self.state.unless_trouble(good)
        good.callback("good")
        self.assertEqual(self.successResultOf(done), "good")
        bad: Deferred[str] = Deferred()
        failed = self.state.unless_trouble(bad)
        bad.errback(ValueError())
        self.failureResultOf(failed, ValueError)
        unwanted = self.state.unless_trouble(Deferred(lambda _: cancelled.append("unwanted")))
        unwanted.cancel()
        self.failureResultOf(unwanted, CancelledError)
        self.clock.advance(PATIENCE)
        self.failureResultOf(waiting, ServerError)
        late = self.state.unless_trouble(Deferred(lambda _: cancelled.append("late")))
        self.failureResultOf(late, ServerError)
        self.assertEqual(cancelled, ["unwanted", "first", "late"])

    def test_hopeless(self) -> None:
        """What is certain needs no patience, and its end is said."""
        self.state.trying()
        self.state.hopeless(Reason.FAILURE, "does not know this password")
        self.assertIsNotNone(self.state.trouble)
        self.state.usable()
        self.assertEqual(self.said[1:], ["the server tcp:example:1 can be used again"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_repeating(self) -> None:
        """The same line once a minute, another one at once."""
        self.state.hopeless(Reason.FAILURE, "one")
        for _ in range(59):
            self.clock.advance(1)
            self.state.failed(Reason.FAILURE, "one")
        self.assertEqual(len(self.said), 1)
        self.state.failed(Reason.FAILURE, "two")
        self.assertEqual(len(self.said), 2)
        self.clock.advance(60)
        self.state.failed(Reason.FAILURE, "two")
        self.assertEqual(len(self.said), 3)

    def test_ends(self) -> None:
        """Nothing is left after a stop; what was forgotten begins anew without a word."""
        self.state.trying()
        self.state.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.state.hopeless(Reason.FAILURE, "one")
        self.state.forget()
        self.assertIsNone(self.state.trouble)
        self.state.usable()
        self.assertEqual(len(self.said), 1)

    def test_descriptions(self) -> None:
        """What a failed connection says to the user."""
        for problem, reason, words in (
            (TwistedRefused(), Reason.REFUSED, "refuses connections"),
            (NoRouteError(), Reason.NETWORK_UNREACHABLE, "no way to that network"),
            (DestinationError(Reason.HOST_UNREACHABLE), Reason.HOST_UNREACHABLE, "name has no address"),
            (OSError("odd\n thing."), Reason.FAILURE, "cannot be reached: odd thing"),
        ):
            found, text = describe_failure(Failure(problem))
            self.assertEqual(found, reason)
            self.assertIn(words, text)
            self.assertNotIn("\n", text)
