"""Looking names up: turns, time, memory, ends."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mikanet.address import parse_ip
from mikanet.errors import DestinationError, Reason
from mikanet.net.questions import Answer
from mikanet.net.resolve import Addresses, HostnameResolver, NameResolver, NameServers, Source
from tests.test_layers import MODULES


def ips(*texts: str) -> Addresses:
    """Addresses."""
    return tuple(ip for ip in map(parse_ip, texts) if ip is not None)


class Servers(Source):
    """Name servers in memory.

    :ivar asked: what they were asked, in order. :ivar open: questions without an answer yet. :ivar cancelled: those that
        nobody wanted any more.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open: dict[str, Deferred[Answer]] = {}
        self.cancelled: list[str] = []
        self.hosts: dict[str, Addresses] = {}

    def known(self, name: str) -> Addresses:
        return self.hosts.get(name, ())

    def look_up(self, name: str) -> Deferred[Answer]:
        def cancel(_: object) -> None:
            self.cancelled.append(name)
            self.open.pop(name, None)

        self.asked.append(name)
        self.open[name] = done = Deferred(cancel)
        return done

    def answer(self, name: str, *texts: str, ttl: float = 30.0) -> None:
        """One answer."""
        self.open.pop(name).callback(Answer(ips(*texts), ttl))

    def fail(self, name: str, problem: Exception) -> None:
        """No answer."""
        self.open.pop(name).errback(problem)


