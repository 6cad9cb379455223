"""Failed authentications in the log, and the filter of fail2ban that reads them."""

from __future__ import annotations

import configparser
import io
import re
import time
from pathlib import Path

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import (
    LogPublisher,
    textFileLogObserver,
)
from twisted.trial.unittest import SynchronousTestCase

from mikanet.counters import Counters
from mikanet.guard import failures
from mikanet.guard.admission import AdmissionLimits
from mikanet.guard.failures import LINES, LINES_PER_ADDRESS, FailureLog
from mikanet.service.console import ConsoleObserver
from tests.guard.test_server import GateFactory
from tests.support.transports import MemoryTransport

CONF = Path(__file__).parents[2] / "docs" / "howto" / "fail2ban-mikanet.conf"


class DatagramTransport(MemoryTransport):
    """A stream over UDP, as KCP's."""

    def getPeer(self) -> IPv4Address:
        """Whatever somebody wrote there."""
        return IPv4Address("UDP", "192.0.2.1", 5)


class FailureLogTests(SynchronousTestCase):
    """Lines, and how many."""

    def setUp(self) -> None:
        """A log that keeps its lines."""
        self.clock = Clock()
        self.lines: list[str] = []
        self.log = FailureLog(self.clock, "mika", self.lines.append)

    def test_line(self) -> None:
        """The address as everybody writes it; what is none gets no line."""
        for host in ("192.0.2.1", "2001:DB8::0:1", "::ffff:192.0.2.2", "", "/run/socket", "host.example\nx"):
            self.log.note(host)
        self.assertEqual(
            self.lines,
            [f"authentication failed from {shown} (mika)" for shown in ("192.0.2.1", "2001:db8::1", "192.0.2.2")],
        )

    def test_bounds(self) -> None:
        """A flood costs so many lines in a minute, one address few of them, and one line for the rest."""
        for _ in range(1000):
            self.log.note("192.0.2.1")
        self.assertEqual(len(self.lines), LINES_PER_ADDRESS)
        for number in range(2000):
            self.log.note(f"2001:db8::{number:x}")
        self.assertEqual(len(self.lines), LINES)
        self.clock.advance(60.0)
        self.assertEqual(self.lines[LINES:], ["2940 more authentications failed in a minute (mika)"])
        self.clock.advance(600.0)
        self.assertEqual(len(self.lines), LINES + 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.log.note("192.0.2.1")
        self.assertEqual(self.lines[-1], "authentication failed from 192.0.2.1 (mika)")

    def test_memory(self) -> None:
        """What is remembered of a million addresses is no more than what had lines."""
        for number in range(100_000):
            self.log.note(f"2001:db8::{number:x}")
        self.assertEqual(len(self.log._lines), LINES)


class GuardTests(SynchronousTestCase):
    """Who is named."""

    def setUp(self) -> None:
        """A server whose failures are kept."""
        self.clock = Clock()
        self.factory = GateFactory(self.clock, AdmissionLimits(), 60.0, Counters())
        self.lines: list[str] = []
        self.factory.failures = FailureLog(self.clock, "gate", self.lines.append)

    def connect(self, transport: MemoryTransport) -> MemoryTransport:
        """A connection."""
        transport.connect(self.factory.buildProtocol(transport.getPeer()))
        return transport

    def test_wrong_words_are_failures(self) -> None:
        """One line for a connection, however much it goes on."""
        transport = self.connect(MemoryTransport("192.0.2.1"))
        transport.receive(b"wrong")
        transport.receive(b"wrong")
        self.assertEqual(self.lines, ["authentication failed from 192.0.2.1 (gate)"])

    def test_silence_and_proof_are_none(self) -> None:
        """Who says nothing, leaves, or proves itself first has no line; nor has who comes over a limit."""
        self.connect(MemoryTransport("192.0.2.1"))
        self.connect(MemoryTransport("192.0.2.2")).lose()
        proved = self.connect(MemoryTransport("192.0.2.3"))
        proved.receive(b"secret")
        proved.receive(b"wrong")
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "192.0.2.4", 1))
        MemoryTransport("192.0.2.4").connect(protocol)
        protocol.guard.refuse("limit.rate")  # type: ignore[union-attr]  # the gate's
        self.clock.advance(100.0)
        self.assertEqual(self.lines, [])

    def test_datagrams_name_nobody(self) -> None:
        """The source of a datagram may be anybody's, who would then be banned."""
        self.connect(DatagramTransport("192.0.2.1")).receive(b"wrong")
        self.assertEqual(self.lines, [])


