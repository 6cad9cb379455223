"""What a service says of itself."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mikanet.counters import Counters
from mikanet.service.reporting import INTERVAL, ReportingService


class ReportingServiceTests(SynchronousTestCase):
    """One line a minute at most."""

    def setUp(self) -> None:
        """A service on clocks that the test moves, and what it logs."""
        self.clock = Clock()
        self.wall = 1_700_000_000.0
        self.counters = Counters()
        self.service = ReportingService(
            self.clock, self.counters, lambda: self.wall + self.clock.seconds(), self.clock.seconds
        )
        self.lines: list[str] = []

        def observer(event: LogEvent) -> None:
            if "log_format" in event:
                self.lines.append(event["log_format"].format(**event))

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def test_quiet_by_default(self) -> None:
        """Ordinary connections are not worth a line."""
        self.counters.add("mika.server.accepted.tcp", 5)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.lines, [])

    def test_refusals(self) -> None:
        """Refusals are summed up once a minute, each time what is new."""
        for amount in (3, 4):
            self.counters.add("mika.server.refused.before_proof", amount)
            self.clock.advance(INTERVAL)
            self.clock.advance(INTERVAL)
        self.assertEqual(
            self.lines,
            [f"in the last minute: mika.server.refused.before_proof {amount}" for amount in (3, 4)],
        )

    def test_clock_jumps(self) -> None:
        """A wall clock that jumps by more than five seconds is told (X8)."""
        self.wall += 4
        self.clock.advance(INTERVAL)
        self.assertEqual(self.lines, [])
        self.wall -= 3600
        self.clock.advance(INTERVAL)
        self.assertEqual(self.lines, ["the wall clock jumped by -3600.0 s"])