class ResolverTests(SynchronousTestCase):
    """:class:`NameResolver`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = Servers()
        self.names = NameResolver(self.clock, self.servers)

    def reason(self, looking: Deferred[Addresses]) -> Reason:
        """Why it failed."""
        return self.failureResultOf(looking, DestinationError).value.reason

    def test_what_needs_no_question(self) -> None:
        """IP addresses and names of the hosts file are answered at once, also while everything is full."""
        for number in range(300):
            self.names.resolve(f"silent{number}.example", number % 40).addErrback(lambda _: None)
        asked = len(self.servers.asked)
        self.servers.hosts["here.example"] = ips("192.0.2.9")
        self.assertEqual(self.successResultOf(self.names.resolve("192.0.2.1", "x")), ips("192.0.2.1"))
        self.assertEqual(self.successResultOf(self.names.resolve("2001:db8::1", "x")), ips("2001:db8::1"))
        self.assertEqual(self.successResultOf(self.names.resolve("Here.Example.", "x")), ips("192.0.2.9"))
        self.assertEqual(len(self.servers.asked), asked)

    def test_answers_are_kept(self) -> None:
        """By their TTL, for a minute at most; nothing is kept of an answer without one."""
        for ttl, kept in ((0.0, 0.0), (7.0, 7.0), (3600.0, 60.0)):
            host = f"ttl{ttl:g}.example"
            self.names.resolve(host)
            self.servers.answer(host, "192.0.2.1", ttl=ttl)
            if kept:
                self.clock.advance(kept - 0.1)
                self.assertEqual(self.successResultOf(self.names.resolve(host.upper())), ips("192.0.2.1"))
                self.clock.advance(0.2)
            self.assertNoResult(self.names.resolve(host))
            self.servers.answer(host, "192.0.2.2")

    def test_failures_are_kept_for_five_seconds(self) -> None:
        """A name that does not exist, and servers that do not answer."""
        first = self.names.resolve("none.example")
        self.servers.answer("none.example")
        self.assertEqual(self.reason(first), Reason.HOST_UNREACHABLE)
        second = self.names.resolve("broken.example")
        self.servers.fail("broken.example", DestinationError(Reason.TIMEOUT))
        self.assertEqual(self.reason(second), Reason.TIMEOUT)
        self.clock.advance(4.9)
        self.assertEqual(self.reason(self.names.resolve("none.example")), Reason.HOST_UNREACHABLE)
        self.assertEqual(self.reason(self.names.resolve("broken.example")), Reason.TIMEOUT)
        self.clock.advance(0.2)
        again = self.names.resolve("none.example")
        self.assertNoResult(again)
        again.addErrback(lambda _: None).cancel()

    def test_no_name(self) -> None:
        """What can be no name is an error at once; so is whatever a source comes up with."""
        self.assertEqual(self.reason(self.names.resolve("a b")), Reason.HOST_UNREACHABLE)
        odd = self.names.resolve("odd.example")
        self.servers.fail("odd.example", ValueError("odd"))
        self.assertEqual(self.reason(odd), Reason.HOST_UNREACHABLE)

    def test_limits(self) -> None:
        """At most 8 names of one user, and 64 of all, are asked at a time."""
        for number in range(20):
            self.names.resolve(f"a{number}.example", "a").addErrback(lambda _: None)
        self.assertEqual(len(self.servers.open), 8)
        for user in range(20):
            for number in range(10):
                self.names.resolve(f"u{user}-{number}.example", user).addErrback(lambda _: None)
        self.assertEqual(len(self.servers.open), 64)
        self.assertEqual(self.names.running, 64)

    def test_deadline(self) -> None:
        """Five seconds from the request, with the wait for a turn, and everything of it is gone."""
        looking = [self.names.resolve(f"silent{number}.example", "a") for number in range(40)]
        self.clock.advance(4.9)
        for each in looking:
            self.assertNoResult(each)
        self.clock.advance(0.2)
        self.assertEqual([self.reason(each) for each in looking], [Reason.TIMEOUT] * 40)
        self.assertEqual((self.servers.open, self.names.running), ({}, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """Who leaves takes the question along, and the next one begins."""
        looking = [self.names.resolve(f"silent{number}.example", "a") for number in range(9)]
        self.assertNotIn("silent8.example", self.servers.open)
        looking[0].cancel()
        self.failureResultOf(looking[0], CancelledError)
        self.assertEqual(self.servers.cancelled, ["silent0.example"])
        self.assertIn("silent8.example", self.servers.open)
        for each in reversed(looking[1:]):
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual((self.servers.open, self.names.running), ({}, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_shared(self) -> None:
        """Several who want one name share a question; it ends with the last of them."""
        first, second, third = (self.names.resolve("shared.example", user) for user in "abc")
        self.assertEqual(self.servers.asked, ["shared.example"])
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.servers.cancelled, [])
        self.servers.answer("shared.example", "192.0.2.1")
        self.assertEqual(self.successResultOf(second), ips("192.0.2.1"))
        self.assertEqual(self.successResultOf(third), ips("192.0.2.1"))

    def test_queues_are_not_shared(self) -> None:
        """A name that waits in one user's long queue is asked at once for another user."""
        for number in range(20):
            self.names.resolve(f"silent{number}.example", "a").addErrback(lambda _: None)
        waiting = self.names.resolve("wanted.example", "a")
        self.assertNotIn("wanted.example", self.servers.open)
        looking = self.names.resolve("wanted.example", "b")
        self.servers.answer("wanted.example", "192.0.2.1")
        self.assertEqual(self.successResultOf(looking), ips("192.0.2.1"))
        self.assertNoResult(waiting)
        waiting.addErrback(lambda _: None).cancel()

    def test_many_silent_names(self) -> None:
        """Eight users with names that are never answered do not keep another one waiting for longer than a second."""
        for user in range(8):
            for number in range(30):
                self.names.resolve(f"u{user}-{number}.example", user).addErrback(lambda _: None)
        self.assertEqual(self.names.running, 64)
        self.clock.advance(1.1)
        honest = self.names.resolve("honest.example", "honest")
        self.servers.answer("honest.example", "192.0.2.1")
        self.assertEqual(self.successResultOf(honest), ips("192.0.2.1"))

    def test_answer_within_the_question(self) -> None:
        """A source that answers, or fails, before look_up returns."""

        class AtOnce(Source):
            def look_up(self, name: str) -> Deferred[Answer]:
                done: Deferred[Answer] = Deferred()
                if name.startswith("bad"):
                    done.errback(DestinationError(Reason.REFUSED))
                else:
                    done.callback(Answer(ips("192.0.2.1"), 0.0))
                return done

        names = NameResolver(self.clock, AtOnce())
        for _ in range(20):
            self.assertEqual(self.successResultOf(names.resolve("good.example")), ips("192.0.2.1"))
        self.failureResultOf(names.resolve("bad.example"), DestinationError)
        self.assertEqual((names.running, self.clock.getDelayedCalls()), (0, []))

    def test_failing_at_once(self) -> None:
        """Hundreds of look-ups that wait and then fail as they begin all come to their end, without a deep stack."""

        class Down(Source):
            up = True

            def look_up(self, name: str) -> Deferred[Answer]:
                if self.up:
                    return Deferred()
                raise OSError("no way there")

        source = Down()
        names = NameResolver(self.clock, source)
        looking = [names.resolve(f"n{number}.example", "a") for number in range(264)]
        source.up = False
        looking[0].addErrback(lambda _: None).cancel()
        for each in looking[8:]:
            self.failureResultOf(each, DestinationError)
        for each in looking[1:8]:
            each.addErrback(lambda _: None).cancel()
        self.assertEqual((names.running, self.clock.getDelayedCalls()), (0, []))

    def test_a_newcomer_among_silent_names(self) -> None:
        """Who comes before the others are old enough to make room is looked up when they are."""
        for user in range(8):
            for number in range(8):
                self.names.resolve(f"u{user}-{number}.example", user).addErrback(lambda _: None)
        self.clock.advance(0.5)
        newcomer = self.names.resolve("newcomer.example", "newcomer")
        self.assertNotIn("newcomer.example", self.servers.open)
        for _ in range(2):
            self.clock.advance(0.5)
        self.servers.answer("newcomer.example", "192.0.2.1")
        self.assertEqual(self.successResultOf(newcomer), ips("192.0.2.1"))