class Fail2banTests(SynchronousTestCase):
    """The files that we give to operators, and the lines that programs write."""

    def expressions(self) -> list[re.Pattern[str]]:
        """Those of the filter, with a host in place of fail2ban's own word for one."""
        parser = configparser.RawConfigParser()
        text = CONF.read_text()
        parser.read_string(text[text.index("[Definition]") :].partition("# jail.d")[0])
        host = r"(?P<host>[0-9a-fA-F.:]+)"
        found = parser["Definition"]["failregex"].strip().splitlines()
        return [re.compile(each.strip().replace("<HOST>", host)) for each in found]

    def matches(self, line: str) -> str | None:
        """The address that the filter finds in a line, without its time, which fail2ban takes away first."""
        rest = re.sub(r"^\S*\d\d:\d\d:\d\d\S*", "", line.rstrip("\n"))
        for expression in self.expressions():
            if (found := expression.search(rest)) is not None:
                return found["host"]
        return None

    def logged(self, host: str, system: str) -> list[str]:
        """What the programs write: on a terminal, without one, and as twistd's log file."""
        terminal, pipe, file = io.StringIO(), io.StringIO(), io.StringIO()
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        publisher = LogPublisher(
            ConsoleObserver(terminal, time.gmtime), ConsoleObserver(pipe, time.gmtime), textFileLogObserver(file)
        )
        self.patch(failures._log, "observer", publisher)
        FailureLog(Clock(), system).note(host)
        return [terminal.getvalue(), pipe.getvalue(), file.getvalue()]

    def test_real_lines(self) -> None:
        """Every system's line, in every form, for both families of addresses."""
        for system in ("mika", "pickaxe", "nitrosocks", "megaki"):
            for host in ("192.0.2.1", "2001:db8::1"):
                lines = self.logged(host, system)
                # As fail2ban has it of the journal: its own time, the machine, the program, and what that wrote.
                lines.append(f"2026-01-01T00:00:00.000000 server {system}-server[812]: {lines[1]}")
                for line in lines:
                    self.assertEqual(self.matches(line), host, line)

    def test_other_lines(self) -> None:
        """Nothing that a peer or a worker can have us log is taken for a failure of somebody else."""
        for text in (
            "worker 3 says: authentication failed from 192.0.2.9 (megaki)",
            "authentication failed from 192.0.2.9 (mika) not",
            "2940 more authentications failed in a minute (mika)",
            "b[1]: authentication failed from 192.0.2.9 (mika)",
            "worker 3 wrote: 2026-01-01T00:00:00+0000 info authentication failed from 192.0.2.9 (mika)",
            "[x] authentication failed from 192.0.2.9 (nobody)",
        ):
            self.assertIsNone(self.matches(f"2026-01-01T00:00:00+0000 info {text}"), text)
            self.assertIsNone(self.matches(f"2026-01-01T00:00:00+0000 [mikanet.megaki.logs#info] {text}"), text)

    def test_jail(self) -> None:
        """The example of a jail uses the filter by the name that its file gets."""
        text = CONF.read_text().partition("# jail.d")[2]
        self.assertIn("filter = mikanet", text)
        self.assertIn("filter.d/mikanet.conf", CONF.read_text())
