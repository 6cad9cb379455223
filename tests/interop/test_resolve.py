"""Look-ups with real sockets: a name server of the test's own, with names that it never answers."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mikanet.dial import Dialer
from mikanet.errors import DestinationError, Reason
from mikanet.net.resolve import NameResolver, NameServers
from tests.lab.name_server import NameServer

reactor: Any = global_reactor


class LookUpTests(TestCase):
    """:class:`NameServers` under :class:`NameResolver`."""

    timeout = 60

    def setUp(self) -> None:
        self.server = NameServer()
        self.addCleanup(self.server.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.resolv_conf = Path(folder.name, "resolv.conf")
        self.resolv_conf.write_text("nameserver 127.0.0.1\nsearch corp.example\n")
        hosts = Path(folder.name, "hosts")
        hosts.write_text("192.0.2.77 here.example\n")
        source = NameServers(reactor, Dialer(reactor).connect, self.resolv_conf, hosts, self.server.port)
        self.names = NameResolver(reactor, source)

    @inlineCallbacks
    def look_up(self, host: str) -> Any:
        """The addresses as sorted texts, or the reason why there are none."""
        try:
            found = yield self.names.resolve(host)
        except DestinationError as problem:
            return problem.reason
        return sorted(str(ip) for ip in found)

    @inlineCallbacks
    def test_answers(self) -> Any:
        """Both families; over TCP what is too long; what is forged is skipped; names that do not exist."""
        both = ["192.0.2.1", "2001:db8::1"]
        for host, expected in (
            ("www.example", both),
            ("a_b.example", both),
            ("r3---sn-x.example", both),
            ("long.example", both),
            ("forged.example", both),
            ("four.example", ["192.0.2.1"]),
            ("here.example", ["192.0.2.77"]),
            ("none.example", Reason.HOST_UNREACHABLE),
            ("broken.example", Reason.HOST_UNREACHABLE),
            ("bücher.example", both),
        ):
            found = yield self.look_up(host)
            self.assertEqual(found, expected, host)
        self.assertIn("xn--bcher-kva.example.", self.server.asked)
        self.assertNotIn("here.example.", self.server.asked)

    @inlineCallbacks
    def test_one_family(self) -> Any:
        """That a name has no address of one family takes nothing from how long those of the other are kept."""
        for _ in range(3):
            found = yield self.look_up("only.example")
            self.assertEqual(found, ["192.0.2.1"])
        self.assertEqual(self.server.asked.count("only.example."), 2)

    @inlineCallbacks
    def test_truncated_again_and_again(self) -> Any:
        """However often a server says that an answer is too long, it is asked by TCP once for each family."""
        found = yield self.look_up("many.example")
        self.assertEqual(len(found), 2)
        self.assertLessEqual(self.server.asked.count("many.example."), 4)

    @inlineCallbacks
    def test_search(self) -> Any:
        """A name without a dot is looked for in the search domains first, one with a dot never."""
        yield self.look_up("printer")
        self.assertEqual(set(self.server.asked), {"printer.corp.example."})
        self.server.asked.clear()
        yield self.look_up("none")
        self.assertEqual(set(self.server.asked), {"none.corp.example.", "none."})

    @inlineCallbacks
    def test_dead_server(self) -> Any:
        """Where nobody listens the next server is asked at once; without one the look-up fails at once."""
        self.resolv_conf.write_text("nameserver 127.0.0.9\nnameserver 127.0.0.1\n")
        began = time.monotonic()
        found = yield self.look_up("www.example")
        self.assertEqual(len(found), 2)
        self.resolv_conf.write_text("nameserver 127.0.0.9\n")
        found = yield self.look_up("other.example")
        self.assertEqual(found, Reason.HOST_UNREACHABLE)
        self.assertLess(time.monotonic() - began, 2.0)

    @inlineCallbacks
    def test_lost_question(self) -> Any:
        """A question that is lost is asked again after a second, of the next server."""
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.8", self.server.port))
        self.resolv_conf.write_text("nameserver 127.0.0.8\nnameserver 127.0.0.1\n")
        began = time.monotonic()
        found = yield self.look_up("www.example")
        self.assertEqual(len(found), 2)
        self.assertGreater(time.monotonic() - began, 0.9)
        self.assertLess(time.monotonic() - began, 3.0)

    @inlineCallbacks
    def test_ports_are_not_reused(self) -> Any:
        """Each look-up goes out from a port of its own: together with the number, that is what a forger has to guess."""
        for number in range(20):
            yield self.look_up(f"www{number}.example")
        self.assertGreaterEqual(len({port for _, port in self.server.sources}), 19)

    @inlineCallbacks
    def test_silent_names(self) -> Any:
        """A thousand honest look-ups beside 40 silent names of another user take no longer than alone."""
        alone = yield self._honest("alone")
        silent = [self.names.resolve(f"silent{number}.example", "hostile") for number in range(40)]
        for each in silent:
            each.addErrback(lambda _: None)
        beside = yield self._honest("beside")
        self.assertLess(beside - alone, 0.1)
        for each in silent:
            each.cancel()

    @inlineCallbacks
    def _honest(self, word: str) -> Any:
        """1,000 look-ups of ten users, twenty at a time; the 95th percentile of their times in seconds."""
        times: list[float] = []
        for turn in range(50):
            began = time.monotonic()
            looking: list[Deferred[Any]] = []
            for number in range(20):
                each = self.names.resolve(f"{word}{turn}x{number}.example", number % 10)
                each.addCallback(lambda _, began=began: times.append(time.monotonic() - began))
                looking.append(each)
            yield DeferredList(looking, fireOnOneErrback=True)
        self.assertEqual(len(times), 1000)
        return sorted(times)[950]

    @inlineCallbacks
    def test_nothing_is_left(self) -> Any:
        """Whoever leaves takes sockets and timers along."""
        before = _sockets()
        looking = [self.names.resolve(f"silent{number}.example", number) for number in range(60)]
        self.assertGreaterEqual(_sockets(), before + 50)
        for each in looking:
            each.addErrback(lambda _: None)
            each.cancel()
        yield deferLater(reactor, 0.05)
        self.assertEqual((_sockets(), self.names.running), (before, 0))
        self.assertEqual(reactor.getDelayedCalls(), [call for call in reactor.getDelayedCalls() if not _ours(call)])


def _sockets() -> int:
    """Sockets that this process has open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def _ours(call: Any) -> bool:
    return "mikanet" in getattr(call.func, "__module__", "")