class HostnameResolverTests(SynchronousTestCase):
    """For Twisted's endpoints."""

    def test_addresses(self) -> None:
        """Every address of the wanted kinds, then the end; a failure is an end without addresses."""
        clock, servers = Clock(), Servers()
        resolver = HostnameResolver(NameResolver(clock, servers))
        for kinds, expected in (
            (None, ["2001:db8::1", "192.0.2.1"]),
            ([IPv4Address], ["192.0.2.1"]),
            ([IPv6Address], ["2001:db8::1"]),
        ):
            receiver = Receiver()
            resolver.resolveHostName(receiver, "both.example", 80, kinds, "TCP")
            if "both.example" in servers.open:
                servers.answer("both.example", "2001:db8::1", "192.0.2.1")
            self.assertEqual(receiver.events, ["began", *expected, "complete"])
        receiver = Receiver()
        resolver.resolveHostName(receiver, "none.example")
        servers.answer("none.example")
        self.assertEqual(receiver.events, ["began", "complete"])
        receiver = Receiver()
        resolver.resolveHostName(receiver, "slow.example").cancel()
        self.assertEqual((receiver.events, servers.cancelled), (["began", "complete"], ["slow.example"]))


class Receiver:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def resolutionBegan(self, resolutionInProgress: object) -> None:
        self.events.append("began")

    def addressResolved(self, address: IPv4Address | IPv6Address) -> None:
        self.events.append(address.host)

    def resolutionComplete(self) -> None:
        self.events.append("complete")


class NameServersTests(SynchronousTestCase):
    """What this machine knows by itself."""

    def test_hosts_file(self) -> None:
        """It is read anew when it has changed, and may be missing; localhost is known without it."""
        with tempfile.TemporaryDirectory() as folder:
            hosts = Path(folder, "hosts")
            servers = NameServers(Clock(), lambda *_: Deferred(), Path(folder, "resolv.conf"), hosts)
            self.assertEqual(servers.known("a.example"), ())
            self.assertEqual(servers.known("localhost"), ips("::1", "127.0.0.1"))
            hosts.write_text("192.0.2.1 a.example\n127.0.0.1 localhost\n")
            self.assertEqual(servers.known("a.example"), ips("192.0.2.1"))
            self.assertEqual(servers.known("localhost"), ips("127.0.0.1"))
            hosts.write_text("192.0.2.22 a.example\n")
            self.assertEqual(servers.known("a.example"), ips("192.0.2.22"))
            hosts.unlink()
            self.assertEqual(servers.known("a.example"), ())


_LOOK_UPS = {"getaddrinfo", "gethostbyname", "nameResolver", "resolveHostName", "HostnameEndpoint"}


class OwnerTests(SynchronousTestCase):
    """There is one place that looks names up."""

    def test_nobody_else(self) -> None:
        """No module calls the C library's look-up, Twisted's, or an endpoint of Twisted's that does, while it runs."""
        # Before privileges are dropped, and in commands that end by themselves, waiting is what is wanted.
        blocking = {"mikanet.paqet.options", "mikanet.carriers.dns_check", "mikanet.cli.doctor_net"}
        numeric = {"mikanet.kcp.udp"}  # turns an address into the kernel's form, with AI_NUMERICHOST
        found = set()
        for name, path in MODULES.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            if used & _LOOK_UPS:
                found.add(name)
        self.assertEqual(found - blocking - numeric, {"mikanet.net.resolve"})
