"""Egress: which targets may be opened (X4)."""

from __future__ import annotations

import ipaddress
import random
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionRefusedError as TwistedRefused
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mikanet.address import Address
from mikanet.dial import MAX_ATTEMPTS
from mikanet.egress import Egress, EgressPolicy, OpenPorts, Rule, is_own_address, parse_rule, unwrap
from mikanet.errors import ConfigError, DestinationError, Reason
from mikanet.guard.targets import TargetLimits, Targets
from mikanet.relay import TARGETS
from tests.support.transports import MemoryTransport

#: Addresses that are refused by default, in many forms; every family of the list in the decision is here.
INNER = (
    "127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "0.0.0.0", "0.1.2.3",
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.255.255",
    "169.254.0.1", "169.254.169.254", "100.64.0.1", "100.127.255.254",
    "224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "192.0.0.1", "198.18.0.1", "192.0.2.1",
    "127.0.0.53", "10.10.10.10", "172.20.0.1", "192.168.100.1", "169.254.1.1",
    "192.0.0.8", "192.88.99.1",
)  # fmt: skip

INNER6 = (
    "::", "::1", "fe80::1", "febf::1", "fc00::1", "fd12:3456::1", "ff02::1", "ff0e::1", "2001:db8::1", "fec0::1", "100::1", "2001:2::1", "3fff::1", "5f00::1",
)  # fmt: skip


def wrapped(ip: str) -> list[str]:
    """The IPv6 addresses that lead to an IPv4 one."""
    four = ipaddress.IPv4Address(ip)
    number = int(four)
    return [
        f"::ffff:{ip}",
        f"64:ff9b::{ip}",
        str(ipaddress.IPv6Address(0x2002 << 112 | number << 80)),
        str(ipaddress.IPv6Address(0x20010000 << 96 | (number ^ 0xFFFFFFFF))),
    ] + ([f"::{ip}"] if number > 1 else [])


HOSTILE = [*INNER, *INNER6, *(form for ip in INNER for form in wrapped(ip))]

#: Names that the system's resolver takes for inner addresses.
HOSTILE_NAMES = (
    "localhost", "LOCALHOST", "localhost.", "ip6-localhost", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f.1",
    "0x7f000001", "2130706433", "017700000001", "0", "0x0", "00", "0.0", "10.1", "0xa.1", "012.0.0.1", "167772161",
    "192.168.1", "0xc0.0xa8.1.1", "0300.0250.1.1", "3232235777", "169.254.43518", "0xa9fea9fe", "2852039166",
    "0251.0376.0251.0376", "127.0.0.1.", "[::1]", "::1%lo",
)  # fmt: skip


class PolicyTests(SynchronousTestCase):
    """The policy by itself."""

    def test_hostile_targets(self) -> None:
        """None of 140 inner addresses, plain or wrapped in IPv6, is permitted by default."""
        self.assertGreater(len(HOSTILE), 140)
        policy = EgressPolicy()
        reached = [text for text in HOSTILE if policy.permits(ipaddress.ip_address(text), 80)]
        self.assertEqual(reached, [])

    def test_public_targets(self) -> None:
        """Public addresses are permitted."""
        for text in ("1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
            self.assertTrue(EgressPolicy().permits(ipaddress.ip_address(text), 443), text)

    def test_order_of_rules(self) -> None:
        """Deny goes before allow, allow before the default."""
        policy = EgressPolicy(
            allow=(parse_rule("10.0.0.0/8"), parse_rule("127.0.0.1:80-90")),
            deny=(parse_rule("10.1.0.0/16"), parse_rule("8.8.8.8:53")),
        )
        for text, port, permitted in (
            ("10.0.0.1", 1, True),
            ("10.1.0.1", 1, False),
            ("::ffff:10.1.0.1", 1, False),
            ("::ffff:10.0.0.1", 1, True),
            ("127.0.0.1", 79, False),
            ("127.0.0.1", 80, True),
            ("127.0.0.1", 91, False),
            ("8.8.8.8", 53, False),
            ("8.8.8.8", 54, True),
        ):
            self.assertEqual(policy.permits(ipaddress.ip_address(text), port), permitted, (text, port))

    def test_own_listening_address(self) -> None:
        """The server's own port on an own address is refused even where a rule allows it."""
        policy = EgressPolicy(
            allow=(parse_rule("0.0.0.0/0"), parse_rule("::/0")),
            own_ports=frozenset({8388}),
            is_own=lambda ip: str(ip) in ("127.0.0.1", "203.0.113.5", "2001:db8::5"),
        )
        for text in ("127.0.0.1", "203.0.113.5", "2001:db8::5", "::ffff:127.0.0.1", "0.0.0.0", "::"):
            self.assertFalse(policy.permits(ipaddress.ip_address(text), 8388), text)
            self.assertTrue(policy.permits(ipaddress.ip_address(text), 8389), text)
        self.assertTrue(policy.permits(ipaddress.ip_address("203.0.113.6"), 8388))

    def test_ports_that_are_open(self) -> None:
        """What the reactor listens on, however it was opened, is this server's; other ports of the machine are not."""
        everything = (parse_rule("0.0.0.0/0"),)
        policy = EgressPolicy(everything, is_own=is_own_address, listening=OpenPorts(global_reactor))
        adopted = socket.create_server(("127.0.0.1", 0))
        number = adopted.getsockname()[1]
        self.assertTrue(policy.permits(ipaddress.ip_address("127.0.0.1"), number))
        port = global_reactor.adoptStreamPort(adopted.fileno(), socket.AF_INET, Factory.forProtocol(Protocol))
        adopted.close()
        fresh = EgressPolicy(everything, is_own=is_own_address, listening=OpenPorts(global_reactor))
        for text in ("127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"):
            self.assertFalse(fresh.permits(ipaddress.ip_address(text), number), text)
        self.assertTrue(fresh.permits(ipaddress.ip_address("9.9.9.9"), number))
        port.stopListening()

    def test_own_public_address(self) -> None:
        """A public address of this machine is reached past its firewall, so it takes a rule to open it."""
        own = {"is_own": lambda ip: str(ip) == "8.8.8.8"}
        for text in ("8.8.8.8", "::ffff:8.8.8.8"):
            self.assertFalse(EgressPolicy(**own).permits(ipaddress.ip_address(text), 6379))
            allowed = EgressPolicy(allow=(parse_rule("8.8.8.8:443"),), **own)
            self.assertTrue(allowed.permits(ipaddress.ip_address(text), 443))
            self.assertFalse(allowed.permits(ipaddress.ip_address(text), 6379))
        self.assertTrue(EgressPolicy(**own).permits(ipaddress.ip_address("8.8.4.4"), 6379))

    def test_ipv6_rules_open_no_ipv4(self) -> None:
        """``::/0`` allows IPv6 targets, not IPv4 ones in IPv6 clothes; denying it denies those as well."""
        everything = (parse_rule("::/0"),)
        for form in wrapped("127.0.0.1"):
            self.assertFalse(EgressPolicy(allow=everything).permits(ipaddress.ip_address(form), 80), form)
        self.assertTrue(EgressPolicy(allow=everything).permits(ipaddress.ip_address("::1"), 80))
        self.assertFalse(EgressPolicy(deny=everything).permits(ipaddress.ip_address("::ffff:8.8.8.8"), 80))

    def test_own_addresses_of_this_machine(self) -> None:
        """Loopback is this machine's, a documentation address is not."""
        self.assertTrue(is_own_address(ipaddress.ip_address("127.0.0.1")))
        self.assertTrue(is_own_address(ipaddress.ip_address("127.9.9.9")))
        self.assertFalse(is_own_address(ipaddress.ip_address("203.0.113.77")))

    @settings(deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
    def test_wrapping_never_helps(self, number: int, port: int) -> None:
        """What is refused as IPv4 is refused in every IPv6 form of it."""
        four = ipaddress.IPv4Address(number)
        policy = EgressPolicy()
        if not policy.permits(four, port):
            for form in wrapped(str(four)):
                self.assertFalse(policy.permits(ipaddress.ip_address(form), port), form)

    def test_unwrap(self) -> None:
        """Each kind of IPv6 address that stands for an IPv4 one gives it; others give themselves."""
        for form in wrapped("10.1.2.3"):
            self.assertEqual(str(unwrap(ipaddress.ip_address(form))), "10.1.2.3", form)
        for text in ("::1", "::", "2606:4700::1", "10.1.2.3"):
            self.assertEqual(str(unwrap(ipaddress.ip_address(text))), text)


class RuleTests(SynchronousTestCase):
    """Rules as the user writes them."""

    def test_forms(self) -> None:
        """Networks and addresses, with one port, a range or none; IPv6 in brackets when a port follows."""
        for text, rule in (
            ("10.0.0.0/8", Rule(ipaddress.ip_network("10.0.0.0/8"))),
            ("10.0.0.7", Rule(ipaddress.ip_network("10.0.0.7/32"))),
            ("127.0.0.0/8:80", Rule(ipaddress.ip_network("127.0.0.0/8"), 80, 80)),
            ("127.0.0.0/8:80-90", Rule(ipaddress.ip_network("127.0.0.0/8"), 80, 90)),
            ("2001:db8::/32", Rule(ipaddress.ip_network("2001:db8::/32"))),
            ("::1", Rule(ipaddress.ip_network("::1/128"))),
            ("[2001:db8::/32]:443", Rule(ipaddress.ip_network("2001:db8::/32"), 443, 443)),
            ("[::1]", Rule(ipaddress.ip_network("::1/128"))),
        ):
            self.assertEqual(parse_rule(text), rule, text)

    def test_mistakes(self) -> None:
        """Everything else is the user's mistake, said in one line."""
        for text in (
            "", "x", "10.0.0.0/33", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:9-8", "10.0.0.1:a", "[::1",
            "[::1]x", "[::1]:", "::1:80:", "10.0.0.1:1-", "10.0.0.1:-1", "1.2.3", "10.0.0.0/8/8",
        ):  # fmt: skip
            with self.assertRaises(ConfigError, msg=text) as caught:
                parse_rule(text)
            self.assertNotIn("\n", str(caught.exception))


@implementer(IHostnameResolver, IReactorPluggableNameResolver)
class Resolving(MemoryReactorClock):
    """A memory reactor whose resolver answers with the next of a list of answers."""

    def __init__(self, *answers: list[str]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[str] = []

    @property
    def nameResolver(self) -> Any:
        """This object."""
        return self

    @nameResolver.setter
    def nameResolver(self, value: object) -> None:
        """The base class sets one of its own; it is not used."""

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: object, **__: object) -> Any:
        """Answer at once."""
        self.asked.append(hostName)
        receiver.resolutionBegan(self)
        for text in self.answers.pop(0):
            kind = IPv6Address if ":" in text else IPv4Address
            receiver.addressResolved(kind("TCP", text, portNumber))
        receiver.resolutionComplete()
        return self


class EgressTests(SynchronousTestCase):
    """Opening targets."""

    factory = Factory.forProtocol(Protocol)

    def refused(self, reactor: Any, host: str, policy: EgressPolicy | None = None) -> Reason:
        """The reason why a target is refused, having made sure that nothing was dialled."""
        deferred = Egress(reactor, policy or EgressPolicy()).connect(Address(host, 80), self.factory)
        failure = self.failureResultOf(deferred)
        self.assertEqual(reactor.tcpClients, [])
        assert isinstance(failure.value, DestinationError), failure
        return failure.value.reason

    def test_literal_addresses(self) -> None:
        """A permitted address is dialled as it is; a refused one is not."""
        reactor = Resolving()
        Egress(reactor, EgressPolicy()).connect(Address("8.8.8.8", 80), self.factory)
        self.assertEqual(reactor.tcpClients[0][:2], ("8.8.8.8", 80))
        for host in HOSTILE:
            self.assertEqual(self.refused(Resolving(), host), Reason.POLICY)

    def test_names_are_resolved_once_and_checked(self) -> None:
        """The connection goes to the address that was checked: a second answer is never asked for."""
        reactor = Resolving(["93.184.216.34"], ["127.0.0.1"])
        Egress(reactor, EgressPolicy()).connect(Address("rebinding.example", 80), self.factory)
        reactor.advance(5)
        self.assertEqual(reactor.asked, ["rebinding.example"])
        self.assertEqual([client[0] for client in reactor.tcpClients], ["93.184.216.34"])

    def test_inner_answers_are_left_out(self) -> None:
        """Of a name's addresses only the permitted ones are tried."""
        reactor = Resolving(["127.0.0.1", "::1", "93.184.216.34", "10.0.0.1"])
        Egress(reactor, EgressPolicy()).connect(Address("mixed.example", 80), self.factory)
        for _ in range(10):
            reactor.advance(0.5)
        self.assertEqual([client[0] for client in reactor.tcpClients], ["93.184.216.34"])

    def test_only_inner_answers(self) -> None:
        """A name that leads inside only is refused by policy."""
        for answer in HOSTILE:
            self.assertEqual(self.refused(Resolving([answer]), "inner.example"), Reason.POLICY)

    def test_happy_eyeballs(self) -> None:
        """When the first address does not answer the next is tried soon, and the first connection wins."""
        reactor = Resolving(["2606:4700::1", "93.184.216.34"])
        connecting = Egress(reactor, EgressPolicy()).connect(Address("dual.example", 80), self.factory)
        self.assertEqual([client[0] for client in reactor.tcpClients], ["2606:4700::1"])
        reactor.advance(0.3)
        self.assertEqual([client[0] for client in reactor.tcpClients], ["2606:4700::1", "93.184.216.34"])
        self.assertNoResult(connecting)

    def test_unknown_and_impossible_names(self) -> None:
        """A name without addresses, or that no name can be, fails without a dial."""
        failing = Egress(Resolving([]), EgressPolicy()).connect(Address("nowhere.example", 80), self.factory)
        self.failureResultOf(failing)
        self.assertEqual(self.refused(Resolving(), "a" * 64 + ".example"), Reason.HOST_UNREACHABLE)

    def test_connection_errors_pass(self) -> None:
        """What the network says comes through unchanged."""
        reactor = Resolving()
        connecting = Egress(reactor, EgressPolicy()).connect(Address("8.8.8.8", 80), self.factory)
        reactor.tcpClients[0][2].clientConnectionFailed(reactor.connectors[0], Failure(TwistedRefused()))
        self.failureResultOf(connecting, TwistedRefused)

    def test_outcomes_are_logged(self) -> None:
        """With the option: who wanted what, and what became of it; without it nothing."""
        lines: list[str] = []
        observer = lambda event: lines.append(formatEvent(event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for verbose in (False, True):
            reactor = Resolving(["192.0.2.1"], ["9.9.9.9"])
            egress = Egress(reactor, EgressPolicy(), verbose=verbose)
            self.failureResultOf(egress.connect(Address("127.0.0.1", 1), self.factory, "alice"), DestinationError)
            self.failureResultOf(egress.connect(Address("a.example", 80), self.factory, "bob"), DestinationError)
            self.successResultOf(egress.find(Address("b.example", 53), "carol"))
            refused = egress.connect(Address("8.8.8.8", 80), self.factory)
            reactor.advance(0.012)
            reactor.tcpClients[0][2].clientConnectionFailed(reactor.connectors[0], Failure(TwistedRefused()))
            self.failureResultOf(refused, TwistedRefused)
            egress.connect(Address("8.8.4.4", 80), self.factory, "dave").addErrback(lambda _: None).cancel()
            self.assertEqual(len(lines), 5 if verbose else 0, lines)
        self.assertEqual(
            lines,
            [
                "alice -> 127.0.0.1:1 TCP: refused by policy, 0 ms",
                "bob -> a.example:80 TCP: refused by policy, 0 ms",
                "carol -> b.example:53 UDP: open, 0 ms",
                "client -> 8.8.8.8:80 TCP: connection refused, 12 ms",
                "dave -> 8.8.4.4:80 TCP: given up by the client, 0 ms",
            ],
        )

    def test_resolve(self) -> None:
        """For datagrams the permitted addresses are given."""
        reactor = Resolving(["127.0.0.1", "9.9.9.9"], ["127.0.0.1"], [])
        egress = Egress(reactor, EgressPolicy())
        self.assertEqual([str(ip) for ip in self.successResultOf(egress.find(Address("a.example", 53)))], ["9.9.9.9"])
        for reason in (Reason.POLICY, Reason.HOST_UNREACHABLE):
            failure = self.failureResultOf(egress.find(Address("b.example", 53)), DestinationError)
            self.assertEqual(failure.value.reason, reason)
        self.assertEqual([str(ip) for ip in self.successResultOf(egress.find(Address("1.1.1.1", 53)))], ["1.1.1.1"])
        self.failureResultOf(egress.find(Address("127.0.0.1", 53)), DestinationError)

    def test_attempts_count(self) -> None:
        """Attempts at an address that never answers are counted for their user and in all, and end with the attempt."""
        reactor, targets = Resolving(), Targets(TargetLimits(10, 4))
        egress = Egress(reactor, EgressPolicy(), targets=targets)
        mine = [egress.connect(Address("8.8.8.8", 80), TARGETS, "alice") for _ in range(6)]
        for refused in mine[4:]:
            self.assertEqual(self.failureResultOf(refused, DestinationError).value.reason, Reason.LIMIT)
        self.assertEqual((len(reactor.tcpClients), targets.total), (4, 4))
        egress.connect(Address("8.8.8.8", 80), TARGETS, "bob")
        self.assertEqual(len(reactor.tcpClients), 5)
        mine[0].cancel()
        self.failureResultOf(mine[0])
        reactor.tcpClients[1][2].clientConnectionFailed(reactor.connectors[1], Failure(TwistedRefused()))
        self.failureResultOf(mine[1], TwistedRefused)
        self.assertEqual((targets.of("alice"), targets.total), (2, 3))

    def test_targets_count_until_their_end(self) -> None:
        """A target that is open counts until its transport is gone."""
        reactor, targets = Resolving(), Targets(TargetLimits(10, 4))
        connecting = Egress(reactor, EgressPolicy(), targets=targets).connect(Address("8.8.8.8", 80), TARGETS, "alice")
        transport = MemoryTransport()
        transport.connect(reactor.tcpClients[0][2].buildProtocol(None))
        self.successResultOf(connecting)
        self.assertEqual(targets.of("alice"), 1)
        transport.lose()
        self.assertEqual(targets.total, 0)

    def test_names_of_many_addresses(self) -> None:
        """Each address of a name that may be tried counts while it may be, and one when one has answered."""
        answer = [f"93.184.216.{index + 1}" for index in range(20)]
        reactor, targets = Resolving(answer, answer), Targets(TargetLimits(2 * MAX_ATTEMPTS - 1, 100))
        egress = Egress(reactor, EgressPolicy(), targets=targets)
        connecting = egress.connect(Address("many.example", 80), TARGETS, "alice")
        for _ in range(20):
            reactor.advance(0.3)
        self.assertLessEqual(len(reactor.tcpClients), MAX_ATTEMPTS)
        self.assertEqual(targets.of("alice"), MAX_ATTEMPTS)
        refused = egress.connect(Address("many.example", 80), TARGETS, "bob")
        reactor.advance(0.3)
        self.assertEqual(self.failureResultOf(refused, DestinationError).value.reason, Reason.LIMIT)
        MemoryTransport().connect(reactor.tcpClients[0][2].buildProtocol(None))
        self.successResultOf(connecting)
        self.assertEqual(targets.total, 1)

    def test_random_rules_agree_with_a_plain_search(self) -> None:
        """The policy agrees with the rules read one by one."""
        rng = random.Random(1)
        for _ in range(300):
            allow = tuple(self.random_rule(rng) for _ in range(rng.randint(0, 3)))
            deny = tuple(self.random_rule(rng) for _ in range(rng.randint(0, 3)))
            ip, port = ipaddress.IPv4Address(rng.getrandbits(32)), rng.randint(1, 65535)
            expected = not any(r.matches(ip, port) for r in deny) and (
                any(r.matches(ip, port) for r in allow) or EgressPolicy().permits(ip, port)
            )
            self.assertEqual(EgressPolicy(allow, deny).permits(ip, port), expected)

    def random_rule(self, rng: random.Random) -> Rule:
        """Some rule."""
        network = ipaddress.ip_network((rng.getrandbits(32), rng.randint(0, 8)), strict=False)
        low = rng.randint(1, 65535)
        return Rule(network, low, rng.randint(low, 65535))
